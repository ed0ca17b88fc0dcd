package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/peelfs/peel/content/format"
)

// flight is the fetch of one span. Whoever needs the span waits for it.
type flight struct {
	span int
	trip *trip
	done chan struct{} // closed when err and tar are set
	err  error
	tar  []byte // of the span, if the disk had no room for it
}

// trip is a run of flights in one request.
type trip struct {
	wanted chan struct{} // closed when somebody waits for one of them, and not only read-ahead
	once   sync.Once     // closes wanted
}

func (t *trip) want() { t.once.Do(func() { close(t.wanted) }) }

// ensure waits until the n bytes at off are present. It takes files that other
// layers have, and fetches the spans that are then missing and that nobody is
// fetching yet, neighbours in one request. Spans that the disk has no room for
// it returns, each its tar.
func (l *Layer) ensure(ctx context.Context, off, n int64) (spare map[int][]byte, err error) {
	for {
		if _, ok := l.Local(off, n); ok || l.spared(off, n, spare) {
			return spare, nil
		}
		if l.borrow(ctx, off, n) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		l.store.demand.begin() // before anything is fetched ahead
		flights, err := l.claim(off, n)
		if err == nil {
			err = waitAll(ctx, flights)
		}
		l.store.demand.end()
		if err != nil {
			return nil, err
		}
		if len(flights) == 0 {
			l.settle(off, n)
		}
		for _, f := range flights {
			if f.tar != nil {
				if spare == nil {
					spare = map[int][]byte{}
				}
				spare[f.span] = f.tar
			}
		}
	}
}

// spared reports whether every span that is missing for the n bytes at off is
// in spare.
func (l *Layer) spared(off, n int64, spare map[int][]byte) bool {
	if len(spare) == 0 {
		return false
	}
	for i, hi := l.missing(off, n); i < hi; i++ {
		if spare[i] == nil && !l.present.spans.has(i) {
			return false
		}
	}
	return true
}

// settle makes the blocks present of spans that are: a process may have been
// killed between the one and the other.
func (l *Layer) settle(off, n int64) {
	for i, hi := l.missing(off, n); i < min(hi, len(l.spans)); i++ {
		if l.present.spans.has(i) {
			l.mark(i)
		}
	}
}

