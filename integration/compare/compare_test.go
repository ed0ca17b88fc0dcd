package compare

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// at joins names to the root of a tree.
func at(root string, name string) string { return filepath.Join(root, name) }

// tree makes a tree with a bit of everything that needs no privilege.
func tree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(at(root, "dir/sub"), 0o755),
		os.WriteFile(at(root, "dir/file"), []byte("contents"), 0o644),
		os.WriteFile(at(root, "other"), []byte("contents"), 0o644),
		os.Link(at(root, "dir/file"), at(root, "linked")),
		os.Symlink("dir/file", at(root, "symlink")),
		unix.Mkfifo(at(root, "fifo"), 0o600),
		unix.Setxattr(at(root, "dir/file"), "user.color", []byte("blue"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	setTimes(t, root)
	return root
}

// setTimes gives everything below root the same odd time, before 1970.
func setTimes(t *testing.T, root string) {
	t.Helper()
	odd := []unix.Timespec{{Sec: -3, Nsec: 5}, {Sec: -3, Nsec: 5}}
	err := filepath.Walk(root, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, odd, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEqualTrees(t *testing.T) {
	diffs, err := Trees(tree(t), tree(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range diffs {
		t.Error(d)
	}
}

func TestEachDifferenceIsFound(t *testing.T) {
	tests := []struct {
		name   string
		change func(root string) error
		root   bool   // needs root
		times  bool   // keep the times that the change makes
		want   string // "path: what" of each difference
	}{
		{name: "contents", want: "other: contents",
			change: func(r string) error { return os.WriteFile(at(r, "other"), []byte("CONTENTS"), 0) }},
		{name: "size", want: "other: contents, other: size",
			change: func(r string) error { return os.WriteFile(at(r, "other"), []byte("content"), 0) }},
		{name: "mode", want: "other: mode",
			change: func(r string) error { return os.Chmod(at(r, "other"), 0o640) }},
		{name: "setuid", want: "other: mode",
			change: func(r string) error { return os.Chmod(at(r, "other"), 0o644|os.ModeSetuid) }},
		{name: "mode of the root", want: ".: mode",
			change: func(r string) error { return os.Chmod(r, 0o700) }},
		{name: "owner", root: true, want: "symlink: owner",
			change: func(r string) error { return os.Lchown(at(r, "symlink"), 0, 7) }},
		{name: "a nanosecond", times: true, want: "symlink: modified",
			change: func(r string) error {
				odd := []unix.Timespec{{Sec: -3, Nsec: 5}, {Sec: -3, Nsec: 6}}
				return unix.UtimesNanoAt(unix.AT_FDCWD, at(r, "symlink"), odd, unix.AT_SYMLINK_NOFOLLOW)
			}},
		{name: "value of an attribute", want: "dir/file: extended attributes, linked: extended attributes",
			change: func(r string) error { return unix.Setxattr(at(r, "linked"), "user.color", []byte("red"), 0) }},
		{name: "one attribute more", want: "dir: extended attributes",
			change: func(r string) error { return unix.Setxattr(at(r, "dir"), "user.x", nil, 0) }},
		{name: "an attribute of root's", root: true, want: "other: extended attributes",
			change: func(r string) error { return unix.Setxattr(at(r, "other"), "trusted.x", nil, 0) }},
		{name: "target of a symlink", want: "symlink: size, symlink: symlink",
			change: func(r string) error {
				return replace(at(r, "symlink"), func(p string) error { return os.Symlink("dir", p) })
			}},
		{name: "type", want: "other: type",
			change: func(r string) error {
				return replace(at(r, "other"), func(p string) error { return unix.Mkfifo(p, 0o644) })
			}},
		{name: "a hard link less", want: "dir/file: links, linked: extended attributes, linked: links, linked: shares its inode with",
			change: func(r string) error {
				return replace(at(r, "linked"), func(p string) error { return os.WriteFile(p, []byte("contents"), 0o644) })
			}},
		{name: "the same link counts between other names",
			want: "dir/file: links, linked: extended attributes, linked: shares its inode with, other: links, other: shares its inode with",
			change: func(r string) error {
				return replace(at(r, "linked"), func(p string) error { return os.Link(at(r, "other"), p) })
			}},
		{name: "device number", root: true, want: "fifo: type",
			change: func(r string) error {
				return replace(at(r, "fifo"), func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) })
			}},
		{name: "a name more", want: "dir/new: name",
			change: func(r string) error { return os.MkdirAll(at(r, "dir/new/below"), 0o755) }},
		{name: "a name less", want: "dir/sub: name",
			change: func(r string) error { return os.Remove(at(r, "dir/sub")) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.root && os.Getuid() != 0 {
				skipOrFail(t, "only root can make this difference")
			}
			a, b := tree(t), tree(t)
			if err := test.change(b); err != nil {
				t.Fatal(err)
			}
			if !test.times {
				setTimes(t, b)
			}
			for _, order := range [][2]string{{a, b}, {b, a}} {
				diffs, err := Trees(order[0], order[1])
				if err != nil {
					t.Fatal(err)
				}
				if got := summary(diffs); got != test.want {
					t.Errorf("got  %q\nwant %q\nin full: %v", got, test.want, diffs)
				}
			}
		})
	}
}

func TestDeviceNumbersDiffer(t *testing.T) {
	if os.Getuid() != 0 {
		skipOrFail(t, "only root can make devices")
	}
	a, b := t.TempDir(), t.TempDir()
	for root, minor := range map[string]uint32{a: 3, b: 5} {
		if err := unix.Mknod(at(root, "dev"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, minor))); err != nil {
			t.Fatal(err)
		}
		setTimes(t, root)
	}
	diffs, err := Trees(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := summary(diffs), "dev: device"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDirectoryLinkCounts(t *testing.T) {
	tests := []struct {
		nlink, subdirs uint64
		want           string
	}{
		{1, 0, "as a directory's"},
		{1, 5, "as a directory's"},
		{2, 0, "as a directory's"},
		{7, 5, "as a directory's"},
		{2, 5, "2"}, // find would skip the five
		{6, 5, "6"},
	}
	for _, test := range tests {
		n := &node{subdirs: test.subdirs}
		n.stat.Mode = unix.S_IFDIR
		n.stat.Nlink = test.nlink
		if got := n.links(); got != test.want {
			t.Errorf("%d links and %d directories: got %q, want %q", test.nlink, test.subdirs, got, test.want)
		}
	}
}

func TestMissingTree(t *testing.T) {
	there, missing := t.TempDir(), filepath.Join(t.TempDir(), "missing")
	for _, order := range [][2]string{{there, missing}, {missing, there}} {
		if _, err := Trees(order[0], order[1]); !os.IsNotExist(err) && !strings.Contains(fmt.Sprint(err), "no such file") {
			t.Errorf("got error %v, want one that says what is missing", err)
		}
	}
}

func summary(diffs []Difference) string {
	var all []string
	for _, d := range diffs {
		all = append(all, d.Path+": "+d.What)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func replace(path string, with func(path string) error) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return with(path)
}

var unixEpoch = time.Unix(0, 0)

func skipOrFail(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func ExampleTrees() {
	a, _ := os.MkdirTemp("", "compare")
	defer os.RemoveAll(a)
	b, _ := os.MkdirTemp("", "compare")
	defer os.RemoveAll(b)
	os.Mkdir(filepath.Join(b, "new"), 0o755)
	os.Chtimes(a, unixEpoch, unixEpoch)
	os.Chtimes(b, unixEpoch, unixEpoch)

	diffs, _ := Trees(a, b)
	for _, d := range diffs {
		fmt.Println(d)
	}
	// Output: new: name: nothing, and directory
}
