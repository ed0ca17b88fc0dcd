package format

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/peelfs/peel/content/index"
)

// CheckSpans puts the tar of a layer together again, from its index and its
// flat blob, and compares the spans that has names with their digests. It
// calls checked for each of them, in order. Of the flat blob it reads only the
// data of these spans.
func CheckSpans(ctx context.Context, f *index.File, flat io.ReaderAt, has func(span int) bool, checked func(span int, ok bool)) error {
	spans, err := f.Spans()
	if err != nil {
		return err
	}
	door := &door{flat: flat}
	tar, err := rebuild(ctx, f, door)
	if err != nil {
		return err
	}
	defer tar.framing.Close()
	for i := range spans {
		var out io.Writer = io.Discard
		sum := sha256.New()
		if door.open = has(i); door.open {
			out = sum
		}
		if _, err := io.CopyN(out, tar, spans[i].TarLen); err != nil {
			return fmt.Errorf("check span %d: %w", i, err)
		}
		if door.open {
			checked(i, index.SHA256(sum.Sum(nil)) == spans[i].Digest)
		}
	}
	return nil
}

// door is a flat blob that is read only while it is open. Closed, it gives as
// many bytes of nothing.
type door struct {
	flat io.ReaderAt
	open bool
}

// ReadAt implements io.ReaderAt.
func (d *door) ReadAt(p []byte, off int64) (int, error) {
	if !d.open {
		return len(p), nil
	}
	return d.flat.ReadAt(p, off)
}
