package erofs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/peelfs/peel/content/index"
)

// record is all that can be seen of a file, from whatever side it is read.
type record struct {
	mode     uint32 // with the type
	uid, gid uint32
	sec      int64
	nsec     uint32
	size     int64  // of what is not a directory
	rdev     string // of devices
	target   string // of symbolic links
	xattrs   string // one a line, sorted
	nlink    int
	links    string // all names of the file, sorted, with NULs between them
	data     [sha256.Size]byte
}

type records map[string]record // by cleaned path

// diff fails the test for every file that is not as it should be.
func diff(t testing.TB, got, want records) {
	t.Helper()
	for name := range want {
		if _, ok := got[name]; !ok {
			t.Errorf("%.80q is missing", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		w, ok := want[name]
		switch {
		case !ok:
			t.Errorf("%.80q should not be there", name)
		case got[name] != w:
			t.Errorf("%.80q:\n got %+v\nwant %+v", name, got[name], w)
		}
	}
}

// setLinks fills in what depends on several names; ids tells inodes apart.
func (r records) setLinks(ids map[string]uint64) {
	names := make(map[uint64][]string)
	for _, name := range slices.Sorted(maps.Keys(ids)) {
		names[ids[name]] = append(names[ids[name]], name)
	}
	for name, id := range ids {
		f := r[name]
		f.links = strings.Join(names[id], "\x00")
		r[name] = f
	}
}

// formatXattrs makes attributes comparable.
func formatXattrs(m map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%q=%x\n", name, sha256.Sum256([]byte(m[name])))
	}
	return b.String()
}

// probes are the places of a file that are compared: all of a small one.
func probes(size int64) (p []index.Extent) {
	if size <= 1<<20 {
		return []index.Extent{{Len: size}}
	}
	for _, off := range []int64{0, 1<<30 - 2048, 4<<30 - 2048, size - 4096} {
		if off+4096 <= size {
			p = append(p, index.Extent{Off: off, Len: 4096})
		}
	}
	return p
}

// digest hashes what is compared of a file.
func digest(r io.ReaderAt, size int64) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	for _, p := range probes(size) {
		if n, err := io.Copy(h, io.NewSectionReader(r, p.Off, p.Len)); n != p.Len {
			return sum, fmt.Errorf("%d of %d bytes at %d: %w", n, p.Len, p.Off, err)
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// device is a flat blob: every 8 bytes of it are different.
type device struct {
	id   byte
	size int64
}

func (d device) ReadAt(p []byte, off int64) (int, error) {
	if off >= d.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), d.size-off))
	for i := range n {
		at := off + int64(i)
		p[i] = byte(at/8>>(at%8*8)) ^ d.id ^ byte(at)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// unpacked is a file of the oracle.
type unpacked struct {
	entry  index.Entry
	opaque bool
}

// unpack is what FromLayer and Write must come to for overlayfs: the same
// rules, as plainly as they can be put. It returns false if a tar could not be
// unpacked, or not into a directory of its own.
func unpack(entries []index.Entry) (map[string]*unpacked, bool) {
	plain := index.Entry{Type: index.Dir, Mode: 0o755}
	files := map[string]*unpacked{".": {entry: plain}}
	var parents func(name string) bool
	parents = func(name string) bool {
		dir := path.Dir(name)
		if files[dir] == nil {
			if !parents(dir) {
				return false
			}
			files[dir] = &unpacked{entry: plain}
		}
		return files[dir].entry.Type == index.Dir
	}
	var opaque, removed []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name, ".wh..wh.") && e.Name != ".wh..wh..opq" || strings.Contains(e.Name, "/.wh..wh.") && path.Base(e.Name) != ".wh..wh..opq" {
			continue
		}
		if e.Name != "." && !parents(e.Name) {
			return nil, false
		}
		dir, base := path.Split(e.Name)
		if base == ".wh..wh..opq" {
			if dir == "" {
				return nil, false
			}
			opaque = append(opaque, path.Clean(dir))
			continue
		}
		if x, ok := strings.CutPrefix(base, ".wh."); ok {
			removed = append(removed, dir+x)
			continue
		}
		old := files[e.Name]
		if old != nil && old.entry.Type == index.Dir && e.Type == index.Dir {
			old.entry = e
			continue
		}
		n := &unpacked{entry: e}
		if e.Type == index.Hardlink {
			if n = files[e.Link]; n == nil || n.entry.Type == index.Dir || e.Link == e.Name {
				return nil, false
			}
		}
		if e.Name == "." || e.Type == index.Char && e.Major == 0 && e.Minor == 0 {
			return nil, false
		}
		maps.DeleteFunc(files, func(name string, _ *unpacked) bool { return strings.HasPrefix(name, e.Name+"/") })
		files[e.Name] = n
	}
	whiteOut(files, opaque, removed)
	return files, true
}

