package index

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// The serialised form, described in FORMAT.md.
const (
	magic      = "peel-idx"
	version    = 1
	headerSize = 240
)

// The sections, in their order in the file.
const (
	secEntries = iota
	secSpans
	secDigests
	secWindows
	secFraming
	numSections
)

// Builder collects an index while a layer passes by, and serialises it.
// It is for one goroutine, except that Framing may be written to by another.
type Builder struct {
	Header  Header
	Entries []Entry
	Spans   []Span
	Digests []SHA256 // of each regular file that is not empty, in the order of the entries

	enc     *zstd.Encoder
	windows bytes.Buffer
	framing framing
	most    int64 // bytes of the serialised form
}

// framing is the section that is compressed as it comes.
type framing struct {
	enc  *zstd.Encoder
	out  bytes.Buffer
	raw  int64
	most int64 // bytes of out
}

func (f *framing) Write(p []byte) (int, error) {
	n, err := f.enc.Write(p)
	f.raw += int64(n)
	if err == nil && int64(f.out.Len()) > f.most {
		err = tooLarge(f.most)
	}
	return n, err
}

func tooLarge(most int64) error {
	return fmt.Errorf("the layer's index would have more than %d bytes", most)
}

// NewBuilder returns an empty builder.
func NewBuilder() (*Builder, error) {
	b := &Builder{most: MaxSize, framing: framing{most: MaxSize}}
	opts := []zstd.EOption{ // a larger window gains a thousandth, and costs memory for every layer
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1 << 20),
	}
	var err error
	if b.enc, err = zstd.NewWriter(nil, append(opts, zstd.WithSingleSegment(true), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))...); err != nil {
		return nil, err
	}
	b.framing.enc, err = zstd.NewWriter(&b.framing.out, append(opts, zstd.WithEncoderLevel(zstd.SpeedDefault))...)
	return b, err
}

// Limit sets the most bytes of the serialised index, of which the framing takes
// no more either. It is called before anything else. The default is MaxSize.
func (b *Builder) Limit(bytes int64) { b.most, b.framing.most = bytes, bytes }

// Framing takes the bytes of the tar that are no file's data, in order. With
// them and the flat blob the tar can be written again, byte for byte.
func (b *Builder) Framing() io.Writer { return &b.framing }

// AddWindow stores the bytes that a span refers to and returns their place.
// Of more than the index may hold, none is stored: Encode will fail.
func (b *Builder) AddWindow(w []byte) Range {
	if int64(b.windows.Len()) > b.most {
		return Range{}
	}
	z := b.enc.EncodeAll(w, nil)
	r := Range{Off: int64(b.windows.Len()), Len: int64(len(z))}
	b.windows.Write(z)
	return r
}

// Encode checks the index and serialises it. The same index gives the same
// bytes. The builder is used up.
func (b *Builder) Encode() ([]byte, error) {
	b.Header.FlatSize = LayOut(b.Entries)
	if err := b.framing.enc.Close(); err != nil {
		return nil, fmt.Errorf("compress tar framing: %w", err)
	}
	if err := check(&b.Header, b.Entries, b.Spans, len(b.Digests)); err != nil {
		return nil, fmt.Errorf("index of layer %s: %w", b.Header.Blob, err)
	}
	entries, spans := encodeEntries(b.Entries), encodeSpans(b.Spans)
	digests := make([]byte, 0, len(b.Digests)*len(SHA256{}))
	for i := range b.Digests {
		digests = append(digests, b.Digests[i][:]...)
	}
	stored := [numSections][]byte{
		b.enc.EncodeAll(entries, nil), b.enc.EncodeAll(spans, nil), digests, b.windows.Bytes(), b.framing.out.Bytes(),
	}
	raw := [numSections]int64{
		int64(len(entries)), int64(len(spans)), int64(len(digests)), int64(b.windows.Len()), b.framing.raw,
	}
	out, err := encodeHeader(&b.Header, len(b.Entries), len(b.Spans))
	if err != nil {
		return nil, err
	}
	size := int64(headerSize)
	for _, s := range stored {
		size += int64(len(s))
	}
	if size > b.most {
		return nil, tooLarge(b.most)
	}
	out = slices.Grow(out, int(size)-len(out))
	for i, s := range stored {
		out = binary.LittleEndian.AppendUint64(out, uint64(len(s)))
		out = binary.LittleEndian.AppendUint64(out, uint64(raw[i]))
	}
	for _, s := range stored {
		out = append(out, s...)
	}
	return out, nil
}

// noTwin is what stands in the header for the digest of a twin that is not.
const noTwin = digest.Digest("sha256:0000000000000000000000000000000000000000000000000000000000000000")

