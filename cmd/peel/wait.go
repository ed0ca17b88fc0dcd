package main

import (
	"context"
	"fmt"
	"time"

	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/peelfs/peel/content"
	"golang.org/x/sync/errgroup"
)

// complete fetches what is missing of a mounted image, and returns how it has
// ended. Progress is what is here of the layers' files, whoever has fetched it.
func (m *mounting) complete(ctx context.Context, img *image.Image, progress image.Progress) message {
	var layers []*content.Layer
	seen := map[*content.Layer]bool{}
	for _, l := range img.Layers {
		if !seen[l] {
			layers, seen[l] = append(layers, l), true
		}
	}
	report := func() {
		for _, l := range layers {
			st := l.Stats()
			progress("fetch all of", st.Blob, st.Present, st.Bytes)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(layersAtOnce)
	done := make(chan error, 1)
	go func() {
		for _, l := range layers {
			g.Go(func() error { return l.Fetch(gctx) })
		}
		done <- g.Wait()
	}()
	tick := time.NewTicker(drawEvery)
	defer tick.Stop()
	for {
		report()
		select {
		case <-tick.C:
		case err := <-done:
			if ctx.Err() != nil {
				return message{Error: fmt.Sprintf("%s was unmounted before all of %s was here", m.dir, m.ref)} // or nobody hears it
			}
			if err != nil {
				return message{Error: fmt.Sprintf("%s is mounted on %s, and not all of it is here: %v; what is missing comes when it is read", m.ref, m.dir, err)}
			}
			report()
			return message{Complete: true}
		}
	}
}

// layersAtOnce is how many layers are fetched side by side: while one is at its
// end, or being verified, another keeps the link busy.
const layersAtOnce = 3