func whiteOut(files map[string]*unpacked, opaque, removed []string) {
	for _, name := range append(opaque, removed...) {
		if f := files[name]; f != nil && f.entry.Type == index.Dir {
			f.opaque = true
		}
	}
	whiteout := &unpacked{entry: index.Entry{Type: index.Char}}
	for _, name := range removed {
		hidden := files[name] != nil
		for dir := name; dir != "."; {
			dir = path.Dir(dir)
			f := files[dir]
			hidden = hidden || f == nil || f.entry.Type != index.Dir || f.opaque
		}
		if !hidden {
			files[name] = whiteout
		}
	}
}

// see turns the oracle's files into records.
func see(t testing.TB, files map[string]*unpacked, dev io.ReaderAt) records {
	r := make(records)
	ids := make(map[string]uint64)
	numbers := make(map[*unpacked]uint64)
	for name, f := range files {
		e := f.entry
		rec := record{
			mode: e.Mode | map[index.Type]uint32{index.Regular: 0o100000, index.Dir: 0o40000, index.Symlink: 0o120000,
				index.Char: 0o20000, index.Block: 0o60000, index.Fifo: 0o10000}[e.Type],
			uid: e.UID, gid: e.GID, sec: e.Sec, nsec: e.Nsec,
		}
		xattrs := make(map[string]string)
		for _, x := range e.Xattrs {
			if !strings.HasPrefix(x.Name, "com.") { // as macOS has it
				xattrs[strings.Replace(x.Name, "trusted.overlay.", "trusted.overlay.overlay.", 1)] = x.Value
			}
		}
		if f.opaque {
			xattrs["trusted.overlay.opaque"] = "y"
		}
		rec.xattrs = formatXattrs(xattrs)
		switch e.Type {
		case index.Regular:
			rec.size = e.Size
			var err error
			rec.data, err = digest(io.NewSectionReader(dev, e.Off, e.Size), e.Size)
			if err != nil {
				t.Fatal(err)
			}
		case index.Symlink:
			rec.size, rec.target = int64(len(e.Link)), e.Link
		case index.Char, index.Block:
			rec.rdev = fmt.Sprintf("%d:%d", e.Major, e.Minor)
		}
		if numbers[f] == 0 {
			numbers[f] = uint64(len(numbers) + 1)
		}
		ids[name] = numbers[f]
		r[name] = rec
	}
	r.setLinks(ids)
	r.setNlink()
	return r
}

// setNlink counts names of files, and subdirectories of directories.
func (r records) setNlink() {
	counts := make(map[string]int)
	for name, f := range r {
		if f.mode&0o170000 != 0o40000 {
			counts[name] = strings.Count(f.links, "\x00") + 1
			continue
		}
		counts[name] += 2
		if name != "." {
			counts[path.Dir(name)]++
		}
	}
	for name, f := range r {
		f.nlink = counts[name]
		r[name] = f
	}
}

// image writes a layer's image.
func image(t testing.TB, entries []index.Entry, flat int64) []byte {
	t.Helper()
	root, err := FromLayer(entries, nil)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Write(&b, root, []int64{flat}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
