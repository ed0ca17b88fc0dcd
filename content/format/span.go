package format

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/peelfs/peel/content/index"
)

// ErrCorrupt is wrapped by every error about a blob or a span that is not what
// its digest, or its format, says it is.
var ErrCorrupt = errors.New("corrupt layer data")

// Decode takes a span out of the bytes of the blob that it is in, and checks
// its digest. It appends to dst, which needs a capacity of TarLen to be used
// as it is. Of anything wrong nothing is returned.
func Decode(f index.Format, s *index.Span, blob, window, dst []byte) ([]byte, error) {
	var out []byte
	var err error
	switch f {
	case index.Tar:
		out = append(dst, blob...)
	case index.Gzip:
		out, err = decodeGzip(s, blob, window, dst)
	case index.Zstd:
		out, err = decodeZstd(s, blob, dst)
	default:
		err = fmt.Errorf("no way to read %s", f)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: span at %d: %w", ErrCorrupt, s.TarOff, err)
	}
	if got := out[len(dst):]; int64(len(got)) != s.TarLen || sha256.Sum256(got) != s.Digest {
		return nil, fmt.Errorf("%w: span at %d of the tar does not have the digest that the index gives", ErrCorrupt, s.TarOff)
	}
	return out, nil
}

// decodeGzip inflates a span, which may run through the ends of members. The
// decoder may look at bits behind the end of a block before it sees that the
// block has ended, so zeros follow the span's bytes.
func decodeGzip(s *index.Span, blob, window, dst []byte) ([]byte, error) {
	src := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(blob), bytes.NewReader(make([]byte, 4))), 64<<10)
	left := s.TarLen
	start := len(dst)
	var r io.ReadCloser
	if s.Member {
		if err := readMemberHeader(src); err != nil {
			return nil, err
		}
		r = flate.NewReader(src)
	} else {
		r = flate.NewReaderOpts(src, flate.WithResumeFrom(flate.InflateCheckpoint{BitOffset: s.Bits, Window: window}))
	}
	for {
		var n int
		var err error
		dst, n, err = readTo(r, dst, left)
		left -= int64(n)
		if left == 0 {
			return dst, nil
		}
		if err != io.EOF {
			return nil, fmt.Errorf("inflate: %w after %d of %d bytes", err, len(dst)-start, s.TarLen)
		}
		if _, err := src.Discard(memberTrailer); err != nil {
			return nil, err
		}
		if err := readMemberHeader(src); err != nil {
			return nil, err
		}
		if err := r.(flate.Resetter).Reset(src, nil); err != nil {
			return nil, err
		}
	}
}

// readTo appends up to n bytes of r to dst.
func readTo(r io.Reader, dst []byte, n int64) ([]byte, int, error) {
	start := len(dst)
	dst = append(dst, make([]byte, n)...)
	got, err := io.ReadFull(r, dst[start:])
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return dst[:start+got], got, err
}
