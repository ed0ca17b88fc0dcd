package index

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// Limits on what is decoded, so that a crafted index costs bounded memory.
const (
	maxRaw    = 256 << 20 // bytes of a section, decompressed, other than the framing
	maxWindow = 32 << 10  // bytes of a span's window
	maxSpans  = 4 << 20
	maxMemory = 8 << 20 // bytes that the framing's decoder may need: the writer's window has 1 MiB
)

// File is a serialised index. Its parts are decoded when they are asked for,
// each time anew, so that what is not in use costs no memory. A File is safe
// for use by several goroutines. Every part that it returns has been checked:
// offsets lie inside what they point into, names are clean, spans adjoin.
type File struct {
	Header

	r        io.ReaderAt
	windows  *zstd.Decoder
	sections [numSections]section
	entries  int
	spans    int
}

type section struct{ off, stored, raw int64 }

// Open reads the header of the serialised index of size bytes in r. The bytes
// as a whole are the caller's to verify; Open trusts none of them.
func Open(r io.ReaderAt, size int64) (*File, error) {
	var buf [headerSize]byte
	if _, err := r.ReadAt(buf[:], 0); err != nil {
		if err == io.EOF {
			return nil, fmt.Errorf("%w: %d bytes are too few for a header", ErrFormat, size)
		}
		return nil, fmt.Errorf("read header of layer index: %w", err)
	}
	le := binary.LittleEndian
	if string(buf[:8]) != magic {
		return nil, fmt.Errorf("%w: it does not start with %q", ErrFormat, magic)
	}
	if v := le.Uint32(buf[8:]); v != version {
		return nil, fmt.Errorf("%w: version %d, this program reads %d", ErrFormat, v, version)
	}
	f := &File{r: r}
	f.Format = Format(buf[12])
	f.Blob, f.BlobSize = decodeBlob(buf[16:])
	f.DiffID, f.TarSize = decodeBlob(buf[56:])
	if f.Twin, f.TwinSize = decodeBlob(buf[96:]); f.Twin == noTwin {
		f.Twin = ""
	}
	f.FlatSize = int64(le.Uint64(buf[136:]))
	f.entries, f.spans = int(le.Uint64(buf[144:])), int(le.Uint64(buf[152:]))
	if err := f.check(f.entries, f.spans); err != nil {
		return nil, err
	}
	if err := f.openSections(buf[160:], size); err != nil {
		return nil, err
	}
	var err error
	f.windows, err = newDecoder()
	return f, err
}

func newDecoder() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxRaw), zstd.WithDecoderLowmem(true))
}

// decodeBlob reads a digest, and the bytes that it is of.
func decodeBlob(b []byte) (digest.Digest, int64) {
	n := len(SHA256{})
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(b[:n])), int64(binary.LittleEndian.Uint64(b[n:]))
}

func (f *File) openSections(table []byte, size int64) error {
	off := int64(headerSize)
	for i := range f.sections {
		s := section{
			off:    off,
			stored: int64(binary.LittleEndian.Uint64(table[i*16:])),
			raw:    int64(binary.LittleEndian.Uint64(table[i*16+8:])),
		}
		if s.stored < 0 || s.raw < 0 || s.stored > size-off || i != secFraming && s.raw > maxRaw || i == secFraming && s.raw > f.TarSize {
			return fmt.Errorf("%w: section %d of %d bytes (%d decompressed) does not fit", ErrFormat, i, s.stored, s.raw)
		}
		f.sections[i] = s
		off += s.stored
	}
	if off != size {
		return fmt.Errorf("%w: it is %d bytes long and should be %d", ErrFormat, size, off)
	}
	return nil
}

// Len returns the number of entries, without decoding them.
func (f *File) Len() int { return f.entries }

// Entries decodes the entries.
func (f *File) Entries() ([]Entry, error) {
	raw, err := f.section(secEntries)
	if err != nil {
		return nil, err
	}
	entries, err := decodeEntries(raw, f.entries)
	if err != nil {
		return nil, err
	}
	if flat := LayOut(entries); flat != f.FlatSize {
		return nil, fmt.Errorf("%w: the files take %d bytes, the header says %d", ErrFormat, flat, f.FlatSize)
	}
	return entries, checkEntries(entries, f.TarSize)
}

// Spans decodes the spans.
func (f *File) Spans() ([]Span, error) {
	raw, err := f.section(secSpans)
	if err != nil {
		return nil, err
	}
	spans, err := decodeSpans(raw, f.spans)
	if err != nil {
		return nil, err
	}
	return spans, checkSpans(spans, &f.Header, f.sections[secWindows].stored)
}

// Digests returns the SHA-256 of each regular file that is not empty, in the
// order of the entries.
func (f *File) Digests() ([]SHA256, error) {
	raw, err := f.stored(secDigests, 0, f.sections[secDigests].stored)
	if err != nil {
		return nil, err
	}
	out := make([]SHA256, len(raw)/len(SHA256{}))
	for i := range out {
		copy(out[i][:], raw[i*len(SHA256{}):])
	}
	return out, nil
}

// Window returns the bytes that the span refers to; nil if there are none.
func (f *File) Window(s *Span) ([]byte, error) {
	if s.Window.Len == 0 {
		return nil, nil
	}
	z, err := f.stored(secWindows, s.Window.Off, s.Window.Len)
	if err != nil {
		return nil, err
	}
	var h zstd.Header
	if err := h.Decode(z); err != nil || !h.HasFCS || h.FrameContentSize > maxWindow {
		return nil, fmt.Errorf("%w: window at %d is no frame of at most %d bytes", ErrFormat, s.Window.Off, maxWindow)
	}
	w, err := f.windows.DecodeAll(z, make([]byte, 0, h.FrameContentSize))
	if err != nil || len(w) > maxWindow {
		return nil, fmt.Errorf("%w: window at %d: %d bytes, %v", ErrFormat, s.Window.Off, len(w), err)
	}
	return w, nil
}

// Framing streams the bytes of the tar that are no file's data, in order.
func (f *File) Framing() (io.ReadCloser, error) {
	s := f.sections[secFraming]
	dec, err := zstd.NewReader(io.NewSectionReader(f.r, s.off, s.stored),
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxMemory))
	if err != nil {
		return nil, fmt.Errorf("read tar framing: %w", err)
	}
	rc := dec.IOReadCloser()
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(rc, s.raw), rc}, nil
}

// section reads and decompresses a section.
func (f *File) section(i int) ([]byte, error) {
	z, err := f.stored(i, 0, f.sections[i].stored)
	if err != nil {
		return nil, err
	}
	// A decoder keeps what it has decoded last, which can be megabytes, so this
	// one does not stay.
	dec, err := newDecoder()
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	want := f.sections[i].raw
	raw, err := dec.DecodeAll(z, make([]byte, 0, min(want, 64*int64(len(z))+1024)))
	if err != nil || int64(len(raw)) != want {
		return nil, fmt.Errorf("%w: section %d gives %d bytes and should give %d (%v)", ErrFormat, i, len(raw), want, err)
	}
	return raw, nil
}

// stored reads n bytes at off of a section as they are stored.
func (f *File) stored(i int, off, n int64) ([]byte, error) {
	buf := make([]byte, n)
	if _, err := f.r.ReadAt(buf, f.sections[i].off+off); err != nil && (err != io.EOF || n > 0) {
		return nil, fmt.Errorf("read section %d of layer index: %w", i, err)
	}
	return buf, nil
}
