package fs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/peelfs/peel/content/index"
)

// parseLayers reads layers from a text with an entry a line and "--" between
// layers. An entry is a type as find(1) prints it (f, d, l, c, b, p, and h for
// a hard link), a name and, for links, " -> " and the target. It sets the user
// id to the line's number, so that it shows which entry counted.
func parseLayers(text string) [][]index.Entry {
	layers := [][]index.Entry{nil}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimLeft(line, "\t")
		if line == "--" {
			layers = append(layers, nil)
			continue
		}
		kind, name, _ := strings.Cut(line, " ")
		if kind == "" {
			continue
		}
		e := index.Entry{Name: name, Mode: 0o644, UID: uint32(i)}
		switch kind {
		case "f":
			e.Type, e.Size, e.Off = index.Regular, 1, int64(i)*index.BlockSize
		case "d":
			e.Type, e.Mode = index.Dir, 0o700
		case "l":
			e.Type = index.Symlink
		case "h":
			e.Type = index.Hardlink
		case "c":
			e.Type, e.Major, e.Minor = index.Char, 1, 3
		case "b":
			e.Type, e.Major, e.Minor = index.Block, 8, 1
		case "p":
			e.Type = index.Fifo
		default:
			continue
		}
		if e.Type == index.Symlink || e.Type == index.Hardlink {
			e.Name, e.Link, _ = strings.Cut(name, " -> ")
		}
		l := len(layers) - 1
		layers[l] = append(layers[l], e)
	}
	return layers
}

// list shows a tree with a line a name: type, path, target, and where it is
// not 1 (2 and the subdirectories for a directory) the link count.
func list(t *Tree) string {
	var b strings.Builder
	var walk func(dir NodeID, path string)
	walk = func(dir NodeID, path string) {
		for name, id := range t.Children(dir) {
			a := t.Attr(id)
			fmt.Fprintf(&b, "%c %s%s", "fdlhcbp"[a.Type], path, name)
			usual := uint32(1)
			switch a.Type {
			case index.Symlink:
				fmt.Fprintf(&b, " -> %s", t.Readlink(id))
			case index.Dir:
				usual = 2
				for _, c := range t.Children(id) {
					if t.Attr(c).Type == index.Dir {
						usual++
					}
				}
				if a.Mode == 0o755 {
					b.WriteString(" made")
				}
			case index.Regular:
				fmt.Fprintf(&b, " %d", a.Layer)
			}
			if a.Nlink != usual {
				fmt.Fprintf(&b, " x%d", a.Nlink)
			}
			b.WriteString("\n")
			walk(id, path+name+"/")
		}
	}
	walk(Root, "")
	return b.String()
}

