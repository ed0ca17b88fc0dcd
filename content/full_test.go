package content_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/peelfs/peel/content"
	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system with room for size bytes.
func smallDisk(t *testing.T, size string) (mnt string) {
	t.Helper()
	needMount(t)
	mnt = t.TempDir()
	if err := unix.Mount("none", mnt, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, mnt) })
	return mnt
}

// fillUp takes all the room that is left on a disk but some bytes, and returns
// what gives it back.
func fillUp(t *testing.T, mnt string, but int64) (free func()) {
	t.Helper()
	path := filepath.Join(mnt, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for page := make([]byte, 4096); err == nil; {
		_, err = f.Write(page)
	}
	size, seekErr := f.Seek(0, io.SeekCurrent)
	if !errors.Is(err, unix.ENOSPC) || seekErr != nil {
		t.Fatal(err, seekErr)
	}
	if err := errors.Join(f.Truncate(max(0, size-but)), f.Close()); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// logged is a log that can be waited for.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // has something when there is more
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

// lines returns those at a level.
func (l *logged) lines(level string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, "level="+level) {
			found = append(found, line)
		}
	}
	return found
}

// await waits for a line.
func (l *logged) await(t *testing.T, what string) {
	t.Helper()
	for deadline := time.After(time.Minute); ; {
		l.mu.Lock()
		found := strings.Contains(l.text.String(), what)
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-l.more:
		case <-deadline:
			t.Fatalf("nobody says %q:\n%s", what, &l.text)
		}
	}
}

