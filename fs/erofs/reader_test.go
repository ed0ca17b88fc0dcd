package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path"
)

// reader reads an image in its own way: from the kernel's description of the
// format, not with the writer's code. It trusts nothing.
type reader struct {
	image   []byte
	devices []io.ReaderAt
	xattrs  int64 // offset of the shared area
	seen    records
	ids     map[string]uint64
}

// read returns all that is in an image.
func read(image []byte, devices []io.ReaderAt) (r records, err error) {
	defer func() {
		if p := recover(); p != nil { // an index beyond the image
			err = fmt.Errorf("read image: %v", p)
		}
	}()
	le := binary.LittleEndian
	if len(image)%4096 != 0 {
		return nil, errors.New("not in whole blocks")
	}
	sb := image[1024:1152]
	rd := &reader{image: image, devices: devices, seen: make(records), ids: make(map[string]uint64)}
	rd.xattrs = int64(le.Uint32(sb[44:])) * 4096

	sum := le.Uint32(sb[4:])
	block := bytes.Clone(image[1024:4096])
	clear(block[4:8])
	const features = 0x4 | 0x8
	switch {
	case le.Uint32(sb) != 0xe0f5e1e2, sb[12] != 12, sb[13] != 0, sb[90] != 0:
		return nil, errors.New("not a superblock")
	case sum != ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli)):
		return nil, errors.New("wrong checksum")
	case int(le.Uint32(sb[36:]))*4096 != len(image), le.Uint32(sb[40:]) != 0:
		return nil, errors.New("wrong size")
	case le.Uint32(sb[80:])&^features != 0, int(le.Uint16(sb[86:])) != len(devices):
		return nil, errors.New("wrong features")
	}
	if err := rd.dir(".", uint64(le.Uint16(sb[14:])), uint64(le.Uint16(sb[14:]))); err != nil {
		return nil, err
	}
	inos := make(map[uint64]bool)
	for _, id := range rd.ids {
		inos[id] = true
	}
	if int(le.Uint64(sb[16:])) != len(inos) {
		return nil, fmt.Errorf("superblock says %d inodes, but there are %d", le.Uint64(sb[16:]), len(inos))
	}
	rd.seen.setLinks(rd.ids)
	return rd.seen, nil
}

// onDisk is an inode and where its parts are.
type onDisk struct {
	record
	layout uint16
	u      uint32
	isize  int64 // of directories too
	behind int64 // where data behind the inode starts
}

func (r *reader) inode(nid uint64) (onDisk, error) {
	le := binary.LittleEndian
	off := int64(nid) * 32
	b := r.image[off : off+64]
	f := onDisk{layout: le.Uint16(b) >> 1, u: le.Uint32(b[16:]), isize: int64(le.Uint64(b[8:]))}
	f.mode, f.nlink = uint32(le.Uint16(b[4:])), int(le.Uint32(b[44:]))
	f.uid, f.gid = le.Uint32(b[24:]), le.Uint32(b[28:])
	f.sec, f.nsec = int64(le.Uint64(b[32:])), le.Uint32(b[40:])
	if le.Uint16(b)&1 == 0 || off/4096 != (off+63)/4096 || f.isize < 0 {
		return f, fmt.Errorf("inode at %d is compact, has a negative size, or crosses a block", off)
	}
	f.behind = off + 64
	if n := int64(le.Uint16(b[2:])); n > 0 {
		f.behind += 12 + (n-1)*4
		xattrs, err := r.inodeXattrs(r.image[off+64 : f.behind])
		if err != nil {
			return f, err
		}
		f.xattrs = formatXattrs(xattrs)
	}
	return f, nil
}

func (r *reader) inodeXattrs(b []byte) (map[string]string, error) {
	le := binary.LittleEndian
	m := make(map[string]string)
	shared := int(b[4])
	for i := range shared {
		at := r.xattrs + 4*int64(le.Uint32(b[12+4*i:]))
		oneXattr(m, r.image[at:])
	}
	for b = b[12+4*shared:]; len(b) > 0; {
		b = b[oneXattr(m, b):]
		shared++
	}
	if len(m) != shared {
		return nil, errors.New("an extended attribute stands twice")
	}
	return m, nil
}

func oneXattr(m map[string]string, b []byte) int {
	prefix := map[byte]string{1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}
	end := 4 + int(b[0])
	size := end + int(binary.LittleEndian.Uint16(b[2:]))
	m[prefix[b[1]]+string(b[4:end])] = string(b[end:size])
	return (size + 3) / 4 * 4
}

