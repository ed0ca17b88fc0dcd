package faults

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
)

// Proxy passes HTTP/1.1 requests on to one server. It starts without faults.
type Proxy struct {
	target    string
	server    *httptest.Server // its Close waits for every request
	transport *http.Transport

	mu       sync.Mutex
	plan     Plan
	over     chan struct{} // closed when the plan ends
	asked    map[string]int
	injected map[Fault]int
	changed  chan struct{} // closed when injected changes
	blobs    []string      // addresses of blobs that were asked for
}

// New starts a proxy from a free port on loopback to the TCP address target.
func New(target string) *Proxy {
	p := &Proxy{
		target:    target,
		transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 16},
		over:      make(chan struct{}),
		asked:     map[string]int{},
		injected:  map[Fault]int{},
		changed:   make(chan struct{}),
	}
	p.server = httptest.NewServer(http.HandlerFunc(p.serve))
	return p
}

// Addr returns the proxy's address, as "127.0.0.1:34567".
func (p *Proxy) Addr() string { return p.server.Listener.Addr().String() }

// Close cuts all connections and returns when nothing of the proxy runs.
func (p *Proxy) Close() {
	p.Stop()
	p.server.CloseClientConnections()
	p.server.Close()
	p.transport.CloseIdleConnections()
}

// Follow ends the plan so far, as Stop does, and follows another.
func (p *Proxy) Follow(plan Plan) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.over)
	p.plan, p.over, p.asked = plan, make(chan struct{}), map[string]int{}
}

// Stop ends the faults. Answers that stall are cut off; those that drip flow.
func (p *Proxy) Stop() { p.Follow(Plan{}) }

// Injected returns how often each fault has been injected since New.
func (p *Proxy) Injected() map[Fault]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.injected)
}

// Await returns when the fault has been injected n times since New.
func (p *Proxy) Await(ctx context.Context, f Fault, n int) error {
	for {
		p.mu.Lock()
		got, changed := p.injected[f], p.changed
		p.mu.Unlock()
		if got >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the fault %q came %d times, not %d: %w", f, got, n, ctx.Err())
		}
	}
}

func (p *Proxy) note(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.injected[f]++
	close(p.changed)
	p.changed = make(chan struct{})
}

// again is the query of an address that redirects to itself.
const again = "again"

// next returns what a request meets, and what is closed when the plan ends.
func (p *Proxy) next(r *http.Request) (meeting, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return meeting{}, p.over
	}
	if r.URL.RawQuery == again && p.plan.Rate > 0 {
		return meeting{fault: Circle}, p.over
	}
	key := r.Method + " " + r.URL.Path + " " + r.Header.Get("Range")
	p.asked[key]++
	return p.plan.draw(key, p.asked[key]), p.over
}

// another returns the address of a blob that is not the one at path.
func (p *Proxy) another(path string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, blob := range p.blobs {
		if blob != path {
			return blob, nil
		}
	}
	return "", errors.New("no other blob has been asked for")
}

// remember notes the address of a blob.
func (p *Proxy) remember(path string) {
	if !strings.Contains(path, "/blobs/sha256:") {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, blob := range p.blobs {
		if blob == path {
			return
		}
	}
	p.blobs = append(p.blobs, path)
}
