package fs_test

import (
	"fmt"
	"log"

	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/fs"
)

// Two layers: the upper one replaces a file, and its whiteout hides another.
func ExampleMerge() {
	tree, err := fs.Merge([][]index.Entry{
		{
			{Name: "etc", Type: index.Dir, Mode: 0o755},
			{Name: "etc/hostname", Mode: 0o644, Size: 5},
			{Name: "etc/motd", Mode: 0o644, Size: 100},
		},
		{
			{Name: "etc/hostname", Mode: 0o600, Size: 8},
			{Name: "etc/.wh.motd"},
			{Name: "bin", Type: index.Symlink, Mode: 0o777, Link: "usr/bin"},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	var list func(dir fs.NodeID, path string)
	list = func(dir fs.NodeID, path string) {
		for name, id := range tree.Children(dir) {
			a := tree.Attr(id)
			fmt.Printf("layer %d: %s%s\n", a.Layer, path, name)
			list(id, path+name+"/")
		}
	}
	list(fs.Root, "/")
	// Output:
	// layer 1: /bin
	// layer 0: /etc
	// layer 1: /etc/hostname
}
