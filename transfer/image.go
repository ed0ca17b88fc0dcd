package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
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

// Image is one platform's image in a repository. It comes from Resolve or
// ParseImage and does not change. Its bytes have the digests that they were
// asked for by.
type Image struct {
	Reference   string        // in full, as "127.0.0.1:5000/app:1"
	Digest      digest.Digest // of Manifest
	IndexDigest digest.Digest // of the index that listed the manifest, or ""; not known to ParseImage
	MediaType   string        // of Manifest
	Manifest    []byte        // as the registry has it
	Config      []byte        // as the registry has it
	Layers      []Layer       // lowest first

	repo  name.Repository
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
// "127.0.0.1:5000/app@sha256:...". Of a multi-platform index it takes the
// image that suits the client's platform best.
func (c *Client) Resolve(ctx context.Context, ref string) (*Image, error) {
	img, err := c.resolve(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", ref, err)
	}
	return img, nil
}

func (c *Client) resolve(ctx context.Context, ref string) (*Image, error) {
	n, err := name.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	r := c.repo(n.Context(), transport.PullScope)
	raw, doc, err := r.manifest(ctx, n.Identifier())
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
		if raw, doc, err = r.manifestOf(ctx, entry); err != nil {
			return nil, err
		}
	}
	var config []byte
	var ahead *[]ocispec.Descriptor
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		config, err = r.config(ctx, doc)
		return err
	})
	if c.opts.ReferrersAhead {
		g.Go(func() error {
			// A failure is met again when Referrers is called, if it is.
			if list, _, err := r.referrers(ctx, digest.FromBytes(raw), ""); err == nil {
				ahead = &list
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	img, err := newImage(n, raw, config)
	if err != nil {
		return nil, err
	}
	img.IndexDigest = index
	img.ahead.Store(ahead)
	return img, nil
}

// config gets the config of an image's manifest.
func (r *repo) config(ctx context.Context, doc *document) ([]byte, error) {
	d := *doc.Config
	if d.Size > maxConfig {
		return nil, fmt.Errorf("config %s has %d bytes, more than %d", d.Digest, d.Size, maxConfig)
	}
	if int64(len(d.Data)) == d.Size && digest.FromBytes(d.Data) == d.Digest {
		return d.Data, nil // embedded in the manifest
	}
	return (&Blob{r: r, d: d}).readAll(ctx)
}

// ParseImage makes the Image that Resolve gave from its reference and its raw
// bytes, without any registry.
func ParseImage(ref string, manifest, config []byte) (*Image, error) {
	n, err := name.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	img, err := newImage(n, manifest, config)
	if err != nil {
		return nil, fmt.Errorf("parse image %s: %w", ref, err)
	}
	return img, nil
}

func newImage(n name.Reference, manifest, config []byte) (*Image, error) {
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
	var cfg struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &cfg); err != nil {
		return nil, fmt.Errorf("read config %s: %w", doc.Config.Digest, err)
	}
	ids := cfg.RootFS.DiffIDs
	if len(ids) != len(doc.Layers) {
		return nil, fmt.Errorf("not a container image: the manifest has %d layers, but the config of type %q has %d diff_ids",
			len(doc.Layers), doc.Config.MediaType, len(ids))
	}
	img := &Image{
		Reference: n.Name(),
		Digest:    digest.FromBytes(manifest),
		MediaType: doc.MediaType,
		Manifest:  manifest,
		Config:    config,
		Layers:    make([]Layer, len(ids)),
		repo:      n.Context(),
	}
	if rest, ok := strings.CutPrefix(img.Reference, name.DefaultRegistry+"/"); ok {
		img.Reference = "docker.io/" + rest // as people write it
	}
	for i, id := range ids {
		if err := checkDigest(id); err != nil {
			return nil, fmt.Errorf("read config %s: layer %d: %w", doc.Config.Digest, i, err)
		}
		img.Layers[i] = Layer{Descriptor: doc.Layers[i], DiffID: id}
	}
	return img, nil
}
