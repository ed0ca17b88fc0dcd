package transfer

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	maxBackoff    = 10 * time.Second
	maxRetryAfter = 30 * time.Second // a registry that asks for more gets asked again sooner
)

// retrier sends a request again while it fails for a reason that may pass:
// the connection failed, or the registry said that it is busy or broken. The
// last answer is returned as it came.
type retrier struct {
	next     http.RoundTripper
	attempts int
	backoff  time.Duration
	limit    time.Duration // no attempt starts later than this
	log      *slog.Logger
	wait     func(context.Context, time.Duration) error
}

func (r *retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	start := time.Now()
	for try := 1; ; try++ {
		again := req
		if req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			again = req.WithContext(req.Context())
			again.Body = body
		}
		resp, err := r.next.RoundTrip(again)
		if req.Context().Err() != nil || !mayPass(resp, err) {
			return resp, err
		}
		pause := r.delay(try)
		if resp != nil {
			pause = max(pause, retryAfter(resp.Header.Get("Retry-After"), sentAt(resp)))
		}
		if try >= r.attempts || time.Since(start)+pause > r.limit {
			return resp, err
		}
		attrs := []any{"method", req.Method, "url", safeURL(req.URL), "attempt", try, "pause", pause}
		if err != nil {
			attrs = append(attrs, "err", err)
		} else {
			attrs = append(attrs, "status", resp.StatusCode)
			discard(resp)
		}
		r.log.Warn("registry request failed, will try again", attrs...)
		if err := r.wait(req.Context(), pause); err != nil {
			return nil, err
		}
	}
}

// delay returns the pause after the given attempt: doubled each time, with
// jitter, so that a fleet does not come back all at once.
func (r *retrier) delay(try int) time.Duration {
	d := maxBackoff
	if try < 16 {
		d = min(d, r.backoff<<(try-1))
	}
	return d/2 + rand.N(d/2+1)
}

// mayPass reports whether the same request may succeed later.
func mayPass(resp *http.Response, err error) bool {
	if err != nil {
		var cert *tls.CertificateVerificationError
		var dns *net.DNSError
		switch {
		case errors.As(err, &cert), speaksPlainHTTP(err):
			return false
		case errors.As(err, &dns):
			return !dns.IsNotFound
		}
		return true
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	}
	return resp.StatusCode >= 500
}

// retryAfter reads a Retry-After header (RFC 9110, section 10.2.3), which is
// a number of seconds or a date. It returns 0 for anything else.
func retryAfter(header string, now time.Time) time.Duration {
	if s, err := strconv.ParseUint(header, 10, 32); err == nil {
		return min(time.Duration(s)*time.Second, maxRetryAfter)
	}
	if t, err := http.ParseTime(header); err == nil {
		return min(max(t.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// sentAt returns when an answer was sent by the clock that its dates are by:
// the clock here may be wrong.
func sentAt(resp *http.Response) time.Time {
	if t, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		return t
	}
	return time.Now()
}

// wait returns after d, or with the context's error when it ends first.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// discard gives up an answer. A short body is read to its end, so that the
// connection can be used again.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // an error only costs the connection
	_ = resp.Body.Close()
}
