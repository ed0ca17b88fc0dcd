package fs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

func TestMountAttributes(t *testing.T) {
	long := strings.Repeat("n", 255)
	target := strings.Repeat("t", 4095)
	caps := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	big := strings.Repeat("v", 60_000)
	dir, _, _ := mountLayers(t, Options{Image: "registry.test/a,b:c"}, []index.Entry{
		{Name: ".", Type: index.Dir, Mode: 0o1777, Sec: 7},
		{Name: "dir", Type: index.Dir, Mode: 0o2750, UID: 5, GID: 6, Sec: -1, Nsec: 999999999},
		{Name: "dir/sub", Type: index.Dir, Mode: 0o755},
		{Name: "suid", Mode: 0o4755, UID: 1 << 31, GID: 1000, Size: 1 << 20, Sec: -62135596800},
		{Name: long, Mode: 0o600, Sec: 1 << 33, Nsec: 1},
		{Name: "link", Type: index.Hardlink, Link: "suid"},
		{Name: "sym", Type: index.Symlink, Mode: 0o777, Link: target},
		{Name: "bad\xff\n", Mode: 0o644},
		{Name: "null", Type: index.Char, Mode: 0o666, Major: 1, Minor: 3},
		{Name: "disk", Type: index.Block, Mode: 0o660, Major: 259, Minor: 70000},
		{Name: "fifo", Type: index.Fifo, Mode: 0o600},
		{Name: "caps", Mode: 0o755, Xattrs: []index.Xattr{
			{Name: "security.capability", Value: caps}, {Name: "user.big", Value: big}, {Name: "user.empty"}}},
	})

	for _, tt := range []struct {
		name                             string
		mode, uid, gid, nlink, rdevMajor uint32
		rdevMinor                        uint32
		sec                              int64
		nsec                             int64
		size                             int64
	}{
		{name: ".", mode: unix.S_IFDIR | 0o1777, nlink: 3, sec: 7, size: 4096},
		{name: "dir", mode: unix.S_IFDIR | 0o2750, uid: 5, gid: 6, nlink: 3, sec: -1, nsec: 999999999, size: 4096},
		{name: "suid", mode: unix.S_IFREG | 0o4755, uid: 1 << 31, gid: 1000, nlink: 2, sec: -62135596800, size: 1 << 20},
		{name: "link", mode: unix.S_IFREG | 0o4755, uid: 1 << 31, gid: 1000, nlink: 2, sec: -62135596800, size: 1 << 20},
		{name: long, mode: unix.S_IFREG | 0o600, nlink: 1, sec: 1 << 33, nsec: 1},
		{name: "sym", mode: unix.S_IFLNK | 0o777, nlink: 1, size: 4095},
		{name: "bad\xff\n", mode: unix.S_IFREG | 0o644, nlink: 1},
		{name: "null", mode: unix.S_IFCHR | 0o666, nlink: 1, rdevMajor: 1, rdevMinor: 3},
		{name: "disk", mode: unix.S_IFBLK | 0o660, nlink: 1, rdevMajor: 259, rdevMinor: 70000},
		{name: "fifo", mode: unix.S_IFIFO | 0o600, nlink: 1},
	} {
		st := stat(t, filepath.Join(dir, tt.name))
		if st.Mode&unix.S_IFMT == unix.S_IFDIR && testDriver(t) != TreeFUSE {
			tt.size = st.Size // is that of its entries
		}
		if st.Mode != tt.mode || st.Uid != tt.uid || st.Gid != tt.gid || uint32(st.Nlink) != tt.nlink ||
			st.Rdev != unix.Mkdev(tt.rdevMajor, tt.rdevMinor) || st.Size != tt.size ||
			st.Mtim.Sec != tt.sec || st.Mtim.Nsec != tt.nsec || st.Ctim != st.Mtim || st.Atim != st.Mtim {
			t.Errorf("%.20q: got %+v, want %+v", tt.name, st, tt)
		}
	}
	if a, b := stat(t, dir+"/suid"), stat(t, dir+"/link"); a.Ino != b.Ino {
		t.Errorf("hard links have inodes %d and %d", a.Ino, b.Ino)
	}
	if got, err := os.Readlink(dir + "/sym"); err != nil || got != target {
		t.Errorf("readlink: %d bytes, %v", len(got), err)
	}
	if _, err := os.Lstat(filepath.Join(dir, long+"x")); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("name of 256 bytes: %v", err)
	}
	for range 2 { // the second time from the kernel's cache
		if _, err := os.Lstat(dir + "/none"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("missing name: %v", err)
		}
	}
	for name, want := range map[string]string{"security.capability": caps, "user.big": big, "user.empty": ""} {
		buf := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(dir+"/caps", name, buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("xattr %s: %d bytes, %v", name, n, err)
		}
	}
	if _, err := unix.Lgetxattr(dir+"/caps", "user.big", make([]byte, 10)); err != unix.ERANGE {
		t.Errorf("xattr in too little room: %v", err)
	}
	if _, err := unix.Lgetxattr(dir+"/suid", "user.big", nil); err != unix.ENODATA {
		t.Errorf("xattr that is not there: %v", err)
	}
	buf := make([]byte, 100)
	if n, err := unix.Llistxattr(dir+"/caps", buf); err != nil ||
		string(buf[:n]) != "security.capability\x00user.big\x00user.empty\x00" {
		t.Errorf("list of xattrs: %q, %v", buf[:max(n, 0)], err)
	}
	if err := os.WriteFile(dir+"/new", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing: %v", err)
	}
}

