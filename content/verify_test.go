package content_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/content/internal/sample"
)

// file returns the path of one of the layer's files in the store.
func (l *layer) file(root, name string) string {
	return filepath.Join(root, "layers", l.id.Blob.Encoded(), name)
}

// data returns the place in the flat blob of the middle of a file, and the span
// that it is in.
func (l *layer) data(t *testing.T, name string) (off int64, span int) {
	t.Helper()
	f, err := index.Open(bytes.NewReader(l.raw), int64(len(l.raw)))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := f.Entries()
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if e := &entries[i]; e.Name == name {
			span := slices.IndexFunc(l.spans, func(s index.Span) bool { return s.TarOff+s.TarLen > e.TarOff+e.Size/2 })
			return e.Off + e.Size/2, span
		}
	}
	t.Fatalf("no file %s", name)
	return 0, 0
}

// flip changes one byte of a file.
func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x20
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// complete reads all of the layer and waits until it is verified.
func (l *layer) complete(t *testing.T, from *content.Layer) {
	t.Helper()
	l.read(t, from, 0, int64(len(l.flat)))
	if err := from.Verify(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func verifyPresent(t *testing.T, l *content.Layer) content.Checked {
	t.Helper()
	c, err := l.VerifyPresent(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What another hand has changed is found and fetched anew, of a complete layer
// and of one that is not, in every encoding.
func TestVerifyPresent(t *testing.T) {
	for encoding := range sample.Encodings {
		t.Run(encoding, func(t *testing.T) {
			l := newLayer(t, encoding)
			root := t.TempDir()
			from := l.open(t, openStore(t, root))
			defer from.Close()
			if c := verifyPresent(t, from); c.Bad != 0 || c.Stray != 0 {
				t.Errorf("an empty layer: %+v", c)
			}
			one, inOne := l.data(t, "d/file9")
			other, inOther := l.data(t, "mixed20")
			l.read(t, from, one, 1)
			if from.Stats().Complete { // it has one span
				l.complete(t, from)
			}
			flip(t, l.file(root, "flat"), one)
			flip(t, l.file(root, "flat"), other) // is not present, so it does not matter
			if c := verifyPresent(t, from); c.Bad != 1 || c.Refetched != 1 || c.BadBytes == 0 {
				t.Errorf("a layer of one bad span: %+v", c)
			}
			l.complete(t, from)
			flip(t, l.file(root, "flat"), one)
			flip(t, l.file(root, "flat"), other)
			bad := 2
			if inOne == inOther {
				bad = 1
			}
			if c := verifyPresent(t, from); c.Bad != bad || c.Refetched != bad || c.Spans != max(1, len(l.spans)) {
				t.Errorf("a complete layer with %d bad spans of %d: %+v", bad, len(l.spans), c)
			}
			l.read(t, from, 0, int64(len(l.flat)))
			if c := verifyPresent(t, from); c.Bad != 0 || c.Stray != 0 || !from.Stats().Complete {
				t.Errorf("after the repair: %+v", c)
			}
		})
	}
}

// Without a source the bad span is dropped, for all who have the layer open.
func TestVerifyWithoutSource(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	from := l.open(t, openStore(t, root))
	defer from.Close()
	l.complete(t, from)
	at, _ := l.data(t, "d/file9")
	flip(t, l.file(root, "flat"), at)
	other, err := openStore(t, root).Layer(l.id, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if c := verifyPresent(t, other); c.Bad != 1 || c.Refetched != 0 {
		t.Errorf("%+v", c)
	}
	if _, err := other.ReadAtContext(context.Background(), make([]byte, 1), at); err == nil {
		t.Error("what was dropped is read")
	}
	l.read(t, from, at-2000, 4000)
}

func TestVerifyRegistryGone(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	from := l.open(t, openStore(t, root))
	defer from.Close()
	l.complete(t, from)
	at, _ := l.data(t, "d/file9")
	flip(t, l.file(root, "flat"), at)
	gone := errors.New("connection refused")
	l.src.err.Store(&gone)
	if c, err := from.VerifyPresent(context.Background()); !errors.Is(err, gone) || c.Bad != 1 || c.Refetched != 0 {
		t.Errorf("%+v, %v", c, err)
	}
	l.src.err.Store(nil)
	l.read(t, from, at-2000, 4000)
}

func TestVerifyLayerWithoutSpans(t *testing.T) {
	l := newLayer(t, "gzip")
	f, err := index.Open(bytes.NewReader(l.raw), int64(len(l.raw)))
	if err != nil {
		t.Fatal(err)
	}
	l.raw = reencode(t, f, func(b *index.Builder) { b.Spans = nil })
	root := t.TempDir()
	from := l.open(t, openStore(t, root))
	defer from.Close()
	if c := verifyPresent(t, from); c != (content.Checked{}) {
		t.Errorf("an empty layer: %+v", c)
	}
	l.complete(t, from)
	at, _ := l.data(t, "mixed3")
	flip(t, l.file(root, "flat"), at)
	if c := verifyPresent(t, from); c.Bad != 1 || c.Refetched != 1 {
		t.Errorf("%+v", c)
	}
	l.read(t, from, 0, int64(len(l.flat)))
}

// blockBits returns where the blocks' bits start in the layer's map.
func (l *layer) blockBits() int64 { return 64 + int64(len(l.spans)+31)/32*4 }

// A map that says more than there is costs no wrong bytes.
func TestVerifyFindsStrayBlocks(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	from := l.open(t, openStore(t, root))
	defer from.Close()
	at, _ := l.data(t, "d/file9")
	block := at / index.BlockSize
	f, err := os.OpenFile(l.file(root, "map"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{1 << (block % 8)}, l.blockBits()+block/8); err != nil {
		t.Fatal(err)
	}
	if _, ok := from.Local(at, 1); !ok {
		t.Fatal("the block is not marked")
	}
	if c := verifyPresent(t, from); c.Stray != 1 || c.Bad != 0 {
		t.Errorf("%+v", c)
	}
	l.read(t, from, at, 1)
}

// A process may be killed when it has marked a span and not yet its blocks.
func TestSpansWithoutBlocks(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	from := l.open(t, openStore(t, root))
	defer from.Close()
	l.read(t, from, 0, int64(len(l.flat)))
	f, err := os.OpenFile(l.file(root, "map"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, st.Size()-l.blockBits()), l.blockBits()); err != nil {
		t.Fatal(err)
	}
	l.read(t, from, 0, int64(len(l.flat)))
	l.onceFetched(t)
}

func TestPresentBytes(t *testing.T) {
	l := newLayer(t, "gzip")
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	size := int64(len(l.flat))
	if got := from.PresentBytes(0, size); got != 0 {
		t.Errorf("%d bytes are present of an empty layer", got)
	}
	if _, err := from.ReadAtContext(context.Background(), make([]byte, size), 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	for _, tt := range []struct{ off, n, want int64 }{
		{0, size, size}, {0, 1, 1}, {1, 1, 1}, {4095, 2, 2}, {100, 9000, 9000}, {size - 1, 1, 1}, {size, 1, 0}, {-1, 1, 0}, {0, 0, 0},
	} {
		if got := from.PresentBytes(tt.off, tt.n); got != tt.want {
			t.Errorf("%d bytes at %d: %d are present, want %d", tt.n, tt.off, got, tt.want)
		}
	}
}
