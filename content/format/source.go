package format

import (
	"crypto/sha256"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/index"
)

// source is a blob as it comes in: counted, hashed, and remembered from where
// the current span begins.
type source struct {
	r      io.Reader
	n      int64 // bytes given out
	sum    hash.Hash
	head   []byte // read by peek, not yet given out
	hist   []byte // the last len(hist) bytes given out; nil if forgotten
	forgot bool
}

func newSource(r io.Reader) *source { return &source{r: r, sum: sha256.New()} }

// peek returns the first n bytes, or fewer if there are no more.
func (s *source) peek(n int) ([]byte, error) {
	s.head = make([]byte, n)
	got, err := io.ReadFull(s.r, s.head)
	s.head = s.head[:got]
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return s.head, err
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (n int, err error) {
	if len(s.head) > 0 {
		n = copy(p, s.head)
		s.head = s.head[n:]
	} else {
		n, err = s.r.Read(p)
	}
	s.n += int64(n)
	s.sum.Write(p[:n])
	if !s.forgot {
		s.hist = append(s.hist, p[:n]...)
		if len(s.hist) > 2*index.MaxSpan { // no index has such a span
			s.forget()
		}
	}
	return n, err
}

// forget ends the remembering.
func (s *source) forget() { s.forgot, s.hist = true, nil }

// keepFrom drops what lies before off from what is remembered.
func (s *source) keepFrom(off int64) {
	if !s.forgot {
		s.hist = append(s.hist[:0], s.hist[len(s.hist)-int(s.n-off):]...)
	}
}

// kept returns what is remembered; it is valid until the next call.
func (s *source) kept() []byte { return s.hist }

func (s *source) digest() digest.Digest { return digest.NewDigest(digest.SHA256, s.sum) }
