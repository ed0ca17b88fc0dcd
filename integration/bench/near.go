package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
)

// near reads files that lie near each other in their layer, on a link where
// every request costs time.
func near(ctx context.Context, b *bed) (round, func() error, error) {
	img, err := images.Files(ctx)
	if err != nil {
		return nil, nil, err
	}
	repo, err := b.push(ctx, img, true)
	if err != nil {
		return nil, nil, err
	}
	read := task{metric: "2,000 small files read, 5 ms a request", unit: "s", scale: 1, load: []string{"files"}, input: smallFiles(2000)}
	return func(ctx context.Context, s *samples) (err error) {
		l, err := link.New(b.registry.Addr(), link.Options{RTT: 5 * time.Millisecond})
		if err != nil {
			return err
		}
		defer l.Close()
		peel, dir, root, err := b.node("near")
		if err != nil {
			return err
		}
		if err := peel.Mount(ctx, l.Addr()+"/"+repo+":latest", root); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, peel.Umount(ctx, root), os.RemoveAll(dir)) }()
		before := len(l.Requests())
		took, err := b.run(ctx, read, place{system: peelRow, root: root}, 0)
		if err != nil {
			return err
		}
		s.add(read.metric, peelRow, read.unit, took)
		s.limit(read.metric, peelRow, 1)
		s.add(read.metric+": requests", peelRow, "", float64(len(l.Requests())-before))
		return nil
	}, nothing, nil
}
