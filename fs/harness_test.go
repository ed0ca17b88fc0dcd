package fs

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// nobody is a user who owns nothing.
const nobody = 65534

// testBlob is a flat blob whose byte at each offset is as pattern says, but for
// what a test has written into it.
type testBlob struct {
	file    *os.File
	size    int64                                           // if there is no file
	missing atomic.Pointer[func(off int64) bool]            // what is not local; nil: nothing
	fetch   atomic.Pointer[func(ctx context.Context) error] // called before missing data is given; nil: nothing is
}

func newBlob(t testing.TB, size int64) *testBlob {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "blob"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for off := int64(0); off < size; off += 1 << 20 {
		if _, err := f.Write(pattern(off, min(1<<20, size-off))); err != nil {
			t.Fatal(err)
		}
	}
	return &testBlob{file: f}
}

func (b *testBlob) Local(off, n int64) (*os.File, bool) {
	missing := b.missing.Load()
	return b.file, missing == nil || !(*missing)(off)
}

func (b *testBlob) Size() int64 {
	if b.file == nil {
		return b.size
	}
	fi, err := b.file.Stat()
	if err != nil {
		panic(err)
	}
	return index.Align(fi.Size())
}

func (b *testBlob) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if fetch := b.fetch.Load(); fetch != nil {
		if err := (*fetch)(ctx); err != nil {
			return 0, err
		}
	}
	return b.file.ReadAt(p, off)
}

// onFetch makes all data missing, and calls f for each read of it.
func (b *testBlob) onFetch(f func(ctx context.Context) error) {
	all := func(int64) bool { return true }
	b.fetch.Store(&f)
	b.missing.Store(&all)
}

// pattern returns n bytes of what is at off in a testBlob.
func pattern(off, n int64) []byte {
	p := make([]byte, n)
	for i := range p {
		x := uint64(off+int64(i)) * 0x9e3779b97f4a7c15
		p[i] = byte(x >> 56)
	}
	return p
}

// need skips a test for which something is missing; on the CI machine nothing
// may be.
func need(t testing.TB, what string, there bool) {
	t.Helper()
	if !there && os.Getenv("CI") == "true" {
		t.Fatal("needs " + what)
	} else if !there {
		t.Skip("needs " + what)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	need(t, "root", os.Geteuid() == 0)
}

func needFUSE(t testing.TB) {
	t.Helper()
	needRoot(t)
	_, err := os.Stat("/dev/fuse")
	need(t, "/dev/fuse", err == nil)
}

// testDriver is the driver that the tests mount with: the tree, if the
// environment names no other. make test runs them with each.
func testDriver(t testing.TB) Driver {
	t.Helper()
	d, err := ParseDriver(cmp.Or(os.Getenv("PEEL_TEST_DRIVER"), string(TreeFUSE)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// onlyTree skips what is about how a tree is shown, and not about files.
func onlyTree(t testing.TB) {
	t.Helper()
	if d := testDriver(t); d != TreeFUSE {
		t.Skipf("not with the driver %s", d)
	}
}

// mountLayers mounts layers over one blob each, of which it returns the first.
func mountLayers(t testing.TB, opts Options, layers ...[]index.Entry) (dir string, blob *testBlob, s *Server) {
	t.Helper()
	needFUSE(t)
	tree, err := Merge(layers)
	if err != nil {
		t.Fatal(err)
	}
	var blobs []Blob
	for _, entries := range layers {
		var size int64
		for _, e := range entries {
			size = max(size, index.Align(e.Off+e.Size))
		}
		blobs = append(blobs, newBlob(t, size))
	}
	if opts.Driver == "" {
		opts.Driver = testDriver(t)
	}
	dir = openDir(t)
	s, err = Mount(dir, tree, blobs, opts)
	if err != nil {
		t.Fatal(err)
	}
	cleanMount(t, dir, s)
	return dir, blobs[0].(*testBlob), s
}

// cleanMount unmounts at the end of a test, whatever has become of the mount.
func cleanMount(t testing.TB, dir string, s *Server) {
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
}

func file(name string, off, size int64) index.Entry {
	return index.Entry{Name: name, Mode: 0o644, Off: off, Size: size}
}

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

// openDir returns a new directory that everyone may look into.
func openDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestMain also plays the processes that tests need beside the test itself:
// one that faults pages of a mount must not be the one that serves it, since
// the Go runtime could stop the server's goroutines while it waits.
func TestMain(m *testing.M) {
	if play, ok := roles[os.Getenv("PEEL_TEST_ROLE")]; ok {
		if err := play(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// role starts a process that plays one of the roles and returns its output line
// by line. The test kills it at its end.
func role(t testing.TB, name string, args ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return start(t, name, exec.Command(self, args...))
}

// userRole is role as an ordinary user, who finds a /dev/fuse that everyone may
// open, as on most machines.
func userRole(t testing.TB, name string, args ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test binary lies where only root may look.
	dir := openDir(t)
	if out, err := exec.Command("cp", self, dir+"/role").CombinedOutput(); err != nil {
		t.Fatalf("copy the test binary: %v: %s", err, out)
	}
	if err := os.Mkdir(dir+"/dev", 0o755); err != nil {
		t.Fatal(err)
	}
	const script = `set -e; cd "$0"
		mount -t tmpfs tmpfs dev
		mknod -m 666 dev/fuse c 10 229
		mount --bind dev/fuse /dev/fuse
		exec setpriv --reuid 65534 --regid 65534 --clear-groups ./role "$@"`
	return start(t, name, exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, dir}, args...)...))
}

func start(t testing.TB, name string, cmd *exec.Cmd) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd.Env = append(os.Environ(), "PEEL_TEST_ROLE="+name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		io.Copy(io.Discard, out)
		cmd.Wait()
	})
	return cmd, bufio.NewScanner(out)
}