func encodeHeader(h *Header, entries, spans int) ([]byte, error) {
	out := make([]byte, 0, headerSize)
	out = append(out, magic...)
	out = binary.LittleEndian.AppendUint32(out, version)
	out = append(out, byte(h.Format), 0, 0, 0)
	for _, d := range []struct {
		digest digest.Digest
		size   int64
	}{{h.Blob, h.BlobSize}, {h.DiffID, h.TarSize}, {cmp.Or(h.Twin, noTwin), h.TwinSize}} {
		sum, err := hex.DecodeString(d.digest.Encoded())
		if err != nil || d.digest.Algorithm() != digest.SHA256 || len(sum) != len(SHA256{}) {
			return nil, fmt.Errorf("digest %q is not a SHA-256", d.digest)
		}
		out = append(out, sum...)
		out = binary.LittleEndian.AppendUint64(out, uint64(d.size))
	}
	for _, n := range []uint64{uint64(h.FlatSize), uint64(entries), uint64(spans)} {
		out = binary.LittleEndian.AppendUint64(out, n)
	}
	return out, nil
}

// The columns of the entries section, in their order.
const (
	colTypes = iota
	colNameLens
	colNames
	colModes
	colOwners
	colSeconds
	colNanos
	colSizes
	colPlaces
	colLinks
	colDevices
	colXattrs
	colXattrSets
	colSparse
	numColumns
)

// encodeEntries writes the entries by column: what is alike stands together.
func encodeEntries(entries []Entry) []byte {
	var cols [numColumns][]byte
	put := func(col int, v uint64) { cols[col] = binary.AppendUvarint(cols[col], v) }
	str := func(col int, s string) {
		put(col, uint64(len(s)))
		cols[col] = append(cols[col], s...)
	}
	sets := map[string]uint64{}
	var prev Entry
	var end int64 // of the data before
	for i := range entries {
		e := &entries[i]
		cols[colTypes] = append(cols[colTypes], byte(e.Type))
		shared := sharedPrefix(prev.Name, e.Name)
		put(colNameLens, uint64(shared))
		put(colNameLens, uint64(len(e.Name)-shared))
		cols[colNames] = append(cols[colNames], e.Name[shared:]...)
		put(colModes, uint64(e.Mode))
		put(colOwners, uint64(e.UID))
		put(colOwners, uint64(e.GID))
		cols[colSeconds] = binary.AppendVarint(cols[colSeconds], e.Sec-prev.Sec)
		put(colNanos, uint64(e.Nsec))
		switch e.Type {
		case Regular:
			put(colSizes, uint64(e.Size))
			if e.Size > 0 && e.Sparse == nil {
				put(colPlaces, uint64(e.TarOff-end))
				end = e.TarOff + e.Size
			}
			if e.Sparse != nil {
				put(colSparse, uint64(i))
				put(colSparse, uint64(len(e.Sparse)))
				end = putExtents(e.Sparse, end, func(v int64) { put(colSparse, uint64(v)) })
			}
		case Symlink, Hardlink:
			str(colLinks, e.Link)
		case Char, Block:
			put(colDevices, uint64(e.Major))
			put(colDevices, uint64(e.Minor))
		}
		set := encodeXattrs(e.Xattrs)
		if _, ok := sets[set]; !ok && set != "" {
			sets[set] = uint64(len(sets) + 1)
			cols[colXattrSets] = append(cols[colXattrSets], set...)
		}
		put(colXattrs, sets[set])
		prev = *e
	}
	var out []byte
	for _, c := range cols {
		out = binary.AppendUvarint(out, uint64(len(c)))
		out = append(out, c...)
	}
	return out
}

// putExtents writes a sparse file's extents, each relative to the one before,
// and returns where the last one's data ends in the tar.
func putExtents(extents []Extent, end int64, put func(int64)) int64 {
	var off int64
	for _, x := range extents {
		put(x.Off - off)
		put(x.TarOff - end)
		put(x.Len)
		off, end = x.Off+x.Len, x.TarOff+x.Len
	}
	return end
}

func encodeXattrs(xattrs []Xattr) string {
	if len(xattrs) == 0 {
		return ""
	}
	out := binary.AppendUvarint(nil, uint64(len(xattrs)))
	for _, x := range xattrs {
		for _, s := range []string{x.Name, x.Value} {
			out = binary.AppendUvarint(out, uint64(len(s)))
			out = append(out, s...)
		}
	}
	return string(out)
}

func encodeSpans(spans []Span) []byte {
	var out []byte
	var blob int64
	for i := range spans {
		s := &spans[i]
		flags := s.Bits
		if s.Member {
			flags |= flagMember
		}
		out = append(out, flags)
		for _, v := range []int64{s.TarLen, s.BlobOff - blob, s.BlobLen, s.Window.Len} {
			out = binary.AppendUvarint(out, uint64(v))
		}
		out = append(out, s.Digest[:]...)
		blob = s.BlobOff
	}
	return out
}

const flagMember = 1 << 3 // above the three bits of Span.Bits

func sharedPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
