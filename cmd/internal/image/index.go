package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/transfer"
)

// builtByIndex says of an index in the store that this package has built it.
const builtByIndex = "read by peel index"

// Indices are the indices of an image's layers, and the twins that they name.
type Indices struct {
	Raw [][]byte // serialised, in the order of the layers

	mu    sync.Mutex
	twins map[digest.Digest]twin // by the digest of the layer
}

// twin is a layer's seekable twin, for layers without a place to resume.
type twin struct {
	digest digest.Digest
	size   int64    // bytes
	file   *os.File // nil: the registry has it
}

// Close removes the twins.
func (x *Indices) Close() error {
	var errs []error
	for _, t := range x.twins {
		if t.file != nil {
			errs = append(errs, t.file.Close())
		}
	}
	return errors.Join(errs...)
}

// TwinBytes is how many bytes the twins have.
func (x *Indices) TwinBytes() int64 {
	var n int64
	for _, t := range x.twins {
		n += t.size
	}
	return n
}

// Index returns the indices of all layers. A layer that the store has no index
// of is read once; the index goes to the store, and the data is not kept.
//
// With twins, which Push attaches, a layer that could only be fetched in long
// pieces gets a twin. Its index goes to the store when the twin is in the
// registry. Without, the index of such a layer has long spans, or none.
func (p *Puller) Index(ctx context.Context, img *transfer.Image, twins bool) (_ *Indices, err error) {
	layers, err := distinct(img)
	if err != nil {
		return nil, err
	}
	x := &Indices{twins: map[digest.Digest]twin{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.Close())
		}
	}()
	raw := map[digest.Digest][]byte{}
	if err := p.each(ctx, layers, func(ctx context.Context, l transfer.Layer) error {
		b, t, err := p.indexOf(ctx, img, l, twins)
		x.mu.Lock()
		defer x.mu.Unlock()
		raw[l.Digest] = b
		if t.size > 0 {
			x.twins[l.Digest] = t
		}
		return err
	}); err != nil {
		return nil, err
	}
	for _, l := range img.Layers {
		x.Raw = append(x.Raw, raw[l.Digest])
	}
	return x, nil
}

// indexOf returns the index of a layer, from the store if that one will do, and
// its twin.
func (p *Puller) indexOf(ctx context.Context, img *transfer.Image, l transfer.Layer, twins bool) ([]byte, twin, error) {
	raw, err := p.stored(l)
	if err != nil {
		return nil, twin{}, err
	}
	if raw != nil && !twins {
		return raw, twin{}, nil
	}
	if raw != nil {
		if t, ok, err := p.usable(ctx, img, l, raw); ok || err != nil {
			return raw, t, err
		}
	}
	if !twins {
		raw, err := content.BuildIndex(ctx, ID(l), p.Client.Blob(img, l.Descriptor), nil, p.track("index", l))
		if err != nil {
			return nil, twin{}, err
		}
		return raw, twin{}, p.Store.AddIndex(ctx, ID(l), raw, builtByIndex)
	}
	return p.indexWithTwin(ctx, img, l)
}

// indexWithTwin reads a layer to make its index, and its twin if it needs one.
func (p *Puller) indexWithTwin(ctx context.Context, img *transfer.Image, l transfer.Layer) (raw []byte, t twin, err error) {
	file, err := p.Store.TempFile()
	if err != nil {
		return nil, twin{}, err
	}
	defer func() {
		if t.file == nil {
			err = errors.Join(err, file.Close())
		}
	}()
	raw, err = content.BuildIndex(ctx, ID(l), p.Client.Blob(img, l.Descriptor), file, p.track("index", l))
	if err != nil {
		return nil, twin{}, err
	}
	f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return nil, twin{}, err
	}
	if f.Twin == "" {
		return raw, twin{}, p.Store.AddIndex(ctx, ID(l), raw, builtByIndex)
	}
	return raw, twin{digest: f.Twin, size: f.TwinSize, file: file}, nil
}

// stored returns the index that the store has of a layer, or nil.
func (p *Puller) stored(l transfer.Layer) ([]byte, error) {
	layer, err := p.Store.Layer(ID(l), nil)
	if errors.Is(err, content.ErrNoIndex) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer layer.Close()
	var b bytes.Buffer
	_, err = layer.WriteIndex(&b)
	return b.Bytes(), err
}

// usable reports whether a layer can be fetched in short pieces with an index:
// its spans are short, and what they are of is in the registry.
func (p *Puller) usable(ctx context.Context, img *transfer.Image, l transfer.Layer, raw []byte) (twin, bool, error) {
	f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return twin{}, false, err
	}
	if f.Twin != "" {
		body, _, err := p.source(img, l)(f.Twin, f.TwinSize).Open(ctx, 0, 1)
		if errors.Is(err, transfer.ErrNotFound) {
			return twin{}, false, nil
		}
		if err != nil {
			return twin{}, false, err
		}
		return twin{digest: f.Twin, size: f.TwinSize}, true, body.Close()
	}
	spans, err := f.Spans()
	long := slices.ContainsFunc(spans, func(s index.Span) bool { return s.TarLen > format.LongSpan })
	return twin{}, !long && (len(spans) > 0 || f.TarSize == 0), err
}

// Push attaches the indices of all layers to the image, and the twins that they
// name, and returns the artifact's digest.
func (p *Puller) Push(ctx context.Context, img *transfer.Image, x *Indices) (digest.Digest, error) {
	var blobs []transfer.ArtifactBlob
	layers := map[digest.Digest]int{}
	for i, l := range img.Layers {
		if _, seen := layers[l.Digest]; seen {
			continue
		}
		layers[l.Digest] = i
		note := map[string]string{layerKey: l.Digest.String()}
		blobs = append(blobs, transfer.BytesBlob(blobMediaType, note, x.Raw[i]))
		if t, ok := x.twins[l.Digest]; ok {
			blobs = append(blobs, transfer.ArtifactBlob{
				MediaType: twinMediaType, Annotations: note, Digest: t.digest, Size: t.size, Open: t.open,
			})
		}
	}
	d, err := p.Client.PushArtifact(ctx, img, ArtifactType, blobs)
	if err != nil {
		return "", err
	}
	for id := range x.twins {
		i := layers[id]
		if err := p.Store.AddIndex(ctx, ID(img.Layers[i]), x.Raw[i], builtByIndex); err != nil {
			return "", err
		}
	}
	return d, nil
}

func (t twin) open() (io.ReadCloser, error) {
	if t.file == nil {
		return nil, fmt.Errorf("twin %s was attached to the image, and is not any more", t.digest)
	}
	return io.NopCloser(io.NewSectionReader(t.file, 0, t.size)), nil
}