func TestMerge(t *testing.T) {
	for _, tt := range []struct{ name, layers, want string }{
		{"no layer", ``, ``},
		{"every type", `
			d d
			f d/f
			l d/l -> /f
			h d/h -> d/f
			c d/c
			b d/b
			p d/p`, `
			d d
			b d/b
			c d/c
			f d/f 0 x2
			f d/h 0 x2
			l d/l -> /f
			p d/p`},
		{"names are sorted as bytes", `
			f b
			f a-
			f a/x
			f B
			f ä`, `
			f B 0
			d a made
			f a/x 0
			f a- 0
			f b 0
			f ä 0`},
		{"missing parents are made", `
			f a/b/c`, `
			d a made
			d a/b made
			f a/b/c 0`},
		{"a made parent takes its attributes later", `
			f a/b
			d a`, `
			d a
			f a/b 0`},
		{"layers add up", `
			d a
			f a/x
			--
			f a/y
			--
			f b`, `
			d a
			f a/x 0
			f a/y 1
			f b 2`},
		{"a higher layer replaces a file", `
			f a
			--
			f a`, `
			f a 1`},
		{"the last duplicate counts", `
			f a
			l a -> x
			d a
			f a/x
			f a/x
			--
			f b
			d b
			p b`, `
			d a
			f a/x 0
			p b`},
		{"a directory over a directory keeps what is in it", `
			d a
			f a/x
			--
			d a`, `
			d a
			f a/x 0`},
		{"a file over a directory drops what is in it", `
			f a/b/x
			--
			f a`, `
			f a 1`},
		{"a directory over a file", `
			f a
			--
			d a
			f a/x`, `
			d a
			f a/x 1`},
		{"a directory over a symlink to a directory replaces the symlink", `
			f usr/lib/x
			l lib -> usr/lib
			--
			d lib`, `
			d lib
			d usr made
			d usr/lib made
			f usr/lib/x 0`},
		{"a file that is a parent becomes a directory", `
			f a
			--
			f a/x`, `
			d a made
			f a/x 1`},
		{"a directory that comes back after it was replaced is empty", `
			f a/x
			--
			f a
			--
			d a`, `
			d a`},

		{"whiteout of a file", `
			f a
			f b
			--
			f .wh.a`, `
			f b 0`},
		{"whiteout of a directory", `
			f a/b/c
			f b
			--
			f .wh.a`, `
			f b 0`},
		{"whiteout of what is not there", `
			f b
			--
			f .wh.a
			f x/.wh.a
			f b/.wh.a
			f x/.wh..wh..opq`, `
			f b 0`},
		{"a whiteout after the name spares its own layer", `
			f a/x
			--
			f a/y
			f .wh.a`, `
			d a made
			f a/y 1`},
		{"a whiteout before the name does too", `
			f a/x
			--
			f .wh.a
			f a/y`, `
			d a made
			f a/y 1`},
		{"a whiteout spares a new directory but not what it took over", `
			f a/x/1
			f a/y
			--
			d a
			f a/x/2
			f .wh.a`, `
			d a
			d a/x made
			f a/x/2 1`},
		{"a whiteout reaches below its own layer's directory", `
			f a/x/1
			--
			d a/x
			f .wh.a`, `
			d a made
			d a/x`},
		{"a whiteout of the layer's own file does nothing", `
			f a
			f .wh.a`, `
			f a 0`},
		{"a whiteout then holds for lower layers only", `
			f a
			--
			f .wh.a
			--
			f a`, `
			f a 2`},
		{"whiteout through a symlink", `
			f usr/lib/x
			f usr/lib/y
			l lib -> usr/lib
			--
			f lib/.wh.x`, `
			l lib -> usr/lib
			d usr made
			d usr/lib made
			f usr/lib/y 0`},
		{"a whiteout of a whiteout's type does not matter", `
			f a
			--
			c .wh.a`, ``},

		{"opaque after the layer's own entries", `
			f a/x
			f a/d/x
			--
			f a/y
			f a/d/y
			f a/.wh..wh..opq`, `
			d a made
			d a/d made
			f a/d/y 1
			f a/y 1`},
		{"opaque before the layer's own entries", `
			f a/x
			f a/d/x
			--
			f a/.wh..wh..opq
			f a/y
			f a/d/y`, `
			d a made
			d a/d made
			f a/d/y 1
			f a/y 1`},
		{"opaque keeps the directory", `
			d a
			f a/x
			--
			f a/.wh..wh..opq`, `
			d a`},
		{"opaque root", `
			f a
			f b/c
			--
			f .wh..wh..opq
			f d`, `
			f d 1`},
		{"opaque twice", `
			f a/x
			--
			f a/.wh..wh..opq
			f a/y
			f a/.wh..wh..opq`, `
			d a made
			f a/y 1`},
		{"opaque of a directory that has just replaced a symlink", `
			f usr/lib/x
			l lib -> usr/lib
			--
			d lib
			f lib/.wh..wh..opq`, `
			d lib
			d usr made
			d usr/lib made
			f usr/lib/x 0`},
		{"opaque in each of two layers", `
			f a/x
			--
			f a/.wh..wh..opq
			f a/y
			--
			f a/.wh..wh..opq
			f a/z`, `
			d a made
			f a/z 2`},

		{"aufs leftovers are left out", `
			f .wh..wh.aufs
			d .wh..wh.plnk
			f .wh..wh.plnk/1.2
			f a/.wh..wh.x
			f b`, `
			f b 0`},
		{"names below a whiteout are left out", `
			f a
			--
			f .wh.a/b
			f d/.wh.a/b`, `
			f a 0`},

		{"hard links in one layer", `
			f a
			h b -> a
			h d/c -> b`, `
			f a 0 x3
			f b 0 x3
			d d made
			f d/c 0 x3`},
		{"hard link into a lower layer", `
			f a
			--
			h b -> a`, `
			f a 0 x2
			f b 0 x2`},
		{"the lower name of a hard link goes away", `
			f a
			--
			h b -> a
			f .wh.a`, `
			f b 0`},
		{"one name of a hard link is replaced", `
			f a
			h b -> a
			--
			f a`, `
			f a 1
			f b 0`},
		{"hard link over a directory", `
			f a
			f d/x
			--
			h d -> a`, `
			f a 0 x2
			f d 0 x2`},
		{"hard link to a symlink and to a device", `
			l a -> nowhere
			h b -> a
			c c
			h d -> c`, `
			l a -> nowhere x2
			l b -> nowhere x2
			c c x2
			c d x2`},
		{"hard link through a symlinked directory", `
			f usr/x
			l u -> usr
			h y -> u/x`, `
			l u -> usr
			d usr made
			f usr/x 0 x2
			f y 0 x2`},

		{"parents that are symlinks are followed in the root", `
			d usr/lib
			l lib -> usr/lib
			f lib/a
			--
			f lib/b
			l up -> ../../..
			f up/c
			l abs -> /usr
			f abs/d
			l dot -> .
			f dot/e`, `
			l abs -> /usr
			f c 1
			l dot -> .
			f e 1
			l lib -> usr/lib
			l up -> ../../..
			d usr made
			f usr/d 1
			d usr/lib
			f usr/lib/a 0
			f usr/lib/b 1`},
		{"a dangling symlink's target is made", `
			l a -> b//c/
			f a/x`, `
			l a -> b//c/
			d b made
			d b/c made
			f b/c/x 0`},
		{"a symlink that changes is followed anew", `
			l a -> b
			f a/1
			l a -> c
			f a/2`, `
			l a -> c
			d b made
			f b/1 0
			d c made
			f c/2 0`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree, err := Merge(parseLayers(tt.layers))
			if err != nil {
				t.Fatal(err)
			}
			want := strings.TrimLeft(strings.ReplaceAll(tt.want, "\t", ""), "\n")
			if want != "" {
				want += "\n"
			}
			if got := list(tree); got != want {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
			checkTree(t, tree)
		})
	}
}

