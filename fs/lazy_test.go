package fs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// wholeBlob is a blob that is a complete local file.
type wholeBlob struct{ *testBlob }

func (b wholeBlob) Whole() (string, bool) { return b.file.Name(), true }

func (b wholeBlob) String() string { return "whole" }

func mustMerge(t testing.TB, layers ...[]index.Entry) *Tree {
	t.Helper()
	tree, err := Merge(layers)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// A blob that is complete is read by the kernel alone: there is nothing of FUSE
// in the mount, and its end is noticed all the same.
func TestCompleteBlobIsNotAsked(t *testing.T) {
	needFUSE(t)
	for _, d := range []Driver{EROFS, Loop} {
		t.Run(string(d), func(t *testing.T) {
			blob := newBlob(t, 1<<20)
			dir, state := openDir(t), t.TempDir()
			s, err := Mount(dir, mustMerge(t, []index.Entry{file("a", 4096, 100_000)}), []Blob{wholeBlob{blob}}, Options{Driver: d, State: state})
			if err != nil {
				t.Fatal(err)
			}
			cleanMount(t, dir, s)
			if got, err := os.ReadFile(dir + "/a"); err != nil || !bytes.Equal(got, pattern(4096, 100_000)) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if st := s.Stats(); st != (Stats{}) {
				t.Errorf("the blob was asked: %+v", st)
			}
			if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
				t.Fatalf("umount: %v: %s", err, out)
			}
			s.Wait()
		})
	}
}

// So it is beneath a scratch overlay.
func TestCompleteBlobBelowScratch(t *testing.T) {
	needFUSE(t)
	dir := openDir(t)
	s, err := Mount(dir, mustMerge(t, []index.Entry{file("a", 0, 100)}), []Blob{wholeBlob{newBlob(t, 4096)}},
		Options{Driver: EROFS, State: t.TempDir(), Scratch: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	cleanMount(t, dir, s)
	if err := os.WriteFile(dir+"/new", []byte("x"), 0o644); err != nil {
		t.Error(err)
	}
	select {
	case <-s.done:
		t.Fatal("the mount is said to have ended")
	default:
	}
	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
}

// A mount leaves nothing behind but itself: no second mount, no files.
func TestLazyMountLeavesNothing(t *testing.T) {
	needFUSE(t)
	for _, d := range []Driver{EROFS, Loop} {
		state := t.TempDir()
		all := filepath.Dir(state) // of this test
		dir, _, s := mountLayers(t, Options{Driver: d, State: state}, []index.Entry{file("a", 0, 10)})
		if got := mountsBelow(t, all); got != 1 {
			t.Errorf("%s: %d mounts", d, got)
		}
		if left, err := os.ReadDir(state); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v (%v)", d, left, err)
		}
		if got, why := s.Driver(); got != d || why != "" {
			t.Errorf("the driver is %s (%s)", got, why)
		}
		if _, err := os.ReadFile(dir + "/a"); err != nil {
			t.Error(err)
		}
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
		if got := mountsBelow(t, all); got != 0 {
			t.Errorf("%s: %d mounts are left", d, got)
		}
	}
}

// mountsBelow returns how many mounts there are below a folder.
func mountsBelow(t *testing.T, dir string) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(raw)) {
		if strings.HasPrefix(strings.Fields(line)[4], dir+"/") {
			n++
		}
	}
	return n
}

