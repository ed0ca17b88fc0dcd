package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/snapshotter"
	"github.com/peelfs/peel/transfer"
)

// layers is the snapshotter's Layers: it brings layers from registries into the
// store. containerd asks for one layer after the other; the first one sets all
// of its image in motion.
type layers struct {
	puller *image.Puller
	log    *slog.Logger
	cfg    config
	ended  context.Context // ends with the daemon; context of all pulls

	mu    sync.Mutex
	pulls map[string]*pull // by reference with digest
	doing sync.WaitGroup
}

// pull is an image on its way.
type pull struct {
	cancel  context.CancelFunc
	waiting int         // calls of Bring
	idle    *time.Timer // set while nobody waits: cancels
	done    chan struct{}
	err     error // of the image as a whole, once done

	mu     sync.Mutex
	layers map[digest.Digest]*brought
}

// brought is a layer of a pull.
type brought struct {
	ready chan struct{}
	how   string
	err   error
}

// readWhole begins how a layer came that was read whole.
const readWhole = "read whole: "

// idleTime is how long a pull goes on that nobody waits for. containerd asks
// for the next layer at once, or never.
const idleTime = 10 * time.Second

func newLayers(ctx context.Context, p *image.Puller, cfg config) *layers {
	return &layers{puller: p, log: p.Log, cfg: cfg, ended: ctx, pulls: map[string]*pull{}}
}

// wait returns when all pulls have ended.
func (l *layers) wait() { l.doing.Wait() }

// Bring is that of snapshotter.Layers.
func (l *layers) Bring(ctx context.Context, o snapshotter.Origin) (how string, err error) {
	ref, err := transfer.ByDigest(o.Image, o.Manifest)
	if err != nil {
		return "", err
	}
	p := l.join(ref)
	defer l.leave(ref, p)
	b := p.layer(o.Layer)
	select {
	case <-b.ready:
		return b.how, b.err
	case <-p.done:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	select {
	case <-b.ready:
		return b.how, b.err
	default:
	}
	if p.err != nil {
		return "", p.err
	}
	return "", fmt.Errorf("image %s has no layer %s", ref, o.Layer)
}

// join returns the pull of an image, and begins it if there is none.
func (l *layers) join(ref string) *pull {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, ok := l.pulls[ref]
	if !ok {
		ctx, cancel := context.WithCancel(l.ended)
		p = &pull{cancel: cancel, done: make(chan struct{}), layers: map[digest.Digest]*brought{}}
		l.pulls[ref] = p
		l.doing.Go(func() {
			p.err = l.run(ctx, p, ref)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.forget(ref, p)
			close(p.done)
		})
	}
	p.waiting++
	if p.idle != nil {
		p.idle.Stop()
	}
	return p
}

// leave ends the waiting for a pull.
func (l *layers) leave(ref string, p *pull) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.waiting--; p.waiting == 0 {
		p.idle = time.AfterFunc(idleTime, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if p.waiting == 0 {
				l.forget(ref, p)
			}
		})
	}
}

// forget cancels a pull, and lets nobody join it any more. l.mu is held.
func (l *layers) forget(ref string, p *pull) {
	p.cancel()
	if l.pulls[ref] == p {
		delete(l.pulls, ref)
	}
}

func (p *pull) layer(blob digest.Digest) *brought {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.layers[blob]
	if !ok {
		b = &brought{ready: make(chan struct{})}
		p.layers[blob] = b
	}
	return b
}

func (p *pull) ready(blob digest.Digest, how string, err error) {
	b := p.layer(blob)
	b.how, b.err = how, err
	close(b.ready)
}

// run brings all layers of an image.
func (l *layers) run(ctx context.Context, p *pull, ref string) error {
	img, err := l.puller.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	var lazy, whole []transfer.Layer
	seen := map[digest.Digest]bool{}
	for _, layer := range img.Layers {
		if seen[layer.Digest] {
			continue
		}
		seen[layer.Digest] = true
		if why := image.Refused(layer); why != "" {
			p.ready(layer.Digest, "", fmt.Errorf("%w: %s", snapshotter.ErrUnpack, why))
			continue
		}
		from, err := l.puller.Store.IndexFrom(layer.Digest)
		switch {
		case err != nil:
			return err
		case from != "":
			p.ready(layer.Digest, from, nil)
		case layer.Size < l.cfg.SmallLayer:
			whole = append(whole, layer)
		default:
			lazy = append(lazy, layer)
		}
	}
	read, err := l.fetch(ctx, p, img, lazy, whole)
	if read && err == nil && l.cfg.Index == indexPush {
		l.doing.Go(func() { l.push(img) })
	}
	return err
}

