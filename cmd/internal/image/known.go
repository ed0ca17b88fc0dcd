package image

import (
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/transfer"
)

// OpenKnown opens a layer of an image that the store remembers. What the image
// is, no registry is asked. The error wraps content.ErrNoIndex if the store
// does not have the layer.
func (p *Puller) OpenKnown(known content.Image, blob digest.Digest) (*content.Layer, error) {
	img, err := KnownLayer(known, blob)
	if err != nil {
		return nil, err
	}
	opened, err := p.openLayers(img)
	if err != nil {
		return nil, err
	}
	return opened.Layers[0], nil
}

// KnownLayer returns an image that the store remembers, with one of its layers
// only.
func KnownLayer(known content.Image, blob digest.Digest) (*transfer.Image, error) {
	img, err := transfer.ParseImage(known.Ref, known.Manifest, known.Config)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(img.Layers, func(l transfer.Layer) bool { return l.Digest == blob })
	if i < 0 {
		return nil, fmt.Errorf("image %s has no layer %s", known.Ref, blob)
	}
	img.Layers = img.Layers[i : i+1]
	return img, nil
}
