package format

import (
	"context"
	"io"
	"sync/atomic"
)

// chunkSize is how much tar goes from the decoder to its readers at once.
const chunkSize = 256 << 10

// chunk is a piece of tar that several goroutines read. The last one to let go
// of it gives its memory back.
type chunk struct {
	data []byte
	cuts []int // where in data a span begins
	refs atomic.Int32
	buf  []byte
	free chan<- []byte
}

func newChunk(buf []byte, n, readers int, free chan<- []byte) *chunk {
	c := &chunk{data: buf[:n], buf: buf, free: free}
	c.refs.Store(int32(readers))
	return c
}

func (c *chunk) release() {
	if c.refs.Add(-1) == 0 {
		c.free <- c.buf // has room for every buffer there is
	}
}

// feed is what one reader of the tar sees of it, as chunks or as an io.Reader.
type feed struct {
	ctx  context.Context // of the pass that the feed is a part of
	in   chan *chunk
	cur  *chunk
	rest []byte
}

func newFeed(ctx context.Context) *feed { return &feed{ctx: ctx, in: make(chan *chunk, 4)} }

// receive waits for the next value; io.EOF says that there is none.
func receive[T any](ctx context.Context, ch <-chan T) (v T, err error) {
	select {
	case v, ok := <-ch:
		if !ok {
			return v, io.EOF
		}
		return v, nil
	case <-ctx.Done():
		return v, ctx.Err()
	}
}

// each calls fn with every chunk until the tar ends.
func (f *feed) each(fn func(*chunk) error) error {
	for {
		c, err := receive(f.ctx, f.in)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		err = fn(c)
		c.release()
		if err != nil {
			return err
		}
	}
}

// Read implements io.Reader.
func (f *feed) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.cur != nil {
			f.cur.release()
			f.cur = nil
		}
		c, err := receive(f.ctx, f.in)
		if err != nil {
			return 0, err
		}
		f.cur, f.rest = c, c.data
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}
