package content_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content"
)

// info returns what a store says of its only layer.
func info(t *testing.T, s *content.Store) content.LayerInfo {
	t.Helper()
	all, err := s.Layers()
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	return all[0]
}

func TestLayers(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	one, two := openStore(t, root), openStore(t, root) // two stores are to locks as two processes
	from := l.open(t, one)
	if i := info(t, two); !i.InUse || i.Present != 0 || i.Complete || i.Blob != l.id.Blob || i.From != "test" || i.Disk == 0 {
		t.Errorf("a new layer: %+v", i)
	}
	l.read(t, from, 0, 1)
	if i := info(t, two); i.Present != from.Stats().Present || i.Bytes != int64(len(l.flat)) || i.Present == 0 {
		t.Errorf("after a read: %+v", i)
	}
	l.read(t, from, 0, int64(len(l.flat)))
	if i := info(t, two); !i.Complete || i.Present != i.Bytes || i.Disk < i.Bytes/2 || i.Used.Before(i.Added.Truncate(1e9)) {
		t.Errorf("when it is complete: %+v", i)
	}
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	if i := info(t, one); i.InUse {
		t.Errorf("when it is closed: %+v", i)
	}
	if got, err := two.LayerID(l.id.Blob); err != nil || got != l.id {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := two.LayerID(digest.FromString("none")); !errors.Is(err, content.ErrNoIndex) {
		t.Errorf("error %v", err)
	}
}

// The map of another start of the machine does not count, what was made
// durable does.
func TestLayersAfterReboot(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	s := openStore(t, root)
	from := l.open(t, s)
	l.read(t, from, 0, 1)
	want := from.Stats().Present
	if err := from.Close(); err != nil { // syncs
		t.Fatal(err)
	}
	reboot(t, root)
	if i := info(t, s); i.Present != want || want == 0 {
		t.Errorf("%+v, want %d present", i, want)
	}
}

func TestLayersDamaged(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"cut":   func(path string) error { return os.Truncate(path, 70) },
		"short": func(path string) error { return os.Truncate(path, 3) },
		"huge": func(path string) error {
			return os.WriteFile(path, append([]byte("peel-map"), bytes.Repeat([]byte{0xff}, 80)...), 0o600)
		},
		"gone": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayer(t, "gzip")
			root := t.TempDir()
			s := openStore(t, root)
			if err := l.open(t, s).Close(); err != nil {
				t.Fatal(err)
			}
			if err := damage(l.file(root, "map")); err != nil {
				t.Fatal(err)
			}
			if i := info(t, s); i.Present != 0 || i.Complete {
				t.Errorf("%+v", i)
			}
		})
	}
}

func TestRemove(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	one, two := openStore(t, root), openStore(t, root)
	from := l.open(t, one)
	l.read(t, from, 0, 1)
	for _, s := range []*content.Store{one, two} {
		if err := s.Remove(l.id.Blob); !errors.Is(err, content.ErrInUse) {
			t.Errorf("an open layer is removed: %v", err)
		}
	}
	l.read(t, from, 0, int64(len(l.flat)))
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	if err := two.Remove(l.id.Blob); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(root, "[lt]*", l.id.Blob.Encoded(), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := one.Layer(l.id, nil); !errors.Is(err, content.ErrNoIndex) {
		t.Errorf("it is still there: %v", err)
	}
	if err := one.Remove(l.id.Blob); err != nil {
		t.Errorf("the second time: %v", err)
	}
	from = l.open(t, one)
	defer from.Close()
	if st := from.Stats(); st.Present != 0 {
		t.Errorf("when it is back: %+v", st)
	}
	l.read(t, from, 0, int64(len(l.flat)))
}

// A layer that is being made is not removed.
func TestRemoveWhileMade(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	one, two := openStore(t, root), openStore(t, root)
	asked, goOn := make(chan struct{}), make(chan struct{})
	l.src.hold = func(context.Context) { close(asked); <-goOn }
	made := make(chan error)
	go func() { made <- one.Ingest(context.Background(), l.id, l.src, nil) }()
	<-asked
	if err := two.Remove(l.id.Blob); !errors.Is(err, content.ErrInUse) {
		t.Errorf("error %v", err)
	}
	close(goOn)
	if err := <-made; err != nil {
		t.Error(err)
	}
	if i := info(t, two); !i.Complete || i.InUse {
		t.Errorf("%+v", i)
	}
}

// Whoever has opened a layer reads the right bytes, whatever others remove.
func TestRemoveAndReadAtOnce(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	var wg sync.WaitGroup
	for worker := range 4 {
		s := openStore(t, root)
		wg.Go(func() {
			for round := range 20 {
				if (worker+round)%2 == 0 {
					if err := s.Remove(l.id.Blob); err != nil && !errors.Is(err, content.ErrInUse) {
						t.Error(err)
					}
					continue
				}
				if err := s.AddIndex(context.Background(), l.id, l.raw, "test"); err != nil {
					t.Error(err)
				}
				from, err := s.Layer(l.id, nil)
				if errors.Is(err, content.ErrNoIndex) {
					continue // removed in between
				}
				if err != nil {
					t.Error(err)
					continue
				}
				if st := from.Stats(); st.Bytes != int64(len(l.flat)) {
					t.Errorf("%+v", st)
				}
				var raw bytes.Buffer
				if _, err := from.WriteIndex(&raw); err != nil || !bytes.Equal(raw.Bytes(), l.raw) {
					t.Errorf("another index: %v", err)
				}
				if err := from.Close(); err != nil && err != io.EOF {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestListImages(t *testing.T) {
	s := openStore(t, t.TempDir())
	for _, platform := range []string{"", "linux/arm64"} {
		if err := s.PutImage(content.Image{Ref: "example.com/a:1", Platform: platform, Digest: "sha256:x"}); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := s.Images(); err != nil || len(all) != 2 || all[1].Platform != "linux/arm64" {
		t.Errorf("%+v, %v", all, err)
	}
	if err := s.RemoveImage("example.com/a:1", "linux/arm64"); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Images(); err != nil || len(all) != 1 || all[0].Platform != "" {
		t.Errorf("%+v, %v", all, err)
	}
}
