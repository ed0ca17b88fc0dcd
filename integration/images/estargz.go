package images

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// EStargz returns the image with the same layers in the eStargz format, as
// users of the stargz snapshotter convert theirs. It is made once, and cached.
func EStargz(ctx context.Context, img *Image) (*Image, error) {
	return converted(img, "estargz", func(path string, l v1.Layer) (v1.Layer, error) {
		digest, err := l.Digest()
		if err != nil {
			return nil, err
		}
		in, err := os.Open(filepath.Join(img.Layout, "blobs", digest.Algorithm, digest.Hex))
		if err != nil {
			return nil, err
		}
		defer in.Close()
		return writeEStargz(ctx, path, in)
	})
}

// estargzLayer is a layer whose descriptor in the manifest has the digest of
// the layer's table of contents, which the snapshotter checks the layer by.
type estargzLayer struct {
	*layer
	toc string
}

// Descriptor is optional for a v1.Layer.
func (l estargzLayer) Descriptor() (*v1.Descriptor, error) {
	return &v1.Descriptor{
		MediaType: l.encoding.mediaType(), Digest: l.digest, Size: l.size,
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: l.toc},
	}, nil
}

// writeEStargz converts a layer in a file.
func writeEStargz(ctx context.Context, path string, in *os.File) (v1.Layer, error) {
	size, err := in.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	blob, err := estargz.Build(io.NewSectionReader(in, 0, size), estargz.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	// As a tar, since the blob is compressed already.
	out, err := writeLayer(path, Tar, func(w io.Writer) error {
		_, err := io.Copy(w, blob)
		return errors.Join(err, blob.Close())
	})
	if err != nil {
		return nil, err
	}
	out.encoding = Gzip
	out.diffID, err = v1.NewHash(blob.DiffID().String())
	return estargzLayer{out, blob.TOCDigest().String()}, err
}
