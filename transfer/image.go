package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

const (
	maxManifest   = 4 << 20 // bytes; the least that the specification asks of registries
	maxConfig     = 8 << 20 // bytes
	maxIndexDepth = 3       // indexes within indexes
)

// Image is one platform's image in a repository or in local files. It comes from Resolve or
// ParseImage and does not change. Its bytes have the digests that they were
// asked for by.
type Image struct {
	Reference   string        // in full, as "127.0.0.1:5000/app:1" or "oci:/images/app:1"
	Digest      digest.Digest // of Manifest
	IndexDigest digest.Digest // of the index that listed the manifest, or ""; not known to ParseImage
	MediaType   string        // of Manifest
	Manifest    []byte        // as it is there; made here for a docker-archive, which has none
	Config      []byte        // as it is there
	Layers      []Layer       // lowest first

	at    reference
	ahead atomic.Pointer[[]ocispec.Descriptor] // referrers that Resolve has found
}

// Layer is a layer's descriptor: its Digest and Size in bytes as the registry
// has it, its MediaType, Annotations and URLs. A layer with URLs may have to
// be got from there, which this package does not do.
type Layer struct {
	ocispec.Descriptor
	DiffID digest.Digest // of the uncompressed tar
}

// Resolve finds an image by a reference such as "debian:12" or
// "127.0.0.1:5000/app@sha256:...", or in local files:
//
//   - oci:PATH[:TAG] is an OCI image layout in the folder PATH. TAG is the
//     annotation org.opencontainers.image.ref.name in its index.json, and can
//     be left out if there is one image.
//   - oci-archive:PATH[:TAG] is the same as a tar file.
//   - docker-archive:PATH[:TAG] is what docker save writes. TAG is a name that
//     the image was saved under, such as app:1.
//
// Each may end with @DIGEST, too. Where PATH has colons in it, it is as much
// of PATH:TAG as there is a file for.
//
// Of a multi-platform index Resolve takes the image that suits the client's
// platform best.
func (c *Client) Resolve(ctx context.Context, ref string) (*Image, error) {
	img, err := c.resolve(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", ref, err)
	}
	return img, nil
}

func (c *Client) resolve(ctx context.Context, ref string) (*Image, error) {
	at, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	from := c.source(at, transport.PullScope)
	raw, doc, err := from.manifest(ctx, at.id())
	if err != nil {
		return nil, err
	}
	var index digest.Digest
	for depth := 0; doc.isIndex(); depth++ {
		if depth == maxIndexDepth {
			return nil, fmt.Errorf("more than %d indexes within each other", maxIndexDepth)
		}
		if depth == 0 {
			index = digest.FromBytes(raw)
		}
		entry, err := choose(doc.Manifests, c.platforms)
		if err != nil {
			return nil, err
		}
		if raw, doc, err = manifestOf(ctx, from, entry); err != nil {
			return nil, err
		}
	}
	var config []byte
	var ahead *[]ocispec.Descriptor
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		config, err = c.config(ctx, at, *doc.Config)
		return err
	})
	if c.opts.ReferrersAhead {
		g.Go(func() error {
			// A failure is met again when Referrers is called, if it is.
			if list, err := from.referrers(ctx, digest.FromBytes(raw), ""); err == nil {
				ahead = &list
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	img, err := newImage(at, raw, config)
	if err != nil {
		return nil, err
	}
	img.IndexDigest = index
	img.ahead.Store(ahead)
	return img, nil
}

// manifestOf gets the manifest or index of a descriptor.
func manifestOf(ctx context.Context, from source, d ocispec.Descriptor) ([]byte, *document, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, nil, err
	}
	raw, doc, err := from.manifest(ctx, d.Digest.String())
	var br *brokenError
	switch {
	case errors.As(err, &br) && d.Size != 0:
		err = fmt.Errorf("%w; its descriptor says %d bytes", err, d.Size)
	case err == nil && d.Size != 0 && d.Size != int64(len(raw)):
		err = fmt.Errorf("manifest %s has %d bytes, but its descriptor says %d", d.Digest, len(raw), d.Size)
	}
	return raw, doc, err
}

// config gets the config of an image's manifest.
func (c *Client) config(ctx context.Context, at reference, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxConfig {
		return nil, fmt.Errorf("config %s has %d bytes, more than %d", d.Digest, d.Size, maxConfig)
	}
	if int64(len(d.Data)) == d.Size && digest.FromBytes(d.Data) == d.Digest {
		return d.Data, nil // embedded in the manifest
	}
	return c.blob(at, d).readAll(For(ctx, "config"))
}

// ParseImage makes the Image that Resolve gave from its reference and its raw
// bytes, without any registry or local file.
func ParseImage(ref string, manifest, config []byte) (*Image, error) {
	at, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	img, err := newImage(at, manifest, config)
	if err != nil {
		return nil, fmt.Errorf("parse image %s: %w", ref, err)
	}
	return img, nil
}

func newImage(at reference, manifest, config []byte) (*Image, error) {
	doc, err := parseDocument(manifest)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if doc.isIndex() {
		return nil, errors.New("the manifest is an index of several images")
	}
	if got := digest.FromBytes(config); got != doc.Config.Digest {
		return nil, fmt.Errorf("the config's digest is %s, but the manifest names %s", got, doc.Config.Digest)
	}
	ids, err := diffIDs(config)
	if err != nil {
		return nil, fmt.Errorf("read config %s: %w", doc.Config.Digest, err)
	}
	if len(ids) != len(doc.Layers) {
		return nil, fmt.Errorf("not a container image: the manifest has %d layers, but the config of type %q has %d diff_ids",
			len(doc.Layers), doc.Config.MediaType, len(ids))
	}
	img := &Image{
		Reference: at.String(),
		Digest:    digest.FromBytes(manifest),
		MediaType: doc.MediaType,
		Manifest:  manifest,
		Config:    config,
		Layers:    make([]Layer, len(ids)),
		at:        at,
	}
	for i, id := range ids {
		img.Layers[i] = Layer{Descriptor: doc.Layers[i], DiffID: id}
	}
	return img, nil
}

// diffIDs returns the digests of the uncompressed layers that a config names,
// lowest first.
func diffIDs(config []byte) ([]digest.Digest, error) {
	var cfg struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &cfg); err != nil {
		return nil, err
	}
	for i, id := range cfg.RootFS.DiffIDs {
		if err := checkDigest(id); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return cfg.RootFS.DiffIDs, nil
}
