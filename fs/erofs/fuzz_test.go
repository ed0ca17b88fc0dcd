package erofs

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/peelfs/peel/content/index"
)

// choices makes decisions out of bytes; when they run out, always the first.
type choices []byte

func (c *choices) of(n int) int {
	if len(*c) == 0 {
		return 0
	}
	b := (*c)[0]
	*c = (*c)[1:]
	return int(b) % n
}

// name makes a path of few parts, so that names meet often.
func (c *choices) name() string {
	parts := []string{"a", "b", "c", "!", ".-", "\xff\xfe", strings.Repeat("n", 255)}
	name := parts[c.of(len(parts))]
	for range c.of(3) {
		name += "/" + parts[c.of(len(parts))]
	}
	return name
}

// entry makes an entry that is hardly ever impossible, but for its name.
func (c *choices) entry(earlier []index.Entry) index.Entry {
	e := index.Entry{
		Name: c.name(), Mode: uint32(c.of(256) << 4), UID: uint32(c.of(256) << 24), GID: uint32(c.of(3)),
		Sec: int64(c.of(256)-128) << 20, Nsec: uint32(c.of(4) * 333333333),
	}
	switch c.of(12) {
	case 0, 1, 2:
		e.Type = index.Dir
	case 3:
		e.Type, e.Link = index.Symlink, strings.Repeat("t", 1+c.of(256)*16)
	case 4:
		e.Type, e.Major, e.Minor = index.Char, 1+uint32(c.of(256)*16), uint32(c.of(256)*4096)
	case 5:
		e.Type = index.Fifo
	case 6, 7:
		if len(earlier) > 0 {
			e.Type, e.Link = index.Hardlink, earlier[c.of(len(earlier))].Name
		}
	case 8:
		dir, base := splitPath(e.Name)
		e.Name = dir + "/.wh." + base
		if c.of(3) == 0 {
			e.Name = dir + "/.wh..wh..opq"
		}
		e.Name = strings.TrimPrefix(e.Name, "./")
	default:
		e.Size = int64(c.of(256) * c.of(40))
	}
	for i := range c.of(4) {
		value := strings.Repeat("v", c.of(256)*c.of(20))
		names := []string{"security.x", "trusted.overlay.opaque", "trusted.x", "user.y"}
		e.Xattrs = append(e.Xattrs, index.Xattr{Name: names[i], Value: value})
	}
	if e.Type != index.Regular && e.Type != index.Dir {
		e.Xattrs = nil // the kernel does not show user.* there
	}
	return e
}

// arbitraryLayer makes a layer out of any bytes, and the length of its flat
// blob. Half of all layers can be shown.
func arbitraryLayer(input []byte) ([]index.Entry, int64) {
	c := choices(input)
	good := c.of(2) == 0
	var entries []index.Entry
	for tries := 0; len(c) > 0 && tries < 60; tries++ {
		e := c.entry(entries)
		if _, ok := unpack(append(entries, e)); ok || !good {
			entries = append(entries, e)
		}
	}
	return entries, index.LayOut(entries)
}

// FuzzLayer makes layers that are good in themselves, and expects to read from
// the image what unpacking them gives.
func FuzzLayer(f *testing.F) {
	for i := range 20 {
		f.Add(bytes.Repeat([]byte{byte(i), byte(i * 3), 7, byte(i * i), 1}, 40))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		entries, size := arbitraryLayer(input)
		files, ok := unpack(entries)
		root, err := FromLayer(entries, nil)
		if ok != (err == nil) {
			t.Fatalf("unpacking: %v, FromLayer: %v", ok, err)
		}
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := Write(&b, root, []int64{size}); err != nil {
			t.Fatal(err)
		}
		dev := device{9, size}
		got, err := read(b.Bytes(), []io.ReaderAt{dev})
		if err != nil {
			t.Fatal(err)
		}
		diff(t, got, see(t, files, dev))
	})
}

// FuzzEntry puts any values into an entry of a layer. It is refused, or it can
// be read from the image.
func FuzzEntry(f *testing.F) {
	f.Add("a/b", "", uint8(0), uint32(0o644), int64(5), int64(0), "user.x", "y")
	f.Add("x", "target", uint8(2), uint32(0o777), int64(0), int64(0), "security.capability", netBindCap)
	f.Add("x", "f", uint8(3), uint32(0), int64(0), int64(0), aclAccess, acl)
	f.Add("../x", "\x00", uint8(4), uint32(1<<31), int64(1<<62), int64(1<<62), "", "")
	f.Add("x", "", uint8(0), uint32(0), int64(4097), int64(4096), "trusted.overlay.x", "")
	f.Fuzz(func(t *testing.T, name, link string, typ uint8, n uint32, size, off int64, xattr, value string) {
		e := index.Entry{
			Name: name, Link: link, Type: index.Type(typ), Mode: n, UID: n, Major: n, Minor: n >> 8, Nsec: n,
			Sec: size, Size: size, Off: off, Xattrs: []index.Xattr{{Name: xattr, Value: value}},
		}
		entries := []index.Entry{file("f", 1), e}
		const flat = 16384
		root, err := FromLayer(entries, nil)
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := Write(&b, root, []int64{flat}); err != nil {
			return
		}
		dev := device{9, flat}
		got, err := read(b.Bytes(), []io.ReaderAt{dev})
		if err != nil {
			t.Fatal(err)
		}
		files, ok := unpack(entries)
		if !ok {
			t.Fatalf("%+v should be refused", e)
		}
		want := see(t, files, dev)
		for name, w := range want { // of other namespaces
			if _, _, ok := splitXattr(xattr); !ok {
				w.xattrs = ""
				want[name] = w
			}
		}
		diff(t, got, want)
	})
}
