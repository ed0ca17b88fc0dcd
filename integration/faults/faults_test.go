package faults

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"
)

// blob returns the bytes of a blob of the server under the proxy.
func blob(name string) []byte {
	sum := sha256.Sum256([]byte(name))
	return bytes.Repeat(sum[:], 1000)
}

const (
	pathA = "/v2/repo/blobs/sha256:a"
	pathB = "/v2/repo/blobs/sha256:b"
)

// newProxy returns a proxy to a server of two blobs, and a client that follows
// no redirect.
func newProxy(t *testing.T) (*Proxy, *http.Client) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			io.Copy(w, r.Body)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob(r.URL.Path)))
	}))
	t.Cleanup(server.Close)
	p := New(server.Listener.Addr().String())
	t.Cleanup(p.Close)
	client := &http.Client{
		Transport:     &http.Transport{},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(client.CloseIdleConnections)
	return p, client
}

// got is what a client sees of an answer.
type got struct {
	*http.Response
	body []byte
	err  error
}

func get(t *testing.T, p *Proxy, client *http.Client, path, bytes string) got {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+p.Addr()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if bytes != "" {
		req.Header.Set("Range", "bytes="+bytes)
	}
	resp, err := client.Do(req)
	if err != nil {
		return got{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return got{resp, body, err}
}

// whole says of a body that it came to its end, as far as HTTP can tell.
func (g got) whole() bool { return g.err == nil && int64(len(g.body)) == g.ContentLength }

func (g got) String() string {
	if g.Response == nil {
		return fmt.Sprint("no answer: ", g.err)
	}
	return fmt.Sprintf("%s, Content-Length %d, %d bytes, %v", g.Status, g.ContentLength, len(g.body), g.err)
}

// flipped returns how many bits of the two differ.
func flipped(a, b []byte) (n int) {
	for i := range a {
		n += bits.OnesCount8(a[i] ^ b[i])
	}
	return n
}

func TestFaults(t *testing.T) {
	all := blob(pathA)
	want := all[1000:20000]
	partial := func(g got) bool { // the header is right and the body starts right
		return g.err != nil && (g.Response == nil ||
			g.StatusCode == 206 && g.ContentLength == int64(len(want)) && len(g.body) < len(want) && bytes.HasPrefix(want, g.body))
	}
	status := func(codes ...int) func(got) bool {
		return func(g got) bool {
			for _, code := range codes {
				if g.Response != nil && g.StatusCode == code {
					return len(g.body) == 0
				}
			}
			return false
		}
	}
	tests := map[Fault]func(g got) bool{
		Reset:    func(g got) bool { return partial(g) && errors.Is(g.err, syscall.ECONNRESET) },
		Stall:    func(g got) bool { return partial(g) && errors.Is(g.err, context.DeadlineExceeded) },
		Drip:     func(g got) bool { return partial(g) && errors.Is(g.err, context.DeadlineExceeded) },
		Truncate: func(g got) bool { return partial(g) && errors.Is(g.err, io.ErrUnexpectedEOF) },
		Flip:     func(g got) bool { return g.whole() && len(g.body) == len(want) && flipped(g.body, want) == 1 },
		Short:    func(g got) bool { return g.whole() && len(g.body) < len(want) && bytes.HasPrefix(want, g.body) },
		Long:     func(g got) bool { return g.whole() && len(g.body) > len(want) && bytes.HasPrefix(g.body, want) },
		Foreign:  func(g got) bool { return g.whole() && bytes.Equal(g.body, blob(pathB)[:len(want)]) },
		Unauthorized: func(g got) bool {
			return status(401)(g) && g.Header.Get("WWW-Authenticate") != ""
		},
		Forbidden: status(403),
		NotFound:  status(404),
		BadRange:  status(416),
		Busy:      func(g got) bool { return status(429)(g) && g.Header.Get("Retry-After") == "1" },
		Broken:    status(500, 502, 503, 504),
		Whole:     func(g got) bool { return g.whole() && g.StatusCode == 200 && bytes.Equal(g.body, all) },
		Circle:    func(g got) bool { return status(307)(g) && g.Header.Get("Location") == pathA+"?again" },
	}
	for _, f := range All() {
		t.Run(string(f), func(t *testing.T) {
			t.Parallel()
			p, client := newProxy(t)
			if g := get(t, p, client, pathB, ""); !g.whole() { // so that another blob is known
				t.Fatal(g)
			}
			p.Follow(Plan{Seed: 1, Rate: 1, Faults: []Fault{f}})
			for range 3 {
				if g := get(t, p, client, pathA, "1000-19999"); !tests[f](g) {
					t.Errorf("the client sees: %v", g)
				}
			}
			if n := p.Injected(); n[f] != 3 || len(n) != 1 {
				t.Errorf("it says that it injected %v", n)
			}
			p.Stop()
			if g := get(t, p, client, pathA, "1000-19999"); !g.whole() || g.StatusCode != 206 || !bytes.Equal(g.body, want) {
				t.Errorf("after the faults the client sees: %v", g)
			}
		})
	}
}

func TestRedirectLoopHasNoEnd(t *testing.T) {
	p, client := newProxy(t)
	client.CheckRedirect = nil // up to ten
	p.Follow(Plan{Rate: 1, Faults: []Fault{Circle}})
	if g := get(t, p, client, pathA, ""); g.err == nil {
		t.Errorf("the client sees: %v", g)
	}
}

func TestForeignWithoutAnother(t *testing.T) {
	p, client := newProxy(t)
	p.Follow(Plan{Rate: 1, Faults: []Fault{Foreign}})
	want := blob(pathA)
	if g := get(t, p, client, pathA, ""); !g.whole() || flipped(g.body, want) != 8*len(want) {
		t.Errorf("the client sees: %v", g)
	}
}

func TestUploadsPass(t *testing.T) {
	p, client := newProxy(t)
	p.Follow(Plan{Rate: 1})
	resp, err := client.Post("http://"+p.Addr()+"/v2/repo/blobs/uploads/", "", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "body" {
		t.Errorf("got %q, %v", body, err)
	}
}

// TestStopEndsStalls holds that an answer which stalls or drips does so no
// longer than the faults last.
func TestStopEndsStalls(t *testing.T) {
	for _, f := range []Fault{Stall, Drip} {
		p, client := newProxy(t)
		p.Follow(Plan{Rate: 1, Faults: []Fault{f}})
		done := make(chan got)
		go func() { done <- get(t, p, client, pathA, "") }()
		if err := p.Await(t.Context(), f, 1); err != nil {
			t.Fatal(err)
		}
		p.Stop()
		g := <-done
		if errors.Is(g.err, context.DeadlineExceeded) || g.whole() != (f == Drip) {
			t.Errorf("after %s the client sees: %v", f, g)
		}
	}
}

func TestAwaitEndsWithTheContext(t *testing.T) {
	p, _ := newProxy(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Await(ctx, Reset, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestPlanRepeats holds that a seed gives the same faults, another seed others,
// and a rate its share.
func TestPlanRepeats(t *testing.T) {
	const requests = 10_000
	run := func(seed uint64) (list []meeting, hit int) {
		plan := Plan{Seed: seed, Rate: 0.3}
		for i := range requests {
			m := plan.draw(fmt.Sprint("GET ", i%100), i/100)
			if m.fault != "" {
				hit++
			}
			list = append(list, m)
		}
		return list, hit
	}
	first, hit := run(1)
	if again, _ := run(1); fmt.Sprint(first) != fmt.Sprint(again) {
		t.Error("the same seed gives other faults")
	}
	if other, _ := run(2); fmt.Sprint(first) == fmt.Sprint(other) {
		t.Error("another seed gives the same faults")
	}
	if hit < requests*28/100 || hit > requests*32/100 {
		t.Errorf("%d of %d requests meet a fault, want 30 %%", hit, requests)
	}
	seen := map[Fault]bool{}
	for _, m := range first {
		seen[m.fault] = true
	}
	if want := len(All()) + 1; len(seen) != want { // and no fault
		t.Errorf("%d of %d faults came", len(seen), want)
	}
}

func Example() {
	registry := httptest.NewServer(http.NotFoundHandler())
	defer registry.Close()
	p := New(registry.Listener.Addr().String())
	defer p.Close()
	p.Follow(Plan{Seed: 7, Rate: 1, Faults: []Fault{Busy}})
	resp, err := http.Get("http://" + p.Addr() + "/v2/")
	if err != nil {
		fmt.Println(err)
		return
	}
	resp.Body.Close()
	fmt.Println(resp.Status, p.Injected())
	// Output: 429 Too Many Requests map[429:1]
}
