// Package transfer reaches images and artifacts in OCI and Docker registries,
// and in image layouts and archives on this machine.
//
// It knows names, credentials, platforms, manifests, referrers, and how to get
// any range of a blob from a registry that is slow, busy or broken, or out of
// a tar file. It does not know what is in a layer, what an artifact means, or
// where anything is kept that was transferred.
//
// The protocol is the OCI distribution specification 1.1, the documents and
// the image layout are those of the OCI image specification 1.1 and of
// Docker's image manifest version 2, schema 2. A docker-archive is what docker
// save writes, of which Docker's image specification 1.2 has the description.
package transfer

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options say how a Client behaves. The zero value is good for most uses.
type Options struct {
	// Platform chooses among the images of a multi-platform index, as
	// os/arch or os/arch/variant. Default: the host's.
	Platform string

	// PlainHTTP speaks HTTP instead of HTTPS to every registry. Without it,
	// only registries on a loopback address may use plain HTTP.
	PlainHTTP bool

	// CAFile names a PEM file of certificates that are trusted besides those
	// of the system. Default: none.
	CAFile string

	// Keychain finds credentials. Default: Docker's configuration file and
	// the credential helpers that it names.
	Keychain authn.Keychain

	// Log gets what goes wrong and is repaired. Default: nothing is logged.
	Log *slog.Logger

	// ReferrersAhead makes Resolve ask for the image's referrers at the same
	// time as for its config, which saves Referrers one round trip.
	ReferrersAhead bool

	// Attempts is how often a request is sent before its failure counts, and
	// how often a broken blob is taken up again without any progress.
	// Default: 6.
	Attempts int

	// Backoff is the pause before the second attempt. It doubles with each
	// further one. Default: 200 ms.
	Backoff time.Duration

	// RetryTime bounds all attempts of one request together; none starts
	// after it. Default: 60 s.
	RetryTime time.Duration

	// StallTimeout is how long a registry may send nothing before the
	// connection counts as broken. Default: 15 s.
	StallTimeout time.Duration

	// MaxArtifactBlob is the most bytes that FetchBlob accepts. Default:
	// 256 MiB.
	MaxArtifactBlob int64
}

// withDefaults returns o with every unset field set.
func (o Options) withDefaults() Options {
	o.Platform = cmp.Or(o.Platform, hostPlatform())
	o.Attempts = cmp.Or(o.Attempts, 6)
	o.Backoff = cmp.Or(o.Backoff, 200*time.Millisecond)
	o.RetryTime = cmp.Or(o.RetryTime, time.Minute)
	o.StallTimeout = cmp.Or(o.StallTimeout, 15*time.Second)
	o.MaxArtifactBlob = cmp.Or(o.MaxArtifactBlob, 256<<20)
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	return o
}

// Client reaches registries and local images. It is safe for concurrent use.
// Credentials, tokens, connections and the places of files within archives are
// kept and shared by everything it does.
type Client struct {
	opts      Options
	platforms []platform // acceptable ones, best first
	transport *http.Transport
	wire      *wire
	retry     *retrier

	mu       sync.Mutex
	repos    map[repoKey]*repo
	archives map[string]*archive // by path
}

// source is where images come from: a repository of a registry, or local files.
type source interface {
	// manifest gets and parses the manifest or index with the given tag or
	// digest; of local files that which the reference names, if it is "".
	manifest(ctx context.Context, id string) ([]byte, *document, error)

	// referrers lists what refers to a manifest. Other types than the given
	// one may be left out.
	referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error)

	// blob returns the access to a blob, without looking for it yet.
	blob(d ocispec.Descriptor) opener
}

// New returns a Client. It fails if the platform or the CA file is not usable.
func New(opts Options) (*Client, error) {
	opts = opts.withDefaults()
	want, err := parsePlatform(opts.Platform)
	if err != nil {
		return nil, err
	}
	roots, err := rootCAs(opts.CAFile)
	if err != nil {
		return nil, err
	}
	c := &Client{opts: opts, platforms: want.acceptable(), repos: map[repoKey]*repo{}, archives: map[string]*archive{}}
	c.transport = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 2 * time.Minute, // of uploads; wire bounds the rest
		MaxIdleConns:          128,
		MaxIdleConnsPerHost:   32,
		IdleConnTimeout:       90 * time.Second,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: opts.StallTimeout, PingTimeout: opts.StallTimeout},
		ReadBufferSize:        64 << 10,
	}
	c.wire = &wire{next: c.transport, stall: opts.StallTimeout}
	c.retry = &retrier{
		next:     c.wire,
		attempts: opts.Attempts,
		backoff:  opts.Backoff,
		limit:    opts.RetryTime,
		log:      opts.Log,
		wait:     wait,
	}
	return c, nil
}

// rootCAs returns the system's certificates and those of the file, or nil for
// the system's alone.
func rootCAs(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read CA file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the system's certificates: %w", err)
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read CA file %s: no PEM certificate in it", file)
	}
	return pool, nil
}

// Close closes idle connections and removes what was unpacked of archives.
// Requests and reads under way are not disturbed.
func (c *Client) Close() {
	c.transport.CloseIdleConnections()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.archives {
		a.close()
	}
}

// source returns the source that a reference leads to, for an action, which is
// transport.PullScope or transport.PushScope.
func (c *Client) source(at reference, action string) source {
	switch l := at.local; l.scheme {
	case schemeLayout:
		return folder{layout{ref: l, open: openFolder}}
	case schemeOCIArchive:
		return layout{ref: l, open: c.openTree}
	case schemeDockerArchive:
		return dockerArchive{ref: l, open: c.openArchive}
	}
	return c.repo(at.remote.Context(), action)
}

// repo returns the access to one repository for an action, which is
// transport.PullScope or transport.PushScope. It is the same for every caller.
func (c *Client) repo(n name.Repository, action string) *repo {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := repoKey{n.Name(), action}
	r := c.repos[key]
	if r == nil {
		r = newRepo(c, n, action)
		c.repos[key] = r
	}
	return r
}

type repoKey struct{ name, action string }