// push attaches the indices of an image to it. No pull waits for that.
func (l *layers) push(img *transfer.Image) {
	x, err := l.puller.Index(l.ended, img, false)
	if err == nil {
		defer x.Close() // there are no twins
		_, err = l.puller.Push(l.ended, img, x)
	}
	if err != nil {
		l.log.Warn("the image's indices are not attached to it: other nodes will read its layers whole", "image", img.Reference, "error", err)
		return
	}
	l.log.Info("the image's indices are attached to it", "image", img.Reference)
}

// fetch brings layers that the store does not have: the index of those that
// are to be lazy, or all of a layer. It says whether there was one of the first
// kind that had to be read for want of an index.
func (l *layers) fetch(ctx context.Context, p *pull, img *transfer.Image, lazy, whole []transfer.Layer) (read bool, err error) {
	var all sync.WaitGroup
	defer all.Wait()
	ingest := func(layer transfer.Layer, why string) {
		all.Go(func() {
			err := l.puller.Ingest(ctx, img, layer)
			p.ready(layer.Digest, why, err)
		})
	}
	for _, layer := range whole {
		ingest(layer, readWhole+l.cfg.whySmall(layer.Size))
	}
	if len(lazy) == 0 {
		return false, nil
	}
	left, err := l.puller.AddIndices(ctx, img, lazy)
	if err != nil {
		return false, err
	}
	for _, layer := range lazy {
		switch {
		case !slices.ContainsFunc(left, func(o transfer.Layer) bool { return o.Digest == layer.Digest }):
			from, err := l.puller.Store.IndexFrom(layer.Digest)
			p.ready(layer.Digest, from, err)
		case l.cfg.Index == indexEager:
			p.ready(layer.Digest, "", fmt.Errorf("%w: it has no index, and index is %q", snapshotter.ErrUnpack, indexEager))
		default:
			read = true
			ingest(layer, readWhole+"it had no index, in the registry or here")
		}
	}
	return read, nil
}

// Open is that of snapshotter.Layers.
func (l *layers) Open(o snapshotter.Origin) (*content.Layer, error) {
	known, err := l.known(o)
	if err != nil {
		return nil, err
	}
	return l.puller.OpenKnown(known, o.Layer)
}

// known returns what the store remembers of a layer's image.
func (l *layers) known(o snapshotter.Origin) (content.Image, error) {
	ref, err := transfer.ByDigest(o.Image, o.Manifest)
	if err != nil {
		return content.Image{}, err
	}
	known, found, err := l.puller.Store.Image(ref, l.puller.Platform)
	if err == nil && !found {
		err = fmt.Errorf("image %s is not remembered: %w", ref, content.ErrNoIndex)
	}
	return known, err
}

// Tar is that of snapshotter.Layers.
func (l *layers) Tar(ctx context.Context, o snapshotter.Origin) (io.ReadCloser, error) {
	known, err := l.known(o)
	if err != nil {
		return nil, err
	}
	img, err := image.KnownLayer(known, o.Layer)
	if err != nil {
		return nil, err
	}
	return openTar(ctx, l.puller.Client, img, img.Layers[0])
}

// Drop is that of snapshotter.Layers. Images of which nothing is left are
// forgotten.
func (l *layers) Drop(layer digest.Digest) {
	if err := l.drop(layer); err != nil && !errors.Is(err, content.ErrInUse) {
		l.log.Error("a layer that nothing uses is kept", "layer", layer, "error", err)
	}
}

func (l *layers) drop(layer digest.Digest) error {
	if err := l.puller.Store.Remove(layer); err != nil {
		return err
	}
	images, err := l.puller.Store.Images()
	if err != nil {
		return err
	}
	for _, known := range images {
		img, err := transfer.ParseImage(known.Ref, known.Manifest, known.Config)
		if err != nil {
			return err
		}
		had, used := false, false
		for _, x := range img.Layers {
			has, err := l.puller.Store.HasIndex(x.Digest)
			if err != nil {
				return err
			}
			had, used = had || x.Digest == layer, used || has
		}
		if had && !used {
			if err := l.puller.Store.RemoveImage(known.Ref, known.Platform); err != nil {
				return err
			}
		}
	}
	return nil
}
