// Package image brings an image into the store: it resolves the reference,
// finds or makes the index of every layer, and opens the layers.
//
// It is where transfer and content meet; neither knows the other.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/transfer"
	"golang.org/x/sync/errgroup"
)

// Puller opens images. All fields must be set but Progress.
type Puller struct {
	Store    *content.Store
	Client   *transfer.Client
	Platform string // that Client chooses by; images are remembered under it
	Log      *slog.Logger
	Progress Progress
}

// Progress hears of long work: of the blob with this digest, done of total
// bytes have been read. It is called by several goroutines at once.
type Progress func(work string, blob digest.Digest, done, total int64)

// Image is an image whose layers are all open.
type Image struct {
	*transfer.Image
	Layers []*content.Layer // lowest first; a layer that occurs twice is here twice
}

// Close closes the layers.
func (i *Image) Close() error {
	var errs []error
	for _, l := range i.Layers {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// Entries returns the entries of all layers, lowest first. All together are
// held to the limits of one layer, because all are in memory at once.
func (i *Image) Entries() ([][]index.Entry, error) {
	all := make([][]index.Entry, len(i.Layers))
	total, text := 0, int64(0)
	for n, l := range i.Layers {
		if total += l.Index().Len(); total > index.MaxEntries {
			return nil, fmt.Errorf("layer %s: with it the image has more than %d entries", l.ID().Blob, index.MaxEntries)
		}
		entries, err := l.Index().Entries()
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.ID().Blob, err)
		}
		if text += index.Text(entries); text > index.MaxText {
			return nil, fmt.Errorf("layer %s: with it the image's names, links and attributes take more than %d bytes", l.ID().Blob, index.MaxText)
		}
		all[n] = entries
	}
	return all, nil
}

// offlineTime is how long the registry of an image that the store knows may
// take to answer before the image is used as it was.
const offlineTime = 3 * time.Second

// Resolve finds the image. If the registry does not answer, or does not let us
// in, and the store remembers the image, then it is what it was: a cached
// image starts without its registry. A reference by digest that the store
// remembers is not asked for at all.
func (p *Puller) Resolve(ctx context.Context, ref string) (*transfer.Image, error) {
	ref, err := transfer.FullReference(ref)
	if err != nil {
		return nil, err
	}
	known, found, err := p.Store.Image(ref, p.Platform)
	if err != nil {
		return nil, err
	}
	if found && strings.Contains(ref, "@sha256:") {
		return transfer.ParseImage(known.Ref, known.Manifest, known.Config)
	}
	asking := ctx
	if found {
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(ctx, offlineTime)
		defer cancel()
	}
	img, err := p.Client.Resolve(asking, ref)
	if err == nil {
		return img, p.remember(ref, img, known, found)
	}
	away := errors.Is(err, transfer.ErrUnavailable) || errors.Is(err, transfer.ErrUnauthorized) || asking.Err() != nil
	if !found || !away || ctx.Err() != nil {
		return nil, err
	}
	p.Log.Warn("the image's source does not answer; the image is used as it was", "image", ref, "resolved", known.Resolved, "error", err)
	return transfer.ParseImage(known.Ref, known.Manifest, known.Config)
}

// remember keeps what the reference stands for.
func (p *Puller) remember(ref string, img *transfer.Image, known content.Image, found bool) error {
	if found && known.Digest == img.Digest {
		return nil
	}
	err := p.Store.PutImage(content.Image{
		Ref: ref, Platform: p.Platform, Digest: img.Digest,
		Manifest: img.Manifest, Config: img.Config, Resolved: time.Now().UTC(),
	})
	if errors.Is(err, content.ErrFull) { // its layers may be here
		p.Log.Warn("the image will not be remembered", "image", ref, "error", err)
		return nil
	}
	return err
}

// Open resolves an image and opens its layers. A layer without an index in the
// store gets the one that the registry has; failing that, it is read once from
// its first to its last byte, all such layers side by side.
func (p *Puller) Open(ctx context.Context, ref string) (*Image, error) {
	img, err := p.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		if err := p.addMissing(ctx, img); err != nil {
			return nil, err
		}
		out, err := p.openLayers(img)
		if !errors.Is(err, content.ErrNoIndex) || try == openTries {
			return out, err
		}
		p.Log.Debug("a layer was removed while its image was opened; it is added again", "image", img.Reference, "error", err)
	}
}

// openTries is how often an image is opened of which somebody removes layers
// between when they are added to the store and when they are in use.
const openTries = 5

