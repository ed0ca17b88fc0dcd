package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// onBlob makes a spoil function that only touches requests for layers.
func onBlob(layer []byte, f http.HandlerFunc) func(http.ResponseWriter, *http.Request, http.Handler) {
	path := "/v2/app/blobs/" + digest.FromBytes(layer).String()
	return func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if req.Method == http.MethodGet && req.URL.Path == path {
			f(w, req)
		} else {
			honest.ServeHTTP(w, req)
		}
	}
}

// serve answers as a well-behaved blob store does.
func serve(w http.ResponseWriter, req *http.Request, layer []byte) {
	w.Header()["Content-Type"] = nil // as some do; nothing may depend on it
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(layer))
}

// openBlob returns the only layer of a new image.
func openBlob(t testing.TB, c *testClient, reg *testRegistry, layer []byte) *Blob {
	t.Helper()
	reg.putImage("1", layer)
	img := c.resolve(t, reg.host+"/app:1")
	return c.Blob(img, img.Layers[0].Descriptor)
}

func TestBlobRanges(t *testing.T) {
	layer := randomBytes(300_000)
	var ranges []string
	reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) {
		if e := req.Header.Get("Accept-Encoding"); e != "identity" {
			t.Errorf("Accept-Encoding %q", e)
		}
		ranges = append(ranges, req.Header.Get("Range"))
		serve(w, req, layer)
	}))
	c := newClient(t, Options{})
	b := openBlob(t, c, reg, layer)
	end := int64(len(layer))
	for _, tc := range []struct {
		off, n int64
		ranges string
	}{
		{0, end, ""},
		{0, 1, "bytes=0-0"},
		{0, end - 1, "bytes=0-299998"},
		{end - 1, 1, "bytes=299999-299999"},
		{4096, 100_000, "bytes=4096-104095"},
	} {
		before := c.Stats()
		got, whole, err := read(t.Context(), b, tc.off, tc.n)
		if err != nil || !bytes.Equal(got, layer[tc.off:tc.off+tc.n]) || whole != (tc.n == end) {
			t.Errorf("%d bytes at %d: got %d, whole %v, %v", tc.n, tc.off, len(got), whole, err)
		}
		if r := ranges[len(ranges)-1]; r != tc.ranges {
			t.Errorf("%d bytes at %d: Range %q, want %q", tc.n, tc.off, r, tc.ranges)
		}
		if after := c.Stats(); after.Requests != before.Requests+1 || after.BytesIn != before.BytesIn+tc.n {
			t.Errorf("%d bytes at %d: %+v after %+v", tc.n, tc.off, after, before)
		}
	}
	before := c.Stats()
	for _, tc := range []struct{ off, n int64 }{{-1, 1}, {0, -1}, {0, end + 1}, {end, 1}, {1, 1<<63 - 1}} {
		if _, _, err := b.Open(t.Context(), tc.off, tc.n); err == nil {
			t.Errorf("%d bytes at %d were opened", tc.n, tc.off)
		}
	}
	if got, whole, err := read(t.Context(), b, 5, 0); len(got) != 0 || whole || err != nil {
		t.Errorf("empty range: %d bytes, whole %v, %v", len(got), whole, err)
	}
	if c.Stats() != before {
		t.Error("invalid and empty ranges made requests")
	}
}

func TestBlobWhole(t *testing.T) {
	layer := randomBytes(200_000)
	var cuts int
	reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) {
		req.Header.Del("Range") // not supported
		if cuts++; cuts == 2 {
			w.Header().Set("Content-Length", strconv.Itoa(len(layer)))
			_, _ = w.Write(layer[:150_000])
			panic(http.ErrAbortHandler)
		}
		serve(w, req, layer)
	}))
	b := openBlob(t, newClient(t, Options{}), reg, layer)
	for range 2 { // the second time cut, and taken up by skipping what was there
		got, whole, err := read(t.Context(), b, 1000, 10)
		if err != nil || !whole || !bytes.Equal(got, layer) {
			t.Errorf("got %d bytes, whole %v, %v; want all %d", len(got), whole, err, len(layer))
		}
	}
}

