package erofs

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/peelfs/peel/content/index"
)

// missing skips the test for want of something; in CI it must be there.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// needMount skips a test that cannot mount.
func needMount(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "mounting needs root")
	}
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		missing(t, "the kernel has no EROFS: %v", err)
	}
	unix.Close(fs)
}

// mounted mounts an image for the time of the test.
func mounted(t testing.TB, image []byte, devices []string, o MountOptions) (dir string) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Mount(path, devices, dir, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// flatBlob writes what is compared of the entries' data.
func flatBlob(t testing.TB, entries []index.Entry, dev device) (path string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "flat"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(dev.size); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type != index.Regular {
			continue
		}
		for _, p := range probes(e.Size) {
			off := e.Off + p.Off
			if _, err := io.Copy(io.NewOffsetWriter(f, off), io.NewSectionReader(dev, off, p.Len)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return f.Name()
}

// walk returns all that the kernel shows below a directory.
func walk(t testing.TB, root string) records {
	t.Helper()
	r, ids := make(records), make(map[string]uint64)
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if info, err := d.Info(); err != nil || info.Mode().Type() != d.Type() {
			t.Errorf("%q: type %v in its directory, but %v (%v)", name, d.Type(), info.Mode(), err)
		}
		rec, err := look(path, &st)
		r[name], ids[name] = rec, st.Ino
		return err
	})
	if err != nil {
		t.Error(err)
	}
	r.setLinks(ids)
	return r
}

// look returns what is to be seen of one file.
func look(path string, st *unix.Stat_t) (rec record, err error) {
	rec = record{mode: st.Mode, uid: st.Uid, gid: st.Gid, sec: st.Mtim.Sec, nsec: uint32(st.Mtim.Nsec), nlink: int(st.Nlink)}
	xattrs := make(map[string]string)
	names := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return rec, fmt.Errorf("list xattrs of %s: %w", path, err)
	}
	value := make([]byte, 1<<16)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return rec, fmt.Errorf("xattr %s of %s: %w", name, path, err)
		}
		xattrs[name] = string(value[:n])
	}
	rec.xattrs = formatXattrs(xattrs)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return rec, nil
	case unix.S_IFCHR, unix.S_IFBLK:
		rec.rdev = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFLNK:
		rec.target, err = os.Readlink(path)
	case unix.S_IFREG:
		var f *os.File
		if f, err = os.Open(path); err != nil {
			return rec, err
		}
		defer f.Close()
		rec.data, err = digest(f, st.Size)
	}
	rec.size = st.Size
	return rec, err
}

func TestMount(t *testing.T) {
	needMount(t)
	for _, o := range []MountOptions{{Backing: File}, {Backing: File, DirectIO: true}, {Backing: Loop}} {
		for _, l := range testLayers() {
			t.Run(fmt.Sprintf("%s direct=%v/%s", o.Backing, o.DirectIO, l.name), func(t *testing.T) {
				if l.name == "depth" {
					t.Skip("deeper than a path can be")
				}
				size := index.LayOut(l.entries)
				dev := device{1, size}
				files, _ := unpack(l.entries)
				dir := mounted(t, image(t, l.entries, size), []string{flatBlob(t, l.entries, dev)}, o)
				diff(t, walk(t, dir), see(t, files, dev))
			})
		}
	}
}

// A path of 2,000 directories can be gone down; its name from the mount's root
// is as long as a path may be.
func TestMountDeep(t *testing.T) {
	needMount(t)
	entries := []index.Entry{file(strings.Repeat("d/", 2000)+"f", 0)}
	dir := mounted(t, image(t, entries, 0), []string{flatBlob(t, nil, device{})}, MountOptions{})
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var st unix.Stat_t
	fd, err := root.Open(".")
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := unix.Fstatat(int(fd.Fd()), entries[0].Name, &st, 0); err != nil {
		t.Error(err)
	}
}

