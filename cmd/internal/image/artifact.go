package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/transfer"
)

// An image's indices hang on it as one artifact: an OCI manifest whose subject
// is the image's manifest, with a blob for each layer, and one for its twin if
// the index names one.
const (
	ArtifactType  = "application/vnd.peel.layer-index.v1"
	blobMediaType = "application/vnd.peel.layer-index.v1+binary"
	twinMediaType = "application/vnd.peel.layer-twin.v1+zstd"
	layerKey      = "io.peel.layer.digest" // annotation of a blob: the layer it is the index, or the twin, of
)

// AddIndices gives the store what indices the registry has for the layers, and
// returns the layers that it has none for. An index that cannot be used is
// logged and does no harm.
func (p *Puller) AddIndices(ctx context.Context, img *transfer.Image, layers []transfer.Layer) ([]transfer.Layer, error) {
	ctx = transfer.For(ctx, "index")
	referrers, err := p.Client.Referrers(ctx, img, ArtifactType)
	if err != nil {
		p.Log.Warn("cannot list the image's indices", "image", img.Reference, "error", err)
		return layers, ctx.Err()
	}
	for i := len(referrers) - 1; i >= 0 && len(layers) > 0; i-- { // the last one pushed is most often the last one listed
		a, err := p.Client.Artifact(ctx, img, referrers[i])
		if err != nil {
			p.Log.Warn("cannot read an image's indices", "image", img.Reference, "artifact", referrers[i].Digest, "error", err)
			continue
		}
		if layers, err = p.addFrom(ctx, img, a, layers); err != nil {
			return nil, err
		}
	}
	return layers, ctx.Err()
}

// addFrom adds what one artifact has, and returns the layers still without.
func (p *Puller) addFrom(ctx context.Context, img *transfer.Image, a *transfer.Artifact, layers []transfer.Layer) ([]transfer.Layer, error) {
	blobs := map[digest.Digest]ocispec.Descriptor{}
	for _, b := range a.Blobs {
		if b.MediaType == blobMediaType {
			blobs[digest.Digest(b.Annotations[layerKey])] = b
		}
	}
	var mu sync.Mutex
	var left []transfer.Layer
	err := p.each(ctx, layers, func(ctx context.Context, l transfer.Layer) error {
		err := errNone
		if b, ok := blobs[l.Digest]; ok {
			err = p.addOne(ctx, img, l, b, a.Digest)
		}
		if err == nil || errors.Is(err, content.ErrFull) { // reading the layer whole would take more room
			return err
		}
		if !errors.Is(err, errNone) && ctx.Err() == nil {
			p.Log.Warn("a layer's attached index cannot be used", "image", img.Reference, "layer", l.Digest, "artifact", a.Digest, "error", err)
		}
		mu.Lock()
		left = append(left, l)
		mu.Unlock()
		return ctx.Err()
	})
	return left, err
}

var errNone = errors.New("no index")

// addOne adds one index. Of several processes that open the image, one fetches
// it.
func (p *Puller) addOne(ctx context.Context, img *transfer.Image, l transfer.Layer, b ocispec.Descriptor, from digest.Digest) error {
	return p.Store.AddIndexFrom(ctx, ID(l), "artifact "+from.String(), func() ([]byte, error) {
		var raw bytes.Buffer
		raw.Grow(int(min(b.Size, 64<<20)))
		err := p.Client.FetchBlob(ctx, img, b, &raw)
		return raw.Bytes(), err
	})
}

// LayerReport says of one layer what makes it lazy, or why it is not.
type LayerReport struct {
	Digest     digest.Digest `json:"digest"`
	MediaType  string        `json:"mediaType"`
	Size       int64         `json:"size"` // bytes in the registry
	Lazy       bool          `json:"lazy"`
	Why        string        `json:"why"`
	Format     string        `json:"format,omitempty"`
	Spans      int           `json:"spans,omitempty"`
	IndexBytes int64         `json:"indexBytes,omitempty"`
	TwinBytes  int64         `json:"twinBytes,omitempty"` // of the twin that is fetched in its place
}

// Report lists the layers of an image and what the registry and the store have
// to make them lazy. It fetches no indices and no layers.
func (p *Puller) Report(ctx context.Context, img *transfer.Image) ([]LayerReport, error) {
	remote := map[digest.Digest]LayerReport{}
	referrers, err := p.Client.Referrers(ctx, img, ArtifactType)
	note := ""
	if err != nil {
		note = fmt.Sprintf(" (cannot list what is attached: %v)", err)
	}
	for _, r := range referrers {
		a, err := p.Client.Artifact(ctx, img, r)
		if err != nil {
			note = fmt.Sprintf(" (artifact %s cannot be read: %v)", r.Digest, err)
			continue
		}
		for _, b := range a.Blobs {
			r := remote[digest.Digest(b.Annotations[layerKey])]
			switch b.MediaType {
			case blobMediaType:
				r.Lazy, r.Why, r.IndexBytes = true, "index attached to the image, artifact "+a.Digest.String(), b.Size
			case twinMediaType:
				r.TwinBytes = b.Size
			}
			remote[digest.Digest(b.Annotations[layerKey])] = r
		}
	}
	var out []LayerReport
	for _, l := range img.Layers {
		r, ok := remote[l.Digest]
		if !ok {
			r.Why = "no index, attached to the image or here" + note + ": the first mount reads the layer whole; peel index --push makes it lazy"
		}
		if err := p.reportLocal(l, &r); err != nil {
			return nil, err
		}
		if why := Refused(l); why != "" {
			r = LayerReport{Why: why}
		}
		if r.TwinBytes > 0 {
			r.Why += "; fetched from its twin"
		}
		r.Digest, r.MediaType, r.Size = l.Digest, l.MediaType, l.Size
		out = append(out, r)
	}
	return out, nil
}

// reportLocal adds what the store has of a layer.
func (p *Puller) reportLocal(l transfer.Layer, r *LayerReport) error {
	from, err := p.Store.IndexFrom(l.Digest)
	if err != nil || from == "" {
		return err
	}
	layer, err := p.Store.Layer(ID(l), nil)
	if err != nil {
		return err
	}
	defer layer.Close()
	st := layer.Stats()
	why := "index here, " + from
	if r.Why != "" && r.Lazy {
		why += "; " + r.Why
	}
	if st.Complete {
		why += "; all of it is here"
	}
	r.Lazy, r.Why, r.Format, r.Spans, r.IndexBytes = st.Spans > 0 || st.Complete, why, st.Format, st.Spans, st.IndexBytes
	r.TwinBytes = layer.Index().TwinSize
	if !r.Lazy {
		r.Why += fmt.Sprintf("; its %s stream has no place to resume within %d MiB: peel index --push makes it a twin that has",
			st.Format, index.MaxSpan>>20)
	}
	return nil
}
