package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

const maxRedirects = 5

// repo is the access to one repository: its address and its credentials. It
// starts without a ping and without credentials; the answer to the first
// request says what is needed, so that an open registry costs no round trip.
type repo struct {
	c      *Client
	name   name.Repository
	host   string
	action string // what tokens are asked for: pull, or push and pull

	secure  atomic.Bool // HTTPS is spoken
	settled atomic.Bool // it is known which of HTTP and HTTPS it is

	auth    atomic.Pointer[string] // the Authorization header; nil before any
	renewal mutex                  // held while auth is renewed
	listing mutex                  // held while a fallback tag is updated
}

// mutex is a lock that is held over requests, and waited for no longer than
// they are.
type mutex chan struct{}

func (m mutex) lock(ctx context.Context) error {
	select {
	case m <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m mutex) unlock() { <-m }

func newRepo(c *Client, n name.Repository, action string) *repo {
	r := &repo{c: c, name: n, host: n.RegistryStr(), action: action, renewal: make(mutex, 1), listing: make(mutex, 1)}
	local := isLoopback(r.host)
	r.secure.Store(!c.opts.PlainHTTP && !local)
	r.settled.Store(c.opts.PlainHTTP || !local)
	return r
}

// url returns the address of a part of the repository, such as "manifests/1".
func (r *repo) url(part string) *url.URL {
	return &url.URL{Scheme: "https", Host: r.host, Path: "/v2/" + r.name.RepositoryStr() + "/" + part}
}

// newRequest returns a request without a body.
func newRequest(ctx context.Context, method string, u *url.URL) *http.Request {
	req := &http.Request{Method: method, URL: u, Header: http.Header{}}
	return req.WithContext(ctx)
}

// do sends req and follows redirects. It returns an answer with one of the
// wanted statuses, or an error that names the request.
func (r *repo) do(req *http.Request, want ...int) (*http.Response, error) {
	req = req.WithContext(charge(req.Context(), r.host, apiPart(req.URL)))
	for range maxRedirects + 1 {
		resp, err := r.send(req)
		if err != nil {
			return nil, err
		}
		if slices.Contains(want, resp.StatusCode) {
			return resp, nil
		}
		if !isRedirect(resp) {
			return nil, newStatusError(resp, r.host)
		}
		to, err := r.next(resp)
		if err != nil {
			return nil, err
		}
		req = req.Clone(req.Context())
		req.URL, req.Host = to, ""
	}
	return nil, fmt.Errorf("%s %s: more than %d redirects", req.Method, safeURL(req.URL), maxRedirects)
}

// next returns the address that an answer sends the client to, and gives up
// the answer.
func (r *repo) next(resp *http.Response) (*url.URL, error) {
	discard(resp)
	at := resp.Request.URL
	to, err := resp.Location()
	if err != nil || to.Host == "" || to.Scheme != "http" && to.Scheme != "https" {
		// err would quote the address, which may be secret.
		return nil, fmt.Errorf("%s %s: the answer's Location is no usable address", resp.Request.Method, safeURL(at))
	}
	if at.Scheme == "https" && to.Scheme == "http" && !sameHost(to, r.host) {
		return nil, fmt.Errorf("%s %s: refused to be sent from HTTPS to plain HTTP at %s", resp.Request.Method, safeURL(at), to.Host)
	}
	return to, nil
}

func isRedirect(resp *http.Response) bool {
	if m := resp.Request.Method; m != http.MethodGet && m != http.MethodHead {
		return false
	}
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// send sends req once, to the registry with credentials, to any other host
// without. If the registry refuses the credentials, they are renewed, and the
// request is sent once more.
func (r *repo) send(req *http.Request) (*http.Response, error) {
	if !sameHost(req.URL, r.host) {
		resp, err := r.c.retry.RoundTrip(req)
		if err != nil {
			return nil, sendError(req, err)
		}
		return resp, nil
	}
	used := r.auth.Load()
	resp, err := r.sendWith(req, used)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	fresh, err := r.renew(req.Context(), resp, used)
	if err != nil {
		discard(resp)
		return nil, err
	}
	if fresh == nil {
		return resp, nil
	}
	discard(resp)
	return r.sendWith(req, fresh)
}

// sendWith sends req to the registry with the given Authorization header. A
// registry on a loopback address is first tried with plain HTTP, which one
// that speaks HTTPS answers with 400.
func (r *repo) sendWith(req *http.Request, auth *string) (*http.Response, error) {
	resp, err := r.sendOver(req, auth, r.secure.Load())
	if err != nil || r.settled.Load() {
		return resp, err
	}
	if resp.StatusCode == http.StatusBadRequest {
		if again, err := r.sendOver(req, auth, true); err == nil {
			discard(resp)
			r.secure.Store(true)
			resp = again
		}
	}
	r.settled.Store(true)
	return resp, nil
}

func (r *repo) sendOver(req *http.Request, auth *string, secure bool) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Scheme = "http"
	if secure {
		req.URL.Scheme = "https"
	}
	if auth != nil {
		req.Header.Set("Authorization", *auth)
	}
	resp, err := r.c.retry.RoundTrip(req)
	if err != nil {
		return nil, sendError(req, err)
	}
	return resp, nil
}

// fetch gets a document of at most limit bytes, whole or not at all. check, if
// not nil, says whether it is what was asked for; if not, it is asked for again.
func (r *repo) fetch(ctx context.Context, u *url.URL, accept string, limit int64, check func([]byte, http.Header) error) ([]byte, http.Header, error) {
	for try := 1; ; try++ {
		b, header, err := r.fetchOnce(ctx, u, accept, limit)
		if err == nil && check != nil {
			if err = check(b, header); err != nil {
				err = broken("GET %s: %w", safeURL(u), err)
			}
		}
		var br *brokenError
		if !errors.As(err, &br) || try >= r.c.opts.Attempts {
			return b, header, err
		}
		if err := r.c.retry.wait(ctx, r.c.retry.delay(try)); err != nil {
			return nil, nil, err
		}
	}
}

func (r *repo) fetchOnce(ctx context.Context, u *url.URL, accept string, limit int64) ([]byte, http.Header, error) {
	req := newRequest(ctx, http.MethodGet, u)
	req.Header.Set("Accept", accept)
	resp, err := r.do(req, http.StatusOK)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case ctx.Err() != nil:
		return nil, nil, fmt.Errorf("GET %s: %w", safeURL(resp.Request.URL), ctx.Err())
	case err != nil:
		return nil, nil, broken("GET %s: the answer broke off after %d bytes: %w", safeURL(resp.Request.URL), len(b), err)
	case int64(len(b)) > limit:
		return nil, nil, fmt.Errorf("GET %s: the answer is larger than %d bytes", safeURL(resp.Request.URL), limit)
	}
	return b, resp.Header, nil
}

