package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/transfer"
)

// openTar returns a layer as an uncompressed tar, as it comes over the wire.
// Its end is an error if the layer is not what the image says.
func openTar(ctx context.Context, c *transfer.Client, img *transfer.Image, l transfer.Layer) (io.ReadCloser, error) {
	body, _, err := c.Blob(img, l.Descriptor).Open(transfer.For(ctx, "unpack"), 0, l.Size)
	if err != nil {
		return nil, err
	}
	blob := &checked{r: body, sum: sha256.New(), want: l.Digest}
	plain, err := compression.DecompressStream(blob)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("layer %s: %w", l.Digest, err), body.Close())
	}
	return &layerTar{
		checked: checked{r: plain, sum: sha256.New(), want: l.DiffID},
		blob:    blob, plain: plain, body: body,
	}, nil
}

// checked is a reader that compares all of what it has read with a digest.
type checked struct {
	r    io.Reader
	sum  hash.Hash
	want digest.Digest
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.sum.Write(p[:n])
	if err == io.EOF {
		if got := digest.NewDigest(digest.SHA256, c.sum); got != c.want {
			return n, fmt.Errorf("the data has the digest %s, not %s", got, c.want)
		}
	}
	return n, err
}

// layerTar is a tar out of a blob. At its end what is left of the blob is read,
// so that that is compared with its digest, too.
type layerTar struct {
	checked
	blob        io.Reader
	plain, body io.Closer
}

func (t *layerTar) Read(p []byte) (int, error) {
	n, err := t.checked.Read(p)
	if err == io.EOF {
		if _, err := io.Copy(io.Discard, t.blob); err != nil {
			return n, err
		}
	}
	return n, err
}

func (t *layerTar) Close() error { return errors.Join(t.plain.Close(), t.body.Close()) }
