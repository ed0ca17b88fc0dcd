package erofs

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/peelfs/peel/content/index"
)

// overlaid mounts the layers, the lowest first, and an overlay of them.
func overlaid(t *testing.T, layers [][]index.Entry) (dir string) {
	t.Helper()
	var lowers []string
	for _, entries := range layers {
		size := index.LayOut(entries)
		flat := flatBlob(t, entries, device{1, size})
		lowers = append(lowers, mounted(t, image(t, entries, size), []string{flat}, MountOptions{}))
	}
	return overlay(t, lowers, false)
}

// overlay mounts an overlay of directories, the lowest first.
func overlay(t *testing.T, lowers []string, writable bool) (dir string) {
	t.Helper()
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		missing(t, "the kernel has no overlayfs: %v", err)
	}
	defer unix.Close(fs)
	set := func(key, value string) {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			t.Fatalf("%s=%s: %v", key, value, err)
		}
	}
	for _, lower := range slices.Backward(lowers) {
		set("lowerdir+", lower)
	}
	if writable {
		tmp := t.TempDir()
		for _, key := range []string{"upperdir", "workdir"} {
			if err := os.Mkdir(filepath.Join(tmp, key), 0o755); err != nil {
				t.Fatal(err)
			}
			set(key, filepath.Join(tmp, key))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatal(err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mnt)
	dir = t.TempDir()
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// sizes lists the files below a directory, with the sizes of regular ones.
func sizes(t *testing.T, dir string) (list []string) {
	seen := walk(t, dir)
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		switch f := seen[name]; f.mode >> 12 {
		case 0o4:
			list = append(list, name+"/")
		case 0o10:
			list = append(list, fmt.Sprintf("%s=%d", name, f.size))
		default:
			list = append(list, fmt.Sprintf("%s of mode %#o", name, f.mode))
		}
	}
	return list
}

func TestOverlay(t *testing.T) {
	needMount(t)
	base := []index.Entry{
		dir("."), dir("d"), file("d/a", 1), file("d/b", 1), dir("d/sub"), file("d/sub/x", 1), file("f", 1),
		dir("tree"), dir("tree/deep"), file("tree/deep/x", 1),
	}
	for _, test := range []struct {
		name   string
		layers [][]index.Entry
		want   string
	}{
		{"whiteout of a file", [][]index.Entry{base, {file("d/.wh.a", 0), file(".wh.tree", 0)}},
			"./ d/ d/b=1 d/sub/ d/sub/x=1 f=1"},
		{"opaque", [][]index.Entry{base, {file("d/.wh..wh..opq", 0), file("d/new", 2), file("d/.wh.a", 0), file(".wh.tree", 0)}},
			"./ d/ d/new=2 f=1"},
		{"whiteout and directory of one name", [][]index.Entry{base, {dir("d"), file("d/b", 2), file(".wh.d", 0), file(".wh.f", 0), file(".wh.tree", 0)}},
			"./ d/ d/b=2"},
		{"whiteout and file of one name", [][]index.Entry{base, {file(".wh.d", 0), file("d", 2), file(".wh.tree", 0), file(".wh.f", 0)}},
			"./ d=2"},
		{"directory over file, file over directory", [][]index.Entry{base, {dir("f"), file("f/x", 2), file("d", 2), file(".wh.tree", 0)}},
			"./ d=2 f/ f/x=2"},
		{"whiteout in the middle", [][]index.Entry{base, {file(".wh.d", 0), file(".wh.tree", 0)}, {file("d/z", 3)}},
			"./ d/ d/z=3 f=1"},
		{"whiteout twice", [][]index.Entry{base, {file(".wh.d", 0), file(".wh.tree", 0)}, {file(".wh.d", 0), file(".wh.f", 0)}},
			"./"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := strings.Join(sizes(t, overlaid(t, test.layers)), " ")
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// Every layer adds a file, removes the one of the layer before, and replaces
// another.
func TestOverlay127(t *testing.T) {
	needMount(t)
	const n = 127
	var layers [][]index.Entry
	want := []string{"./", "all/"}
	for i := range n {
		entries := []index.Entry{
			dir("."), dir("all"), file(fmt.Sprintf("all/%03d", i), int64(i)),
			file(fmt.Sprintf("own%d", i), int64(i)), file("replaced", int64(i)),
		}
		if i > 0 {
			entries = append(entries, file(fmt.Sprintf(".wh.own%d", i-1), 0))
		}
		layers = append(layers, entries)
		want = append(want, fmt.Sprintf("all/%03d=%d", i, i))
	}
	want = append(want, fmt.Sprintf("own%d=%d", n-1, n-1), fmt.Sprintf("replaced=%d", n-1))
	if got := sizes(t, overlaid(t, layers)); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Attributes of overlayfs in a layer are content: they do nothing, and show.
func TestOverlayShowsItsOwnXattrs(t *testing.T) {
	needMount(t)
	dir := overlaid(t, [][]index.Entry{
		{dir("d"), file("d/lower", 1)},
		{withXattrs(dir("d"), "trusted.overlay.opaque", "y", "trusted.overlay.redirect", "/e")},
	})
	if _, err := os.Stat(filepath.Join(dir, "d/lower")); err != nil {
		t.Errorf("the lower file is hidden: %v", err)
	}
	for name, want := range map[string]string{"trusted.overlay.opaque": "y", "trusted.overlay.redirect": "/e"} {
		value := make([]byte, 10)
		n, err := unix.Lgetxattr(filepath.Join(dir, "d"), name, value)
		if err != nil || string(value[:n]) != want {
			t.Errorf("%s is %q (%v), want %q", name, value[:max(n, 0)], err, want)
		}
	}
}

// An overlay on an overlay on EROFS is what a container in a container has. An
// image that is itself on an overlay can be mounted through loop devices only.
func TestOverlayNested(t *testing.T) {
	needMount(t)
	entries := []index.Entry{file("f", 5000)}
	size := index.LayOut(entries)
	dev := device{1, size}
	img := image(t, entries, size)
	flat := flatBlob(t, entries, dev)
	for _, b := range []Backing{File, Loop} {
		lower := mounted(t, img, []string{flat}, MountOptions{Backing: b})
		inner := overlay(t, []string{overlay(t, []string{lower}, true)}, true)
		if err := os.WriteFile(filepath.Join(inner, "new"), []byte("12"), 0o600); err != nil {
			t.Error(err)
		}
		if got := strings.Join(sizes(t, inner), " "); got != "./ f=5000 new=2" {
			t.Errorf("%s: %s", b, got)
		}
		path := filepath.Join(inner, "image")
		if err := os.WriteFile(path, img, 0o600); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if got, err := Mount(path, []string{flat}, dir, MountOptions{}); err != nil || got != Loop {
			t.Errorf("an image on an overlay: %v by %s, want %s", err, got, Loop)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}
