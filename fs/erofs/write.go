package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/peelfs/peel/content/index"
)

// write writes the planned image, from its first byte to its last.
func (p *plan) write(w io.Writer) error {
	out := &sink{w: w, buf: p.block0()}
	for i := range p.inodes {
		out.pad(p.inodes[i].off)
		out.buf = p.appendInode(out.buf, i)
		out.flush(flushSize)
	}
	out.pad(p.sharedOff)
	for i := range p.shared.list {
		out.buf = appendXattrEntry(out.buf, &p.shared.list[i])
		out.flush(flushSize)
	}
	for i := range p.inodes {
		p.writeBlocks(out, i)
	}
	out.pad(p.end)
	out.flush(0)
	return out.err
}

// block0 returns what stands before the first inode, and fills its blocks.
func (p *plan) block0() []byte {
	sb := superBlock{
		Magic:         superMagic,
		FeatureCompat: compatSBChksum | compatMtime,
		Blkszbits:     blockBits,
		RootNid:       uint16(p.inodes[0].nid()),
		Inos:          uint64(len(p.inodes)),
		Blocks:        uint32(p.end / blockSize),
		ExtraDevices:  uint16(len(p.devices)),
	}
	if p.shared.size > 0 {
		sb.XattrBlkaddr = uint32(p.sharedOff / blockSize)
	}
	if len(p.devices) > 0 {
		sb.FeatureIncompat = incompatChunkedFile | incompatDeviceTable
		sb.DevtSlotoff = (superOffset + superBlockSize) / deviceSlotSize
	}
	le := binary.LittleEndian
	b := appendFixed(make([]byte, superOffset, p.inodesOff), &sb)
	for _, n := range p.devices {
		b = appendFixed(b, &deviceSlot{Blocks: uint32(n / blockSize)})
	}
	b = b[:p.inodesOff]
	// The checksum covers the first block from the superblock on, with zero in
	// its own place; the kernel's crc32c does not invert the result.
	sum := crc32.Checksum(b[superOffset:blockSize], crc32.MakeTable(crc32.Castagnoli))
	le.PutUint32(b[superOffset+4:], ^sum)
	return b
}

// appendFixed appends a structure of fixed size.
func appendFixed(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.LittleEndian, v)
	if err != nil {
		panic(err) // v has a field without a fixed size
	}
	return b
}

// appendInode appends inode i and all that stands behind it.
func (p *plan) appendInode(b []byte, i int) []byte {
	in := &p.inodes[i]
	e := in.node.Entry
	mode, _ := fileType(e.Type)
	d := inodeExtended{
		layout: in.layout, xattrIcount: in.xattrs.icount(), mode: mode | uint16(e.Mode), size: uint64(in.size),
		ino: uint32(i + 1), uid: e.UID, gid: e.GID,
		mtime: uint64(e.Sec), mtimeNsec: e.Nsec, nlink: in.nlink,
	}
	switch {
	case in.layout == chunkBased:
		d.u = chunkFormatIndexes | uint32(chunksOf(in.size).bits)
	case e.Type == index.Char || e.Type == index.Block:
		d.u = rdev(e.Major, e.Minor)
	case in.blocks() > 0:
		d.u = uint32(p.dataOff/blockSize + in.block)
	}
	b = in.xattrs.append(d.append(b))
	switch {
	case in.layout == chunkBased:
		b = appendChunks(b, in)
	case in.layout == flatInline && e.Type == index.Symlink:
		b = append(b, e.Link...)
	case in.layout == flatInline:
		names := p.direntsOf(i)
		for range in.blocks() {
			n, _ := fillBlock(names)
			names = names[n:]
		}
		b = p.appendDirents(b, names)
	}
	return b
}

// appendChunks appends the table of a file's chunks.
func appendChunks(b []byte, in *inode) []byte {
	if in.xattrs.bytes()%chunkIndexSize != 0 {
		b = append(b, 0, 0, 0, 0)
	}
	e := in.node.Entry
	c := chunksOf(in.size)
	block := uint32(e.Off / blockSize)
	for range c.n {
		b = appendChunkIndex(b, uint16(in.node.Device), block)
		block += 1 << c.bits
	}
	return b
}

// appendDirents appends one block of a directory, without padding.
func (p *plan) appendDirents(b []byte, names []Dirent) []byte {
	nameoff := len(names) * direntSize
	for _, d := range names {
		_, ft := fileType(d.Node.Entry.Type)
		b = appendDirent(b, p.inodes[d.Node.id].nid(), uint16(nameoff), ft)
		nameoff += len(d.Name)
	}
	for _, d := range names {
		b = append(b, d.Name...)
	}
	return b
}

// writeBlocks writes what inode i has in the data area.
func (p *plan) writeBlocks(out *sink, i int) {
	in := &p.inodes[i]
	n := in.blocks()
	if n == 0 {
		return
	}
	out.pad(p.dataOff + in.block*blockSize)
	if in.node.Entry.Type == index.Symlink {
		out.buf = append(out.buf, in.node.Entry.Link...)
		out.flush(flushSize)
		return
	}
	names := p.direntsOf(i)
	for b := range n {
		out.pad(p.dataOff + (in.block+b)*blockSize)
		k, _ := fillBlock(names)
		out.buf = p.appendDirents(out.buf, names[:k])
		names = names[k:]
		out.flush(flushSize)
	}
}

// flushSize is how many bytes are collected before they are written.
const flushSize = 1 << 18

// sink collects what is appended to buf. After an error it writes nothing more.
type sink struct {
	w   io.Writer
	buf []byte
	off int64 // in the image, of buf's first byte
	err error
}

// pad appends zeros up to off in the image.
func (s *sink) pad(off int64) {
	s.buf = append(s.buf, make([]byte, off-s.off-int64(len(s.buf)))...)
}

// flush writes buf if it has at least min bytes.
func (s *sink) flush(min int) {
	if len(s.buf) < min {
		return
	}
	if s.err == nil {
		_, s.err = s.w.Write(s.buf)
	}
	s.off += int64(len(s.buf))
	s.buf = s.buf[:0]
}
