package content

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync/atomic"

	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// Checked is what VerifyPresent has found and done. Bytes are of the tar.
type Checked struct {
	Spans     int   `json:"spans"` // that were present and have been read
	Bytes     int64 `json:"bytes"`
	Bad       int   `json:"bad"` // of these, not what the index says; they were dropped
	BadBytes  int64 `json:"badBytes"`
	Stray     int   `json:"stray"`     // blocks that were marked present without their spans; they were dropped
	Refetched int   `json:"refetched"` // bad spans that have been fetched again
}

// VerifyPresent reads again all of the layer's data that is present, from the
// disk, and compares it with the digests of the index. What is not what the
// index says is dropped, so that it is never given out again, and fetched anew
// at once if the layer has a source. If that fails it comes with the next
// read; the error is then that of the fetch. Other processes may use the layer
// meanwhile.
func (l *Layer) VerifyPresent(ctx context.Context) (Checked, error) {
	var c Checked
	l.verifying.Lock() // Verify drops the whole layer for a fault that is repaired here
	defer l.verifying.Unlock()
	if err := l.usable(); err != nil {
		return c, err
	}
	if err := l.flat.Sync(); err != nil {
		return c, fmt.Errorf("verify layer %s: %w", l.id.Blob, err)
	}
	_ = unix.Fadvise(int(l.flat.Fd()), 0, 0, unix.FADV_DONTNEED) // if not, it is the cache that is verified
	locks, err := os.OpenFile(l.locks.Name(), os.O_RDWR, 0)      // apart from l.locks, to exclude this process's fetches too
	if err != nil {
		return c, fmt.Errorf("verify layer %s: %w", l.id.Blob, err)
	}
	defer locks.Close()
	var bad []int
	if len(l.spans) == 0 {
		bad, err = l.checkWhole(ctx, &c)
	} else {
		bad, err = l.checkSpans(ctx, &c)
	}
	for _, i := range bad {
		if err == nil {
			err = l.drop(ctx, locks, i)
		}
	}
	if err == nil {
		c.Bad = len(bad)
		c.Stray, err = l.dropStray(ctx, locks)
	}
	if err != nil {
		return c, fmt.Errorf("verify layer %s: %w", l.id.Blob, err)
	}
	if len(bad) > 0 {
		l.log().Error("a layer's data in the store was not what its index says, and was dropped", "spans", len(bad))
	}
	if c.Refetched, err = l.refetch(ctx, bad); err != nil {
		return c, fmt.Errorf("repair layer %s: %w", l.id.Blob, err)
	}
	return c, l.sync()
}

// usable returns why the layer cannot be used any more, or nil.
func (l *Layer) usable() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bad
}

// checkSpans returns the spans that are present and not what the index says.
func (l *Layer) checkSpans(ctx context.Context, c *Checked) (bad []int, err error) {
	err = format.CheckSpans(ctx, l.index, l.flat, l.present.spans.has, func(i int, ok bool) {
		c.Spans++
		c.Bytes += l.spans[i].TarLen
		if !ok {
			bad = append(bad, i)
			c.BadBytes += l.spans[i].TarLen
		}
	})
	return bad, err
}

// checkWhole is checkSpans for a layer that has none: what is present is all
// of it, or nothing.
func (l *Layer) checkWhole(ctx context.Context, c *Checked) (bad []int, err error) {
	if !l.complete() {
		return nil, nil
	}
	c.Spans, c.Bytes = 1, l.index.TarSize
	err = format.Verify(ctx, l.index, l.flat)
	if errors.Is(err, format.ErrCorrupt) {
		c.BadBytes = c.Bytes
		return []int{0}, nil
	}
	return nil, err
}

