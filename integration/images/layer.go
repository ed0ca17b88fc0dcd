package images

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Encoding is how a layer's tar is stored.
type Encoding string

// The encodings of a layer.
const (
	Gzip    Encoding = "gzip"    // one member, as most builders write it
	Members Encoding = "members" // a gzip member for each MiB of tar
	Tar     Encoding = "tar"     // not compressed
)

func (e Encoding) mediaType() types.MediaType {
	if e == Tar {
		return types.OCIUncompressedLayer
	}
	return types.OCILayer
}

// layer is a layer in a file. It implements v1.Layer.
type layer struct {
	path           string
	encoding       Encoding
	digest, diffID v1.Hash
	size           int64
}

func (l *layer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *layer) Size() (int64, error)                { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error) { return l.encoding.mediaType(), nil }
func (l *layer) Compressed() (io.ReadCloser, error)  { return os.Open(l.path) }

func (l *layer) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(l.path)
	if err != nil || l.encoding == Tar {
		return f, err
	}
	tar, err := gzip.NewReader(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{tar, f}, nil
}

// writeLayer makes a layer of the tar that fill writes.
func writeLayer(path string, as Encoding, fill func(tar io.Writer) error) (*layer, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	digest, diffID := sha256.New(), sha256.New()
	blob := bufio.NewWriterSize(io.MultiWriter(f, digest), 1<<20)

	tar, err := encoder(blob, as)
	if err != nil {
		return nil, err
	}
	if err := fill(io.MultiWriter(tar, diffID)); err != nil {
		return nil, err
	}
	if err := tar.Close(); err != nil {
		return nil, err
	}
	if err := blob.Flush(); err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	return &layer{path, as, hash(digest.Sum(nil)), hash(diffID.Sum(nil)), size}, err
}

func hash(sum []byte) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum)} }

func encoder(w io.Writer, as Encoding) (io.WriteCloser, error) {
	switch as {
	case Gzip:
		return gzip.NewWriter(w), nil
	case Members:
		return &memberWriter{gzip: gzip.NewWriter(w), out: w, left: memberSize}, nil
	case Tar:
		return nopCloser{w}, nil
	}
	return nil, fmt.Errorf("unknown encoding %q", as)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

const memberSize = 1 << 20

// memberWriter starts a new gzip member after every memberSize bytes.
type memberWriter struct {
	gzip *gzip.Writer
	out  io.Writer
	left int // in this member
}

func (m *memberWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if m.left == 0 {
			if err := m.gzip.Close(); err != nil {
				return written, err
			}
			m.gzip.Reset(m.out)
			m.left = memberSize
		}
		n, err := m.gzip.Write(p[:min(len(p), m.left)])
		m.left -= n
		written += n
		p = p[n:]
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func (m *memberWriter) Close() error { return m.gzip.Close() }
