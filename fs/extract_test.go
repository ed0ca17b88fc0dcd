package fs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// TestMergeLikeExtraction merges random layers and compares the tree with what
// an extraction of the same layers leaves in a directory. Names are few, so
// that they collide, and symlinks and whiteouts are many.
func TestMergeLikeExtraction(t *testing.T) {
	needRoot(t)
	failed := 0
	for seed := range uint64(1500) {
		text := randomLayers(rand.New(rand.NewPCG(seed, 0)))
		layers := parseLayers(text)
		root := filepath.Join(t.TempDir(), "root")
		wantErr := extract(root, layers)
		tree, err := Merge(layers)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("seed %d:\n%smerge: %v\nextraction: %v", seed, text, err, wantErr)
		}
		if err != nil {
			failed++
			continue
		}
		got, want := listAttrs(tree), listExtracted(t, root)
		if got != want {
			t.Fatalf("seed %d:\n%smerged:\n%sextracted:\n%s", seed, text, got, want)
		}
	}
	if failed > 1200 {
		t.Errorf("%d cases were errors: too few compare anything", failed)
	}
}

func randomLayers(rnd *rand.Rand) string {
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	name := func() string {
		parts := []string{pick("a", "b", "c")}
		for rnd.IntN(2) == 0 && len(parts) < 4 {
			parts = append(parts, pick("a", "b", "c"))
		}
		return strings.Join(parts, "/")
	}
	var b strings.Builder
	for range 1 + rnd.IntN(3) {
		for range 1 + rnd.IntN(8) {
			n := name()
			dir, base := splitName(n)
			if dir != "" {
				dir += "/"
			}
			switch rnd.IntN(12) {
			case 0, 1, 2, 3:
				fmt.Fprintf(&b, "f %s\n", n)
			case 4, 5:
				fmt.Fprintf(&b, "d %s\n", n)
			case 6, 7:
				fmt.Fprintf(&b, "l %s -> %s\n", n, pick("a", "b", "/a", "/b/c", "..", "../c", ".", "/", "a/../b/", "../../.."))
			case 8:
				fmt.Fprintf(&b, "h %s -> %s\n", n, name())
			case 9:
				fmt.Fprintf(&b, "%s %s\n", pick("c", "b", "p"), n)
			case 10:
				fmt.Fprintf(&b, "f %s.wh.%s\n", dir, base)
			case 11:
				fmt.Fprintf(&b, "f %s.wh..wh..opq\n", dir)
			}
		}
		b.WriteString("--\n")
	}
	return b.String()
}

// extractor unpacks layers with plain system calls, the way that umoci does.
// The kernel resolves names in the root (openat2 with RESOLVE_IN_ROOT).
type extractor struct {
	root  string
	layer int
	upper map[string]bool // what this layer has made, and the directories above
}

func extract(root string, layers [][]index.Entry) error {
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	for l, entries := range layers {
		x := extractor{root: root, layer: l, upper: map[string]bool{root: true}}
		for i := range entries {
			if err := x.entry(&entries[i]); err != nil {
				return fmt.Errorf("%s: %w", entries[i].Name, err)
			}
		}
	}
	return nil
}

func (x *extractor) entry(e *index.Entry) error {
	dirName, base := splitName(e.Name)
	hidden, whiteout := strings.CutPrefix(base, ".wh.")
	dir, err := x.resolve(dirName, !whiteout)
	if err != nil {
		if whiteout && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) {
			return nil
		}
		return err
	}
	if hidden == ".wh..opq" {
		return x.hide(dir, dir)
	} else if whiteout {
		return x.hide(filepath.Join(dir, hidden), "")
	}

	path := filepath.Join(dir, base)
	if fi, err := os.Lstat(path); err == nil && (!fi.IsDir() || e.Type != index.Dir) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	if err := x.make(path, e); err != nil {
		return err
	}
	for p := path; !x.upper[p]; p = filepath.Dir(p) {
		x.upper[p] = true
	}
	return nil
}

func (x *extractor) make(path string, e *index.Entry) error {
	var err error
	switch e.Type {
	case index.Regular:
		err = os.WriteFile(path, fmt.Appendf(nil, "%d %d", x.layer, e.Off), 0o600)
	case index.Dir:
		if err = os.Mkdir(path, 0o700); errors.Is(err, os.ErrExist) {
			err = nil
		}
	case index.Symlink:
		err = os.Symlink(e.Link, path)
	case index.Hardlink:
		dirName, base := splitName(e.Link)
		dir, err := x.resolve(dirName, false)
		if err != nil {
			return err
		}
		return os.Link(filepath.Join(dir, base), path)
	default:
		err = unix.Mknod(path, fileType(e.Type), int(unix.Mkdev(e.Major, e.Minor)))
	}
	if err == nil {
		err = os.Lchown(path, int(e.UID), 0)
	}
	if err == nil && e.Type != index.Symlink {
		err = unix.Chmod(path, e.Mode)
	}
	return err
}