func openLogged(t *testing.T, root string) (*content.Store, *logged) {
	t.Helper()
	log := &logged{more: make(chan struct{}, 1)}
	s, err := content.Open(root, content.Options{Log: slog.New(slog.NewTextHandler(log, nil)), SyncInterval: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, log
}

// check reads n bytes at off and compares them. They need not be kept.
func (l *layer) check(t *testing.T, from *content.Layer, off, n int64) {
	t.Helper()
	p := make([]byte, n)
	got, err := from.ReadAtContext(context.Background(), p, off)
	if err != nil && err != io.EOF || !bytes.Equal(p[:got], l.flat[off:min(off+n, int64(len(l.flat)))]) {
		t.Fatalf("wrong bytes at %d: %v", off, err)
	}
	if f, ok := from.Local(off, int64(got)); ok {
		if _, err := f.ReadAt(p[:got], off); err != nil || !bytes.Equal(p[:got], l.flat[off:off+int64(got)]) {
			t.Fatalf("what is present at %d is wrong: %v", off, err)
		}
	}
}

// readUntilComplete reads all of a layer until all of it is kept.
func (l *layer) readUntilComplete(t *testing.T, from *content.Layer) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !from.Stats().Complete; {
		if time.Now().After(deadline) {
			t.Fatalf("there is room, and not all is kept: %+v", from.Stats())
		}
		for off := int64(0); off < int64(len(l.flat)); off += 100_000 {
			l.check(t, from, off, 100_000)
		}
	}
	l.read(t, from, 0, int64(len(l.flat)))
	l.complete(t, from)
}

// With a full disk everything can be read, some of it is kept, and when there
// is room again all is.
func TestDiskFull(t *testing.T) {
	for _, encoding := range []string{"gzip", "twin", "tar"} {
		t.Run(encoding, func(t *testing.T) { diskFull(t, encoding) })
	}
}

func diskFull(t *testing.T, encoding string) {
	l := newLayer(t, encoding)
	mnt := smallDisk(t, "64m")
	root := filepath.Join(mnt, "store")
	s, log := openLogged(t, root)
	from := l.open(t, s)
	defer from.Close()
	size := int64(len(l.flat))
	free := fillUp(t, mnt, size/3)
	for _, step := range []int64{4096, 100_000, size} {
		for off := int64(0); off < size; off += step {
			l.check(t, from, off, step)
		}
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		l.check(t, from, r.Int64N(size), 1+r.Int64N(1<<20))
	}
	st := from.Stats()
	if st.Complete || st.Present == 0 || st.Present > size/2 {
		t.Errorf("on a full disk there is %+v", st)
	}
	if c, err := from.VerifyPresent(context.Background()); err != nil || c.Bad != 0 || c.Stray != 0 {
		t.Errorf("%+v, %v", c, err)
	}
	log.await(t, "no room")
	if said := log.lines("ERROR"); len(said) != 1 {
		t.Errorf("a full disk is said %d times: %q", len(said), said)
	}
	free()
	l.readUntilComplete(t, from)
	log.await(t, "there is room on the disk of the store again")
	if said := log.lines("ERROR"); len(said) != 1 {
		t.Errorf("%q", said)
	}
	if c := verifyPresent(t, from); c.Bad != 0 || c.Spans != len(l.spans) {
		t.Errorf("%+v", c)
	}
}

// What was kept before the disk was full is there after the machine restarts,
// and nothing else is taken to be.
func TestDiskFullAndReboot(t *testing.T) {
	l := newLayer(t, "gzip")
	mnt := smallDisk(t, "64m")
	root := filepath.Join(mnt, "store")
	s, log := openLogged(t, root)
	from := l.open(t, s)
	l.read(t, from, 0, 1<<20)
	free := fillUp(t, mnt, 0)
	for off := int64(0); off < int64(len(l.flat)); off += 1 << 20 {
		l.check(t, from, off, 1<<20)
	}
	log.await(t, "no room")
	if err := errors.Join(from.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	free()
	reboot(t, root)
	from = l.open(t, openStore(t, root))
	defer from.Close()
	if c := verifyPresent(t, from); c.Bad != 0 || c.Stray != 0 {
		t.Errorf("%+v", c)
	}
	l.read(t, from, 0, int64(len(l.flat)))
	l.complete(t, from)
}

// Several reads at once, which ask for the same spans, of a disk that is full
// now and then.
func TestDiskFullAtOnce(t *testing.T) {
	l := newLayer(t, "gzip")
	mnt := smallDisk(t, "64m")
	s, _ := openLogged(t, filepath.Join(mnt, "store"))
	from := l.open(t, s)
	defer from.Close()
	free := fillUp(t, mnt, 200_000)
	var all sync.WaitGroup
	read := func(seed uint64) {
		r := rand.New(rand.NewPCG(seed, seed))
		for range 150 {
			off := r.Int64N(int64(len(l.flat)))
			p := make([]byte, 1+r.Int64N(1<<20))
			got, err := from.ReadAtContext(context.Background(), p, off)
			if err != nil && err != io.EOF || !bytes.Equal(p[:got], l.flat[off:off+int64(got)]) {
				t.Errorf("wrong bytes at %d: %v", off, err)
				return
			}
		}
	}
	for seed := range uint64(4) {
		all.Go(func() { read(seed) })
	}
	all.Wait()
	for seed := range uint64(4) {
		all.Go(func() { read(10 + seed) })
	}
	free()
	all.Wait()
	l.readUntilComplete(t, from)
}

func TestIndexOnFullDisk(t *testing.T) {
	l := newLayer(t, "gzip")
	mnt := smallDisk(t, "16m")
	root := filepath.Join(mnt, "store")
	s, _ := openLogged(t, root)
	for but := int64(0); but < 200_000; but += 20_000 {
		free := fillUp(t, mnt, but)
		for what, add := range map[string]func() error{
			"index": func() error { return s.AddIndex(context.Background(), l.id, l.raw, "test") },
			"layer": func() error { return s.Ingest(context.Background(), l.id, l.own, nil) },
		} {
			err := add()
			if ok, _ := s.HasIndex(l.id.Blob); ok != (err == nil) {
				t.Errorf("%s with room for %d bytes: %v, and it is there: %t", what, but, err, ok)
			}
			if err == nil { // it was little enough
				if err := s.Remove(l.id.Blob); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if !errors.Is(err, content.ErrFull) || !strings.Contains(err.Error(), "peel cache rm") {
				t.Errorf("%s with room for %d bytes: %v", what, but, err)
			}
			if left, err := os.ReadDir(filepath.Join(root, "tmp")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		}
		free()
	}
	from := l.open(t, s)
	defer from.Close()
	l.read(t, from, 0, int64(len(l.flat)))
}
