package main

import (
	"context"

	"github.com/peelfs/peel/integration/coldstart"
	"github.com/peelfs/peel/integration/containerd"
	"github.com/peelfs/peel/integration/images"
)

// overlayfsRow is containerd as it comes.
const overlayfsRow = "overlayfs"

// containers pulls images of real programs and runs them in containers, with
// containerd's snapshotters, each time from nothing.
func containers(ctx context.Context, b *bed) (round, func() error, error) {
	node := coldstart.Node{Registry: b.registry, Link: slow}
	type start struct {
		what, system string
		program      coldstart.Program
		with         coldstart.Snapshotter
	}
	var starts []start
	for _, make := range images.Programs() {
		img, err := make(ctx)
		if err != nil {
			return nil, nil, err
		}
		plain, err := b.push(ctx, img, false)
		if err != nil {
			return nil, nil, err
		}
		converted, err := images.EStargz(ctx, img)
		if err != nil {
			return nil, nil, err
		}
		estargz, err := b.push(ctx, converted, false)
		if err != nil {
			return nil, nil, err
		}
		what := "container of " + img.Name
		starts = append(starts,
			start{what, stargzRow, coldstart.Program{Repo: estargz, Ready: images.Ready}, containerd.Stargz},
			start{what, overlayfsRow, coldstart.Program{Repo: plain, Ready: images.Ready}, coldstart.Overlayfs})
	}
	return func(ctx context.Context, s *samples) error {
		for _, start := range starts {
			r, err := node.Container(ctx, start.program, start.with)
			if err != nil && start.system == stargzRow && ctx.Err() == nil {
				s.missing(start.what+": first output", start.system, err) // a peer may fail
				continue
			}
			if err != nil {
				return err
			}
			s.add(start.what+": first output", start.system, "s", r.Output.Seconds())
			s.add(start.what+": over the link", start.system, "MB", float64(r.Received)/1e6)
			s.add(start.what+": requests", start.system, "", float64(r.Requests))
		}
		return nil
	}, nothing, nil
}
