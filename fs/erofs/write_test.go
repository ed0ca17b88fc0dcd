package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/peelfs/peel/content/index"
)

func regular(device int, off, size int64) *Node {
	return &Node{Entry: &index.Entry{Name: "the entry", Off: off, Size: size}, Device: device}
}

func directory(children ...Dirent) *Node {
	return &Node{Entry: &index.Entry{Name: "the directory", Type: index.Dir}, Children: children}
}

func TestWriteRefused(t *testing.T) {
	entry := func(e index.Entry) *Node {
		e.Name = "the entry"
		return directory(Dirent{"x", &Node{Entry: &e}})
	}
	name := func(s string) *Node { return directory(Dirent{s, regular(1, 0, 0)}) }
	data := func(device int, off, size int64) *Node { return directory(Dirent{"x", regular(device, off, size)}) }
	xattr := func(pairs ...string) *Node { return entry(withXattrs(index.Entry{}, pairs...)) }
	cycle := directory()
	cycle.Children = []Dirent{{"sub", directory(Dirent{"loop", cycle})}}
	twice := directory()
	deep := directory()
	for range maxDepth + 1 {
		deep = directory(Dirent{"d", deep})
	}
	var many []string
	for i := range 5 {
		many = append(many, fmt.Sprintf("user.%d", i), strings.Repeat("v", 1<<16-1))
	}
	for _, test := range []struct {
		name string
		root *Node
		want string
	}{
		{"no root", nil, "the root: no node"},
		{"root is a file", regular(1, 0, 1), "root is not a directory"},
		{"no entry", directory(Dirent{"x", &Node{}}), `"x" in directory`},
		{"no node", directory(Dirent{"x", nil}), `"x" in directory`},
		{"empty name", name(""), "not a name"},
		{"dot", name("."), `"."`},
		{"dot dot", name(".."), `".."`},
		{"slash", name("a/b"), "slash"},
		{"NUL", name("a\x00"), "NUL"},
		{"long name", name(strings.Repeat("n", 256)), "256 bytes"},
		{"double name", directory(Dirent{"x", regular(1, 0, 0)}, Dirent{"x", regular(1, 0, 0)}), "twice"},
		{"cycle", cycle, "one place only"},
		{"directory in two places", directory(Dirent{"a", twice}, Dirent{"b", twice}), `"b" in directory`},
		{"depth", deep, "directories deep"},
		{"children of a file", directory(Dirent{"x", &Node{Entry: &index.Entry{}, Children: name("y").Children}}), "not a directory"},
		{"hard link entry", entry(index.Entry{Type: index.Hardlink, Link: "y"}), "no inode"},
		{"unknown type", entry(index.Entry{Type: 77}), "no inode"},
		{"type in the mode", entry(index.Entry{Mode: 0o100644}), "permission bits"},
		{"nanoseconds", entry(index.Entry{Nsec: 1e9}), "nanoseconds"},
		{"large major", entry(index.Entry{Type: index.Char, Major: 4096}), "4096:0"},
		{"large minor", entry(index.Entry{Type: index.Block, Minor: 1 << 20}), "0:1048576"},
		{"empty link", entry(index.Entry{Type: index.Symlink}), "symbolic link"},
		{"NUL in a link", entry(index.Entry{Type: index.Symlink, Link: "a\x00"}), "symbolic link"},
		{"long link", entry(index.Entry{Type: index.Symlink, Link: strings.Repeat("x", 4096)}), "4096 bytes"},
		{"device 0", data(0, 0, 1), "device 0 of 2"},
		{"device 3", data(3, 0, 1), "device 3 of 2"},
		{"negative size", data(1, 0, -1), "not within"},
		{"negative offset", data(1, -4096, 1), "not within"},
		{"offset in a block", data(1, 100, 1), "start of a block"},
		{"beyond the end", data(1, 4096, 4097), "not within"},
		{"larger than the device", data(1, 0, 8193), "not within"},
		{"size overflows", data(1, 4096, 1<<63-1), "not within"},
		{"offset overflows", data(1, 1<<63-4096, 4096), "not within"},
		{"xattr twice", xattr("user.a", "", "user.a", ""), "out of order or double"},
		{"xattr without a name", xattr("", ""), "out of order"},
		{"xattr prefix only", xattr("user.", "x"), "no name after"},
		{"long xattr", xattr("user."+strings.Repeat("x", 251), "x"), "name of 256 bytes"},
		{"NUL in an xattr", xattr("user.\x00", "x"), "NUL"},
		{"large xattr", xattr("user.x", strings.Repeat("x", 1<<16)), "65536 bytes"},
		{"large xattrs", xattr(many...), "too many"},
		{"ACL too short", xattr(aclAccess, ""), "not an ACL"},
		{"ACL version", xattr(aclAccess, "\x01\x00\x00\x00"), "not an ACL"},
		{"ACL cut", xattr(aclDefault, acl[:len(acl)-1]), "not an ACL"},
		{"ACL tag", xattr(aclAccess, "\x02\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00"), "tag 0x3"},
		{"ACL mode", xattr(aclAccess, "\x02\x00\x00\x00\x01\x00\x08\x00\x00\x00\x00\x00"), "impossible ACL"},
		{"ACL of nobody", xattr(aclAccess, "\x02\x00\x00\x00\x02\x00\x07\x00\xff\xff\xff\xff"), "impossible ACL"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var b bytes.Buffer
			err := Write(&b, test.root, []int64{8192, 4096})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), "the ") {
				t.Errorf("%q does not name the entry or directory", err)
			}
			if b.Len() > 0 {
				t.Errorf("%d bytes were written", b.Len())
			}
		})
	}
}

