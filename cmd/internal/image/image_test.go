package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"sync"
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
	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/transfer"
)

// server is a registry that can be switched off, and counts blob bytes.
type server struct {
	*httptest.Server
	host   string
	off    atomic.Bool
	denied atomic.Bool
	blobs  atomic.Int64 // bytes of blobs sent
	sent   sync.Map     // of each blob, by its digest: *atomic.Int64
	damage atomic.Pointer[damage]
}

// damage is a blob that is sent with a byte changed in every answer.
type damage struct {
	blob  string
	times atomic.Int64 // how many more answers
}

// sentOf returns how many bytes of a blob were sent.
func (s *server) sentOf(blob string) *atomic.Int64 {
	n, _ := s.sent.LoadOrStore(blob, new(atomic.Int64))
	return n.(*atomic.Int64)
}

func newServer(t *testing.T, referrers bool) *server {
	t.Helper()
	s := new(server)
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(referrers))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case s.off.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
		case s.denied.Load():
			w.WriteHeader(http.StatusForbidden)
		case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
			blob := path.Base(r.URL.Path)
			d := s.damage.Load()
			spoil := d != nil && d.blob == blob && d.times.Add(-1) >= 0
			reg.ServeHTTP(&counting{w, []*atomic.Int64{&s.blobs, s.sentOf(blob)}, spoil}, r)
		default:
			reg.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	s.host = u.Host
	return s
}

type counting struct {
	http.ResponseWriter
	n     []*atomic.Int64
	spoil bool
}

func (c *counting) Write(p []byte) (int, error) {
	if c.spoil && len(p) > 0 {
		p = bytes.Clone(p)
		p[len(p)/2] ^= 0x10
		c.spoil = false
	}
	n, err := c.ResponseWriter.Write(p)
	for _, sum := range c.n {
		sum.Add(int64(n))
	}
	return n, err
}

// layerTar is a layer of one big file.
func layerTar(t *testing.T, seed uint64) (tarball []byte, file []byte) {
	t.Helper()
	return layerTarOf(t, seed, 3<<20)
}

func layerTarOf(t *testing.T, seed uint64, size int) (tarball []byte, file []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	file = make([]byte, size)
	for i := range file {
		file[i] = "abcdefgh"[r.IntN(8)]
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("big%d", seed), Size: int64(len(file)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(file); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), file
}

// push makes an image of gzip layers and pushes it.
func (s *server) push(t *testing.T, ref string, tars ...[]byte) v1.Image {
	t.Helper()
	var layers []layer
	for _, tarball := range tars {
		layers = append(layers, layer{static.NewLayer(gzipped(t, tarball), types.OCILayer), tarball})
	}
	return s.pushLayers(t, ref, types.OCIManifestSchema1, layers...)
}

func gzipped(t *testing.T, p []byte) []byte {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return z.Bytes()
}

func (s *server) pushLayers(t *testing.T, ref string, mediaType types.MediaType, layers ...layer) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, mediaType)
	for _, l := range layers {
		media, err := l.MediaType()
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, MediaType: media}); err != nil {
			t.Fatal(err)
		}
	}
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	return img
}

// layer is a static layer that knows its diffID.
type layer struct {
	v1.Layer
	tar []byte
}

func (l layer) DiffID() (v1.Hash, error) {
	return v1.NewHash(digest.FromBytes(l.tar).String())
}

