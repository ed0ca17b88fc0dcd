package erofs

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/peelfs/peel/content/index"
)

// layer is a hand-made layer.
type testLayer struct {
	name    string
	entries []index.Entry
}

func dir(name string) index.Entry { return index.Entry{Name: name, Type: index.Dir, Mode: 0o755} }

func file(name string, size int64) index.Entry {
	return index.Entry{Name: name, Size: size, Mode: 0o644, Sec: 1700000000}
}

func hardlink(name, to string) index.Entry {
	return index.Entry{Name: name, Type: index.Hardlink, Link: to}
}

func symlink(name, to string) index.Entry {
	return index.Entry{Name: name, Type: index.Symlink, Link: to, Mode: 0o777}
}

func withXattrs(e index.Entry, pairs ...string) index.Entry {
	for i := 0; i < len(pairs); i += 2 {
		e.Xattrs = append(e.Xattrs, index.Xattr{Name: pairs[i], Value: pairs[i+1]})
	}
	slices.SortFunc(e.Xattrs, func(a, b index.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return e
}

// acl is user::rwx, user:1000:r--, group::r-x, mask::rwx, other::---
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

// netBindCap is cap_net_bind_service=ep.
const netBindCap = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// testLayers are layers that the writer must be able to show.
func testLayers() []testLayer {
	return []testLayer{
		{"empty", nil},
		{"types", []index.Entry{
			{Name: ".", Type: index.Dir, Mode: 0o700, UID: 5, GID: 6, Sec: 7, Nsec: 8},
			file("empty", 0), file("one", 1), file("block", 4096), file("more", 4097), file("big", 1<<20),
			{Name: "setuid", Mode: 0o6755, UID: 1<<32 - 2, GID: 70000, Size: 3},
			{Name: "sticky", Type: index.Dir, Mode: 0o1777},
			{Name: "old", Sec: -1, Nsec: 999999999}, {Name: "older", Sec: -1 << 40},
			{Name: "late", Sec: 1 << 40, Nsec: 1},
			{Name: "char", Type: index.Char, Major: 1, Minor: 3, Mode: 0o666},
			{Name: "char-large", Type: index.Char, Major: 4095, Minor: 1<<20 - 1},
			{Name: "block-dev", Type: index.Block, Major: 259, Minor: 300, Mode: 0o660},
			{Name: "fifo", Type: index.Fifo, Mode: 0o600},
			file("latin1-\xe9\xff", 9), file("new\nline", 9), file(strings.Repeat("n", 255), 9),
		}},
		{"huge files", []index.Entry{file("5G", 5<<30+123), file("1G", 1<<30), file("1G+1", 1<<30+1)}},
		{"symlinks", slices.Concat(symlinks(1, 60), symlinks(3990, 4095))},
		{"hard links", []index.Entry{
			file("a", 5), dir("d"), hardlink("d/b", "a"), hardlink("c", "d/b"),
			symlink("s", "nowhere"), hardlink("s2", "s"),
			{Name: "fifo", Type: index.Fifo}, hardlink("fifo2", "fifo"),
			file("again", 1), hardlink("keeps-first", "again"), file("again", 2),
		}},
		{"doubles", []index.Entry{
			file("f", 1), file("f", 2), dir("d"), file("d/x", 3), {Name: "d", Type: index.Dir, Mode: 0o500, Sec: 4},
			dir("gone"), dir("gone/deep"), file("gone/deep/x", 4), file("gone", 5),
			dir("back"), file("back/x", 6), file("back", 7), dir("back"), file("back/y", 8),
		}},
		{"missing parents", []index.Entry{file("a/b/c/d", 1), {Name: "a/b", Type: index.Dir, Mode: 0o711}, hardlink("x/y", "a/b/c/d")}},
		{"whiteouts", []index.Entry{
			file(".wh.removed", 0), file("d/.wh.removed", 0), file("d/.wh.stays", 0), file("d/stays", 1),
			file("d/.wh."+strings.Repeat("n", 255), 0),
			file("d/.wh.replaced", 0), dir("d/replaced"), file("d/replaced/x", 2),
			file("opaque/.wh..wh..opq", 0), file("opaque/x", 3), file("opaque/.wh.senseless", 0), file("opaque/sub/.wh.senseless", 0),
			dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", 4), file(".wh..wh.aufs", 0),
			file("early/sub/.wh.senseless", 0), file(".wh.early", 0), dir("early"), file(".wh..wh.odd/x", 0),
			dir("later"), file("later/.wh.x", 0), file("later", 1), file(".wh.removed", 0),
		}},
		{"xattrs", xattrLayer()},
		{"directories", dirLayer()},
		{"depth", []index.Entry{file(strings.Repeat("d/", 2000)+"f", 1)}},
	}
}

func symlinks(from, to int) (entries []index.Entry) {
	for n := from; n <= to; n++ {
		entries = append(entries, symlink(fmt.Sprintf("l%d", n), strings.Repeat("x", n)))
	}
	return entries
}

func xattrLayer() []index.Entry {
	many, large := file("many", 1), file("large", 1)
	for i := range 300 {
		many = withXattrs(many, fmt.Sprintf("user.n%03d", i), fmt.Sprint(i))
	}
	for i := range 3 {
		large = withXattrs(large, fmt.Sprintf("user.%d", i), strings.Repeat(fmt.Sprint(i), 65535-i))
	}
	twin := many
	twin.Name = "twin"
	entries := []index.Entry{
		withXattrs(file("ping", 5000), "security.capability", netBindCap),
		withXattrs(file("acl", 1), "system.posix_acl_access", acl),
		withXattrs(dir("acl-dir"), "system.posix_acl_access", acl, "system.posix_acl_default", acl),
		withXattrs(file("mac", 1), "com.apple.quarantine", "x", "user.seen", ""),
		withXattrs(dir("overlay"), "trusted.overlay.opaque", "y", "trusted.overlay.zz", "1", "trusted.p", "2"),
		withXattrs(symlink("link", strings.Repeat("t", 3000)), "security.selinux", strings.Repeat("s", 900)),
		withXattrs(file("name", 1), "user."+strings.Repeat("n", 250), "v"),
		many, twin, large,
	}
	for i := range 200 { // one value for all, one of its own, of growing size
		entries = append(entries, withXattrs(file(fmt.Sprintf("f%03d", i), int64(i)),
			"security.selinux", "system_u:object_r:usr_t:s0\x00", "user.own", strings.Repeat("o", i)))
	}
	return entries
}

// dirLayer has directories around each limit of a block.
func dirLayer() []index.Entry {
	var entries []index.Entry
	for _, name := range []string{"!", "+", "-", ".!", ".-", "...", "..a", ".a", "/"[:0] + "0", "\x01", "\xff"} {
		entries = append(entries, file("around-dots/"+name, 1), dir("around-dots2/"+name))
	}
	for n := 320; n < 345; n++ { // 12 bytes and 5 of name each: 240 in a block
		for i := range n - 100 {
			entries = append(entries, file(fmt.Sprintf("full%d/n%04d", n, i), 0))
		}
	}
	for n := 1; n <= 40; n++ { // 15 of the longest names in a block
		for i := range n {
			entries = append(entries, dir(fmt.Sprintf("long%d/%0255d", n, i)))
		}
	}
	return entries
}

func TestLayer(t *testing.T) {
	for _, l := range testLayers() {
		t.Run(l.name, func(t *testing.T) {
			size := index.LayOut(l.entries)
			files, ok := unpack(l.entries)
			if !ok {
				t.Fatal("the layer is not good")
			}
			dev := device{1, size}
			got, err := read(image(t, l.entries, size), []io.ReaderAt{dev})
			if err != nil {
				t.Fatal(err)
			}
			diff(t, got, see(t, files, dev))
		})
	}
}

func TestLargeDirectory(t *testing.T) {
	var entries []index.Entry
	for i := range 100_000 {
		entries = append(entries, file(fmt.Sprintf("d/%x", i*7919), 0))
	}
	got, err := read(image(t, entries, 0), []io.ReaderAt{device{}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 100_002 {
		t.Errorf("%d files, want 100002", len(got))
	}
}

func TestLayerBelow(t *testing.T) {
	below := func(name string) *index.Entry {
		switch name {
		case ".":
			return &index.Entry{Type: index.Dir, Mode: 0o711}
		case "tmp":
			return &index.Entry{Type: index.Dir, Mode: 0o1777, UID: 3}
		case "tmp/there":
			return &index.Entry{}
		}
		return nil
	}
	nothing := func(string) *index.Entry { return nil }
	if _, err := FromLayer([]index.Entry{file(".wh..wh..opq", 0)}, nothing); err != nil {
		t.Errorf("opaque root of the lowest layer: %v", err)
	}
	entries := []index.Entry{file("tmp/new/f", 0), file("tmp/.wh.there", 0), file("tmp/.wh.nowhere", 0)}
	root, err := FromLayer(entries, below)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := Write(&b, root, nil); err != nil {
		t.Fatal(err)
	}
	got, err := read([]byte(b.String()), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint32{".": 0o40711, "tmp": 0o41777, "tmp/new": 0o40755, "tmp/new/f": 0o100644, "tmp/there": 0o20000}
	for name, mode := range want {
		if got[name].mode != mode {
			t.Errorf("%s has mode %#o, want %#o", name, got[name].mode, mode)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %d files, want %d", len(got), len(want))
	}
}

func TestLayerNotStandalone(t *testing.T) {
	link := func(name string) *index.Entry { return &index.Entry{Type: index.Symlink, Link: "usr/lib"} }
	for _, test := range []struct {
		name    string
		entries []index.Entry
		below   Below
		want    []string
	}{
		{"link to a lower layer", []index.Entry{file("a", 1), hardlink("b", "lower"), hardlink("d/c", "d/lower")}, nil, []string{"b", "d/c"}},
		{"link to itself", []index.Entry{file("a", 1), hardlink("a", "a")}, nil, []string{"a"}},
		{"link to a directory", []index.Entry{dir("a"), hardlink("b", "a")}, nil, []string{"b"}},
		{"link to what was removed", []index.Entry{file("d/a", 1), file("d", 1), hardlink("b", "d/a")}, nil, []string{"b"}},
		{"device 0/0", []index.Entry{{Name: "null", Type: index.Char}}, nil, []string{"null"}},
		{"opaque root", []index.Entry{file(".wh..wh..opq", 0)}, nil, []string{"."}},
		{"through a lower link", []index.Entry{dir("."), file("lib/x", 1)}, link, []string{".", "lib"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := FromLayer(test.entries, test.below)
			var e *StandaloneError
			if !errors.As(err, &e) || !slices.Equal(e.Names, test.want) {
				t.Errorf("got %v, want a StandaloneError of %q", err, test.want)
			}
		})
	}
}

func TestStandaloneErrorNamesAFew(t *testing.T) {
	got := (&StandaloneError{Names: []string{"a", "b", "c", "d", "e"}}).Error()
	if !strings.Contains(got, `"a" "b" "c"`) || !strings.Contains(got, "2 more") {
		t.Error(got)
	}
}

func TestLayerRefused(t *testing.T) {
	for _, test := range []struct {
		entry index.Entry
		want  string
	}{
		{file("", 0), "not a name"},
		{file("a/./b", 0), "not a name"},
		{file("../a", 0), "not a name"},
		{file("a//b", 0), "not a name"},
		{file("/a", 0), "not a name"},
		{file("a/", 0), "not a name"},
		{file("a\x00b", 0), "NUL"},
		{file(strings.Repeat("n", 256), 0), "name of 256 bytes"},
		{file(strings.Repeat("d/", 2048)+"f", 0), "path of 4097 bytes"},
		{file(".", 0), "root is not a directory"},
		{file("file/x", 0), "not a directory"},
		{file(".wh.", 0), "not a name"},
		{file(".wh...", 0), "not a name"},
		{file(".wh."+strings.Repeat("n", 256), 0), "name of 256 bytes"},
		{file("../.wh.x", 0), "not a name"},
		{file("../.wh..wh..opq", 0), "not a name"},
		{file(".wh.x/y", 0), "whiteout, not a directory"},
		{file("file/.wh.x", 0), "not a directory"},
		{file("file/.wh..wh..opq", 0), "not a directory"},
	} {
		_, err := FromLayer([]index.Entry{file("file", 0), test.entry}, nil)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), fmt.Sprintf("layer entry %.300q", test.entry.Name)) {
			t.Errorf("%.80q: got %v, want an error with %q that names it", test.entry.Name, err, test.want)
		}
	}
}

func TestLayerRefusesTooManyMissingParents(t *testing.T) {
	var entries []index.Entry
	for i := range maxImplied/2000 + 1 {
		entries = append(entries, file(fmt.Sprintf("%d/%sf", i, strings.Repeat("d/", 2000)), 0))
	}
	if _, err := FromLayer(entries, nil); err == nil || !strings.Contains(err.Error(), "without an entry") {
		t.Errorf("got %v", err)
	}
}
