package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// reader reads from flat blobs.
type reader struct {
	image  string // for messages
	waits  *waits
	stats  *counters
	report *report
}

func newReader(opts Options) reader {
	return reader{opts.Image, newWaits(opts.ReadTimeout), new(counters), &report{log: opts.Log}}
}

type counters struct {
	present, fetched, failed atomic.Uint64
}

func (c *counters) load() Stats {
	return Stats{Present: c.present.Load(), Fetched: c.fetched.Load(), Failed: c.failed.Load()}
}

// read reads len(buf) bytes at off of a flat blob into buf, and fetches them if
// they are missing.
//
// It does not have the kernel splice them from the local file: go-fuse then
// makes four system calls more, and its pipe wakes the runtime's poller at each.
// Small reads pay for that, and large ones save no more by it than the copy.
func (r *reader) read(c caller, blob Blob, off int64, buf []byte) (fuse.ReadResult, error) {
	if f, ok := blob.Local(off, int64(len(buf))); ok {
		r.stats.present.Add(1)
		if _, err := f.ReadAt(buf, off); err != nil {
			return nil, err
		}
		return result(buf), nil
	}
	try := r.waits.begin(blob, off, int64(len(buf)))
	defer r.waits.end(try)
	ctx, stop := c.context(r.waits.deadline(try))
	defer stop()
	got, err := blob.ReadAtContext(ctx, buf, off)
	if got == len(buf) {
		r.stats.fetched.Add(1)
		return result(buf), nil
	}
	if ctx.Err() == context.Canceled {
		return nil, errAbandoned
	}
	r.waits.failed(try)
	if ctx.Err() == context.DeadlineExceeded {
		return nil, fmt.Errorf("gave up after %v: %w", r.waits.limit, err)
	}
	if err == nil || errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%d bytes of %d: %w", got, len(buf), io.ErrUnexpectedEOF)
	}
	return nil, err
}

// result returns data as one write to the kernel. ReadResultData would first try
// to splice it.
func result(buf []byte) fuse.ReadResult { return fuse.ReadResultVector([][]byte{buf}) }

// errAbandoned is the error of a read that nobody waits for any more.
var errAbandoned = errors.New("the process that reads is gone, or the mount is")

// errno is what a failed read tells the process. It is EINTR only for a
// process that is being killed. All else is EIO, a timeout too: ETIMEDOUT is
// for sockets, and programs that read files know EIO. Which it was is in the
// log.
func errno(err error) fuse.Status {
	if errors.Is(err, errAbandoned) {
		return fuse.EINTR
	}
	return fuse.EIO
}

// fail counts and reports a read that failed, and returns what to tell the
// kernel. what says for the log which read it was.
func (r *reader) fail(err error, what func() []any) fuse.Status {
	status := errno(err)
	if status != fuse.EINTR {
		r.stats.failed.Add(1)
		r.report.failed(err, what)
	}
	return status
}

// quiet is the least time between two messages about reads that failed: while
// a registry is gone there may be thousands a second.
const quiet = time.Second

// report tells the log of reads that failed.
type report struct {
	log *slog.Logger

	mu      sync.Mutex
	last    time.Time
	skipped int
}

func (r *report) failed(err error, what func() []any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.last) < quiet {
		r.skipped++
		return
	}
	r.log.Error("read failed", append(what(), "error", err, "unreported", r.skipped)...)
	r.last, r.skipped = time.Now(), 0
}