func TestMergeRefuses(t *testing.T) {
	long := strings.Repeat("x", 256)
	file := index.Entry{Name: "f"}
	with := func(e index.Entry, change func(*index.Entry)) [][]index.Entry {
		change(&e)
		return [][]index.Entry{{file, e}}
	}
	for _, tt := range []struct {
		name   string
		layers [][]index.Entry
		want   string // in the error
	}{
		{"link to a missing name", parseLayers("f a\n--\nh b -> c"), `layer 1, entry "b": hard link to "c", which is not there`},
		{"link to a directory", parseLayers("d a\nh b -> a"), "which is a directory"},
		{"link to the root", parseLayers("d a\nh b -> ."), `"."`},
		{"link to itself", parseLayers("h b -> b"), "not there"},
		{"link to itself over a file", parseLayers("f b\nh b -> b"), "not there"},
		{"link to itself through a symlink", parseLayers("f d/b\nl e -> d\nh d/b -> e/b"), "not there"},
		{"link to what it replaces", parseLayers("f d/b\nh d -> d/b"), "not there"},
		{"links in a circle", parseLayers("h a -> b\nh b -> a"), `entry "a"`},
		{"link to a later name", parseLayers("h a -> b\nf b"), "not there"},
		{"link to a hidden name", parseLayers("f a\n--\nf .wh.a\nh b -> a"), "not there"},
		{"link below a file", parseLayers("f a\nh b -> a/x"), "not there"},
		{"link out of the root", parseLayers("h b -> ../etc/passwd"), `".."`},
		{"root that is a file", parseLayers("f ."), "root must be a directory"},
		{"absolute name", parseLayers("f /a"), "not clean"},
		{"name with ..", parseLayers("f a/../../b"), `".."`},
		{"name with .", parseLayers("f a/./b"), `"."`},
		{"empty name", parseLayers("f "), "not clean"},
		{"slash at the end", parseLayers("f a/"), "not clean"},
		{"name with NUL", parseLayers("f a\x00b"), "NUL"},
		{"long part of a name", parseLayers("f a/" + long), "256 bytes"},
		{"long name", parseLayers("f " + strings.Repeat("a/", 2048)), "name of 4096 bytes"},
		{"deep name", parseLayers("f " + strings.Repeat("a/", 1100) + "b"), "path components"},
		{"symlinks in a circle", parseLayers("l a -> b\nl b -> a\nf a/x"), "symlinks on its way"},
		{"whiteout of no name", parseLayers("f a/.wh."), "whiteout of no name"},
		{"whiteout of ..", parseLayers("f a/.wh..."), "whiteout of no name"},
		{"empty symlink", parseLayers("l a -> "), "target"},
		{"long symlink", parseLayers("l a -> " + strings.Repeat("x", 4096)), "target"},
		{"symlink with NUL", parseLayers("l a -> x\x00"), "target"},
		{"type", with(file, func(e *index.Entry) { e.Type = 99 }), "unknown type 99"},
		{"mode", with(file, func(e *index.Entry) { e.Mode = 0o40755 }), "mode"},
		{"nanoseconds", with(file, func(e *index.Entry) { e.Nsec = 1e9 }), "nanoseconds"},
		{"negative size", with(file, func(e *index.Entry) { e.Size = -1 }), "no place"},
		{"negative offset", with(file, func(e *index.Entry) { e.Off = -4096 }), "no place"},
		{"unaligned offset", with(file, func(e *index.Entry) { e.Off = 1 }), "no place"},
		{"end beyond all", with(file, func(e *index.Entry) { e.Size, e.Off = 1<<63-1, 4096 }), "no place"},
		{"device", with(file, func(e *index.Entry) { e.Type, e.Major = index.Char, 1<<12 }), "device number"},
		{"xattr name", with(file, func(e *index.Entry) { e.Xattrs = []index.Xattr{{Name: "user." + long}} }), "attribute"},
		{"xattr value", with(file, func(e *index.Entry) {
			e.Xattrs = []index.Xattr{{Name: "user.x", Value: strings.Repeat("x", 65537)}}
		}), "65537 bytes"},
		{"xattr list", with(file, func(e *index.Entry) {
			e.Xattrs = slices.Repeat([]index.Xattr{{Name: long[:200]}}, 327)
		}), "listed"},
		{"layers", make([][]index.Entry, maxLayers+1), "layers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Merge(tt.layers)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestMergeAttributes(t *testing.T) {
	acl := []index.Xattr{{Name: "system.posix_acl_access", Value: "\x02"}, {Name: "user.x", Value: "\x00y"}}
	entries := []index.Entry{
		{Name: ".", Type: index.Dir, Mode: 0o1777, UID: 1, GID: 2, Sec: -1, Nsec: 5, Xattrs: acl},
		{Name: "f", Mode: 0o4755, UID: 1 << 31, GID: 4, Sec: 1 << 40, Nsec: 999999999, Size: 7, Off: 8192, Xattrs: slices.Clone(acl)},
		{Name: "c", Type: index.Char, Mode: 0o600, Major: 4095, Minor: 1<<20 - 1},
	}
	tree, err := Merge([][]index.Entry{{{Name: "f", Size: 100}}, entries})
	if err != nil {
		t.Fatal(err)
	}
	f, _ := tree.Lookup(Root, "f")
	c, _ := tree.Lookup(Root, "c")
	for id, want := range map[NodeID]Attr{
		Root: {Type: index.Dir, Mode: 0o1777, UID: 1, GID: 2, Nlink: 2, Sec: -1, Nsec: 5, Layer: 1},
		f: {Type: index.Regular, Mode: 0o4755, UID: 1 << 31, GID: 4, Nlink: 1, Sec: 1 << 40, Nsec: 999999999,
			Size: 7, Off: 8192, Layer: 1},
		c: {Type: index.Char, Mode: 0o600, Nlink: 1, Major: 4095, Minor: 1<<20 - 1, Layer: 1},
	} {
		if got := tree.Attr(id); got != want {
			t.Errorf("%s: got %+v, want %+v", tree.Path(id), got, want)
		}
	}
	if !slices.Equal(tree.Xattrs(f), acl) || !slices.Equal(tree.Xattrs(Root), acl) || tree.Xattrs(c) != nil {
		t.Errorf("xattrs: %q, %q, %q", tree.Xattrs(f), tree.Xattrs(Root), tree.Xattrs(c))
	}
	if len(tree.xattrs) != 2 {
		t.Errorf("%d sets of xattrs for two equal ones", len(tree.xattrs)-1)
	}
	if tree.Layers() != 2 || tree.bytes != 7 {
		t.Errorf("%d layers, %d bytes", tree.Layers(), tree.bytes)
	}
}

// checkTree checks what must hold of every tree.
func checkTree(t *testing.T, tree *Tree) {
	t.Helper()
	links := make([]uint32, tree.Len()+1)
	seen := 0
	var walk func(dir NodeID)
	walk = func(dir NodeID) {
		seen++
		last := ""
		links[dir] += 2
		for name, id := range tree.Children(dir) {
			if name <= last || strings.Contains(name, "/") {
				t.Fatalf("name %q after %q", name, last)
			}
			last = name
			if got, ok := tree.Lookup(dir, name); !ok || got != id {
				t.Fatalf("Lookup of %q in %d: %d, want %d", name, dir, got, id)
			}
			if tree.Attr(id).Type != index.Dir {
				links[id]++
				if links[id] == 1 {
					seen++
				}
				continue
			}
			if tree.Parent(id) != dir {
				t.Fatalf("parent of %d is %d, want %d", id, tree.Parent(id), dir)
			}
			links[dir]++
			walk(id)
		}
	}
	walk(Root)
	if seen != tree.Len() {
		t.Fatalf("%d nodes of %d can be reached", seen, tree.Len())
	}
	for id := Root; int(id) <= tree.Len(); id++ {
		if got := tree.Attr(id).Nlink; got != links[id] {
			t.Fatalf("link count of %d is %d, want %d", id, got, links[id])
		}
	}
	if cap(tree.names) != len(tree.names) {
		t.Fatalf("room for %d names, for %d", cap(tree.names), len(tree.names))
	}
	if tree.Parent(Root) != Root {
		t.Fatalf("parent of the root is %d", tree.Parent(Root))
	}
}

func TestPath(t *testing.T) {
	tree, err := Merge(parseLayers("f a/b/c\nf a/d\nd e\nf e/f\nf g"))
	if err != nil {
		t.Fatal(err)
	}
	if got := tree.Path(Root); got != "/" {
		t.Errorf("path of the root: %q", got)
	}
	for _, path := range []string{"/a", "/a/b", "/a/b/c", "/a/d", "/e", "/e/f", "/g"} {
		id := Root
		for _, name := range strings.Split(path[1:], "/") {
			id, _ = tree.Lookup(id, name)
		}
		if got := tree.Path(id); got != path {
			t.Errorf("got %q, want %q", got, path)
		}
	}
}

func TestNotADirectory(t *testing.T) {
	tree, err := Merge(parseLayers("f a\nl b -> c"))
	if err != nil {
		t.Fatal(err)
	}
	a, _ := tree.Lookup(Root, "a")
	for range tree.Children(a) {
		t.Error("a file has children")
	}
	if _, ok := tree.Lookup(a, "b"); ok {
		t.Error("a name was found in a file")
	}
	if tree.Readlink(a) != "" || tree.Readlink(Root) != "" {
		t.Error("a target of what is no symlink")
	}
	if tree.Parent(a) != 0 {
		t.Error("a file has a parent")
	}
}

// benchLayers has n entries in three layers, like an image of a distribution:
// short names, eight files to a directory.
func benchLayers(n int) [][]index.Entry {
	layers := make([][]index.Entry, 3)
	var off int64
	for i := 0; i < n; i++ {
		l := min(i*4/n, 2)
		dir := fmt.Sprintf("usr/share/package-%d/dir-%d", i/64, i/8%8)
		e := index.Entry{Name: dir, Type: index.Dir, Mode: 0o755}
		if i%8 != 0 {
			e = index.Entry{Name: fmt.Sprintf("%s/file-%d.txt", dir, i), Mode: 0o644, Size: 100, Off: off, Sec: int64(i)}
			off += index.BlockSize
		}
		layers[l] = append(layers[l], e)
	}
	return layers
}

func BenchmarkMerge(b *testing.B) {
	layers := benchLayers(100_000)
	b.ReportAllocs()
	for b.Loop() {
		tree, err := Merge(layers)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(treeSize(tree))/float64(tree.Len()), "B/node")
	}
}

// treeSize returns the bytes that a tree takes, its strings included.
func treeSize(t *Tree) int {
	return cap(t.inodes)*56 + cap(t.names)*12 + len(t.arena)
}
