package format

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/peelfs/peel/content/index"
)

// MaxWindow is how many bytes of its output a zstd frame may refer back to:
// what a decoder needs as memory. It is the limit of the zstd tool, too, and
// its --long=27 needs all of it.
const MaxWindow = 128 << 20

// The parts of a zstd frame (RFC 8878, sections 3.1.1 and 3.1.2).
const (
	frameMagic     = 0xfd2fb528
	skippableMagic = 0x184d2a50 // the low four bits are free
	blockHeader    = 3          // bytes: last block (1 bit), type (2 bits), size
	blockRLE       = 1          // type of a block that is one byte, repeated
	frameChecksum  = 4          // bytes
)

// isZstd reports whether a blob that starts with head is zstd.
func isZstd(head []byte) bool {
	if len(head) < 4 {
		return false
	}
	magic := binary.LittleEndian.Uint32(head)
	return magic == frameMagic || magic&^0xf == skippableMagic
}

// unzstd reads the frames of a zstd blob one after the other, and reports the
// start of every one as a place where decoding could resume.
type unzstd struct {
	src   *source
	br    *bufio.Reader
	dec   *zstd.Decoder
	at    func(resume)
	tar   int64 // bytes given out
	frame frame
	open  bool // the frame is being read
}

func newUnzstd(src *source, at func(resume)) (*unzstd, error) {
	dec, err := newZstdDecoder()
	return &unzstd{src: src, br: bufio.NewReaderSize(src, 64<<10), dec: dec, at: at}, err
}

func newZstdDecoder() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(MaxWindow), zstd.WithDecodeAllCapLimit(true))
}

// offset is how much of the blob has been used.
func (z *unzstd) offset() int64 { return z.src.n - int64(z.br.Buffered()) }

// Read implements io.Reader; the layer ends where the blob ends.
func (z *unzstd) Read(p []byte) (int, error) {
	for {
		if !z.open {
			if err := z.nextFrame(); err != nil {
				return 0, err
			}
		}
		n, err := z.dec.Read(p)
		z.tar += int64(n)
		if err == io.EOF {
			z.open, err = false, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// nextFrame opens the next frame that is not skippable. It returns io.EOF only
// where the blob ends.
func (z *unzstd) nextFrame() error {
	for {
		begin := z.offset()
		z.at(resume{tar: z.tar, blob: begin})
		head, err := z.br.Peek(zstd.HeaderMaxSize)
		if err != nil && (err != io.EOF || len(head) == 0) {
			return err
		}
		var h zstd.Header
		if err := h.Decode(head); err != nil {
			return fmt.Errorf("zstd frame at byte %d: %w", begin, err)
		}
		if !h.Skippable {
			if err := checkFrame(&h); err != nil {
				return fmt.Errorf("zstd frame at byte %d: %w", begin, err)
			}
			z.open, z.frame = true, frame{br: z.br, left: h.HeaderSize, sum: h.HasCheckSum}
			return z.dec.Reset(&z.frame)
		}
		if _, err := z.br.Discard(h.HeaderSize + int(h.SkippableSize)); err != nil {
			return fmt.Errorf("skippable frame at byte %d: %w", begin, noEOF(err))
		}
	}
}

// checkFrame refuses frames that cannot be decoded here.
func checkFrame(h *zstd.Header) error {
	window := h.WindowSize
	if h.SingleSegment {
		window = h.FrameContentSize
	}
	switch {
	case h.DictionaryID != 0:
		return fmt.Errorf("%w: it needs the dictionary %d, which a layer cannot bring", ErrUnsupported, h.DictionaryID)
	case window > MaxWindow:
		return fmt.Errorf("%w: it needs a window of %d bytes, at most %d are allowed", ErrUnsupported, window, MaxWindow)
	}
	return nil
}

// frame is the bytes of one frame. They end where the frame does, which the
// headers of its blocks tell.
type frame struct {
	br   *bufio.Reader
	left int  // bytes of the part that is being read
	last bool // no block comes after it
	sum  bool // a checksum follows the last block
}

// Read implements io.Reader.
func (f *frame) Read(p []byte) (int, error) {
	if f.left == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	n, err := f.br.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, noEOF(err)
}

// next goes on to the next block, or to the checksum.
func (f *frame) next() error {
	if f.last {
		if !f.sum {
			return io.EOF
		}
		f.left, f.sum = frameChecksum, false
		return nil
	}
	h, err := f.br.Peek(blockHeader)
	if err != nil {
		return noEOF(err)
	}
	v := int(h[0]) | int(h[1])<<8 | int(h[2])<<16
	size := v >> 3
	if v>>1&3 == blockRLE {
		size = 1
	}
	f.left, f.last = blockHeader+size, v&1 != 0
	return nil
}

// decodeZstd decodes the frames that a span is.
func decodeZstd(s *index.Span, blob, dst []byte) ([]byte, error) {
	dec, err := newZstdDecoder()
	if err != nil {
		return nil, err
	}
	dst = slices.Grow(dst, int(s.TarLen))
	return dec.DecodeAll(blob, dst[:len(dst):len(dst)+int(s.TarLen)])
}