// manifest gets and parses the manifest or index with the given tag or digest.
func (r *repo) manifest(ctx context.Context, id string) ([]byte, *document, error) {
	want := digest.Digest("")
	if strings.Contains(id, ":") {
		want = digest.Digest(id)
		if err := checkDigest(want); err != nil {
			return nil, nil, err
		}
	}
	u := r.url("manifests/" + id)
	raw, _, err := r.fetch(ctx, u, acceptManifests, maxManifest, func(b []byte, h http.Header) error {
		return checkManifest(b, want, h)
	})
	if err != nil {
		return nil, nil, err
	}
	doc, err := parseDocument(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("read manifest %s of %s: %w", id, r.name, err)
	}
	return raw, doc, nil
}

// checkManifest checks a manifest against the digest that it was asked for by,
// or, if that is "", against the one that the registry says it has.
func checkManifest(raw []byte, want digest.Digest, header http.Header) error {
	by := "it was asked for by"
	if want == "" {
		want, by = digest.Digest(header.Get("Docker-Content-Digest")), "the registry says that it is"
		if checkDigest(want) != nil { // none, or one of another algorithm
			return nil
		}
	}
	if got := digest.FromBytes(raw); got != want {
		return fmt.Errorf("the manifest is damaged: %s %s, but what came is %d bytes with the digest %s", by, want, len(raw), got)
	}
	return nil
}

// sameHost reports whether u is at host, the name of a registry. A missing
// port is the scheme's.
func sameHost(u *url.URL, host string) bool {
	strip := func(h string) string {
		h = strings.ToLower(h)
		if u.Scheme == "http" {
			return strings.TrimSuffix(h, ":80")
		}
		return strings.TrimSuffix(h, ":443")
	}
	return strip(u.Host) == strip(host)
}

func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback()
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}