func waitAll(ctx context.Context, flights []*flight) error {
	for _, f := range flights {
		select {
		case <-f.done:
			if f.err != nil {
				return f.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// claim returns the flights of all spans that are missing for the n bytes at
// off, and starts those that have not started.
func (l *Layer) claim(off, n int64) ([]*flight, error) {
	lo, hi := l.missing(off, n)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bad != nil {
		return nil, l.bad
	}
	if l.src == nil {
		return nil, errNoSource
	}
	if len(l.spans) == 0 || l.store.full.now.Load() {
		return wanted(l.startRuns(lo, hi, l.fetchNow), lo, hi), nil
	}
	first, end := l.around(off, n, lo, hi)
	begin := lo
	if lo-first <= maxGap {
		begin = first // that little is no reason for a request of its own
	}
	flights := wanted(l.startRuns(begin, end, l.fetchNow), lo, hi)
	l.startRuns(first, begin, l.fetchAhead)
	if ahead := l.streams.ahead(lo, end); ahead > 0 {
		l.startRuns(end, min(end+ahead, len(l.spans)), l.fetchAhead)
	}
	return flights, nil
}

// wanted returns those of the flights that are of the spans [lo, hi), and notes
// that somebody waits for them.
func wanted(flights []*flight, lo, hi int) []*flight {
	flights = slices.DeleteFunc(flights, func(f *flight) bool { return f.span < lo || f.span >= hi })
	for _, f := range flights {
		f.trip.want()
	}
	return flights
}

const (
	// wholeFile is the size of files in bytes that are fetched whole when any
	// of them is read: most of such a file will be, one page fault after the
	// other, and each would be a request.
	wholeFile = 16 << 20

	// maxGap is how many spans are fetched that nobody has asked for because
	// they lie between one that is and one that is here: what is read of a
	// layer lies close together.
	maxGap = 3
)

// around returns the spans [first, end) to fetch when [lo, hi) are missing for
// the n bytes at off: all of the files that are read there, and small gaps
// between them and what is here. l.mu is held.
func (l *Layer) around(off, n int64, lo, hi int) (first, end int) {
	first, end = lo, hi
	for i := l.runs.afterFlat(off); i < l.runs.len(); i++ {
		x := l.runs.at(i)
		if x.flat >= off+n {
			break
		}
		if x.len <= wholeFile {
			from, to := l.spansOf(x.tar, x.tar+x.len)
			first, end = min(first, from), max(end, to)
		}
	}
	return first - l.gap(first, -1), end + l.gap(end-1, 1)
}

// gap returns how many spans are missing from one span, in one direction, to
// the next that is here; 0 if they are more than maxGap.
func (l *Layer) gap(from, step int) int {
	for n := range maxGap + 1 {
		i := from + step*(n+1)
		if i < 0 || i >= len(l.spans) {
			return 0
		}
		if l.has(i) {
			return n
		}
	}
	return 0
}

// has reports whether a span is here or on its way. l.mu is held.
func (l *Layer) has(span int) bool {
	_, flying := l.flying[span]
	return flying || l.present.spans.has(span)
}

var errNoSource = errors.New("it is not here and there is no registry to fetch it from")

// startRuns starts a fetch for each run of spans in [lo, hi) that are missing
// and not on their way. It returns the flights of all that are missing. l.mu is
// held.
func (l *Layer) startRuns(lo, hi int, fetch func(t *trip, first, end int)) (flights []*flight) {
	var t *trip
	first := 0
	flush := func(end int) {
		if t != nil {
			with, from := t, first
			l.wg.Go(func() { fetch(with, from, end) })
		}
		t = nil
	}
	for i := lo; i < hi; i++ {
		f, flying := l.flying[i]
		switch {
		case flying:
			flush(i)
		case l.present.spans.has(i):
			flush(i)
			continue
		default:
			f = &flight{span: i, trip: t, done: make(chan struct{})}
			if f.tar = l.store.spare.get(l, i); f.tar != nil {
				flush(i)
				f.trip = newTrip()
				close(f.done)
				break
			}
			if t == nil {
				t, first = newTrip(), i
				f.trip = t
			}
			l.flying[i] = f
		}
		flights = append(flights, f)
	}
	flush(hi)
	return flights
}

func newTrip() *trip { return &trip{wanted: make(chan struct{})} }

// fetchNow is fetch for spans that a read waits for.
func (l *Layer) fetchNow(_ *trip, first, end int) { l.fetch(because(l.ctx, Demand), first, end) }

// fetchAhead is fetch for spans that nobody waits for yet. It lets reads that
// do wait go first, whatever layer they are of, until one waits for these.
func (l *Layer) fetchAhead(t *trip, first, end int) {
	cause := ReadAhead
	select {
	case <-l.store.demand.idle():
	case <-t.wanted:
		cause = Demand
	case <-l.ctx.Done():
	}
	l.fetch(because(l.ctx, cause), first, end)
}

// land ends the flight of a span.
func (l *Layer) land(i int, err error) {
	l.mu.Lock()
	f := l.flying[i]
	delete(l.flying, i)
	l.mu.Unlock()
	if f != nil {
		f.err = err
		close(f.done)
	}
}

// fetch fetches the spans [lo, hi), which this process has claimed, and lands
// them one by one. Other processes are kept from fetching them meanwhile, and
// what they have fetched is not fetched again.
func (l *Layer) fetch(ctx context.Context, lo, hi int) {
	unlock, err := l.lockSpans(lo, hi)
	if err == nil {
		defer unlock()
		for i := lo; i < hi && err == nil; {
			if l.present.spans.has(i) || l.fill(i) {
				l.land(i, nil)
				i, lo = i+1, i+1
				continue
			}
			end := i + 1
			for end < hi && !l.present.spans.has(end) && !l.fill(end) {
				end++
			}
			lo, err = l.fetchRun(ctx, i, end)
			i = lo
		}
	}
	for i := lo; i < hi; i++ {
		l.land(i, err)
	}
	if err == nil && l.complete() {
		l.completed()
	} else if err == nil {
		l.finishAll()
	}
}

// lockSpans keeps other processes from fetching the spans [lo, hi). It waits
// for one that does, or until it has fetched them all.
func (l *Layer) lockSpans(lo, hi int) (func(), error) {
	for wait := pollLeast; ; wait = min(2*wait, pollMost) {
		ok, err := tryLock(l.locks, int64(lo), int64(hi-lo))
		if err != nil {
			return nil, err
		}
		if ok {
			return func() { unlock(l.locks, int64(lo), int64(hi-lo)) }, nil
		}
		if l.present.spans.hasAll(lo, hi) {
			return func() {}, nil
		}
		if err := sleep(l.ctx, wait); err != nil {
			return nil, fmt.Errorf("wait for another process that fetches layer %s: %w", l.id.Blob, err)
		}
	}
}

// fetchRun fetches the spans [lo, hi), all of which are missing, in one
// request; in a second one what did not have the digest that the index gives.
// It returns the first span that has not landed.
func (l *Layer) fetchRun(ctx context.Context, lo, hi int) (next int, err error) {
	l.mu.Lock()
	src := l.src
	l.mu.Unlock()
	if src == nil {
		return lo, errNoSource
	}
	began, corrupt := time.Now(), 0
	defer func() { l.store.ended(ctx, l.id.Blob, began, min(next-lo, len(l.spans)), corrupt, err) }()
	if len(l.spans) == 0 {
		if err := l.fetchWhole(ctx, src); err != nil {
			return lo, err
		}
		l.land(0, nil)
		return hi, nil
	}
	l.log().Debug("fetch", "cause", CauseOf(ctx), "spans", hi-lo, "from", lo, "bytes", l.spans[hi-1].BlobOff+l.spans[hi-1].BlobLen-l.spans[lo].BlobOff)
	next, err = l.transfer(ctx, src, lo, hi)
	if errors.Is(err, format.ErrCorrupt) {
		corrupt++
		l.stats.refetched.Add(1)
		l.log().Warn("a layer's data is not what its index says; fetching it once more", "span", next, "error", err)
		next, err = l.transfer(ctx, src, next, hi)
	}
	if errors.Is(err, format.ErrCorrupt) {
		l.log().Error("a layer's data is not what its index says", "span", next, "error", err)
	}
	return next, err
}

// transfer reads the spans [lo, hi) out of one body. It returns the first span
// that has not landed.
func (l *Layer) transfer(ctx context.Context, src Blob, lo, hi int) (int, error) {
	first, last := &l.spans[lo], &l.spans[hi-1]
	off := first.BlobOff
	body, whole, err := src.Open(ctx, off, last.BlobOff+last.BlobLen-off)
	if err != nil {
		return lo, err
	}
	defer body.Close()
	r := &blobReader{r: body, off: off}
	if whole {
		r.off = 0
		l.stream(r, lo)
	}
	for i := lo; i < hi; i++ {
		if err := l.receive(r, i); err != nil {
			return i, err
		}
		l.land(i, nil)
	}
	if whole {
		l.streamRest(r, hi)
	}
	return hi, nil
}

// stream takes the spans before end out of a body that nobody asked for whole:
// they are passing by. Failures are for those to find who ask for the span.
func (l *Layer) stream(r *blobReader, end int) {
	for i := range end {
		if !l.present.spans.has(i) && l.receive(r, i) != nil {
			return
		}
	}
}

// streamRest takes the spans from begin on out of a body that is whole.
func (l *Layer) streamRest(r *blobReader, begin int) {
	for i := begin; i < len(l.spans); i++ {
		if !l.present.spans.has(i) && l.receive(r, i) != nil {
			return
		}
	}
}

// receive reads one span, checks it, and makes it present.
func (l *Layer) receive(r *blobReader, i int) error {
	s := &l.spans[i]
	blob, err := r.read(s.BlobOff, s.BlobLen)
	if err != nil {
		return fmt.Errorf("fetch span %d: %w", i, err)
	}
	window, err := l.index.Window(s)
	if err != nil {
		return err
	}
	_, _, f := l.index.SpanBlob()
	tar, err := format.Decode(f, s, blob, window, l.store.tars.get(s.TarLen))
	if err != nil {
		return err
	}
	l.stats.fetched.Add(1)
	err = l.write(i, tar)
	if l.store.full.noted(err) {
		l.keep(i, tar)
		return nil
	}
	l.store.tars.put(tar)
	if err != nil {
		return fmt.Errorf("keep span %d: %w", i, err)
	}
	l.mark(i)
	return nil
}

// keep gives a span that the disk has no room for to those who wait for it.
func (l *Layer) keep(i int, tar []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.flying[i]; f != nil {
		f.tar = tar
		l.store.spare.put(l, i, tar)
	}
}

// blobReader reads ranges of a blob, in order, out of its body. Neighbouring
// ranges may share a byte.
type blobReader struct {
	r   io.Reader
	off int64 // of the next byte of r in the blob
	buf []byte
}

// read returns the n bytes at off; they are valid until the next call.
func (b *blobReader) read(off, n int64) ([]byte, error) {
	if skip := off - b.off; skip > 0 {
		if _, err := io.CopyN(io.Discard, b.r, skip); err != nil {
			return nil, noEOF(err)
		}
		b.off = off
	}
	var shared []byte
	if back := int(b.off - off); back > 0 {
		if back > len(b.buf) {
			return nil, fmt.Errorf("byte %d of the blob has passed", off)
		}
		shared = slices.Clone(b.buf[len(b.buf)-back:])
	}
	b.buf = slices.Grow(append(b.buf[:0], shared...), int(n))[:n]
	if _, err := io.ReadFull(b.r, b.buf[len(shared):]); err != nil {
		return nil, noEOF(err)
	}
	b.off = off + n
	return b.buf, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// buffers keeps memory for spans.
type buffers struct{ pool *sync.Pool }

func newBuffers() buffers { return buffers{&sync.Pool{New: func() any { return new([]byte) }}} }

func (b buffers) get(n int64) []byte {
	p := b.pool.Get().(*[]byte)
	return slices.Grow((*p)[:0], int(n))
}

func (b buffers) put(p []byte) { b.pool.Put(&p) }
