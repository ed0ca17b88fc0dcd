package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// roles are what TestMain plays.
var roles = map[string]func(args []string) error{
	"user":   playUser,
	"fault":  playFault,
	"memory": playMemory,
}

// Where part of the data is local and part must be fetched, readers at random
// places see the right bytes.
func TestReadConcurrently(t *testing.T) {
	const size = 8<<20 + 12345
	base := index.Align(size)
	dir, blob, s := mountLayers(t, Options{}, []index.Entry{file("a", 0, size), file("b", base, size)})
	odd := func(off int64) bool { return off>>18%2 == 1 }
	blob.missing.Store(&odd)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			f, err := os.Open(filepath.Join(dir, [2]string{"a", "b"}[g%2]))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for range 100 {
				buf := make([]byte, rnd.IntN(200_000))
				off := rnd.Int64N(size + 1000)
				n, err := f.ReadAt(buf, off)
				if err != nil && err != io.EOF {
					t.Errorf("read %d bytes at %d: %v", len(buf), off, err)
					return
				}
				want := pattern(base*int64(g%2)+off, max(0, min(int64(len(buf)), size-off)))
				if !bytes.Equal(buf[:n], want) {
					t.Errorf("read %d bytes at %d: wrong bytes", len(buf), off)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := s.Stats(); got.Present == 0 || got.Fetched == 0 || got.Failed != 0 {
		t.Errorf("stats %+v", got)
	}
}

// A layer's data comes from that layer's blob.
func TestReadLayers(t *testing.T) {
	dir, _, _ := mountLayers(t, Options{},
		[]index.Entry{file("a", 0, 100), file("b", 4096, 100)},
		[]index.Entry{file("c", 8192, 100), file("a", 4096, 50)})
	for name, want := range map[string][]byte{
		"a": pattern(4096, 50), "b": pattern(4096, 100), "c": pattern(8192, 100),
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// A read that failed fails with EIO, and succeeds as soon as the cause is gone.
func TestReadErrors(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cause error
	}{
		{"network", errors.New("connection refused")},
		{"deadline of the blob's own", context.DeadlineExceeded},
		{"cancelled by the blob itself", context.Canceled},
		{"end of the blob", io.EOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, blob, s := mountLayers(t, Options{Log: slog.New(slog.DiscardHandler)},
				[]index.Entry{file("a", 0, 1<<20)})
			var broken atomic.Bool
			broken.Store(true)
			blob.onFetch(func(context.Context) error {
				if broken.Load() {
					return tt.cause
				}
				return nil
			})
			f, err := os.Open(dir + "/a")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			buf := make([]byte, 1<<20)
			for range 2 {
				if _, err := f.ReadAt(buf, 0); !errors.Is(err, unix.EIO) {
					t.Fatalf("got error %v", err)
				}
			}
			if got := s.Stats(); got.Failed == 0 || got.Fetched != 0 {
				t.Errorf("stats %+v", got)
			}
			broken.Store(false)
			if _, err := f.ReadAt(buf, 0); err != nil || !bytes.Equal(buf, pattern(0, 1<<20)) {
				t.Errorf("read after the repair: %v", err)
			}
		})
	}
}

// stuck makes the blob's reads wait until the returned function is called, or
// their contexts end. It tells of each read that it began.
func stuck(blob *testBlob) (began chan struct{}, release func()) {
	began, free := make(chan struct{}, 1000), make(chan struct{})
	blob.onFetch(func(ctx context.Context) error {
		began <- struct{}{}
		select {
		case <-free:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return began, sync.OnceFunc(func() { close(free) })
}

// Ctrl-C works while the network does not.
func TestReadInterrupted(t *testing.T) {
	for _, sig := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			before := runtime.NumGoroutine()
			dir, blob, s := mountLayers(t, Options{ReadTimeout: patience(t)}, []index.Entry{file("a", 0, 1<<20)})
			began, release := stuck(blob)
			defer release()
			cmd := exec.Command("cat", dir+"/a")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-began
			cmd.Process.Signal(sig)
			if err := cmd.Wait(); err == nil {
				t.Error("cat succeeded")
			}
			if err := s.Unmount(); err != nil { // and nothing holds the mount
				t.Error(err)
			}
			if got := s.Stats(); got.Failed != 0 && testDriver(t) != Loop {
				t.Errorf("stats %+v", got)
			}
			goroutinesEnd(t, before)
		})
	}
}

// patience is a ReadTimeout that no test waits for. Behind a loop device it is
// the kernel that reads, and does not stop when its reader is gone.
func patience(t *testing.T) time.Duration {
	if testDriver(t) == Loop {
		return 4 * time.Second
	}
	return time.Hour
}

// A process that faults a page of a mapped file and is killed goes away, too.
func TestFaultKilled(t *testing.T) {
	dir, blob, s := mountLayers(t, Options{ReadTimeout: patience(t)}, []index.Entry{file("a", 0, 1<<20)})
	began, release := stuck(blob)
	defer release()
	cmd, _ := role(t, "fault", dir+"/a")
	<-began
	cmd.Process.Kill()
	if err := cmd.Wait(); err == nil {
		t.Error("the process succeeded")
	}
	if err := s.Unmount(); err != nil {
		t.Error(err)
	}
}

// Signals that do not kill must not disturb: the kernel asks to interrupt the
// read, and if that were done the process would end by SIGBUS.
func TestFaultSignalled(t *testing.T) {
	dir, blob, s := mountLayers(t, Options{}, []index.Entry{file("a", 0, 1<<20)})
	blob.onFetch(func(ctx context.Context) error { // long enough for several looks at the thread
		select {
		case <-time.After(5 * watchEvery):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	cmd, out := role(t, "fault", dir+"/a", "signals")
	var line string
	for out.Scan() {
		line = out.Text()
	}
	if err := cmd.Wait(); err != nil || line != "all pages are right" {
		t.Errorf("%v: %s", err, line)
	}
	if got := s.Stats(); got.Failed != 0 {
		t.Errorf("stats %+v", got)
	}
}

// playFault maps a file and looks at some of its pages, while signals arrive if
// so told.
func playFault(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	// Without read-ahead the kernel waits for each page in a way that a signal
	// can interrupt.
	if err := unix.Madvise(mem, unix.MADV_RANDOM); err != nil {
		return err
	}
	if len(args) > 1 {
		runtime.LockOSThread()
		pid, tid := unix.Getpid(), unix.Gettid()
		go func() {
			for range time.Tick(time.Millisecond) {
				unix.Tgkill(pid, tid, unix.SIGURG) // which the Go runtime ignores
			}
		}()
	}
	want := pattern(0, 1<<20)
	for off := 0; off < len(mem); off += 64 << 10 {
		if mem[off] != want[off] {
			return fmt.Errorf("wrong byte at %d", off)
		}
	}
	fmt.Println("all pages are right")
	return nil
}

func TestReadMapped(t *testing.T) {
	dir, _, _ := mountLayers(t, Options{}, []index.Entry{file("a", 0, 1<<20)})
	cmd, out := role(t, "fault", dir+"/a")
	out.Scan()
	if err := cmd.Wait(); err != nil || out.Text() != "all pages are right" {
		t.Errorf("%v: %s", err, out.Text())
	}
}

// A read that failed is told once, with all that one needs; those of the next
// second are only counted.
func TestReadReport(t *testing.T) {
	var text bytes.Buffer
	r := report{log: slog.New(slog.NewTextHandler(&text, nil))}
	cause := errors.New("503 Service Unavailable")
	what := func() []any { return []any{"image", "registry.test/img", "path", "/a/b", "offset", 4096} }
	for range 5 {
		r.failed(cause, what)
	}
	want := `msg="read failed" image=registry.test/img path=/a/b offset=4096 error="503 Service Unavailable" unreported=0`
	if got := text.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, want) {
		t.Errorf("got %s", got)
	}
	r.last = r.last.Add(-quiet)
	text.Reset()
	r.failed(cause, what)
	if got := text.String(); !strings.Contains(got, "unreported=4") {
		t.Errorf("got %s", got)
	}
}

func TestMountReportsReads(t *testing.T) {
	var text syncBuffer
	dir, blob, _ := mountLayers(t, Options{Image: "img", Log: slog.New(slog.NewTextHandler(&text, nil))},
		[]index.Entry{file("dir/a", 0, 100)})
	blob.onFetch(func(context.Context) error { return errors.New("no route to host") })
	if _, err := os.ReadFile(dir + "/dir/a"); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	wants := []string{"image=img", "layer=0", `error="no route to host"`}
	if testDriver(t) == TreeFUSE {
		wants = append(wants, "path=/dir/a")
	}
	for _, want := range wants {
		if got := text.String(); !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A request for a node that there is not gets ESTALE, whatever it asks.
func TestUnknownNode(t *testing.T) {
	tree, err := Merge(parseLayers("f a"))
	if err != nil {
		t.Fatal(err)
	}
	r := newRaw(tree, []Blob{&testBlob{}}, Options{})
	stale := fuse.Status(unix.ESTALE)
	for _, id := range []uint64{0, uint64(tree.Len()) + 1, 1 << 32, 1<<64 - 2} {
		h := fuse.InHeader{NodeId: id}
		_, readlink := r.Readlink(nil, &h)
		_, getxattr := r.GetXAttr(nil, &h, "user.x", nil)
		_, listxattr := r.ListXAttr(nil, &h, nil)
		_, read := r.Read(nil, &fuse.ReadIn{InHeader: h}, nil)
		for what, got := range map[string]fuse.Status{
			"lookup":    r.Lookup(nil, &h, "a", &fuse.EntryOut{}),
			"getattr":   r.GetAttr(nil, &fuse.GetAttrIn{InHeader: h}, &fuse.AttrOut{}),
			"readdir":   r.ReadDirPlus(nil, &fuse.ReadIn{InHeader: h}, nil),
			"readlink":  readlink,
			"getxattr":  getxattr,
			"listxattr": listxattr,
			"read":      read,
		} {
			if got != stale {
				t.Errorf("%s of node %d: %v", what, id, got)
			}
		}
	}
}
