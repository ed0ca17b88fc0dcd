package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
)

// server is a registry that can be switched off, and counts the bytes of the
// blobs that it sends.
type server struct {
	host  string
	off   atomic.Bool
	blobs atomic.Int64
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := new(server)
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case s.off.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
			reg.ServeHTTP(&counting{w, &s.blobs}, r)
		default:
			reg.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(h.Close)
	s.host = strings.TrimPrefix(h.URL, "http://")
	return s
}

type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// member is one entry of a layer's tar.
type member struct {
	tar.Header
	data string
}

func file(name, data string) member {
	return member{tar.Header{Name: name, Mode: 0o644, ModTime: time.Unix(1e9, 0)}, data}
}

func dir(name string) member {
	return member{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: time.Unix(1e9, 0)}, ""}
}

func link(name, target string) member {
	return member{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: time.Unix(1e9, 0)}, ""}
}

// with changes a member's header.
func (m member) with(change func(*tar.Header)) member {
	change(&m.Header)
	return m
}

// big is a file of some megabytes, which takes many spans.
func big(name string) member {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 6<<20)
	for i := range b {
		b[i] = "abcdefghijklmnop"[r.IntN(16)]
	}
	return file(name, string(b))
}

// push pushes an image of gzip layers, and attaches their indices to it. It
// returns the layers' digests.
func (s *server) push(t *testing.T, ref string, layers ...[]member) []digest.Digest {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	var digests []digest.Digest
	for _, members := range layers {
		var tarball, blob bytes.Buffer
		z := gzip.NewWriter(&blob)
		w := tar.NewWriter(io.MultiWriter(z, &tarball))
		for _, m := range members {
			m.Size = int64(len(m.data))
			if err := w.WriteHeader(&m.Header); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, m.data); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		layer := gzipLayer{static.NewLayer(blob.Bytes(), types.OCILayer), tarball.Bytes()}
		var err error
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer}); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest.FromBytes(blob.Bytes()))
	}
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, "--root", t.TempDir(), "index", "--push", ref); err != nil {
		t.Fatal(out, err)
	}
	return digests
}

// gzipLayer is a static layer that knows its diffID.
type gzipLayer struct {
	v1.Layer
	tar []byte
}

func (l gzipLayer) DiffID() (v1.Hash, error) { return v1.NewHash(digest.FromBytes(l.tar).String()) }
