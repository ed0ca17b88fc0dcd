package format

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"reflect"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/index"
)

// Verify writes a layer's tar again, from its index and its complete flat
// blob, and checks it against the digest that the image's configuration gives.
// It also takes the tar apart again and compares: an index whose entries are
// not what its tar says does not pass.
func Verify(ctx context.Context, f *index.File, flat io.ReaderAt) error {
	digests, err := f.Digests()
	if err != nil {
		return err
	}
	again, err := rebuild(ctx, f, flat)
	if err != nil {
		return err
	}
	defer again.framing.Close()
	entries := again.entries
	sum := sha256.New()
	tar := io.TeeReader(again, sum)
	n, d := 0, 0
	use := &usage{Limits: Limits{Ratio: math.MaxInt64}.withDefaults()} // the layer is here already
	err = readTar(tar, use, io.Discard, nil, func(e *index.Entry, got *index.SHA256) error {
		if n == len(entries) {
			return fmt.Errorf("%w: the tar has %q, the index does not", ErrCorrupt, e.Name)
		}
		e.Off = entries[n].Off
		if !reflect.DeepEqual(*e, entries[n]) {
			return fmt.Errorf("%w: the tar has another entry %q than the index", ErrCorrupt, e.Name)
		}
		n++
		if got == nil {
			return nil
		}
		if d == len(digests) || *got != digests[d] {
			return fmt.Errorf("%w: %q does not have the digest that the index gives", ErrCorrupt, e.Name)
		}
		d++
		return nil
	})
	if err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, sum); got != f.DiffID || n < len(entries) || d < len(digests) {
		return fmt.Errorf("%w: the tar has the digest %s and %d entries, and should have %s and %d", ErrCorrupt, got, n, f.DiffID, len(entries))
	}
	return nil
}

// rebuilt is a layer's tar, read from its framing and its flat blob.
type rebuilt struct {
	ctx     context.Context
	framing io.ReadCloser
	flat    io.ReaderAt
	entries []index.Entry // whose data is still to come
	extents []run         // of the first of them
	at      int64         // in the tar
}

// rebuild begins the tar of a layer. The caller closes its framing.
func rebuild(ctx context.Context, f *index.File, flat io.ReaderAt) (*rebuilt, error) {
	entries, err := f.Entries()
	if err != nil {
		return nil, err
	}
	framing, err := f.Framing()
	return &rebuilt{ctx: ctx, framing: framing, flat: flat, entries: entries}, err
}

// run is a piece of a file's data.
type run struct{ tar, flat, len int64 }

// Read implements io.Reader.
func (r *rebuilt) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	for len(r.extents) == 0 && len(r.entries) > 0 {
		e := &r.entries[0]
		for x := range e.Extents() {
			r.extents = append(r.extents, run{tar: x.TarOff, flat: e.Off + x.Off, len: x.Len})
		}
		r.entries = r.entries[1:]
	}
	var n int
	var err error
	switch {
	case len(r.extents) == 0:
		n, err = r.framing.Read(p)
	case r.at < r.extents[0].tar:
		n, err = r.framing.Read(p[:min(int64(len(p)), r.extents[0].tar-r.at)])
		if n > 0 {
			err = nil
		}
	default:
		x := &r.extents[0]
		n, err = r.flat.ReadAt(p[:min(int64(len(p)), x.len)], x.flat)
		x.tar, x.flat, x.len = x.tar+int64(n), x.flat+int64(n), x.len-int64(n)
		if n > 0 {
			err = nil
		}
		if x.len == 0 {
			r.extents = r.extents[1:]
		}
	}
	r.at += int64(n)
	if err == io.EOF && len(r.entries)+len(r.extents) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
