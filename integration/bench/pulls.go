package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/peelfs/peel/integration/coldstart"
	"github.com/peelfs/peel/integration/containerd"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
	"github.com/peelfs/peel/integration/mounts"
)

// What is pulled at the same time.
const (
	pulledImages = 10
	pullsOfEach  = 2
)

// pulls pulls images without indices that share layers, all at the same time,
// on a node that has nothing.
func pulls(ctx context.Context, b *bed) (round, func() error, error) {
	imgs, err := family(ctx)
	if err != nil {
		return nil, nil, err
	}
	sizes := map[string]int64{}
	var repos []string
	for i, img := range imgs {
		repo := fmt.Sprintf("family-%d", i)
		if err := b.registry.Push(ctx, img, repo); err != nil {
			return nil, nil, err
		}
		m, err := img.Manifest()
		if err != nil {
			return nil, nil, err
		}
		for _, l := range m.Layers {
			sizes[l.Digest.String()] = l.Size
		}
		for range pullsOfEach {
			repos = append(repos, repo)
		}
	}
	what := fmt.Sprintf("%d pulls at once of %d images with shared layers: ", len(repos), len(imgs))
	return func(ctx context.Context, s *samples) error {
		for _, system := range []struct {
			name string
			with coldstart.Snapshotter
		}{{peelRow, new(lazy).start}, {containerdRow, coldstart.Overlayfs}} {
			took, l, err := b.pullAll(ctx, repos, system.with)
			if err != nil {
				return err
			}
			once, again := asked(l.Requests(), sizes)
			s.add(what+"all ready", system.name, "s", took.Seconds())
			s.add(what+"over the link", system.name, "MB", float64(l.Received())/1e6)
			s.add(what+"bytes of layers asked for, each once being 1", system.name, "", float64(once+again)/float64(once))
		}
		s.limit(what+"bytes of layers asked for, each once being 1", peelRow, 1)
		return nil
	}, nothing, nil
}

// family returns images that share layers: those of real programs, and what
// they are made from.
func family(ctx context.Context) (all []v1.Image, err error) {
	seen := map[v1.Hash]bool{}
	for _, make := range []func(context.Context) (*images.Image, error){images.Python, images.GCC, images.Nginx, images.Node} {
		img, err := make(ctx)
		if err != nil {
			return nil, err
		}
		layers, err := img.Layers()
		if err != nil {
			return nil, err
		}
		for n := range layers {
			top, err := layers[n].Digest()
			if err != nil {
				return nil, err
			}
			if seen[top] || len(all) == pulledImages {
				continue
			}
			seen[top] = true
			ancestor, err := with(img, layers[:n+1])
			if err != nil {
				return nil, err
			}
			all = append(all, ancestor)
		}
	}
	return all, nil
}

// with returns an image for the same platform with these layers.
func with(img v1.Image, layers []v1.Layer) (v1.Image, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	of := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	of, err = mutate.ConfigFile(of, &v1.ConfigFile{OS: config.OS, Architecture: config.Architecture, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(of, layers...)
}

// pullAll pulls all of the repositories' images at once on a new node, and returns
// how long it took and the link they came over, which is closed.
func (b *bed) pullAll(ctx context.Context, repos []string, snapshotter coldstart.Snapshotter) (took time.Duration, l *link.Link, err error) {
	dir, remove, err := mounts.TempDir()
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if l, err = link.New(b.registry.Addr(), slow); err != nil {
		return 0, nil, err
	}
	defer l.Close()
	sn, err := snapshotter(ctx, dir)
	if err != nil {
		return 0, nil, err
	}
	c, err := containerd.Start(ctx, dir, containerd.Options{Snapshotter: sn})
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	unix.Sync() // what was written before is not written on this one's time
	start := time.Now()
	all, ctx := errgroup.WithContext(ctx)
	for _, repo := range repos {
		all.Go(func() error { return c.Pull(ctx, l.Addr()+"/"+repo+":latest") })
	}
	err = all.Wait()
	return time.Since(start), l, err
}

// asked returns how many bytes of some blobs were asked for at all, and how
// many that had been asked for before. The sizes are by digest.
func asked(requests []link.Request, sizes map[string]int64) (once, again int64) {
	type part struct{ from, to int64 }
	parts := map[string][]part{}
	for _, r := range requests {
		blob := path.Base(r.Path)
		size, ok := sizes[blob]
		if !ok || r.Method != "GET" {
			continue
		}
		p := part{0, size}
		if n, _ := fmt.Sscanf(r.Range, "bytes=%d-%d", &p.from, &p.to); n == 2 {
			p.to++ // the last byte was named
		}
		parts[blob] = append(parts[blob], p)
	}
	for _, all := range parts {
		slices.SortFunc(all, func(a, b part) int { return cmp.Compare(a.from, b.from) })
		var end int64
		for _, p := range all {
			fresh := max(0, p.to-max(p.from, end))
			once, again = once+fresh, again+p.to-p.from-fresh
			end = max(end, p.to)
		}
	}
	return once, again
}
