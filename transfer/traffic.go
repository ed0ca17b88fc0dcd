package transfer

import (
	"cmp"
	"context"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Traffic is what went over the wire for one purpose.
type Traffic struct {
	Registry string `json:"registry"` // that was asked, wherever it has redirected to
	Purpose  string `json:"purpose"`  // what For says; if nothing, the part of the API: manifests, referrers, blobs; or token
	Requests int64  `json:"requests"` // every attempt and redirect counted
	BytesIn  int64  `json:"bytesIn"`  // of response bodies
}

// For returns a context whose requests count for a purpose in Traffic.
func For(ctx context.Context, purpose string) context.Context {
	if purpose == "" {
		return ctx
	}
	return context.WithValue(ctx, purposeKey{}, purpose)
}

type (
	purposeKey struct{} // of For
	accountKey struct{} // of an account
)

// account is what requests are counted by.
type account struct{ registry, purpose string }

// charge returns a context whose requests count for what its purpose is, or
// failing that for a default one.
func charge(ctx context.Context, registry, purpose string) context.Context {
	if p, ok := ctx.Value(purposeKey{}).(string); ok {
		purpose = p
	}
	return context.WithValue(ctx, accountKey{}, account{registry, purpose})
}

// apiPart is the part of a registry's API that an address is in.
func apiPart(u *url.URL) string {
	for _, p := range []string{"manifests", "referrers", "blobs"} {
		if strings.Contains(u.Path, "/"+p+"/") {
			return p
		}
	}
	return "other"
}

// ledger counts what goes over the wire. The zero value is ready.
type ledger struct {
	mu     sync.Mutex
	counts map[account]*count
}

type count struct{ requests, bytesIn atomic.Int64 }

// of returns the count that a request's context says.
func (l *ledger) of(ctx context.Context) *count {
	a, _ := ctx.Value(accountKey{}).(account)
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counts[a]
	if c == nil {
		if l.counts == nil {
			l.counts = map[account]*count{}
		}
		c = new(count)
		l.counts[a] = c
	}
	return c
}

// Traffic returns what went over the wire since New, by registry and purpose,
// in their order. Local files do not count.
func (c *Client) Traffic() []Traffic {
	l := &c.wire.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Traffic
	for a, n := range l.counts {
		all = append(all, Traffic{a.registry, a.purpose, n.requests.Load(), n.bytesIn.Load()})
	}
	slices.SortFunc(all, func(a, b Traffic) int {
		return cmp.Or(strings.Compare(a.Registry, b.Registry), strings.Compare(a.Purpose, b.Purpose))
	})
	return all
}

// Stats is all traffic together.
type Stats struct {
	Requests int64 // HTTP requests, every attempt and redirect counted
	BytesIn  int64 // bytes of response bodies
}

// Stats returns the counts since New.
func (c *Client) Stats() (s Stats) {
	for _, t := range c.Traffic() {
		s.Requests += t.Requests
		s.BytesIn += t.BytesIn
	}
	return s
}