// A registry may answer a range with less of it (RFC 9110, section 15.3.7).
func TestBlobShorterRange(t *testing.T) {
	layer := randomBytes(1 << 20)
	reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) {
		var first, last int
		if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &first, &last); err == nil {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first, min(last, first+enoughProgress-1)))
		}
		serve(w, req, layer)
	}))
	b := openBlob(t, newClient(t, Options{}), reg, layer)
	if got, _, err := read(t.Context(), b, 1, 1<<20-1); err != nil || !bytes.Equal(got, layer[1:]) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// Whatever is done to the connections, every byte is right.
func TestBlobRandomFaults(t *testing.T) {
	const rounds = 300
	layer := randomBytes(500_000)
	rng := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	pick := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rng.IntN(n)
	}
	var faults atomic.Int64
	reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) {
		fault := pick(8)
		if fault < 6 {
			faults.Add(1)
		}
		switch fault {
		case 0: // before the header
			panic(http.ErrAbortHandler)
		case 1: // anywhere in the body
			serve(&cutter{w, pick(len(layer))}, req, layer)
		case 2: // soon after the start
			serve(&cutter{w, pick(100)}, req, layer)
		case 3:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		case 4:
			w.WriteHeader(http.StatusBadGateway)
		case 5: // another range than was asked for
			req.Header.Set("Range", "bytes=7-9")
			serve(w, req, layer)
		default:
			serve(w, req, layer)
		}
	}))
	b := openBlob(t, newClient(t, Options{Attempts: 100}), reg, layer)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range rounds / 4 {
				off := pick(len(layer))
				n := pick(len(layer)-off) + 1
				got, whole, err := read(t.Context(), b, int64(off), int64(n))
				if err != nil || whole != (n == len(layer)) || !bytes.Equal(got, layer[off:off+n]) {
					t.Errorf("%d bytes at %d: got %d, whole %v, %v", n, off, len(got), whole, err)
				}
			}
		})
	}
	wg.Wait()
	if faults.Load() < rounds {
		t.Errorf("only %d faults", faults.Load())
	}
}

// cutter cuts the connection after some bytes of body.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) < c.left {
		c.left -= len(p)
		return c.ResponseWriter.Write(p)
	}
	_, _ = c.ResponseWriter.Write(p[:c.left])
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

// part answers with a header and the bytes [100, 200) of a layer.
func part(layer []byte, code int, kv ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(kv); i += 2 {
			w.Header().Set(kv[i], kv[i+1])
		}
		w.WriteHeader(code)
		_, _ = w.Write(layer[100:200])
	}
}

func TestBlobBadAnswers(t *testing.T) {
	layer := randomBytes(1000)
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		want   string
		is     error
		tries  int
	}{
		"wrong start":     {part(layer, 206, "Content-Range", "bytes 101-199/1000"), `Content-Range "bytes 101-199/1000"`, ErrUnavailable, 3},
		"wrong end":       {part(layer, 206, "Content-Range", "bytes 100-200/1000"), "Content-Range", ErrUnavailable, 3},
		"wrong total":     {part(layer, 206, "Content-Range", "bytes 100-199/1001"), "Content-Range", ErrUnavailable, 3},
		"no range":        {part(layer, 206), `Content-Range ""`, ErrUnavailable, 3},
		"multipart":       {part(layer, 206, "Content-Type", "multipart/byteranges; boundary=x", "Content-Range", "bytes 100-199/1000"), "multipart/byteranges", ErrUnavailable, 3},
		"range too long":  {part(layer, 206, "Content-Range", "bytes 100-198/1000"), "length of 100", ErrUnavailable, 3},
		"whole too short": {part(layer, 200), "length of 100", ErrUnavailable, 3},
		"short":           {part(layer, 206, "Content-Range", "bytes 100-199/1000", "Transfer-Encoding", "chunked"), "", nil, 1},
		"always cut": {func(w http.ResponseWriter, req *http.Request) {
			serve(&cutter{w, 0}, req, layer)
		}, "byte 100", io.ErrUnexpectedEOF, 3},
		"redirect loop": {func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, req.URL.Path, http.StatusFound)
		}, "redirects", nil, maxRedirects + 1},
		"redirect to nowhere": {part(layer, 307), "no usable address", nil, 1},
		"redirect to a file":  {part(layer, 307, "Location", "file:///etc/passwd"), "no usable address", nil, 1},
		"400":                 {part(layer, 400), "400", nil, 1},
		"401":                 {part(layer, 401), "docker login", ErrUnauthorized, 1},
		"403":                 {part(layer, 403), "docker login", ErrUnauthorized, 1},
		"404":                 {part(layer, 404), "404", ErrNotFound, 1},
		"416":                 {part(layer, 416), "shorter than the manifest says", nil, 1},
		"429":                 {part(layer, 429), "limits requests", ErrUnavailable, 3},
		"500":                 {part(layer, 500), "fault", ErrUnavailable, 3},
		"501":                 {part(layer, 501), "fault", ErrUnavailable, 1},
		"504":                 {part(layer, 504), "fault", ErrUnavailable, 3},
	} {
		t.Run(name, func(t *testing.T) {
			var tries atomic.Int64
			reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) {
				tries.Add(1)
				tc.answer(w, req)
			}))
			b := openBlob(t, newClient(t, Options{Attempts: 3}), reg, layer)
			got, _, err := read(t.Context(), b, 100, 100)
			if tc.want == "" {
				if err != nil || !bytes.Equal(got, layer[100:200]) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), b.d.Digest.String()) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
			if n := tries.Load(); n != int64(tc.tries) {
				t.Errorf("asked %d times, want %d", n, tc.tries)
			}
		})
	}
}

