// Package index is the layer index: what makes a layer lazy.
//
// An index says two things about one layer. Its entries are the tar headers,
// in the order of the tar, each with the place of its data. Its spans say how
// to get a range of the tar out of a range of the blob in the registry, each
// with the SHA-256 of what must come out. The model is the same for every
// format of layer; a format only knows how to obtain it.
//
// The package knows the model and its serialised form, which is described in
// FORMAT.md. It does not know registries, the store, or how a layer is
// decompressed.
package index

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// BlockSize is the alignment, in bytes, of a file's data in the flat blob, and
// the grain of the map that says what of the flat blob is present.
const BlockSize = 4096

// MaxSpan is the most bytes of tar in one span. A span is decompressed and
// checked in memory before any of it is used.
const MaxSpan = 32 << 20

// ErrFormat is wrapped by every error about bytes that are not an index.
var ErrFormat = errors.New("not a valid layer index")

// SHA256 is a raw SHA-256, for the many digests inside an index. Digests that
// leave the index are digest.Digest.
type SHA256 = [sha256.Size]byte

// Format is how the layer's blob is encoded in the registry.
type Format uint8

// The formats that an index can describe.
const (
	Tar  Format = 1 // uncompressed tar
	Gzip Format = 2 // RFC 1952, one member or several
	Zstd Format = 3 // RFC 8878, one frame or several
)

// String returns the name that a person sees.
func (f Format) String() string {
	switch f {
	case Tar:
		return "tar"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("format %d", uint8(f))
}

// Header is what an index says of its layer as a whole. Sizes are in bytes.
type Header struct {
	Blob     digest.Digest // SHA-256 of the layer as the registry has it
	BlobSize int64
	DiffID   digest.Digest // SHA-256 of the uncompressed tar
	TarSize  int64
	Format   Format
	FlatSize int64 // length of the flat blob, a multiple of BlockSize

	// A blob in which decoding cannot resume has a twin: the same tar, in
	// independent zstd frames. Then it is the twin that the spans are of.
	Twin     digest.Digest // SHA-256 of the twin; "" if there is none
	TwinSize int64
}

// SpanBlob returns the blob that the spans are ranges of, and its format: the
// layer's own or, if there is one, its twin.
func (h *Header) SpanBlob() (blob digest.Digest, size int64, f Format) {
	if h.Twin != "" {
		return h.Twin, h.TwinSize, Zstd
	}
	return h.Blob, h.BlobSize, h.Format
}

// Type is the type of an entry.
type Type uint8

// The types of an entry. What tar has beyond these never becomes an entry.
const (
	Regular Type = iota
	Dir
	Symlink
	Hardlink // Link is the name of an entry of this layer or of a lower one
	Char
	Block
	Fifo
)

// TypeOf returns the type that is in the mode of a file, as stat(2) has it.
func TypeOf(mode uint32) Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return Dir
	case unix.S_IFLNK:
		return Symlink
	case unix.S_IFCHR:
		return Char
	case unix.S_IFBLK:
		return Block
	case unix.S_IFIFO:
		return Fifo
	}
	return Regular
}

// Entry is one tar header. Whiteouts (names that start with ".wh.") are
// entries like any other: what they mean is decided where layers meet. A name
// may occur more than once; the last one counts, as when a tar is unpacked.
type Entry struct {
	Name  string // cleaned, relative, without a leading slash; "." is the root
	Link  string // symlink: the target as it stands; hard link: a cleaned name
	Type  Type
	Mode  uint32 // permission, setuid, setgid and sticky bits: 07777
	UID   uint32
	GID   uint32
	Major uint32 // device number, for Char and Block
	Minor uint32
	Nsec  uint32 // modification time: nanoseconds in [0, 1e9)
	Sec   int64  // modification time: seconds since 1970, negative before

	// Of regular files only.
	Size   int64    // length in bytes
	TarOff int64    // where the data starts in the tar
	Off    int64    // where the data starts in the flat blob; a multiple of BlockSize
	Sparse []Extent // a sparse file's data, in order; nil if it is one run at TarOff

	Xattrs []Xattr // sorted by name
}

// Extent is a run of a sparse file's data. What no extent covers is zero.
type Extent struct {
	Off    int64 // in the file
	TarOff int64 // in the tar
	Len    int64
}

// Xattr is one extended attribute with its full name, as "security.capability".
type Xattr struct {
	Name  string
	Value string
}

// Span is the least that can be fetched: TarLen bytes of tar at TarOff out of
// BlobLen bytes at BlobOff of the blob that Header.SpanBlob names.
type Span struct {
	TarOff  int64
	TarLen  int64
	BlobOff int64
	BlobLen int64 // may share its last byte with the next span
	Bits    uint8 // gzip: how many low bits of the first byte belong to the span before
	Member  bool  // gzip: the range starts with a member's header
	Digest  SHA256
	Window  Range // gzip: the preceding bytes that the span refers to, in the windows section
}

// Range is a place in a section of the serialised index.
type Range struct{ Off, Len int64 }

// LayOut gives every regular file its place in the flat blob, one after the
// other in the order of the entries, each aligned to BlockSize, and returns
// the length of the flat blob.
func LayOut(entries []Entry) int64 {
	var off int64
	for i := range entries {
		if e := &entries[i]; e.Type == Regular {
			e.Off = off
			off += Align(e.Size)
		}
	}
	return off
}

// Align rounds n bytes up to whole blocks.
func Align(n int64) int64 { return (n + BlockSize - 1) &^ (BlockSize - 1) }
