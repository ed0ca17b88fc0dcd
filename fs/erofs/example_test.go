package erofs_test

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/fs/erofs"
)

// A layer becomes an image, if it can be a lower directory of its own.
func Example() {
	entries := []index.Entry{
		{Name: "etc", Type: index.Dir, Mode: 0o755},
		{Name: "etc/hostname", Mode: 0o644, Size: 5},
		{Name: "etc/.wh.motd"},
	}
	flatSize := index.LayOut(entries)

	root, err := erofs.FromLayer(entries, nil)
	var lower *erofs.StandaloneError
	if errors.As(err, &lower) {
		fmt.Println("mount it in another way:", lower)
		return
	} else if err != nil {
		fmt.Println(err)
		return
	}
	var image bytes.Buffer
	if err := erofs.Write(&image, root, []int64{flatSize}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(image.Len(), "bytes")
	// Output: 8192 bytes
}