// A connection that keeps breaking is given up after a time, too.
func TestBlobTimeLimit(t *testing.T) {
	layer := randomBytes(1000)
	reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) { serve(&cutter{w, 1}, req, layer) }))
	b := openBlob(t, newClient(t, Options{Attempts: 100, RetryTime: time.Nanosecond}), reg, layer)
	if got, _, err := read(t.Context(), b, 0, 1000); !errors.Is(err, ErrUnavailable) || len(got) > 2 {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

func TestBlobStall(t *testing.T) {
	layer := randomBytes(100_000)
	var requests atomic.Int64
	reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) {
		switch requests.Add(1) {
		case 1: // before the header
		case 2: // in the middle
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 1-%d/%d", len(layer)-1, len(layer)))
			w.Header().Set("Content-Length", strconv.Itoa(len(layer)-1))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(layer[1:50_000])
			_ = http.NewResponseController(w).Flush()
		default:
			serve(w, req, layer)
			return
		}
		<-req.Context().Done() // until the client hangs up
	}))
	c := newClient(t, Options{StallTimeout: 200 * time.Millisecond})
	b := openBlob(t, c, reg, layer)
	got, _, err := read(t.Context(), b, 1, int64(len(layer)-1))
	if err != nil || !bytes.Equal(got, layer[1:]) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if n := int(requests.Load()); n < 3 || strings.Count(c.log.String(), errStalled.Error()) != n-1 {
		t.Errorf("%d requests; log:\n%s", requests.Load(), &c.log)
	}
}

