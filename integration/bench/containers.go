package main

import (
	"context"
	"fmt"
	"math"

	"github.com/peelfs/peel/integration/coldstart"
	"github.com/peelfs/peel/integration/containerd"
	"github.com/peelfs/peel/integration/images"
)

// Peel where the image has no indices yet, beside peelRow where it has.
const (
	firstNodeRow  = "peel, no index"    // which attaches what it makes to the image
	secondNodeRow = "peel, second node" // which finds that
)

// The limits of a container's start.
const (
	startRatio    = 0.35 // of containerd's time, as the geometric mean of all images
	noIndexRatio  = 1.0  // the same, where the image has no indices yet
	startShare    = 0.25 // of the image's bytes
	startRequests = 60
	startMemory   = 60 // MB
)

// program is the image of a real program in the registry, by its repositories.
type program struct {
	*images.Image
	plain, indexed, estargz string
}

// containers pulls images of real programs and runs them in containers, each
// time on a node that has nothing. The reference is containerd as it comes.
func containers(ctx context.Context, b *bed) (round, func() error, error) {
	var programs []program
	for _, make := range images.Programs() {
		img, err := make(ctx)
		if err != nil {
			return nil, nil, err
		}
		p, err := b.program(ctx, img)
		if err != nil {
			return nil, nil, err
		}
		programs = append(programs, p)
	}
	n := 0
	return func(ctx context.Context, s *samples) error {
		n++
		ratios := map[string][]float64{}
		for _, p := range programs {
			times, err := b.containers(ctx, s, p, n)
			if err != nil {
				return err
			}
			for system, time := range times {
				ratios[system] = append(ratios[system], time/times[containerdRow])
			}
		}
		for _, system := range []string{peelRow, firstNodeRow, secondNodeRow, stargzRow} {
			if len(ratios[system]) == len(programs) {
				s.add(meanMetric, system, "", geometricMean(ratios[system]))
			}
		}
		s.limit(meanMetric, peelRow, startRatio)
		s.limit(meanMetric, firstNodeRow, noIndexRatio)
		s.limit(meanMetric, secondNodeRow, startRatio)
		return nil
	}, nothing, nil
}

const meanMetric = "containers: first output, geometric mean of the ratios to containerd"

// program pushes an image in the forms that it is started from.
func (b *bed) program(ctx context.Context, img *images.Image) (p program, err error) {
	p.Image = img
	if p.plain, err = b.push(ctx, img, false); err != nil {
		return p, err
	}
	if p.indexed, err = b.push(ctx, img, true); err != nil {
		return p, err
	}
	converted, err := images.EStargz(ctx, img)
	if err != nil {
		return p, err
	}
	p.estargz, err = b.push(ctx, converted, false)
	return p, err
}

// runner is one way to run a program in a container.
type runner struct {
	system, repo string
	with         coldstart.Snapshotter
	daemon       *lazy // nil if it is not peel's
}

func lazily(system, repo string, daemon *lazy) runner {
	return runner{system, repo, daemon.start, daemon}
}

// containers starts a program once with each system, in the n-th round, and
// returns how many seconds each took.
func (b *bed) containers(ctx context.Context, s *samples, p program, n int) (times map[string]float64, err error) {
	fresh := fmt.Sprintf("%s-fresh-%d", p.Name, n) // of which no node knows an index
	if err := b.registry.Push(ctx, p, fresh); err != nil {
		return nil, err
	}
	runners := []runner{
		lazily(peelRow, p.indexed, &lazy{}),
		lazily(firstNodeRow, fresh, &lazy{config: `index = "push"`, until: "indices are attached"}),
		lazily(secondNodeRow, fresh, &lazy{}),
		{stargzRow, p.estargz, containerd.Stargz, nil},
		{containerdRow, p.plain, coldstart.Overlayfs, nil},
	}
	what := "container of " + p.Name
	node := coldstart.Node{Registry: b.registry, Link: slow}
	times = map[string]float64{}
	for _, by := range runners {
		r, err := node.Container(ctx, coldstart.Program{Repo: by.repo, Ready: images.Ready}, by.with)
		if err != nil && by.system == stargzRow && ctx.Err() == nil {
			s.missing(what+": first output", by.system, err) // a peer may fail
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s, %s: %w\n%s", what, by.system, err, by.daemon.said())
		}
		times[by.system] = r.Output.Seconds()
		s.add(what+": first output", by.system, "s", r.Output.Seconds())
		s.add(what+": over the link", by.system, "MB", float64(r.Received)/1e6)
		s.add(what+": requests", by.system, "", float64(r.Requests))
		if by.daemon != nil {
			s.add(what+": the daemon's memory, peak", by.system, "MB", by.daemon.peak)
			s.add(what+": the daemon's memory, afterwards", by.system, "MB", by.daemon.now)
		}
	}
	return times, limitStart(s, what, p.Image)
}

// limitStart adds what a container's start may take.
func limitStart(s *samples, what string, img *images.Image) error {
	size, err := img.Compressed()
	if err != nil {
		return err
	}
	s.limitRatio(what+": first output", firstNodeRow, noIndexRatio)
	for _, system := range []string{peelRow, firstNodeRow, secondNodeRow} {
		s.limit(what+": the daemon's memory, peak", system, startMemory)
	}
	for _, system := range []string{peelRow, secondNodeRow} {
		s.limit(what+": over the link", system, startShare*float64(size)/1e6)
		s.limit(what+": requests", system, startRequests)
	}
	return nil
}

// geometricMean returns that of at least one value.
func geometricMean(values []float64) float64 {
	var sum float64
	for _, v := range values {
		sum += math.Log(v)
	}
	return math.Exp(sum / float64(len(values)))
}
