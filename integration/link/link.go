// Package link is a slow network in user space: a TCP proxy on loopback with a
// rate and a round-trip time, which counts what passes.
//
// It knows TCP streams, and HTTP/1.1 just enough to note the requests. What it
// leaves out of a real network: packet loss, slow start, and the bytes of
// headers below TCP.
package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Options is the shape of a link. The zero value adds nothing to loopback.
type Options struct {
	Rate float64       // bits a second in each direction, shared by all connections; 0 is no limit
	RTT  time.Duration // half of it is added each way, and all of it once to set up a connection
}

// Link is a running proxy to one address.
type Link struct {
	listener net.Listener
	target   string
	opts     Options
	up, down line // towards the target, and back
	requests requestLog

	stop context.CancelFunc
	wg   sync.WaitGroup
}

// New starts a link from a free port on loopback to the TCP address target.
func New(target string, opts Options) (*Link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the link to %s: %w", target, err)
	}
	l := &Link{listener: listener, target: target, opts: opts}
	l.up.rate, l.down.rate = opts.Rate, opts.Rate
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.wg.Go(func() { l.accept(ctx) })
	return l, nil
}

// Addr returns the address of the near end, as "127.0.0.1:34567".
func (l *Link) Addr() string { return l.listener.Addr().String() }

// Close cuts all connections and returns when nothing of the link runs.
func (l *Link) Close() error {
	l.stop()
	err := l.listener.Close()
	l.wg.Wait()
	return err
}

// Sent returns how many bytes have entered the link towards the target.
func (l *Link) Sent() int64 { return l.up.bytes.Load() }

// Received returns how many bytes have entered the link on their way back.
func (l *Link) Received() int64 { return l.down.bytes.Load() }

// Requests returns the HTTP/1.1 requests that have entered the link, in order.
func (l *Link) Requests() []Request { return l.requests.all() }

func (l *Link) accept(ctx context.Context) {
	for {
		conn, err := l.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // a connection that its client has already given up
		}
		l.wg.Go(func() { l.serve(ctx, conn.(*net.TCPConn)) })
	}
}

// serve carries one connection until both directions have ended or one fails.
func (l *Link) serve(ctx context.Context, near *net.TCPConn) {
	defer near.Close()
	if !sleep(ctx, l.opts.RTT) { // the handshake: SYN there, SYN and ACK back
		return
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", l.target)
	if err != nil {
		near.SetLinger(0) // the client sees a reset, as from a refusing host
		return
	}
	far := conn.(*net.TCPConn)
	defer far.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { near.Close(); far.Close() })()
	requests := newParser(&l.requests)
	defer requests.close()

	var directions sync.WaitGroup
	directions.Go(func() {
		if l.carry(ctx, far, near, &l.up, requests.write) != nil {
			cancel()
		}
	})
	directions.Go(func() {
		if l.carry(ctx, near, far, &l.down, func([]byte) {}) != nil {
			cancel()
		}
	})
	directions.Wait()
}

// segment is what travels as one piece, and when its last bit arrives.
type segment struct {
	data    []byte
	arrival time.Time
}

// carry moves bytes from src to dst over the line until src ends, which it
// passes on, or something fails. Bytes leave src no faster than the line takes
// them, and at most a window waits for dst, so back-pressure reaches src.
func (l *Link) carry(ctx context.Context, dst, src *net.TCPConn, on *line, seen func([]byte)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	flight := make(chan segment, on.window(l.opts.RTT/2))
	delivered := make(chan error, 1)
	go func() {
		err := deliver(ctx, dst, flight)
		if err != nil {
			cancel()
		}
		delivered <- err
	}()
	var err error
	for err == nil {
		data := make([]byte, on.segmentSize())
		var n int
		if n, err = src.Read(data); n == 0 {
			continue
		}
		seen(data[:n])
		departure := on.reserve(n)
		select {
		case flight <- segment{data[:n], departure.Add(l.opts.RTT / 2)}:
		case <-ctx.Done():
		}
		if !sleep(ctx, time.Until(departure)-slack) {
			err = ctx.Err()
		}
	}
	close(flight)
	if failed := <-delivered; failed != nil {
		return failed
	}
	if err != io.EOF {
		return err
	}
	return dst.CloseWrite()
}

// deliver writes each segment when it arrives.
func deliver(ctx context.Context, dst *net.TCPConn, flight <-chan segment) error {
	for s := range flight {
		if !sleep(ctx, time.Until(s.arrival)) {
			return ctx.Err()
		}
		if _, err := dst.Write(s.data); err != nil {
			return err
		}
	}
	return nil
}

// slack is how far a sender may run ahead of its line, or the line catch up
// after a sender that overslept: sleeping is not more exact than this.
const slack = 2 * time.Millisecond

// line is one direction of the link: the time at which it is free again.
type line struct {
	rate  float64 // bits a second; 0 is no limit
	bytes atomic.Int64

	mu   sync.Mutex
	free time.Time
}

// reserve books n bytes behind everything booked before, and returns when the
// last of them has left: never sooner than on a line that was free.
func (on *line) reserve(n int) time.Time {
	on.bytes.Add(int64(n))
	now := time.Now()
	if on.rate == 0 {
		return now
	}
	on.mu.Lock()
	defer on.mu.Unlock()
	if earliest := now.Add(-slack); on.free.Before(earliest) {
		on.free = earliest
	}
	takes := time.Duration(float64(n) * 8 / on.rate * float64(time.Second))
	on.free = on.free.Add(takes)
	if soonest := now.Add(takes); soonest.After(on.free) {
		return soonest
	}
	return on.free
}

// segmentSize returns the bytes of about a millisecond, within 1 and 64 KiB.
func (on *line) segmentSize() int {
	if on.rate == 0 {
		return 64 << 10
	}
	return min(max(int(on.rate/8/1000), 1<<10), 64<<10)
}

// window returns how many segments may be under way: what the line holds in
// that time, and a few for a receiver that is scheduled late.
func (on *line) window(delay time.Duration) int {
	if on.rate == 0 {
		return 64
	}
	return int(on.rate/8*delay.Seconds())/on.segmentSize() + 4
}

// sleep waits for d and reports whether ctx lived through it.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