// How the tree is listed among file systems.
func TestMountStatfs(t *testing.T) {
	onlyTree(t)
	dir, _, _ := mountLayers(t, Options{Image: "registry.test/a,b:c"}, []index.Entry{file("a", 0, 1<<20), {Name: "b", Type: index.Dir}})
	var fsst unix.Statfs_t
	if err := unix.Statfs(dir, &fsst); err != nil || fsst.Files != 3 || fsst.Namelen != 255 || fsst.Bfree != 0 ||
		int64(fsst.Blocks)*fsst.Bsize != 1<<20 || fsst.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("statfs: %+v, %v", fsst, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if want := "registry.test/a,b:c " + dir + " fuse.peel ro,"; err != nil || !strings.Contains(string(mounts), want) {
		t.Errorf("no %q in the mounts (%v)", want, err)
	}
}

// Everything that reads a tree in an orderly way, by the standard library.
func TestMountTestFS(t *testing.T) {
	dir, _, _ := mountLayers(t, Options{}, []index.Entry{
		file("a", 0, 1), file("b/empty", 4096, 0), file("b/c/big", 4096, 50_001),
		{Name: "b/d", Type: index.Dir, Mode: 0o755},
		{Name: "e", Type: index.Hardlink, Link: "b/c/big"},
	})
	if err := fstest.TestFS(os.DirFS(dir), "a", "b/empty", "b/c/big", "b/d", "e"); err != nil {
		t.Error(err)
	}
}

func TestMountBigDirectory(t *testing.T) {
	const n = 100_000
	entries := make([]index.Entry, n)
	for i := range entries {
		entries[i] = index.Entry{Name: fmt.Sprintf("dir/%06d", (i*7919)%n), Type: index.Fifo}
	}
	dir, _, _ := mountLayers(t, Options{}, entries)
	for range 2 { // the second time from the kernel's cache
		fd, err := unix.Open(dir+"/dir", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		all := readDir(t, fd, 1<<20, n+3)
		if len(all) != n+2 || all[0].Name != "." || all[1].Name != ".." || testDriver(t) == TreeFUSE && all[1].Ino != uint64(Root) {
			t.Fatalf("%d names, the first %v", len(all), all[:2])
		}
		for i, e := range all[2:] {
			if e.Name != fmt.Sprintf("%06d", i) {
				t.Fatalf("name %d is %s", i, e.Name)
			}
		}
		if st := stat(t, filepath.Join(dir, "dir", all[77].Name)); st.Ino != all[77].Ino {
			t.Errorf("inode is %d in the directory and %d in stat", all[77].Ino, st.Ino)
		}
		for _, at := range []int{0, 1, 2, 3, 1000, 99_999, n, n + 1} {
			if _, err := unix.Seek(fd, int64(all[at].Off), io.SeekStart); err != nil {
				t.Fatal(err)
			}
			want := all[at+1:]
			want = want[:min(20, len(want))]
			got := readDir(t, fd, 300, len(want))
			if !slices.Equal(got, want) {
				t.Errorf("after a seek to %d: got %v, want %v", at, got, want)
			}
		}
	}
}

// readDir reads up to limit names of a directory with getdents of size bytes.
func readDir(t *testing.T, fd, size, limit int) (all []fuse.DirEntry) {
	t.Helper()
	buf := make([]byte, size)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return all
		}
		for b := buf[:n]; len(b) > 0; {
			if len(all) == limit {
				return all
			}
			var e fuse.DirEntry
			b = b[e.Parse(b):]
			all = append(all, e)
		}
	}
}

