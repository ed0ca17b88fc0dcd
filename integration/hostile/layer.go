package hostile

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Layer is a layer in a file. Its diffID is that of the tar it was made of,
// whatever its blob decodes to. It implements v1.Layer.
type Layer struct {
	path           string
	digest, diffID v1.Hash
	size           int64
}

// Digest implements v1.Layer, as the methods after it do.
func (l *Layer) Digest() (v1.Hash, error) { return l.digest, nil }

// DiffID returns the digest of the tar.
func (l *Layer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// Size returns the length of the blob in bytes.
func (l *Layer) Size() (int64, error) { return l.size, nil }

// MediaType returns gzip's, whatever the blob is.
func (l *Layer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }

// Compressed opens the blob.
func (l *Layer) Compressed() (io.ReadCloser, error) { return os.Open(l.path) }

// Uncompressed is not there: nobody who only moves an image asks for it.
func (l *Layer) Uncompressed() (io.ReadCloser, error) {
	return nil, errors.New("the layer cannot be unpacked")
}

// writeLayer writes a layer's blob to a file. fill writes the tar, and what
// comes of it as a blob.
func writeLayer(path string, fill func(tar hash.Hash, blob io.Writer) error) (_ *Layer, err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	diffID, digest := sha256.New(), sha256.New()
	if err := fill(diffID, io.MultiWriter(f, digest)); err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	return &Layer{path, sum(digest), sum(diffID), size}, err
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// gzipped makes a layer of a tar that may be large.
func gzipped(path string, fill func(*Tar)) (*Layer, error) {
	return writeLayer(path, func(tar hash.Hash, blob io.Writer) error {
		z := gzip.NewWriter(blob)
		return errors.Join(write(io.MultiWriter(z, tar), fill), z.Close())
	})
}

// encoded makes a layer of a tar that is small, as encode changes it.
func encoded(path string, fill func(*Tar), encode func(tar []byte) []byte) (*Layer, error) {
	return writeLayer(path, func(tar hash.Hash, blob io.Writer) error {
		var b bytes.Buffer
		if err := write(io.MultiWriter(&b, tar), fill); err != nil {
			return err
		}
		_, err := blob.Write(encode(b.Bytes()))
		return err
	})
}
