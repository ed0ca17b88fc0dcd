package main

import (
	"context"
	"os"
	"time"

	"github.com/peelfs/peel/integration/images"
)

// mountTimeLimit is how long an indexed image of 100,000 files may take to be
// mounted, beyond the download of its index, in seconds.
const mountTimeLimit = 0.1

// mounting mounts an image of 100,000 files by the command line, with nothing
// between it and the registry: with an empty store, and with its index there.
func mounting(ctx context.Context, b *bed) (round, func() error, error) {
	img, err := images.Files(ctx)
	if err != nil {
		return nil, nil, err
	}
	repo, err := b.push(ctx, img, true)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, s *samples) error {
		peel, dir, root, err := b.node("mounting")
		if err != nil {
			return err
		}
		mount := func() (time.Duration, error) {
			start := time.Now()
			if err := peel.Mount(ctx, b.ref(repo), root); err != nil {
				return 0, err
			}
			took := time.Since(start)
			return took, peel.Umount(ctx, root)
		}
		empty, err := mount()
		if err != nil {
			return err
		}
		start := time.Now()
		if err := b.registry.FetchReferrers(ctx, img, repo); err != nil {
			return err
		}
		download := time.Since(start)
		indexed, err := mount()
		if err != nil {
			return err
		}
		for _, f := range []struct {
			metric string
			took   time.Duration
			most   float64
		}{
			{"mount of 100,000 files, empty store", empty, 0},
			{"mount of 100,000 files, beyond its index's download", empty - download, mountTimeLimit},
			{"mount of 100,000 files, index in the store", indexed, mountTimeLimit},
		} {
			s.add(f.metric, peelRow, "s", f.took.Seconds())
			s.limit(f.metric, peelRow, f.most)
		}
		return os.RemoveAll(dir)
	}, nothing, nil
}
