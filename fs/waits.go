package fs

import (
	"slices"
	"sync"
	"time"
)

// waits bounds how long a read(2) waits. When a request fails the kernel
// asks again, for single pages of what its read-ahead did not get, and once
// more in every layer of its caches. All of them are one read to the program,
// so a request that follows a failure of the same place waits no longer than
// the one that failed had left. One that follows a success has all of the time,
// or a slow link would fail reads that go on: a read which needs two spans may
// wait for each.
type waits struct {
	limit time.Duration

	mu    sync.Mutex
	now   map[*try]struct{} // that wait
	tried []*try            // that failed less than askedAgain ago
}

func newWaits(limit time.Duration) *waits {
	return &waits{limit: limit, now: map[*try]struct{}{}}
}

// try is a request's wait for a place in a blob.
type try struct {
	blob         Blob
	off, end     int64
	began        time.Time // the read that it is for
	asked, ended time.Time
}

const (
	// askedAgain is how long after a failure a request may be the kernel's
	// asking again. That takes it a few milliseconds, and more on a machine with
	// other things to do. A registry that has come back is noticed that much
	// later.
	askedAgain = 500 * time.Millisecond

	// oneRead is how far apart the places may be that the kernel asks for to
	// serve one read.
	oneRead = 1 << 20
)

// begin begins a request for n bytes at off, which waits until end.
func (w *waits) begin(blob Blob, off, n int64) *try {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	t := &try{blob: blob, off: off, end: off + n, began: now, asked: now}
	w.now[t] = struct{}{}
	w.forget(now)
	for _, failed := range w.tried {
		if failed.near(t) && failed.began.Before(t.began) {
			t.began = failed.began
		}
	}
	return t
}

// end ends the wait of a request.
func (w *waits) end(t *try) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.now, t)
}

// waiting returns how long each request has waited that waits now.
func (w *waits) waiting() (all []time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for t := range w.now {
		all = append(all, time.Since(t.asked))
	}
	return all
}

// deadline is when the time of the read is up that t is for.
func (w *waits) deadline(t *try) time.Time { return t.began.Add(w.limit) }

// failed notes that a request got nothing. One that had no time to begin with
// does not count, or who tries again and again would never have any.
func (w *waits) failed(t *try) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t.ended = time.Now()
	w.forget(t.ended)
	if t.asked.Before(w.deadline(t)) {
		w.tried = append(w.tried, t)
	}
}

func (w *waits) forget(now time.Time) {
	w.tried = slices.DeleteFunc(w.tried, func(t *try) bool { return now.Sub(t.ended) > askedAgain })
}

func (t *try) near(o *try) bool {
	return t.blob == o.blob && t.off < o.end+oneRead && o.off < t.end+oneRead
}
