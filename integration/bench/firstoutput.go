package main

import (
	"context"

	"github.com/peelfs/peel/integration/coldstart"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
)

// firstOutput starts the Python program with an empty cache, lazily and after
// a full pull. The image of the stargz snapshotter was converted before.
func firstOutput(what string, over link.Options, indexed bool) prepare {
	return func(ctx context.Context, b *bed) (round, func() error, error) {
		img, err := images.Python(ctx)
		if err != nil {
			return nil, nil, err
		}
		repo, err := b.push(ctx, img, indexed)
		if err != nil {
			return nil, nil, err
		}
		node := coldstart.Node{Peel: b.peel, Registry: b.registry, Link: over}
		systems := []starter{{peelRow, repo, node.Lazily}}
		if indexed {
			img, err := images.EStargz(ctx, img)
			if err != nil {
				return nil, nil, err
			}
			repo, err := b.push(ctx, img, false)
			if err != nil {
				return nil, nil, err
			}
			systems = append(systems, starter{stargzRow, repo, node.Stargz})
		}
		systems = append(systems, starter{containerdRow, repo, node.AfterPull})
		return func(ctx context.Context, s *samples) error {
			for _, system := range systems {
				p := coldstart.Program{Repo: system.repo, Args: images.Program, Ready: images.Ready}
				r, err := system.start(ctx, p)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					s.missing(what+": first output", system.name, err)
					continue
				}
				s.add(what+": file system there", system.name, "s", r.Root.Seconds())
				s.add(what+": first output", system.name, "s", r.Output.Seconds())
				s.add(what+": over the link", system.name, "MB", float64(r.Received)/1e6)
				s.add(what+": requests", system.name, "", float64(r.Requests))
			}
			return nil
		}, nothing, nil
	}
}

// starter is one way to start a program.
type starter struct {
	name, repo string
	start      func(context.Context, coldstart.Program) (coldstart.Result, error)
}
