package transfer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// answers is a server that gives one answer after the other, and then 200.
type answers struct {
	list []func(*http.Request) (*http.Response, error)
	sent []string // bodies
}

func (a *answers) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		b, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		a.sent = append(a.sent, string(b))
	}
	if len(a.list) == 0 {
		return status(200)(req)
	}
	next := a.list[0]
	a.list = a.list[1:]
	return next(req)
}

func status(code int, kv ...string) func(*http.Request) (*http.Response, error) {
	return func(req *http.Request) (*http.Response, error) {
		h := http.Header{}
		for i := 0; i < len(kv); i += 2 {
			h.Set(kv[i], kv[i+1])
		}
		return &http.Response{StatusCode: code, Header: h, Body: io.NopCloser(strings.NewReader("")), Request: req}, nil
	}
}

func fails(err error) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

func TestRetry(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	type answer = func(*http.Request) (*http.Response, error)
	for name, tc := range map[string]struct {
		answers []answer
		code    int             // 0 for an error
		pauses  []time.Duration // at least; half a pause is jitter
	}{
		"at once":             {nil, 200, nil},
		"connection refused":  {[]answer{fails(refused)}, 200, []time.Duration{50}},
		"stalled":             {[]answer{fails(errStalled), fails(io.ErrUnexpectedEOF)}, 200, []time.Duration{50, 100}},
		"no such host":        {[]answer{fails(&net.DNSError{IsNotFound: true})}, 0, nil},
		"name server down":    {[]answer{fails(&net.DNSError{IsTimeout: true})}, 200, []time.Duration{50}},
		"always refused":      {[]answer{fails(refused), fails(refused), fails(refused), fails(refused)}, 0, []time.Duration{50, 100, 200}},
		"500":                 {[]answer{status(500), status(502), status(503)}, 200, []time.Duration{50, 100, 200}},
		"always 503":          {[]answer{status(503), status(503), status(503), status(503)}, 503, []time.Duration{50, 100, 200}},
		"408":                 {[]answer{status(408)}, 200, []time.Duration{50}},
		"429 with seconds":    {[]answer{status(429, "Retry-After", "7")}, 200, []time.Duration{7000}},
		"429 with a long one": {[]answer{status(429, "Retry-After", "86400")}, 200, []time.Duration{30_000}},
		"503 with seconds":    {[]answer{status(503, "Retry-After", "25"), status(503, "Retry-After", "50")}, 200, []time.Duration{25_000, 30_000}},
		"429 with a date, clock ahead": {
			[]answer{status(429, "Date", "Sat, 01 Jan 2000 00:00:00 GMT", "Retry-After", "Sat, 01 Jan 2000 00:00:07 GMT")}, 200, []time.Duration{7000},
		},
		"429 with a date, clock behind": {
			[]answer{status(429, "Date", "Fri, 01 Jan 2100 00:00:00 GMT", "Retry-After", "Fri, 01 Jan 2100 00:00:07 GMT")}, 200, []time.Duration{7000},
		},
		"400": {[]answer{status(400)}, 400, nil},
		"401": {[]answer{status(401)}, 401, nil},
		"403": {[]answer{status(403)}, 403, nil},
		"404": {[]answer{status(404)}, 404, nil},
		"416": {[]answer{status(416)}, 416, nil},
		"501": {[]answer{status(501)}, 501, nil},
	} {
		var pauses []time.Duration
		r := &retrier{
			next: &answers{list: tc.answers}, attempts: 4, backoff: 100 * time.Millisecond, limit: time.Minute,
			log: slog.New(slog.DiscardHandler),
			wait: func(_ context.Context, d time.Duration) error {
				pauses = append(pauses, d)
				return nil
			},
		}
		req, err := http.NewRequest(http.MethodGet, "http://r.test/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.RoundTrip(req)
		if code := 0; err == nil {
			code = resp.StatusCode
			if code != tc.code {
				t.Errorf("%s: status %d, want %d", name, code, tc.code)
			}
		} else if tc.code != 0 {
			t.Errorf("%s: %v", name, err)
		}
		if len(pauses) != len(tc.pauses) {
			t.Errorf("%s: pauses %v, want %v", name, pauses, tc.pauses)
			continue
		}
		for i, p := range pauses {
			if least := tc.pauses[i] * time.Millisecond; p < least || p > 2*least {
				t.Errorf("%s: pause %d is %v, want %v to %v", name, i, p, least, 2*least)
			}
		}
	}
}

func TestRetryTimeLimit(t *testing.T) {
	next := &answers{list: []func(*http.Request) (*http.Response, error){status(503, "Retry-After", "20"), status(500)}}
	r := &retrier{next: next, attempts: 10, backoff: time.Millisecond, limit: 19 * time.Second, log: slog.New(slog.DiscardHandler), wait: wait}
	req, _ := http.NewRequest(http.MethodGet, "http://r.test/", nil)
	resp, err := r.RoundTrip(req) // would take 20 s if it waited
	if err != nil || resp.StatusCode != 503 {
		t.Errorf("got %v, %v", resp, err)
	}
}

func TestRetrySendsTheBodyAgain(t *testing.T) {
	next := &answers{list: []func(*http.Request) (*http.Response, error){status(500), fails(io.ErrUnexpectedEOF)}}
	r := &retrier{next: next, attempts: 4, limit: time.Minute, log: slog.New(slog.DiscardHandler), wait: wait}
	req, _ := http.NewRequest(http.MethodPut, "http://r.test/", strings.NewReader("body"))
	if _, err := r.RoundTrip(req); err != nil || strings.Join(next.sent, " ") != "body body body" {
		t.Errorf("sent %q, %v", next.sent, err)
	}
}

func TestRetryCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	next := &answers{list: []func(*http.Request) (*http.Response, error){func(req *http.Request) (*http.Response, error) {
		time.AfterFunc(time.Millisecond, cancel) // into the pause
		return status(503)(req)
	}}}
	r := &retrier{next: next, attempts: 4, backoff: time.Hour, limit: 24 * time.Hour, log: slog.New(slog.DiscardHandler), wait: wait}
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://r.test/", nil)
	if _, err := r.RoundTrip(req); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"":                               0,
		"0":                              0,
		"12":                             12 * time.Second,
		"31":                             maxRetryAfter,
		"4294967296":                     0,
		"-1":                             0,
		"1.5":                            0,
		"soon":                           0,
		"Fri, 02 Jan 2026 03:04:15 GMT":  10 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT":  0,
		"Friday, 02-Jan-26 03:04:07 GMT": 2 * time.Second,
		"Sat, 02 Jan 2027 03:04:15 GMT":  maxRetryAfter,
	} {
		if got := retryAfter(header, now); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("12")
	f.Add("Fri, 02 Jan 2026 03:04:15 GMT")
	now := time.Now()
	f.Fuzz(func(t *testing.T, header string) {
		if d := retryAfter(header, now); d < 0 || d > maxRetryAfter {
			t.Errorf("%q: %v", header, d)
		}
	})
}

func TestDelay(t *testing.T) {
	r := &retrier{backoff: 200 * time.Millisecond}
	for try := 1; try < 100; try++ {
		if d := r.delay(try); d <= 0 || d > maxBackoff {
			t.Errorf("pause %d is %v", try, d)
		}
	}
}

func FuzzScrub(f *testing.F) {
	f.Add("denied: see https://r.test/x?token=1 for sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")
	f.Add("a\x00b\n\x1b[31m")
	f.Fuzz(func(t *testing.T, s string) {
		got := scrub(s)
		if n := len([]rune(got)); n > 203 || strings.ContainsAny(got, "\n\r\x1b\x00") {
			t.Errorf("%q became %q", s, got)
		}
		for _, w := range strings.Fields(got) {
			if strings.Contains(w, "://") && strings.Contains(w, "?") {
				t.Errorf("%q became %q, with a query", s, got)
			}
		}
	})
}