// hide removes what lies at and below path and is not in upper, but never keep.
func (x *extractor) hide(path, keep string) error {
	if _, err := os.Lstat(path); err != nil {
		return nil
	}
	if path != keep && !x.upper[path] {
		return os.RemoveAll(path)
	}
	if fi, err := os.Lstat(path); err != nil || !fi.IsDir() {
		return err
	}
	list, err := os.ReadDir(path)
	for _, d := range list {
		err = errors.Join(err, x.hide(filepath.Join(path, d.Name()), keep))
	}
	return err
}

// resolve returns the real path of a directory. If makeDirs is set it makes what
// is not there, component by component.
func (x *extractor) resolve(name string, makeDirs bool) (string, error) {
	for range 50 {
		real, err := x.open(name)
		if err == nil || !makeDirs || errors.Is(err, unix.ELOOP) {
			return real, err
		}
		// Find the first component that is not there, and make it, or where a
		// symlink points to.
		done, rest := "", name
		for {
			comp, after, _ := strings.Cut(rest, "/")
			next := done + "/" + comp
			if _, err := x.open(next); err == nil {
				done, rest = next, after
				continue
			}
			parent, err := x.open(done)
			if err != nil {
				return "", err
			}
			path := filepath.Join(parent, comp)
			target, err := os.Readlink(path)
			if err != nil {
				if err := errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o755), os.Chmod(path, 0o755)); err != nil {
					return "", err
				}
			} else if strings.HasPrefix(target, "/") {
				name = target + "/" + after
			} else {
				name = strings.TrimPrefix(parent, x.root) + "/" + target + "/" + after
			}
			break
		}
	}
	return "", unix.ELOOP
}

// open returns the real path of a directory that is there.
func (x *extractor) open(name string) (string, error) {
	root, err := unix.Open(x.root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, "./"+name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY,
		Resolve: unix.RESOLVE_IN_ROOT,
	})
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// listAttrs lists a tree as listExtracted lists a directory. Inodes are numbered
// in the order that they are first seen.
func listAttrs(t *Tree) string {
	var b bytes.Buffer
	seen := map[NodeID]int{}
	var walk func(dir NodeID, path string)
	walk = func(dir NodeID, path string) {
		for name, id := range t.Children(dir) {
			a := t.Attr(id)
			if seen[id] == 0 {
				seen[id] = len(seen) + 1
			}
			content := t.Readlink(id)
			mode := a.Mode
			switch a.Type {
			case index.Regular:
				content = fmt.Sprintf("%d %d", a.Layer, a.Off)
			case index.Symlink:
				mode = 0o777
			}
			fmt.Fprintf(&b, "%s/%s #%d %o uid %d, %d links, dev %d:%d %q\n", path, name, seen[id],
				fileType(a.Type)|mode, a.UID, a.Nlink, a.Major, a.Minor, content)
			walk(id, path+"/"+name)
		}
	}
	walk(Root, "")
	return b.String()
}

func listExtracted(t *testing.T, root string) string {
	t.Helper()
	var b bytes.Buffer
	seen := map[uint64]int{}
	var walk func(path string)
	walk = func(path string) {
		list, err := os.ReadDir(root + path)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			p := path + "/" + d.Name()
			st := stat(t, root+p)
			if seen[st.Ino] == 0 {
				seen[st.Ino] = len(seen) + 1
			}
			var content string
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				data, err := os.ReadFile(root + p)
				if err != nil {
					t.Fatal(err)
				}
				content = string(data)
			case unix.S_IFLNK:
				if content, err = os.Readlink(root + p); err != nil {
					t.Fatal(err)
				}
			}
			fmt.Fprintf(&b, "%s #%d %o uid %d, %d links, dev %d:%d %q\n", p, seen[st.Ino], st.Mode, st.Uid,
				st.Nlink, unix.Major(st.Rdev), unix.Minor(st.Rdev), content)
			if d.IsDir() {
				walk(p)
			}
		}
	}
	walk("")
	return b.String()
}
