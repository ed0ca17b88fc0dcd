package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// testRegistry is a registry on loopback whose answers a test can spoil.
type testRegistry struct {
	t     testing.TB
	inner http.Handler // the honest registry
	host  string

	mu   sync.Mutex
	seen []*http.Request
}

// newRegistry starts a registry. spoil, if not nil, sees each request first.
func newRegistry(t testing.TB, spoil func(w http.ResponseWriter, req *http.Request, honest http.Handler)) *testRegistry {
	t.Helper()
	r := &testRegistry{t: t, inner: registry.New(
		registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.seen = append(r.seen, req.Clone(context.Background()))
		r.mu.Unlock()
		if spoil != nil {
			spoil(w, req, r.inner)
		} else {
			r.inner.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

// count returns how many requests had a path with the given part.
func (r *testRegistry) count(part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, req := range r.seen {
		if strings.Contains(req.URL.Path, part) {
			n++
		}
	}
	return n
}

// put stores bytes past the spoiled way.
func (r *testRegistry) put(method, path, mediaType string, b []byte) {
	r.t.Helper()
	req := httptest.NewRequest(method, path, bytes.NewReader(b))
	req.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	r.inner.ServeHTTP(w, req)
	if w.Code != http.StatusCreated {
		r.t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
}

func (r *testRegistry) putBlob(b []byte) {
	r.t.Helper()
	r.put(http.MethodPost, "/v2/app/blobs/uploads/?digest="+digest.FromBytes(b).String(), "application/octet-stream", b)
}

// putManifest stores a document under its digest and, if not "", under a tag.
func (r *testRegistry) putManifest(tag, mediaType string, b []byte) digest.Digest {
	r.t.Helper()
	d := digest.FromBytes(b)
	for _, id := range []string{d.String(), tag} {
		if id != "" {
			r.put(http.MethodPut, "/v2/app/manifests/"+id, mediaType, b)
		}
	}
	return d
}

// putImage stores an image and returns its manifest's digest.
func (r *testRegistry) putImage(tag string, layers ...[]byte) digest.Digest {
	r.t.Helper()
	manifest, config := makeImage(r.t, layers...)
	for _, b := range append(layers, config) {
		r.putBlob(b)
	}
	return r.putManifest(tag, ocispec.MediaTypeImageManifest, manifest)
}

// makeImage returns an image's manifest and config.
func makeImage(t testing.TB, layers ...[]byte) (manifest, config []byte) {
	t.Helper()
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	cfg.RootFS.Type = "layers"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(l))
		m.Layers = append(m.Layers, descriptor(ocispec.MediaTypeImageLayer, l))
	}
	config = marshal(t, cfg)
	m.Config = descriptor(ocispec.MediaTypeImageConfig, config)
	return marshal(t, m), config
}

func descriptor(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// randomBytes returns the same n bytes for the same n.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	_, _ = src.Read(b) // never fails
	return b
}

// testClient is a Client that does not pause, but remembers how long it would
// have.
type testClient struct {
	*Client
	log bytes.Buffer

	mu     sync.Mutex
	pauses []time.Duration
}

func newClient(t testing.TB, opts Options) *testClient {
	t.Helper()
	c := &testClient{}
	if opts.Keychain == nil {
		opts.Keychain = authn.NewMultiKeychain() // nobody's credentials
	}
	opts.Log = slog.New(slog.NewTextHandler(&c.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if c.Client, err = New(opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.retry.wait = func(ctx context.Context, d time.Duration) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.pauses = append(c.pauses, d)
		return ctx.Err()
	}
	return c
}

func (c *testClient) resolve(t testing.TB, ref string) *Image {
	t.Helper()
	img, err := c.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// read opens a range and reads all that comes.
func read(ctx context.Context, b *Blob, off, n int64) (got []byte, whole bool, err error) {
	body, whole, err := b.Open(ctx, off, n)
	if err != nil {
		return nil, false, err
	}
	defer body.Close()
	got, err = io.ReadAll(body)
	return got, whole, err
}