// addMissing adds those layers to the store that it does not have.
func (p *Puller) addMissing(ctx context.Context, img *transfer.Image) error {
	missing, err := p.missing(img)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		if missing, err = p.AddIndices(ctx, img, missing); err != nil {
			return err
		}
	}
	return p.each(ctx, missing, func(ctx context.Context, l transfer.Layer) error { return p.Ingest(ctx, img, l) })
}

// Ingest reads a layer once, from its first to its last byte: it is complete
// then, and indexed.
func (p *Puller) Ingest(ctx context.Context, img *transfer.Image, l transfer.Layer) error {
	p.Log.Info("the layer is read whole", "image", img.Reference, "layer", l.Digest, "bytes", l.Size)
	return p.Store.Ingest(ctx, ID(l), p.blob(img, l.Descriptor), p.track("fetch", l))
}

func (p *Puller) openLayers(img *transfer.Image) (*Image, error) {
	out := &Image{Image: img}
	for _, l := range img.Layers {
		layer, err := p.Store.Layer(ID(l), p.source(img, l))
		if err != nil {
			return nil, errors.Join(err, out.Close())
		}
		out.Layers = append(out.Layers, layer)
	}
	return out, nil
}

// source gives a layer's blob, and the twin that its index names.
func (p *Puller) source(img *transfer.Image, l transfer.Layer) content.Source {
	return func(blob digest.Digest, size int64) content.Blob {
		if blob == l.Digest {
			return p.blob(img, l.Descriptor)
		}
		return p.blob(img, ocispec.Descriptor{MediaType: twinMediaType, Digest: blob, Size: size})
	}
}

// blob returns a blob of an image, for the store.
func (p *Puller) blob(img *transfer.Image, d ocispec.Descriptor) content.Blob {
	return layerBlob{p.Client.Blob(img, d)}
}

// layerBlob tells the client why the store reads a blob.
type layerBlob struct{ *transfer.Blob }

func (b layerBlob) Open(ctx context.Context, off, n int64) (io.ReadCloser, bool, error) {
	return b.Blob.Open(transfer.For(ctx, string(content.CauseOf(ctx))), off, n)
}

// distinct returns the layers, each once. It refuses those that peel cannot
// read.
func distinct(img *transfer.Image) ([]transfer.Layer, error) {
	var layers []transfer.Layer
	seen := map[digest.Digest]bool{}
	for _, l := range img.Layers {
		if seen[l.Digest] {
			continue
		}
		seen[l.Digest] = true
		if why := Refused(l); why != "" {
			return nil, fmt.Errorf("layer %s of %s: %s", l.Digest, img.Reference, why)
		}
		layers = append(layers, l)
	}
	return layers, nil
}

// missing returns the layers that have no index in the store, each once.
func (p *Puller) missing(img *transfer.Image) ([]transfer.Layer, error) {
	layers, err := distinct(img)
	if err != nil {
		return nil, err
	}
	var missing []transfer.Layer
	for _, l := range layers {
		ok, err := p.Store.HasIndex(l.Digest)
		if err != nil {
			return nil, err
		}
		if !ok {
			missing = append(missing, l)
		}
	}
	return missing, nil
}

// Refused says why a layer cannot be shown lazily, or nothing.
func Refused(l transfer.Layer) string {
	if strings.Contains(l.MediaType, "foreign") || strings.Contains(l.MediaType, "nondistributable") {
		return fmt.Sprintf("its media type %s says that registries do not have it", l.MediaType)
	}
	if strings.HasSuffix(l.MediaType, "+encrypted") {
		return fmt.Sprintf("its media type %s says that it is encrypted, which peel does not read", l.MediaType)
	}
	return ""
}

// each calls fn for all layers side by side, and ends with the first failure.
func (p *Puller) each(ctx context.Context, layers []transfer.Layer, fn func(context.Context, transfer.Layer) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	for _, l := range layers {
		g.Go(func() error { return fn(ctx, l) })
	}
	return g.Wait()
}

// parallelLayers is how many layers are read at once: enough to keep a link
// busy while one of them is at its end.
const parallelLayers = 6

// track returns a function that adds up what has been read of a layer.
func (p *Puller) track(work string, l transfer.Layer) func(int) {
	if p.Progress == nil {
		return nil
	}
	var mu sync.Mutex
	var done int64
	return func(n int) {
		mu.Lock()
		done += int64(n)
		now := done
		mu.Unlock()
		p.Progress(work, l.Digest, now, l.Size)
	}
}

// ID is what identifies a layer to the store.
func ID(l transfer.Layer) format.Layer {
	return format.Layer{Blob: l.Digest, Size: l.Size, DiffID: l.DiffID}
}