// program returns a layer with a program of this machine under one name, and
// writes it to the blob.
func program(t *testing.T, path string) (e index.Entry, write func(*testBlob)) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	e = index.Entry{Name: filepath.Base(path), Mode: 0o755, Size: int64(len(data))}
	return e, func(b *testBlob) {
		if _, err := b.file.WriteAt(data, e.Off); err != nil {
			t.Fatal(err)
		}
	}
}

// asNobody runs a program of a mount without any right. setpriv starts it: were
// this process to, its thread would wait in the kernel for the program's file,
// which this process must serve (see Mount).
func asNobody(program string, args ...string) (string, error) {
	args = append([]string{"--reuid", "65534", "--regid", "65534", "--clear-groups", program}, args...)
	out, err := exec.Command("setpriv", args...).CombinedOutput()
	return string(out), err
}

func TestMountSetuid(t *testing.T) {
	e, write := program(t, "/usr/bin/id")
	e.Mode = 0o4755
	dir, blob, _ := mountLayers(t, Options{}, []index.Entry{e})
	write(blob)
	if out, err := asNobody(dir+"/id", "-u"); err != nil || out != "0\n" {
		t.Errorf("a setuid program of root ran as %q, %v", out, err)
	}
}

func TestMountPermissions(t *testing.T) {
	cat, write := program(t, "/bin/cat")
	// CAP_DAC_OVERRIDE, effective and permitted: struct vfs_cap_data, revision 2.
	capable := "\x01\x00\x00\x02\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	catCap := cat
	catCap.Name, catCap.Xattrs = "catcap", []index.Xattr{{Name: "security.capability", Value: capable}}
	acl := posixACL(
		[3]uint32{0x01, 6, 0xffffffff}, // user::rw-
		[3]uint32{0x02, 4, nobody},     // user:nobody:r--
		[3]uint32{0x04, 0, 0xffffffff}, // group::---
		[3]uint32{0x10, 4, 0xffffffff}, // mask::r--
		[3]uint32{0x20, 0, 0xffffffff}) // other::---
	off := index.Align(cat.Size)
	secret, shared := file("secret", off, 10), file("shared", off, 10)
	secret.Mode, shared.Mode = 0o600, 0o640
	shared.Xattrs = []index.Xattr{{Name: "system.posix_acl_access", Value: acl}}
	dir, blob, _ := mountLayers(t, Options{}, []index.Entry{cat, catCap, secret, shared,
		{Name: "null", Type: index.Char, Mode: 0o666, Major: 1, Minor: 3}})
	write(blob)

	for _, tt := range []struct {
		name string
		args []string
		ok   bool
	}{
		{"a mode is enforced", []string{dir + "/cat", dir + "/secret"}, false},
		{"a file capability works", []string{dir + "/catcap", dir + "/secret"}, true},
		{"an ACL grants", []string{dir + "/cat", dir + "/shared"}, true},
		{"a device works", []string{dir + "/cat", dir + "/null"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := asNobody(tt.args[0], tt.args[1:]...)
			if (err == nil) != tt.ok {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	buf := make([]byte, 200)
	if n, err := unix.Lgetxattr(dir+"/shared", "system.posix_acl_access", buf); err != nil || string(buf[:n]) != acl {
		t.Errorf("ACL: %x, %v", buf[:max(n, 0)], err)
	}
}

// posixACL returns an ACL as the kernel takes it: version 2, then tag,
// permissions and id of each entry.
func posixACL(entries ...[3]uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

// A child that kept /dev/fuse open would keep the mount, with nobody to answer,
// after the process that serves it has died.
func TestMountNotInherited(t *testing.T) {
	mountLayers(t, Options{}, []index.Entry{file("a", 0, 10)})
	out, err := exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
	if err != nil || strings.Contains(string(out), "/dev/fuse") {
		t.Errorf("a child has open (%v):\n%s", err, out)
	}
}

func TestUnmount(t *testing.T) {
	layer := []index.Entry{file("a", 0, 10)}
	t.Run("busy", func(t *testing.T) {
		dir, _, s := mountLayers(t, Options{}, layer)
		f, err := os.Open(dir + "/a")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Unmount(); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "in use") {
			t.Errorf("got error %v", err)
		}
		if _, err := io.ReadAll(f); err != nil {
			t.Errorf("read after a refused unmount: %v", err)
		}
		f.Close()
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir + "/a"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("still mounted: %v", err)
		}
	})
	t.Run("by someone else", func(t *testing.T) {
		dir, _, s := mountLayers(t, Options{}, layer)
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Fatalf("umount: %v: %s", err, out)
		}
		s.Wait()
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
	})
	t.Run("of a symlink's target", func(t *testing.T) {
		dir, blob, s := mountLayers(t, Options{}, layer)
		if err := s.Unmount(); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(dir, link); err != nil {
			t.Fatal(err)
		}
		tree, err := Merge([][]index.Entry{layer})
		if err != nil {
			t.Fatal(err)
		}
		s, err = Mount(link, tree, []Blob{blob}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		cleanMount(t, dir, s)
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir + "/a"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("still mounted: %v", err)
		}
	})
	t.Run("while in use, by force", func(t *testing.T) {
		onlyTree(t) // umount(2) knows force only for file systems like FUSE
		dir, blob, s := mountLayers(t, Options{}, layer)
		fetching := make(chan struct{}, 8)
		blob.onFetch(func(ctx context.Context) error {
			fetching <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		})
		cmd := exec.Command("cat", dir+"/a")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-fetching
		if err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Error("cat succeeded")
		}
		s.Wait()
	})
}

func TestMountRefuses(t *testing.T) {
	needFUSE(t)
	tree, err := Merge([][]index.Entry{{file("a", 0, 10)}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	plain := filepath.Join(dir, "file")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/work", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	blob := newBlob(t, 10)
	for _, tt := range []struct {
		name, dir string
		blobs     []Blob
		opts      Options
		want      string
	}{
		{"no directory", dir + "/none", []Blob{blob}, Options{Image: "img"}, "mount img: lstat " + dir + "/none"},
		{"a file", plain, []Blob{blob}, Options{}, "not a directory"},
		{"too few blobs", dir, nil, Options{}, "0 blobs for 1 layers"},
		{"scratch in a file", dir, []Blob{blob}, Options{Scratch: plain}, "scratch folder"},
		{"scratch without a work folder", dir, []Blob{blob}, Options{Scratch: dir}, "scratch overlay"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Mount(tt.dir, tree, tt.blobs, tt.opts)
			if err == nil {
				s.Unmount()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
	if mounts, _ := os.ReadFile("/proc/self/mounts"); strings.Contains(string(mounts), dir) {
		t.Errorf("a mount is left:\n%s", mounts)
	}
}

func TestMountAsUser(t *testing.T) {
	needFUSE(t)
	_, err := exec.LookPath("fusermount3")
	need(t, "fusermount3", err == nil)
	dir := openDir(t)
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd, out := userRole(t, "user", dir)
	for out.Scan() {
		t.Log(out.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// playUser mounts and unmounts as an ordinary user.
func playUser(args []string) error {
	dir := args[0]
	tree, err := Merge([][]index.Entry{{{Name: "a", Mode: 0o4755, Size: 0}}})
	if err != nil {
		return err
	}
	if _, err := Mount(dir, tree, []Blob{&testBlob{}}, Options{Scratch: dir}); !errors.Is(err, errScratchRoot) {
		return fmt.Errorf("writable mount by a user: %v", err)
	}
	s, err := Mount(dir, tree, []Blob{&testBlob{}}, Options{Image: "img"})
	if err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if want := "img " + dir + " fuse.peel ro,nosuid,nodev,"; err != nil || !strings.Contains(string(mounts), want) {
		return fmt.Errorf("no %q in the mounts (%v):\n%s", want, err, mounts)
	}
	f, err := os.Open(dir + "/a")
	if err != nil {
		return err
	}
	if err := s.Unmount(); !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount while in use: %v", err)
	}
	f.Close()
	return s.Unmount()
}
