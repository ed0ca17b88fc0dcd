package erofs

import (
	"encoding/binary"

	"github.com/peelfs/peel/content/index"
)

// The on-disk format is Linux's fs/erofs/erofs_fs.h, whose names are given
// beside ours. All numbers are little-endian. Only what this package writes is
// here.
const (
	blockBits = 12
	blockSize = index.BlockSize

	superOffset = 1024       // EROFS_SUPER_OFFSET
	superMagic  = 0xe0f5e1e2 // EROFS_SUPER_MAGIC_V1

	compatSBChksum = 0x1 // EROFS_FEATURE_COMPAT_SB_CHKSUM
	compatMtime    = 0x2 // EROFS_FEATURE_COMPAT_MTIME

	incompatChunkedFile = 0x4 // EROFS_FEATURE_INCOMPAT_CHUNKED_FILE
	incompatDeviceTable = 0x8 // EROFS_FEATURE_INCOMPAT_DEVICE_TABLE

	layoutExtended     = 1    // EROFS_INODE_LAYOUT_EXTENDED
	chunkFormatIndexes = 0x20 // EROFS_CHUNK_FORMAT_INDEXES
)

// Sizes in bytes of the structures below.
const (
	superBlockSize  = 128
	deviceSlotSize  = 128
	inodeSize       = 64
	chunkIndexSize  = 8
	direntSize      = 12
	xattrHeaderSize = 12
	xattrEntrySize  = 4
	sharedIDSize    = 4
)

// Limits of the format.
const (
	slotBits     = 5                               // an inode's nid is its offset in units of 32 bytes
	maxRootNid   = 1<<16 - 1                       // root_nid
	maxBlocks    = 1<<32 - 1                       // block addresses; the last value, EROFS_NULL_ADDR, is a hole
	maxName      = 255                             // EROFS_NAME_LEN
	maxMajor     = 1<<12 - 1                       // i_rdev
	maxMinor     = 1<<20 - 1                       // i_rdev
	maxXattrName = 255                             // XATTR_NAME_MAX
	maxXattr     = 1<<16 - 1                       // e_value_size
	maxShared    = 1<<8 - 1                        // h_shared_count
	maxXattrBody = xattrHeaderSize + 4*(1<<16-1-1) // i_xattr_icount
)

// dataLayout says where an inode's data is.
type dataLayout uint8

const (
	flatPlain  dataLayout = 0 // EROFS_INODE_FLAT_PLAIN: in blocks of the image
	flatInline dataLayout = 2 // EROFS_INODE_FLAT_INLINE: the same, but the last one behind the inode
	chunkBased dataLayout = 4 // EROFS_INODE_CHUNK_BASED: where the table behind the inode says
)

// superBlock is erofs_super_block.
type superBlock struct {
	Magic            uint32
	Checksum         uint32 // see sealBlock0
	FeatureCompat    uint32
	Blkszbits        uint8
	SBExtslots       uint8
	RootNid          uint16
	Inos             uint64
	BuildTime        uint64
	BuildTimeNsec    uint32
	Blocks           uint32
	MetaBlkaddr      uint32 // zero: nids count from the image's first byte
	XattrBlkaddr     uint32
	UUID             [16]byte
	VolumeName       [16]byte
	FeatureIncompat  uint32
	ComprAlgs        uint16
	ExtraDevices     uint16
	DevtSlotoff      uint16 // in units of a deviceSlot
	Dirblkbits       uint8
	XattrPrefixCount uint8
	XattrPrefixStart uint32
	PackedNid        uint64
	XattrFilter      uint8
	Reserved         [23]byte
}

// deviceSlot is erofs_deviceslot.
type deviceSlot struct {
	Tag           [64]byte
	Blocks        uint32
	MappedBlkaddr uint32
	Reserved      [56]byte
}

// inodeExtended is erofs_inode_extended. The format's smaller inode has no
// time of its own.
type inodeExtended struct {
	layout      dataLayout
	xattrIcount uint16
	mode        uint16
	size        uint64
	u           uint32 // raw_blkaddr, rdev or chunk format
	ino         uint32
	uid, gid    uint32
	mtime       uint64 // the kernel takes it as signed
	mtimeNsec   uint32
	nlink       uint32
}

func (i *inodeExtended) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, layoutExtended|uint16(i.layout)<<1)
	b = le.AppendUint16(b, i.xattrIcount)
	b = le.AppendUint16(b, i.mode)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, i.size)
	b = le.AppendUint32(b, i.u)
	b = le.AppendUint32(b, i.ino)
	b = le.AppendUint32(b, i.uid)
	b = le.AppendUint32(b, i.gid)
	b = le.AppendUint64(b, i.mtime)
	b = le.AppendUint32(b, i.mtimeNsec)
	b = le.AppendUint32(b, i.nlink)
	return append(b, make([]byte, 16)...)
}

// appendChunkIndex appends an erofs_inode_chunk_index.
func appendChunkIndex(b []byte, device uint16, block uint32) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, 0)
	b = le.AppendUint16(b, device)
	return le.AppendUint32(b, block)
}

// appendDirent appends an erofs_dirent.
func appendDirent(b []byte, nid uint64, nameoff uint16, fileType uint8) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, nid)
	b = le.AppendUint16(b, nameoff)
	return append(b, fileType, 0)
}

// appendXattrHeader appends an erofs_xattr_ibody_header.
func appendXattrHeader(b []byte, shared []uint32) []byte {
	b = append(b, 0, 0, 0, 0, uint8(len(shared))) // no h_name_filter
	b = append(b, make([]byte, 7)...)
	for _, id := range shared {
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return b
}

// appendXattrEntry appends an erofs_xattr_entry with its name and value.
func appendXattrEntry(b []byte, x *xattr) []byte {
	b = append(b, uint8(len(x.suffix)), x.index)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(x.value)))
	b = append(b, x.suffix...)
	b = append(b, x.value...)
	for range x.size() - xattrEntrySize - len(x.suffix) - len(x.value) {
		b = append(b, 0)
	}
	return b
}

// fileType returns a type as an inode has it, which is S_IF*, and as a dirent
// has it, which is EROFS_FT_* or FT_*; or zeros if no inode can have it.
func fileType(t index.Type) (mode uint16, dirent uint8) {
	switch t {
	case index.Regular:
		return 0o100000, 1
	case index.Dir:
		return 0o040000, 2
	case index.Char:
		return 0o020000, 3
	case index.Block:
		return 0o060000, 4
	case index.Fifo:
		return 0o010000, 5
	case index.Symlink:
		return 0o120000, 7
	}
	return 0, 0
}

// rdev is a device number as the kernel's new_decode_dev reads it.
func rdev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}