func TestWriteDevicesRefused(t *testing.T) {
	for _, devices := range [][]int64{{-4096}, {4095}, {4096, 1 << 44}, make([]int64, 20_000)} {
		if err := Write(io.Discard, directory(), devices); err == nil {
			t.Errorf("%d devices, the first of %d bytes: no error", len(devices), devices[0])
		}
	}
}

// mergedTree is a tree with a file on each of n devices, all linked once.
func mergedTree(n int) (root *Node, devices []int64) {
	root = directory()
	for i := range n {
		size := int64(i+1) * 5000
		f := regular(i+1, 4096, size)
		f.Entry.Name = fmt.Sprintf("layer%d/file", i)
		root.Children = append(root.Children,
			Dirent{fmt.Sprintf("layer%d", i), directory(Dirent{"file", f})},
			Dirent{fmt.Sprintf("link%d", i), f})
		devices = append(devices, 4096+index.Align(size))
	}
	return root, devices
}

// seeMerged is what mergedTree should look like.
func seeMerged(t *testing.T, devices []io.ReaderAt) records {
	r, ids := make(records), make(map[string]uint64)
	add := func(name string, rec record) { r[name], ids[name] = rec, uint64(len(ids)+1) }
	add(".", record{mode: 0o40000})
	for i, d := range devices {
		size := int64(i+1) * 5000
		data, err := digest(io.NewSectionReader(d, 4096, size), size)
		if err != nil {
			t.Fatal(err)
		}
		add(fmt.Sprintf("layer%d", i), record{mode: 0o40000})
		add(fmt.Sprintf("layer%d/file", i), record{mode: 0o100000, size: size, data: data})
		r[fmt.Sprintf("link%d", i)] = r[fmt.Sprintf("layer%d/file", i)]
		ids[fmt.Sprintf("link%d", i)] = ids[fmt.Sprintf("layer%d/file", i)]
	}
	r.setLinks(ids)
	r.setNlink()
	return r
}

func TestWriteMerged(t *testing.T) {
	for _, n := range []int{0, 1, 10, 127, 1000} {
		root, sizes := mergedTree(n)
		var devices []io.ReaderAt
		for i, size := range sizes {
			devices = append(devices, device{byte(i), size})
		}
		var b bytes.Buffer
		if err := Write(&b, root, sizes); err != nil {
			t.Fatal(err)
		}
		got, err := read(b.Bytes(), devices)
		if err != nil {
			t.Fatalf("%d devices: %v", n, err)
		}
		diff(t, got, seeMerged(t, devices))
	}
}

// The order in which a directory's children are given says nothing, and a tree
// can be written again.
func TestWriteDeterministic(t *testing.T) {
	entries := append(dirLayer(), xattrLayer()...)
	size := index.LayOut(entries)
	root, err := FromLayer(entries, nil)
	if err != nil {
		t.Fatal(err)
	}
	var first []byte
	for range 3 {
		var b bytes.Buffer
		if err := Write(&b, root, []int64{size}); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b.Bytes()
		}
		if !bytes.Equal(first, b.Bytes()) {
			t.Fatal("the same tree gave other bytes")
		}
		shuffle(root)
	}
}

func shuffle(n *Node) {
	rand.Shuffle(len(n.Children), func(i, j int) { n.Children[i], n.Children[j] = n.Children[j], n.Children[i] })
	for _, c := range n.Children {
		shuffle(c.Node)
	}
}

// Attributes that many files have stand in the image once.
func TestWriteSharesXattrs(t *testing.T) {
	value := strings.Repeat("v", 1000)
	var entries []index.Entry
	for i := range 1000 {
		entries = append(entries, withXattrs(file(fmt.Sprint(i), 0), "user.x", value))
	}
	if n := bytes.Count(image(t, entries, 0), []byte(value)); n != 1 {
		t.Errorf("the value stands %d times in the image", n)
	}
}

// failAfter takes so many bytes and no more.
type failAfter int

var errFull = errors.New("no space left")

func (f *failAfter) Write(p []byte) (int, error) {
	if *f -= failAfter(len(p)); *f < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteFails(t *testing.T) {
	var nodes []Dirent
	for i := range 10_000 {
		nodes = append(nodes, Dirent{fmt.Sprint(i), regular(1, 0, 0)})
	}
	root := directory(nodes...)
	for _, room := range []failAfter{0, 4096, 300_000, 700_000} {
		if err := Write(&room, root, nil); !errors.Is(err, errFull) {
			t.Errorf("got %v, want %v", err, errFull)
		}
	}
}

func TestChunksOf(t *testing.T) {
	for _, test := range []struct {
		size int64
		bits uint8
		n    int
	}{
		{1, 0, 1}, {4096, 0, 1}, {4097, 1, 1}, {8192, 1, 1}, {8193, 2, 1}, {1 << 29, 17, 1}, {1<<29 + 1, 18, 1},
		{1 << 30, 18, 1}, {1<<30 + 1, 18, 2}, {1 << 40, 18, 1024}, {1<<44 - 4096, 18, 1 << 14},
	} {
		if got := chunksOf(test.size); got != (chunks{test.bits, test.n}) {
			t.Errorf("%d bytes: %+v, want %d chunks of 1<<%d blocks", test.size, got, test.n, test.bits)
		}
	}
}

// What is in memory beside the tree stays small.
func TestWriteAllocates(t *testing.T) {
	var nodes []Dirent
	for i := range 10_000 {
		nodes = append(nodes, Dirent{fmt.Sprintf("%05d", i), regular(1, 0, 0)})
	}
	root := directory(slices.Clip(nodes)...)
	got := testing.AllocsPerRun(3, func() {
		if err := Write(io.Discard, root, nil); err != nil {
			t.Fatal(err)
		}
	})
	if got > 100 {
		t.Errorf("%v allocations for 10000 files", got)
	}
}