func newPuller(t *testing.T, root string) *image.Puller {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	store, err := content.Open(root, content.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	client, err := transfer.New(transfer.Options{Log: log, Attempts: 2, Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return &image.Puller{Store: store, Client: client, Log: log}
}

// check opens the image and reads all of its data.
func check(t *testing.T, p *image.Puller, ref string, files ...[]byte) {
	t.Helper()
	img, err := p.Open(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	for i, want := range files {
		got := make([]byte, len(want))
		if _, err := img.Layers[i].ReadAtContext(context.Background(), got, 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("layer %d has other bytes", i)
		}
	}
}

func TestOpenWithoutIndex(t *testing.T) {
	s := newServer(t, true)
	ref := s.host + "/app:1"
	tar1, file1 := layerTar(t, 1)
	tar2, file2 := layerTar(t, 2)
	s.push(t, ref, tar1, tar2, tar1)
	p := newPuller(t, t.TempDir())
	var seen atomic.Int64
	p.Progress = func(work string, _ digest.Digest, done, total int64) {
		if work != "fetch" || done > total {
			t.Errorf("%s: %d of %d", work, done, total)
		}
		seen.Store(done)
	}
	check(t, p, ref, file1, file2, file1)
	if seen.Load() == 0 {
		t.Error("no progress")
	}
	once := s.blobs.Load()
	check(t, p, ref, file1, file2, file1)
	if more := s.blobs.Load() - once; more > 2000 { // a config
		t.Errorf("a second mount fetched %d bytes of blobs", more)
	}
}

// One node indexes and pushes; the next one fetches only what it reads.
func TestPushedIndex(t *testing.T) {
	for _, referrers := range []bool{true, false} {
		t.Run(fmt.Sprintf("referrers API %v", referrers), func(t *testing.T) {
			s := newServer(t, referrers)
			ref := s.host + "/app:1"
			tar1, _ := layerTar(t, 1)
			tar2, file2 := layerTarOf(t, 2, 20<<20) // too long to be fetched whole
			img := s.push(t, ref, tar1, tar2)
			first := newPuller(t, t.TempDir())
			pushIndex(t, first, ref)
			before := s.blobs.Load()
			p := newPuller(t, t.TempDir())
			opened, err := p.Open(context.Background(), ref)
			if err != nil {
				t.Fatal(err)
			}
			defer opened.Close()
			got := make([]byte, 1000)
			if _, err := opened.Layers[1].ReadAtContext(context.Background(), got, 1<<20); err != nil || !bytes.Equal(got, file2[1<<20:1<<20+1000]) {
				t.Fatalf("wrong bytes (%v)", err)
			}
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			size, err := layers[1].Size()
			if err != nil {
				t.Fatal(err)
			}
			if fetched := s.blobs.Load() - before; fetched > size {
				t.Errorf("%d bytes were fetched for 1000 of a layer of %d", fetched, size)
			}
			report, err := p.Report(context.Background(), opened.Image)
			if err != nil || len(report) != 2 || !report[0].Lazy || !strings.Contains(report[0].Why, "artifact") {
				t.Errorf("report %+v (%v)", report, err)
			}
		})
	}
}

func pushIndex(t *testing.T, p *image.Puller, ref string) {
	t.Helper()
	img, err := p.Resolve(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	indices, err := p.Index(context.Background(), img, true)
	if err != nil {
		t.Fatal(err)
	}
	defer indices.Close()
	one, err := p.Push(context.Background(), img, indices)
	if err != nil {
		t.Fatal(err)
	}
	if two, err := p.Push(context.Background(), img, indices); err != nil || one != two {
		t.Errorf("pushed again it is %s, not %s (%v)", two, one, err)
	}
}

// What is cached opens without the registry, and without being let in.
func TestOffline(t *testing.T) {
	s := newServer(t, true)
	ref := s.host + "/app:1"
	tar1, file1 := layerTar(t, 1)
	s.push(t, ref, tar1)
	root := t.TempDir()
	check(t, newPuller(t, root), ref, file1)
	for name, fault := range map[string]*atomic.Bool{"off": &s.off, "denied": &s.denied} {
		t.Run(name, func(t *testing.T) {
			fault.Store(true)
			defer fault.Store(false)
			check(t, newPuller(t, root), ref, file1)
			if _, err := newPuller(t, t.TempDir()).Open(context.Background(), ref); err == nil {
				t.Error("an image that is not cached opens")
			}
		})
	}
	if _, err := newPuller(t, root).Open(context.Background(), s.host+"/app:gone"); !errors.Is(err, transfer.ErrNotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
}

// A tag that has moved is followed while the registry answers.
func TestTagMoves(t *testing.T) {
	s := newServer(t, true)
	ref := s.host + "/app:1"
	tar1, file1 := layerTar(t, 1)
	tar2, file2 := layerTar(t, 2)
	s.push(t, ref, tar1)
	p := newPuller(t, t.TempDir())
	check(t, p, ref, file1)
	s.push(t, ref, tar2)
	check(t, p, ref, file2)
	s.off.Store(true)
	check(t, p, ref, file2)
}

// A reference by digest that is cached costs no request.
func TestDigestIsNotAskedFor(t *testing.T) {
	s := newServer(t, true)
	tar1, file1 := layerTar(t, 1)
	img := s.push(t, s.host+"/app:1", tar1)
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref := s.host + "/app@" + d.String()
	p := newPuller(t, t.TempDir())
	check(t, p, ref, file1)
	before := p.Client.Stats().Requests
	check(t, p, ref, file1)
	if n := p.Client.Stats().Requests - before; n != 0 {
		t.Errorf("%d requests", n)
	}
}

// An index of another image, or damaged, does no harm: the layer is read whole.
func TestUselessIndex(t *testing.T) {
	s := newServer(t, true)
	ref := s.host + "/app:1"
	tar1, file1 := layerTar(t, 1)
	tar2, _ := layerTar(t, 2)
	s.push(t, ref, tar1)
	s.push(t, s.host+"/other:1", tar2)
	p := newPuller(t, t.TempDir())
	img, err := p.Resolve(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	other, err := p.Resolve(context.Background(), s.host+"/other:1")
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := p.Index(context.Background(), other, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{wrong.Raw[0], []byte("no index"), wrong.Raw[0][:300]} {
		if _, err := p.Push(context.Background(), img, &image.Indices{Raw: [][]byte{bad}}); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := p.AddIndices(context.Background(), img, img.Layers); err != nil || len(left) != 1 {
		t.Errorf("%d layers are left without an index (%v)", len(left), err)
	}
	check(t, newPuller(t, t.TempDir()), ref, file1)
}

func TestForeignLayer(t *testing.T) {
	s := newServer(t, true)
	ref := s.host + "/app:1"
	tar1, _ := layerTar(t, 1)
	for _, media := range []types.MediaType{types.DockerForeignLayer, types.OCIRestrictedLayer, types.OCIUncompressedRestrictedLayer} {
		s.pushLayers(t, ref, types.DockerManifestSchema2, layer{static.NewLayer(tar1, media), tar1})
		p := newPuller(t, t.TempDir())
		if _, err := p.Open(context.Background(), ref); err == nil || !strings.Contains(err.Error(), string(media)) {
			t.Errorf("%s: error %v", media, err)
		}
		img, err := p.Resolve(context.Background(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Index(context.Background(), img, true); err == nil || !strings.Contains(err.Error(), string(media)) {
			t.Errorf("%s: error of an index: %v", media, err)
		}
	}
}

func TestEntries(t *testing.T) {
	s := newServer(t, true)
	ref := s.host + "/app:1"
	tar1, file1 := layerTar(t, 1)
	s.push(t, ref, tar1)
	img, err := newPuller(t, t.TempDir()).Open(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	layers, err := img.Entries()
	if err != nil || len(layers) != 1 || len(layers[0]) != 1 {
		t.Fatalf("%v (%v)", layers, err)
	}
	if e := layers[0][0]; e.Name != "big1" || e.Type != index.Regular || e.Size != int64(len(file1)) {
		t.Errorf("%+v", e)
	}
}
