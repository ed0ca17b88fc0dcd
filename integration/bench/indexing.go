package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/images"
)

// indexing indexes the Python image on one core, with nothing between it and the
// registry.
func indexing(ctx context.Context, b *bed) (round, func() error, error) {
	img, err := images.Python(ctx)
	if err != nil {
		return nil, nil, err
	}
	plain, err := b.push(ctx, img, false)
	if err != nil {
		return nil, nil, err
	}
	indexed, err := b.push(ctx, img, true)
	if err != nil {
		return nil, nil, err
	}
	tar, err := img.Uncompressed()
	if err != nil {
		return nil, nil, err
	}
	compressed, err := img.Compressed()
	if err != nil {
		return nil, nil, err
	}
	referrers, err := b.registry.ReferrersSize(ctx, img, indexed)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, s *samples) error {
		root, err := os.MkdirTemp(b.dir, "index")
		if err != nil {
			return err
		}
		defer os.RemoveAll(root)
		peel := cli.Peel{Program: "taskset", Root: root}
		cmd := peel.Command(ctx, "index", b.ref(plain))
		// taskset --cpu-list 0 peel --root ... index ...
		cmd.Args = append([]string{"taskset", "--cpu-list", "0", b.peel}, cmd.Args[1:]...)
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
		s.add("indexing on one core", peelRow, "MB/s of tar", float64(tar)/1e6/time.Since(start).Seconds())
		s.add("size of the indices", peelRow, "% of the layers", 100*float64(referrers)/float64(compressed))
		return nil
	}, nothing, nil
}
