package format

import (
	"fmt"
	"io"

	"github.com/peelfs/peel/content/index"
)

// flatWriter writes the flat blob from its start to its end: files one after
// the other, each followed by zeros up to the next block. Whole blocks of zeros
// are left out, so that they are holes in the file.
type flatWriter struct {
	to  io.WriterAt // nil: nothing is written
	off int64       // of buf in the flat blob
	buf []byte
}

const flatBuffer = 1 << 20 // bytes; a multiple of the block size

func (w *flatWriter) write(p []byte) error {
	if w.to == nil {
		return nil
	}
	for len(p) > 0 {
		if len(w.buf) == flatBuffer {
			if err := w.flush(); err != nil {
				return err
			}
		}
		if len(w.buf) == 0 {
			if n := leadingZeros(p); n > 0 {
				w.off += n
				p = p[n:]
				continue
			}
		}
		n := min(len(p), flatBuffer-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
	}
	return nil
}

// leadingZeros returns how many bytes of whole zero blocks p starts with.
func leadingZeros(p []byte) int64 {
	var zeros [index.BlockSize]byte
	n := 0
	for n+len(zeros) <= len(p) && string(p[n:n+len(zeros)]) == string(zeros[:]) {
		n += len(zeros)
	}
	return int64(n)
}

// align ends a file.
func (w *flatWriter) align() error {
	if w.to == nil {
		return nil
	}
	end := w.off + int64(len(w.buf))
	w.buf = append(w.buf, make([]byte, index.Align(end)-end)...)
	return nil
}

func (w *flatWriter) flush() error {
	if w.to == nil || len(w.buf) == 0 {
		return nil
	}
	if _, err := w.to.WriteAt(w.buf, w.off); err != nil {
		return fmt.Errorf("write %d bytes at %d of the flat blob: %w", len(w.buf), w.off, err)
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}
