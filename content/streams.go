package content

import "sync"

// gauge counts what is going on, and tells when nothing is. The zero value is
// ready.
type gauge struct {
	mu    sync.Mutex
	n     int
	quiet chan struct{} // closed when n is 0; nil if nobody asked since
}

func (g *gauge) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
}

func (g *gauge) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n--; g.n == 0 && g.quiet != nil {
		close(g.quiet)
		g.quiet = nil
	}
}

// idle returns a channel that is closed when nothing is going on.
func (g *gauge) idle() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n == 0 {
		now := make(chan struct{})
		close(now)
		return now
	}
	if g.quiet == nil {
		g.quiet = make(chan struct{})
	}
	return g.quiet
}

// streams tells reads that go through a layer in order from those that jump,
// and says how far to fetch ahead of the former. The zero value is ready.
type streams struct {
	recent [4]stream
	clock  int
}

type stream struct {
	next   int // the span after the last one that was asked for
	ahead  int // spans that are fetched beyond it
	grow   int // spans to fetch ahead with the next read in order
	used   int // when, by the clock
	active bool
}

// maxAhead is how many spans are fetched ahead at most. From the third read in
// order on it doubles from one to the next up to there, as the kernel's own
// read-ahead does: two neighbours alone are most often a coincidence.
const maxAhead = 16

// ahead notes a read of the spans [lo, hi) that were missing, and returns how
// many spans after them to fetch too.
func (s *streams) ahead(lo, hi int) int {
	s.clock++
	oldest := 0
	for i := range s.recent {
		t := &s.recent[i]
		if t.active && hi == t.next { // another read of the same span
			t.used = s.clock
			return 0
		}
		// A block may have bytes of the span before, which is here.
		if t.active && lo >= t.next-1 && hi > t.next && lo <= t.next+t.ahead {
			t.ahead, t.grow = t.grow, min(max(1, 2*t.grow), maxAhead)
			t.next, t.used = hi, s.clock
			return t.ahead
		}
		if t.used < s.recent[oldest].used {
			oldest = i
		}
	}
	s.recent[oldest] = stream{next: hi, used: s.clock, active: true}
	return 0
}
