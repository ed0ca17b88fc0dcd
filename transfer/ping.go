package transfer

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Ping asks the registry of an image whether it is there, without credentials.
// It returns the registry's host, and how far its clock is ahead of ours, to
// the second; 0 if it does not tell. An image on disk has no registry: its host
// is "".
func (c *Client) Ping(ctx context.Context, ref string) (host string, ahead time.Duration, err error) {
	at, err := parseReference(ref)
	if err != nil {
		return "", 0, fmt.Errorf("ping the registry of %s: %w", ref, err)
	}
	if at.remote == nil {
		return "", 0, nil
	}
	r := c.repo(at.remote.Context(), transport.PullScope)
	u := &url.URL{Scheme: "https", Host: r.host, Path: "/v2/"}
	if !r.secure.Load() {
		u.Scheme = "http"
	}
	ctx = charge(ctx, r.host, "ping")
	sent := time.Now()
	resp, err := c.retry.RoundTrip(newRequest(ctx, http.MethodGet, u))
	if err != nil {
		return r.host, 0, fmt.Errorf("ping %s: %w", r.host, sendError(newRequest(ctx, http.MethodGet, u), err))
	}
	defer discard(resp)
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		ahead = date.Sub(sent).Round(time.Second)
	}
	return r.host, ahead, nil
}