// flat reads data that lies in the image.
func (r *reader) flat(f onDisk) ([]byte, error) {
	tail := int64(0)
	if f.layout == 2 {
		tail = f.isize % 4096
		if tail == 0 || f.behind/4096 != (f.behind+tail-1)/4096 || (f.behind-64)/4096 != f.behind/4096 && f.mode>>12 == 0o12 {
			return nil, fmt.Errorf("inline data at %d crosses a block", f.behind)
		}
	}
	at := int64(f.u) * 4096
	b := bytes.Clone(r.image[at : at+f.isize-tail])
	return append(b, r.image[f.behind:f.behind+tail]...), nil
}

// ReadAt reads a chunk-based file as the kernel maps it.
type chunked struct {
	r *reader
	f onDisk
}

func (c chunked) ReadAt(p []byte, off int64) (int, error) {
	le := binary.LittleEndian
	table := (c.f.behind + 7) / 8 * 8
	bits := 12 + c.f.u&31
	for n := 0; n < len(p); {
		pos := off + int64(n)
		if pos >= c.f.isize {
			return n, io.EOF
		}
		entry := c.r.image[table+8*(pos>>bits):]
		dev := c.r.devices[le.Uint16(entry[2:])-1]
		in := pos & (1<<bits - 1)
		k := int(min(int64(len(p)-n), 1<<bits-in, c.f.isize-pos))
		m, err := dev.ReadAt(p[n:n+k], int64(le.Uint32(entry[4:]))*4096+in)
		n += m
		if m < k {
			return n, fmt.Errorf("device ends early: %w", err)
		}
	}
	return len(p), nil
}

// file adds what is not a directory.
func (r *reader) file(name string, nid uint64, f onDisk) error {
	f.size = f.isize
	switch {
	case f.mode>>12 == 0o12 && (f.layout == 0 || f.layout == 2):
		b, err := r.flat(f)
		if err != nil {
			return err
		}
		f.target = string(b)
	case f.mode>>12 == 0o2 || f.mode>>12 == 0o6:
		f.rdev = fmt.Sprintf("%d:%d", f.u>>8&0xfff, f.u&0xff|f.u>>12&^0xff)
	case f.mode>>12 == 0o10:
		if f.isize > 0 && (f.layout != 4 || f.u&^31 != 0x20) {
			return fmt.Errorf("%q: layout %d, %#x", name, f.layout, f.u)
		}
		var err error
		if f.data, err = digest(chunked{r, f}, f.isize); err != nil {
			return err
		}
	}
	r.ids[name], r.seen[name] = nid, f.record
	return nil
}

// dir adds a directory and all below it.
func (r *reader) dir(name string, nid, parent uint64) error {
	le := binary.LittleEndian
	f, err := r.inode(nid)
	if err != nil {
		return err
	}
	if f.mode>>12 != 0o4 || r.ids[name] != 0 {
		return fmt.Errorf("%q is not a directory, or in two places", name)
	}
	r.ids[name], r.seen[name] = nid, f.record
	data, err := r.flat(f)
	if err != nil {
		return err
	}
	last := ""
	for ; len(data) > 0; data = data[min(4096, len(data)):] {
		block := data[:min(4096, len(data))]
		n := int(le.Uint16(block[8:])) / 12
		for i := range n {
			d := block[12*i:]
			end := len(block)
			if i+1 < n {
				end = int(le.Uint16(d[12+8:]))
			}
			child := string(bytes.TrimRight(block[le.Uint16(d[8:]):end], "\x00"))
			if child <= last {
				return fmt.Errorf("%q after %q in %q", child, last, name)
			}
			last = child
			if err := r.child(name, child, le.Uint64(d), [3]uint64{nid, parent, uint64(d[10])}); err != nil {
				return err
			}
		}
	}
	return nil
}

// child adds one name of a directory; dir holds the numbers of the directory
// and its parent, and the type that the name has there.
func (r *reader) child(name, child string, nid uint64, dir [3]uint64) error {
	if child == "." && nid == dir[0] || child == ".." && nid == dir[1] {
		return nil
	}
	f, err := r.inode(nid)
	if err != nil {
		return err
	}
	types := map[uint32]uint64{0o10: 1, 0o4: 2, 0o2: 3, 0o6: 4, 0o1: 5, 0o12: 7}
	if types[f.mode>>12] != dir[2] {
		return fmt.Errorf("%q in %q: type %d of mode %#o", child, name, dir[2], f.mode)
	}
	if f.mode>>12 == 0o4 {
		return r.dir(path.Join(name, child), nid, dir[0])
	}
	return r.file(path.Join(name, child), nid, f)
}
