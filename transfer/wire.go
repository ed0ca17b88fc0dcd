package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// errStalled is why a request is broken off that brings no more bytes.
var errStalled = errors.New("the connection stalled")

// wire is the lowest layer above the HTTP transport. It counts requests and
// bytes, and breaks off a request whose answer brings nothing for the stall
// time, be it before the header or within the body. The time in which the
// caller does not read is not counted.
type wire struct {
	next  http.RoundTripper
	stall time.Duration
	ledger
}

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	count := w.of(req.Context())
	count.requests.Add(1)
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(w.stall, func() {
		cancel(fmt.Errorf("%w: nothing came for %v", errStalled, w.stall))
	})
	if req.Body != nil {
		timer.Stop() // sending may take its time
	}
	req = req.Clone(ctx)
	req.Header.Set("User-Agent", "peel")
	req.Header.Set("Accept-Encoding", "identity") // digests and ranges are of the bytes as they are
	resp, err := w.next.RoundTrip(req)
	timer.Stop()
	if err != nil {
		err = stallOr(ctx, err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &wireBody{rc: resp.Body, count: count, stall: w.stall, ctx: ctx, cancel: cancel, timer: timer}
	return resp, nil
}

// stallOr returns the stall that ended ctx, or else err.
func stallOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return cause
	}
	return err
}

// wireBody is a response's body under the watch of wire. It keeps the
// attempt's context, whose end is the only way to interrupt a Read.
type wireBody struct {
	rc     io.ReadCloser
	count  *count
	stall  time.Duration
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

func (b *wireBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	n, err := b.rc.Read(p)
	b.timer.Stop()
	b.count.bytesIn.Add(int64(n))
	if err != nil && err != io.EOF {
		err = stallOr(b.ctx, err)
	}
	return n, err
}

func (b *wireBody) Close() error {
	b.timer.Stop()
	err := b.rc.Close()
	b.cancel(nil)
	return err
}
