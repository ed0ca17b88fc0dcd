package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/fs/erofs"
	"golang.org/x/sys/unix"
)

// serialised returns layers as they come out of their indices, and the lengths
// of their flat blobs.
func serialised(layers [][]index.Entry) (read [][]index.Entry, sizes []int64, err error) {
	for _, entries := range layers {
		b, err := index.NewBuilder()
		if err != nil {
			return nil, nil, err
		}
		b.Header = index.Header{Blob: digest.FromString("blob"), DiffID: digest.FromString("tar"), TarSize: 1 << 30, Format: index.Tar}
		var at int64
		for _, e := range entries {
			if e.Type == index.Regular && e.Size > 0 {
				e.TarOff, at = at, at+e.Size
				b.Digests = append(b.Digests, index.SHA256{})
			}
			b.Entries = append(b.Entries, e)
		}
		raw, err := b.Encode()
		if err != nil {
			return nil, nil, err
		}
		f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return nil, nil, err
		}
		out, err := f.Entries()
		if err != nil {
			return nil, nil, err
		}
		read, sizes = append(read, out), append(sizes, f.FlatSize)
	}
	return read, sizes, nil
}

// FuzzImage takes layers all the way from their indices to the EROFS image of
// the tree that they make. What Merge accepts can be written.
func FuzzImage(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(randomLayers(rand.New(rand.NewPCG(seed, 1))))
	}
	f.Fuzz(func(t *testing.T, text string) {
		layers, sizes, err := serialised(parseLayers(text))
		if err != nil {
			return
		}
		tree, err := Merge(layers)
		if err != nil {
			return
		}
		checkTree(t, tree)
		var one, two bytes.Buffer
		if err := errors.Join(erofs.Write(&one, nodes(tree), sizes), erofs.Write(&two, nodes(tree), sizes)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(one.Bytes(), two.Bytes()) {
			t.Error("the same tree gives another image")
		}
	})
}

// TestImageMounted mounts the images of random layers, and compares what the
// kernel shows with what an extraction of the same layers leaves.
func TestImageMounted(t *testing.T) {
	mounted := 0
	for seed := uint64(0); mounted < 40 && seed < 1000; seed++ {
		text := randomLayers(rand.New(rand.NewPCG(seed, 2)))
		parsed := parseLayers(text)
		layers, sizes, err := serialised(parsed)
		if err != nil {
			t.Fatalf("seed %d:\n%s%v", seed, text, err)
		}
		root := filepath.Join(t.TempDir(), "root")
		if err := extract(root, layers); err != nil {
			continue
		}
		tree, err := Merge(layers)
		if err != nil {
			t.Fatalf("seed %d:\n%s%v", seed, text, err)
		}
		needFUSE(t)
		mounted++
		if err := mountedLike(t, tree, sizes, root); err != nil {
			t.Fatalf("seed %d:\n%s%v", seed, text, err)
		}
	}
	if mounted < 40 {
		t.Errorf("only %d images were mounted", mounted)
	}
}

// mountedLike mounts a tree over blobs in which each file's data is what extract
// writes, and compares it with the extraction.
func mountedLike(t *testing.T, tree *Tree, sizes []int64, root string) (err error) {
	t.Helper()
	var blobs []Blob
	for _, size := range sizes {
		blobs = append(blobs, newBlob(t, size))
	}
	for id := Root; int(id) <= tree.Len(); id++ {
		if a := tree.Attr(id); a.Type == index.Regular && a.Size > 0 {
			if _, err := blobs[a.Layer].(*testBlob).file.WriteAt(fmt.Appendf(nil, "%d %d", a.Layer, a.Off)[:a.Size], a.Off); err != nil {
				return err
			}
		}
	}
	dir := openDir(t)
	s, err := Mount(dir, tree, blobs, Options{Driver: testDriver(t), State: t.TempDir()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Unmount()) }()
	got, err := visible(dir, 1)
	if err != nil {
		return err
	}
	want, err := visible(root, 1)
	if err == nil && got != want {
		err = fmt.Errorf("mounted:\n%sextracted:\n%s", got, want)
	}
	return err
}

// visible lists what is to be seen of a tree, with so many bytes of each file.
// Inodes are numbered in the order that they are first seen.
func visible(root string, most int64) (string, error) {
	var b bytes.Buffer
	seen := map[uint64]int{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if seen[st.Ino] == 0 {
			seen[st.Ino] = len(seen) + 1
		}
		var content []byte
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			if content, err = io.ReadAll(io.LimitReader(f, most)); err != nil {
				return err
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			content = []byte(target)
		}
		fmt.Fprintf(&b, "%s #%d %o uid %d, %d links, dev %d:%d %q\n", path[len(root):], seen[st.Ino], st.Mode, st.Uid,
			st.Nlink, unix.Major(st.Rdev), unix.Minor(st.Rdev), content)
		return nil
	})
	return b.String(), err
}
