package format

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
)

// The parts of a gzip member (RFC 1952, section 2.3).
const (
	gzipMagic     = "\x1f\x8b\x08" // ID1, ID2, CM = deflate
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagReserved  = 0xe0
	memberTrailer = 8 // bytes: CRC-32 and length
)

// maxMemberText bounds a member's file name and comment, in bytes.
const maxMemberText = 64 << 10

// readMemberHeader reads past the header of a gzip member. It returns io.EOF
// only if there is not one byte.
func readMemberHeader(r byteReader) error {
	var h [10]byte
	if n, err := io.ReadFull(r, h[:]); err != nil {
		if n == 0 && err == io.EOF {
			return io.EOF
		}
		return fmt.Errorf("gzip header: %w", noEOF(err))
	}
	flags := h[3]
	if string(h[:3]) != gzipMagic || flags&flagReserved != 0 {
		return fmt.Errorf("gzip header: it starts with % x", h[:4])
	}
	if flags&flagExtra != 0 {
		if _, err := io.ReadFull(r, h[:2]); err != nil {
			return fmt.Errorf("gzip header: %w", noEOF(err))
		}
		if _, err := io.CopyN(io.Discard, r, int64(binary.LittleEndian.Uint16(h[:]))); err != nil {
			return fmt.Errorf("gzip header: %w", noEOF(err))
		}
	}
	for _, text := range []byte{flagName, flagComment} {
		if flags&text != 0 {
			if err := skipText(r); err != nil {
				return fmt.Errorf("gzip header: %w", noEOF(err))
			}
		}
	}
	if flags&flagHeaderCRC != 0 {
		if _, err := io.ReadFull(r, h[:2]); err != nil {
			return fmt.Errorf("gzip header: %w", noEOF(err))
		}
	}
	return nil
}

// skipText reads past a text that ends with a NUL.
func skipText(r io.ByteReader) error {
	for range maxMemberText {
		if b, err := r.ReadByte(); err != nil || b == 0 {
			return err
		}
	}
	return fmt.Errorf("text of more than %d bytes", maxMemberText)
}

type byteReader interface {
	io.Reader
	io.ByteReader
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// resume is a place in a blob where decoding can start.
type resume struct {
	tar, blob int64  // how much of each lies before
	bits      uint8  // of the blob's next byte that are used already
	member    bool   // a member's header comes next
	window    []byte // valid until the callback returns
}

// inflater reads the members of a gzip blob one after the other, and reports
// every place where decoding could resume.
type inflater struct {
	src    *source
	br     *bufio.Reader
	flate  io.ReadCloser
	at     func(resume)
	tar    int64 // bytes given out, and decoded by members before this one
	before int64
	crc    uint32
	began  int64 // where the current member's data starts in the blob
	open   bool  // a member is being read
}

func newInflater(src *source, at func(resume)) *inflater {
	return &inflater{src: src, br: bufio.NewReaderSize(src, 64<<10), at: at}
}

// offset is how much of the blob has been used.
func (z *inflater) offset() int64 { return z.src.n - int64(z.br.Buffered()) }

// Read implements io.Reader; the layer ends where the blob ends.
func (z *inflater) Read(p []byte) (int, error) {
	for {
		if !z.open {
			if err := z.nextMember(); err != nil {
				return 0, err
			}
		}
		n, err := z.flate.Read(p)
		z.tar += int64(n)
		z.crc = crc32.Update(z.crc, crc32.IEEETable, p[:n])
		if err == io.EOF {
			z.open = false
			if err = z.endMember(); err != nil {
				return n, err
			}
		}
		if n > 0 || err != nil {
			return n, noEOF(err)
		}
	}
}

func (z *inflater) nextMember() error {
	z.at(resume{tar: z.tar, blob: z.offset(), member: true})
	if err := readMemberHeader(z.br); err != nil {
		if err == io.EOF && z.tar == 0 && z.src.n == 0 {
			return errors.New("an empty blob is no gzip")
		}
		return err
	}
	z.before, z.crc, z.began, z.open = z.tar, 0, z.offset(), true
	var ahead int64
	z.flate = flate.NewReaderOpts(z.br, flate.WithEobCallback(func(c flate.InflateCheckpoint) {
		// At a stored block the decoder counts the bytes twice that it had
		// already taken into its bit buffer, and is ahead from there on. After
		// one the buffer is empty, so that the count should be what was read.
		end := c.CompressedOffset
		if c.BitOffset > 0 {
			end++
		}
		ahead = max(ahead, end-(z.offset()-z.began))
		if !c.Final {
			z.at(resume{
				tar: z.before + c.UncompressedOffset, blob: z.began + c.CompressedOffset - ahead,
				bits: c.BitOffset, window: c.Window,
			})
		}
	}))
	return nil
}

func (z *inflater) endMember() error {
	var t [memberTrailer]byte
	if _, err := io.ReadFull(z.br, t[:]); err != nil {
		return fmt.Errorf("gzip trailer: %w", noEOF(err))
	}
	crc, size := binary.LittleEndian.Uint32(t[:]), binary.LittleEndian.Uint32(t[4:])
	if crc != z.crc || size != uint32(z.tar-z.before) {
		return fmt.Errorf("gzip trailer: checksum or length of the member is wrong")
	}
	return nil
}