func TestBlobCancel(t *testing.T) {
	layer := randomBytes(1000)
	arrived := make(chan struct{}, 2)
	reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Range") == "" {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(layer[:10])
			_ = http.NewResponseController(w).Flush()
		}
		arrived <- struct{}{}
		<-req.Context().Done()
	}))
	b := openBlob(t, newClient(t, Options{Attempts: 1}), reg, layer)
	check := func(when string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) || errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", when, err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	_, _, err := b.Open(ctx, 0, 500)
	check("before the header", err, context.Canceled)

	ctx, cancel = context.WithCancel(t.Context())
	body, _, err := b.Open(ctx, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.ReadFull(body, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	_, err = body.Read(make([]byte, 10))
	check("within the body", err, context.Canceled)

	ctx, cancel = context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	_, _, err = b.Open(ctx, 0, 5)
	check("after the deadline", err, context.DeadlineExceeded)
}

func TestBlobClosed(t *testing.T) {
	layer := randomBytes(1000)
	b := openBlob(t, newClient(t, Options{}), newRegistry(t, nil), layer)
	body, _, err := b.Open(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	_ = body.Close()
	if n, err := body.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("read after close: %d, %v", n, err)
	}
}

func TestFetchBlob(t *testing.T) {
	layer := randomBytes(100_000)
	reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) {
		flipped := bytes.Clone(layer)
		flipped[50_000]++
		serve(w, req, flipped)
	}))
	reg.putBlob([]byte("good"))
	reg.putBlob(nil)
	c := newClient(t, Options{MaxArtifactBlob: 100_000})
	reg.putImage("1", layer)
	img := c.resolve(t, reg.host+"/app:1")
	for _, tc := range []struct {
		d    ocispec.Descriptor
		want string
	}{
		{descriptor("", []byte("good")), ""},
		{descriptor("", nil), ""},
		{descriptor("", layer), "what came has digest"},
		{descriptor("", randomBytes(100_001)), "more than 100000"},
		{descriptor("", []byte("missing")), "404"},
		{ocispec.Descriptor{Digest: digest.FromString("good"), Size: 3}, "length"},
	} {
		var buf bytes.Buffer
		err := c.FetchBlob(t.Context(), img, tc.d, &buf)
		if tc.want == "" {
			if err != nil || digest.FromBytes(buf.Bytes()) != tc.d.Digest {
				t.Errorf("got %q, %v", &buf, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want an error with %q", err, tc.want)
		}
	}
}

func BenchmarkBlob(b *testing.B) {
	layer := randomBytes(32 << 20)
	reg := newRegistry(b, onBlob(layer, func(w http.ResponseWriter, req *http.Request) { serve(w, req, layer) }))
	blob := openBlob(b, newClient(b, Options{}), reg, layer)
	for _, n := range []int64{64 << 10, 1 << 20, 32 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			b.SetBytes(n)
			for b.Loop() {
				body, _, err := blob.Open(b.Context(), 0, n)
				if err != nil {
					b.Fatal(err)
				}
				if got, err := io.Copy(io.Discard, body); err != nil || got != n {
					b.Fatal(got, err)
				}
			}
		})
	}
}

// What some registries do not do is never asked of them: a request has one
// range, and the answer's type is not looked at.
func TestBlobPlainRegistry(t *testing.T) {
	layer := randomBytes(1000)
	for _, contentType := range []string{"", "text/html", "application/octet-stream"} {
		reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) {
			h := req.Header.Get("Range")
			if strings.Contains(h, ",") {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			var first, last int
			if _, err := fmt.Sscanf(h, "bytes=%d-%d", &first, &last); err != nil {
				t.Errorf("Range %q", h)
			}
			w.Header()["Content-Type"] = nil
			if contentType != "" {
				w.Header().Set("Content-Type", contentType)
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", first, last))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(layer[first : last+1])
		}))
		b := openBlob(t, newClient(t, Options{}), reg, layer)
		if got, whole, err := read(t.Context(), b, 10, 500); err != nil || whole || !bytes.Equal(got, layer[10:510]) {
			t.Errorf("type %q: got %d bytes, whole %v, %v", contentType, len(got), whole, err)
		}
	}
}

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string][3]int64{
		"bytes 0-0/1":                    {0, 0, 1},
		"bytes 5-9/10":                   {5, 9, 10},
		"bytes 5-9/*":                    {5, 9, -1},
		"bytes */10":                     {},
		"bytes 5-9/9":                    {},
		"bytes 9-5/10":                   {},
		"bytes -5-9/10":                  {},
		"bytes=5-9/10":                   {},
		"items 5-9/10":                   {},
		"bytes 5-9":                      {},
		"bytes 5-9/+10":                  {},
		"bytes 1-9x/10":                  {},
		"bytes 5-9/1e3":                  {},
		"":                               {},
		"bytes 0-9/99999999999999999999": {},
	} {
		first, last, total, ok := parseContentRange(s)
		if ok != (want != [3]int64{}) || ok && [3]int64{first, last, total} != want {
			t.Errorf("%q: %d %d %d %v", s, first, last, total, ok)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes 0-0/*")
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, ok := parseContentRange(s)
		if ok && (first < 0 || last < first || total != -1 && total <= last) {
			t.Errorf("%q: %d %d %d", s, first, last, total)
		}
	})
}
