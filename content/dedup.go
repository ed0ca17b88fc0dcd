package content

import (
	"context"
	"errors"
	"time"
)

// A file that another layer of the store has is not fetched. It is looked for
// when it is first read, so that nothing is copied that nobody reads, and taken
// whole: its digest is of all of it.
const (
	// takeMost is the longest file that is taken, in bytes.
	takeMost = 1 << 30

	// takePatience is how long a read waits for a file to be taken. Then what
	// it needs is fetched, and the rest of the file goes on being taken.
	takePatience = time.Second
)

// taking is a file that is on its way from another layer.
type taking struct {
	began time.Time
	done  chan struct{} // closed when err is set
	err   error
}

// borrow takes from other layers what files it can that the n bytes at off are
// of. It reports whether it has taken any.
func (l *Layer) borrow(ctx context.Context, off, n int64) (taken bool) {
	if len(l.spans) == 0 || l.usable() != nil { // without spans, all of it is fetched, over what is here
		return false
	}
	for i := l.files.from(off); i < l.files.n; i++ {
		f := l.files.byPlace(i)
		if f.size == 0 || f.off >= off+n {
			break
		}
		if lo, hi := f.blocks(); !l.present.blocks.hasAll(lo, hi) && f.size <= takeMost && l.store.donors.has(f) && l.take(ctx, f) {
			taken = true
		}
	}
	return taken
}

// finish makes those spans present that have nothing but files that were taken.
func (l *Layer) finish(f file) {
	lo, hi := l.spansOf(l.runs.tarRange(f.off, f.off+f.size))
	for i := lo; i < hi; i++ {
		if !l.present.spans.has(i) && len(l.missingOf(i)) == 0 {
			l.mu.Lock()
			l.startRuns(i, i+1, l.fetchNow) // which holds the span's lock, and fetches nothing
			l.mu.Unlock()
		}
	}
}

// finishAll makes all spans present if all data is: a process may have been
// killed when it had taken a file, and not yet finished its spans.
func (l *Layer) finishAll() {
	if len(l.spans) == 0 || l.complete() || !l.present.blocks.hasAll(0, l.blocks()) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.startRuns(0, len(l.spans), l.fetchNow)
}

// fill makes a span present if other layers have all files of it that are
// missing. The span is locked.
func (l *Layer) fill(i int) bool {
	if len(l.spans) == 0 {
		return false
	}
	var files []file
	for _, off := range l.missingOf(i) {
		f, ok := l.files.holding(off)
		if !ok || f.size > takeMost || !l.store.donors.has(f) {
			return false
		}
		files = append(files, f)
	}
	for _, f := range files {
		if !l.take(l.ctx, f) {
			return false
		}
	}
	l.mark(i)
	return true
}

// take takes a file from another layer. It reports false if it cannot, or if it
// takes long.
func (l *Layer) take(ctx context.Context, f file) bool {
	l.mu.Lock()
	t := l.taking[f.off]
	if t == nil {
		t = &taking{began: time.Now(), done: make(chan struct{})}
		l.taking[f.off] = t
		l.wg.Go(func() {
			t.err = l.copyFrom(f)
			l.mu.Lock()
			if !errors.Is(t.err, errOther) { // which is not tried again
				delete(l.taking, f.off)
			}
			l.mu.Unlock()
			close(t.done)
		})
	}
	l.mu.Unlock()
	patience := time.NewTimer(takePatience - time.Since(t.began))
	defer patience.Stop()
	select {
	case <-t.done:
		return t.err == nil
	case <-patience.C:
	case <-ctx.Done():
	}
	return false
}

// copyFrom copies a file from a layer that has it.
func (l *Layer) copyFrom(f file) error {
	lo, hi := f.blocks()
	if l.present.blocks.hasAll(lo, hi) {
		return nil
	}
	src, from, err := l.store.donors.find(f)
	if err != nil {
		return err
	}
	defer src.Close()
	err = l.store.copyChecked(l.ctx, l.flat, f, src, from)
	if l.store.full.noted(err); err != nil {
		if !isFull(err) && l.ctx.Err() == nil {
			l.store.log.Warn("a file of another layer cannot be taken; it is fetched", "layer", l.id.Blob, "from", src.Name(), "bytes", f.size, "error", err)
		}
		return err
	}
	l.present.blocks.set(lo, hi)
	l.dirty.Store(true)
	l.stats.deduped.Add(f.size)
	l.finish(f)
	return nil
}