func TestMountMerged(t *testing.T) {
	needMount(t)
	for _, n := range []int{1, 10, 127} {
		root, sizes := mergedTree(n)
		var paths []string
		var devices []io.ReaderAt
		for i, size := range sizes {
			d := device{byte(i), size}
			devices = append(devices, d)
			paths = append(paths, flatBlob(t, []index.Entry{{Off: 4096, Size: size - 4096}}, d))
		}
		var b strings.Builder
		if err := Write(&b, root, sizes); err != nil {
			t.Fatal(err)
		}
		for _, backing := range []Backing{File, Loop} {
			dir := mounted(t, []byte(b.String()), paths, MountOptions{Backing: backing})
			diff(t, walk(t, dir), seeMerged(t, devices))
		}
	}
}

// Names too long for fsconfig(2), and with the characters that separate options.
func TestMountOddNames(t *testing.T) {
	needMount(t)
	entries := []index.Entry{file("f", 5)}
	size := index.LayOut(entries)
	at := t.TempDir()
	for _, name := range []string{"a,b:c\\d e", strings.Repeat("long/", 80)} {
		at = filepath.Join(at, name)
	}
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	flat := filepath.Join(at, "flat")
	if err := os.Rename(flatBlob(t, entries, device{1, size}), flat); err != nil {
		t.Fatal(err)
	}
	for _, b := range []Backing{File, Loop} {
		dir := mounted(t, image(t, entries, size), []string{flat}, MountOptions{Backing: b})
		if _, err := os.ReadFile(filepath.Join(dir, "f")); err != nil {
			t.Error(err)
		}
	}
}

func TestMountFails(t *testing.T) {
	needMount(t)
	tmp := t.TempDir()
	put := func(name string, b []byte) string {
		path := filepath.Join(tmp, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	img := image(t, nil, 8192)
	good, empty, bad := put("good", img), put("empty", nil), put("bad", make([]byte, 8192))
	img[superOffset+4]++
	checksum := put("checksum", img)
	for _, test := range []struct {
		image   string
		devices []string
		dir     string
		want    string
	}{
		{bad, []string{bad}, tmp, "not an EROFS image"},
		{filepath.Join(tmp, "none"), nil, tmp, "no such file"},
		{good, []string{filepath.Join(tmp, "none")}, tmp, "no such file"},
		{good, nil, tmp, "1 devices, not 0"},
		{good, []string{bad, bad}, tmp, "1 devices, not 2"},
		{good, []string{empty}, tmp, "has 0 bytes, not 8192"},
		{empty, nil, tmp, "read superblock"},
		{checksum, []string{bad}, tmp, "fsconfig"},
		{good, []string{bad}, filepath.Join(tmp, "none"), "move_mount"},
	} {
		for _, b := range []Backing{File, Loop, Auto} {
			_, err := Mount(test.image, test.devices, test.dir, MountOptions{Backing: b})
			if err == nil {
				unix.Unmount(test.dir, unix.MNT_DETACH)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.image) {
				t.Errorf("%s with %q: got %v, want an error with %q", test.image, test.devices, err, test.want)
			}
		}
	}
}

// What random layers become in the kernel is what they say.
func TestMountRandom(t *testing.T) {
	needMount(t)
	rounds := 300
	if testing.Short() {
		rounds = 30
	}
	mountable := 0
	for seed := range uint64(rounds) {
		input := make([]byte, 400)
		rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
		rng.Read(input)
		entries, size := arbitraryLayer(input)
		files, ok := unpack(entries)
		if !ok {
			continue
		}
		mountable++
		dev := device{byte(seed), size}
		dir := mounted(t, image(t, entries, size), []string{flatBlob(t, entries, dev)}, MountOptions{})
		diff(t, walk(t, dir), see(t, files, dev))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if mountable < rounds/4 {
		t.Errorf("only %d of %d layers could be mounted", mountable, rounds)
	}
}

func TestFsck(t *testing.T) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		missing(t, "install erofs-utils: %v", err)
	}
	for _, l := range testLayers() {
		t.Run(l.name, func(t *testing.T) {
			if l.name == "depth" {
				t.Skip("fsck.erofs has no room for so long a path")
			}
			size := index.LayOut(l.entries)
			path := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(path, image(t, l.entries, size), 0o600); err != nil {
				t.Fatal(err)
			}
			flat := flatBlob(t, l.entries, device{1, size})
			if out, err := exec.Command(fsck, "--device="+flat, path).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
