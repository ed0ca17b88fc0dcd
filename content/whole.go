package content

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

const (
	pieceBytes = 8 << 20 // of the blob in one request: a read may have to wait for it
	pieces     = 2       // requests at once, so that the link does not idle between them
)

// Fetch makes the whole layer present, and verifies it. Reads go first: it asks
// for the next piece when none waits. What is fetched counts, also if the
// context ends or the rest fails; Stats says how far it is.
func (l *Layer) Fetch(ctx context.Context) error {
	if err := l.fetchPieces(ctx); err != nil {
		return fmt.Errorf("fetch layer %s: %w", l.id.Blob, err)
	}
	if _, ok := l.Local(0, l.Size()); !ok {
		l.settle(0, l.Size())
	}
	return l.Verify(ctx)
}

// fetchPieces fetches the first piece alone: what answers it with the whole
// blob, since it knows no ranges, is not asked for it twice.
func (l *Layer) fetchPieces(ctx context.Context) error {
	lo := l.pieceEnd(0)
	if err := l.fetchPiece(ctx, 0, lo); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pieces)
	for n := spanCount(l.spans); lo < n && ctx.Err() == nil; {
		hi := l.pieceEnd(lo)
		from := lo
		g.Go(func() error { return l.fetchPiece(ctx, from, hi) })
		lo = hi
	}
	return g.Wait()
}

// pieceEnd returns the end of the piece that begins with the span lo.
func (l *Layer) pieceEnd(lo int) int {
	hi := lo + 1
	for hi < len(l.spans) && l.spans[hi].BlobOff+l.spans[hi].BlobLen-l.spans[lo].BlobOff <= pieceBytes {
		hi++
	}
	return hi
}

// fetchPiece makes the spans [lo, hi) present. It claims them only when no read
// waits, for a read that needs one of them would wait for the idle moment, too.
func (l *Layer) fetchPiece(ctx context.Context, lo, hi int) error {
	for !l.present.spans.hasAll(lo, hi) {
		select {
		case <-l.store.demand.idle():
		case <-ctx.Done():
			return ctx.Err()
		}
		l.mu.Lock()
		bad, src := l.bad, l.src
		var flights []*flight
		if bad == nil && src != nil {
			flights = l.startRuns(lo, hi, l.fetchAll)
		}
		l.mu.Unlock()
		if bad != nil {
			return bad
		}
		if src == nil {
			return fmt.Errorf("%d spans are not here and there is nowhere to fetch them from", hi-lo)
		}
		if err := waitAll(ctx, flights); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// fetchAll is fetch for spans of a layer that is wanted whole.
func (l *Layer) fetchAll(_ *trip, first, end int) { l.fetch(because(l.ctx, Whole), first, end) }