// An image of many layers is one mount.
func TestLazyManyLayers(t *testing.T) {
	needFUSE(t)
	for _, n := range []int{1, 10, 127} {
		var layers [][]index.Entry
		for i := range n {
			layers = append(layers, []index.Entry{file("f"+strings.Repeat("x", i), int64(i)*4096, 5000)})
		}
		for _, d := range drivers {
			dir, _, s := mountLayers(t, Options{Driver: d}, layers...)
			for i := range n {
				got, err := os.ReadFile(filepath.Join(dir, layers[i][0].Name))
				if err != nil || !bytes.Equal(got, pattern(int64(i)*4096, 5000)) {
					t.Fatalf("%s, file %d of %d: %d bytes, %v", d, i, n, len(got), err)
				}
			}
			if err := s.Unmount(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestProbe(t *testing.T) {
	needFUSE(t)
	state := t.TempDir()
	all, err := Probe(state)
	if err != nil || len(all) != len(drivers) {
		t.Fatalf("%v, %v", all, err)
	}
	for _, s := range all {
		if s.Err != nil { // the machines that run this have all
			t.Errorf("%s: %v", s.Driver, s.Err)
		}
	}
	if left, err := os.ReadDir(state); err != nil || len(left) > 0 {
		t.Errorf("left %v (%v)", left, err)
	}
}

// Where the store is on an overlay, as in a container in a container, the
// kernel does not take files for an EROFS; Auto finds what works and says why.
func TestStateOnOverlay(t *testing.T) {
	needFUSE(t)
	base := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(base, "merged")
	data := "lowerdir=" + base + "/lower,upperdir=" + base + "/upper,workdir=" + base + "/work"
	if err := unix.Mount("overlay", merged, "overlay", 0, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(merged, unix.MNT_DETACH) })
	dir, _, s := mountLayers(t, Options{Driver: Auto, State: merged}, []index.Entry{file("a", 0, 100)})
	if d, why := s.Driver(); d == EROFS || !strings.Contains(why, "not erofs") {
		t.Errorf("the driver is %s (%s)", d, why)
	}
	if got, err := os.ReadFile(dir + "/a"); err != nil || !bytes.Equal(got, pattern(0, 100)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := s.Unmount(); err != nil {
		t.Error(err)
	}
}

func TestParseDriver(t *testing.T) {
	for _, name := range []string{"auto", "erofs", "loop", "tree"} {
		if d, err := ParseDriver(name); err != nil || string(d) != name {
			t.Errorf("%s: %s, %v", name, d, err)
		}
	}
	for _, name := range []string{"", "fuse", "AUTO"} {
		if _, err := ParseDriver(name); err == nil {
			t.Errorf("%q is a driver", name)
		}
	}
}

// One Blobs serves several mounts, and blobs that come later; a name keeps its
// blob.
func TestBlobs(t *testing.T) {
	needFUSE(t)
	one, two := newBlob(t, 1<<20), newBlob(t, 8192) // which close after the mount
	dir := openDir(t)
	b, err := MountBlobs(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Detach(); err != nil {
			t.Error(err)
		}
		b.Wait()
	})
	if _, err := os.Stat(dir + "/one/blob"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before it is there: %v", err)
	}
	for name, blob := range map[string]*testBlob{"one": one, "two": two} {
		path := b.Add(name, blob)
		got, err := os.ReadFile(path)
		if want := pattern(0, blob.Size()); err != nil || len(got) != len(want) || !bytes.Equal(got[:5000], want[:5000]) {
			t.Errorf("%s has %d bytes, %v", path, len(got), err)
		}
	}
	if path := b.Add("one", two); path != dir+"/one/blob" {
		t.Errorf("path %s", path)
	}
	if st, err := os.Stat(dir + "/one/blob"); err != nil || st.Size() != 1<<20 {
		t.Errorf("one has another blob: %v, %v", st, err)
	}
	for _, bad := range []string{"/three", "/one/other", "/one/blob/x"} {
		if _, err := os.Stat(dir + bad); err == nil {
			t.Errorf("%s is there", bad)
		}
	}
}

// namedBlob says what image it is of.
type namedBlob struct{ *testBlob }

func (namedBlob) Image() string { return "registry.test/img" }

// A read that waits is seen waiting, and one that fails names its blob's image.
func TestBlobsTell(t *testing.T) {
	needFUSE(t)
	dir := openDir(t)
	var text syncBuffer
	b, err := MountBlobs(dir, Options{Image: "all", Log: slog.New(slog.NewTextHandler(&text, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Detach(); err != nil {
			t.Error(err)
		}
		b.Wait()
	})
	blob := newBlob(t, 8192)
	waits := make(chan int, 100)
	blob.onFetch(func(context.Context) error {
		waits <- len(b.Waiting())
		return errors.New("no route to host")
	})
	if _, err := os.ReadFile(b.Add("one", namedBlob{blob})); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	if n := <-waits; n != 1 {
		t.Errorf("%d reads wait", n)
	}
	if left := b.Waiting(); len(left) > 0 || b.Stats().Failed == 0 {
		t.Errorf("after it %v wait, %+v", left, b.Stats())
	}
	if got := text.String(); !strings.Contains(got, "image=registry.test/img layer=one") {
		t.Errorf("no image in %s", got)
	}
}

func BenchmarkLazyMount(b *testing.B) {
	needFUSE(b)
	tree, err := Merge(benchLayers(100_000))
	if err != nil {
		b.Fatal(err)
	}
	blobs := []Blob{&testBlob{size: 1 << 40}, &testBlob{size: 1 << 40}, &testBlob{size: 1 << 40}}
	dir := b.TempDir()
	for b.Loop() {
		s, err := Mount(dir, tree, blobs, Options{Driver: EROFS})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Unmount(); err != nil {
			b.Fatal(err)
		}
	}
}