// drop makes a span missing, and all blocks that have data of it. Nobody
// fetches it or its neighbours, which may share a block with it, meanwhile.
// The blocks go first: a fetch that sets them again begins only when the span
// is gone.
func (l *Layer) drop(ctx context.Context, locks *os.File, i int) error {
	lo := max(0, i-1)
	unlock, err := lockRange(ctx, locks, int64(lo), int64(i+2-lo))
	if err != nil {
		return err
	}
	defer unlock()
	defer l.dirty.Store(true)
	if len(l.spans) == 0 {
		l.present.blocks.clear()
		l.present.spans.clear()
		return nil
	}
	for x := range l.pieces(i) {
		l.present.blocks.unset(x.blocks())
	}
	l.present.spans.unset(i, i+1)
	return nil
}

// dropStray makes those blocks missing whose data has not come, neither with
// their spans nor with their files: nothing sets them but a map that was
// damaged. It returns how many there were.
func (l *Layer) dropStray(ctx context.Context, locks *os.File) (n int, err error) {
	kept := 0 // the first block that may be one
	for b := range l.blocks() {
		if b < kept || !l.present.blocks.has(b) || l.whole(b) {
			continue
		}
		if hi, ok, err := l.taken(ctx, b); err != nil {
			return n, err
		} else if ok {
			kept = hi
			continue
		}
		unlock, err := lockRange(ctx, locks, 0, int64(spanCount(l.spans)))
		if err != nil {
			return n, err
		}
		if l.present.blocks.has(b) && !l.whole(b) {
			l.present.blocks.unset(b, b+1)
			l.dirty.Store(true)
			n++
		}
		unlock()
	}
	return n, nil
}

// taken reports whether a block is of a file that is here as a whole, and
// returns where the file ends: it was taken from another layer.
func (l *Layer) taken(ctx context.Context, block int) (end int, ok bool, err error) {
	f, ok := l.files.holding(int64(block) * index.BlockSize)
	lo, hi := f.blocks()
	if !ok || !l.present.blocks.hasAll(lo, hi) {
		return hi, false, nil
	}
	sum := sha256.New()
	buf := make([]byte, copyStep)
	err = steps(ctx, buf, l.flat, f.off, f.size, func(p []byte, _ int64) error {
		_, err := sum.Write(p)
		return err
	})
	return hi, index.SHA256(sum.Sum(nil)) == f.digest, err
}

// refetch fetches spans that were dropped, if there is a source.
func (l *Layer) refetch(ctx context.Context, spans []int) (n int, err error) {
	for _, i := range spans {
		var flights []*flight
		l.mu.Lock()
		if l.src != nil {
			flights = l.startRuns(i, i+1, l.fetchAgain)
		}
		l.mu.Unlock()
		if err := waitAll(ctx, flights); err != nil {
			return n, err
		}
		if l.present.spans.has(i) {
			n += len(flights)
		}
	}
	return n, nil
}

// fetchAgain is fetch for spans that were dropped.
func (l *Layer) fetchAgain(_ *trip, first, end int) { l.fetch(because(l.ctx, Repair), first, end) }

// PresentBytes returns how many of the n bytes at off of the flat blob are
// here.
func (l *Layer) PresentBytes(off, n int64) int64 {
	if off < 0 || n <= 0 || off+n > l.Size() {
		return 0
	}
	lo, hi := int(off/index.BlockSize), int(index.Align(off+n)/index.BlockSize)
	here := int64(l.present.blocks.countIn(lo, hi)) * index.BlockSize
	if l.present.blocks.has(lo) {
		here -= off - int64(lo)*index.BlockSize
	}
	if l.present.blocks.has(hi - 1) {
		here -= int64(hi)*index.BlockSize - off - n
	}
	return here
}

// unset removes [lo, hi) from the set.
func (b bitmap) unset(lo, hi int) {
	for w := lo / 32; w*32 < hi; w++ {
		atomic.AndUint32(&b.words[w], ^mask(w, lo, hi))
	}
}

// countIn returns how many of [lo, hi) are in the set.
func (b bitmap) countIn(lo, hi int) int {
	n := 0
	for w := lo / 32; w*32 < hi; w++ {
		n += bits.OnesCount32(atomic.LoadUint32(&b.words[w]) & mask(w, lo, hi))
	}
	return n
}
