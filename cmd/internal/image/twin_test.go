package image_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
)

func zstandard(t *testing.T, p []byte) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	return enc.EncodeAll(p, nil)
}

// twinned is an image of a gzip layer, and of a layer that is one zstd frame,
// twice.
type twinned struct {
	*server
	ref   string
	blob  string // digest of the zstd layer
	gzip  []byte // data of the gzip layer
	frame []byte // data of the zstd layer
}

func newTwinned(t *testing.T) *twinned {
	t.Helper()
	s := newServer(t, true)
	made.once.Do(func() {
		tar1, file1 := layerTar(t, 1)
		tar2, file2 := layerTarOf(t, 2, format.LongSpan+10<<20) // too long to be fetched whole
		made.data = [2][]byte{file1, file2}
		made.layers = [2]layer{
			{static.NewLayer(gzipped(t, tar1), types.OCILayer), tar1},
			{static.NewLayer(zstandard(t, tar2), types.OCILayerZStd), tar2},
		}
	})
	frame := made.layers[1]
	d, err := frame.Digest()
	if err != nil {
		t.Fatal(err)
	}
	x := &twinned{server: s, ref: s.host + "/app:1", blob: d.String(), gzip: made.data[0], frame: made.data[1]}
	s.pushLayers(t, x.ref, types.OCIManifestSchema1, made.layers[0], frame, frame)
	return x
}

// made is what the tests share, because it takes its time.
var made struct {
	once   sync.Once
	data   [2][]byte
	layers [2]layer
}

// open opens the image on a new store.
func (x *twinned) open(t *testing.T) *image.Image {
	t.Helper()
	img, err := newPuller(t, t.TempDir()).Open(context.Background(), x.ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	})
	return img
}

// delete makes the registry lose a blob.
func (x *twinned) delete(t *testing.T, blob string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodDelete, x.URL+"/v2/app/blobs/"+blob, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("delete %s: %s", blob, resp.Status)
	}
}

// read reads the n bytes at off of the zstd layer, whose only file is at 0.
func (x *twinned) read(t *testing.T, l *content.Layer, off, n int) {
	t.Helper()
	got := make([]byte, n)
	if _, err := l.ReadAtContext(context.Background(), got, int64(off)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, x.frame[off:off+n]) {
		t.Fatalf("wrong bytes at %d", off)
	}
}

// One node indexes and pushes; the next one reads ranges of the twin, and
// nothing of the layer itself.
func TestTwin(t *testing.T) {
	x := newTwinned(t)
	first := newPuller(t, t.TempDir())
	pushIndex(t, first, x.ref)
	before := x.sentOf(x.blob).Load()
	if size := int64(len(x.frame)); before > size {
		t.Errorf("%d bytes of the layer were read to index it", before)
	}
	img := x.open(t)
	l := img.Layers[1]
	if l != img.Layers[2] {
		t.Error("a layer that occurs twice is two layers")
	}
	h := &l.Index().Header
	if h.Twin == "" || img.Layers[0].Index().Twin != "" {
		t.Fatalf("twins %q and %q", h.Twin, img.Layers[0].Index().Twin)
	}
	x.read(t, l, len(x.frame)/2, 1000)
	if n := x.sentOf(h.Twin.String()).Load(); n == 0 || n > h.TwinSize/5 {
		t.Errorf("%d of the twin's %d bytes were sent for 1000", n, h.TwinSize)
	}
	x.read(t, l, 0, len(x.frame))
	if err := l.Verify(context.Background()); err != nil {
		t.Error(err)
	}
	if n := x.sentOf(x.blob).Load(); n != before {
		t.Errorf("%d bytes of the layer itself were sent", n-before)
	}
	if n := x.sentOf(h.Twin.String()).Load(); n != h.TwinSize {
		t.Errorf("%d bytes of the twin were sent, it has %d", n, h.TwinSize)
	}
}

// The node that has pushed an index has it, too.
func TestTwinWherePushed(t *testing.T) {
	x := newTwinned(t)
	p := newPuller(t, t.TempDir())
	pushIndex(t, p, x.ref)
	before := x.sentOf(x.blob).Load()
	check(t, p, x.ref, x.gzip, x.frame, x.frame)
	if n := x.sentOf(x.blob).Load(); n != before {
		t.Errorf("%d bytes of the layer itself were sent", n-before)
	}
}

// An index does not get into the store while its twin is not in the registry.
func TestTwinIsNotPushed(t *testing.T) {
	x := newTwinned(t)
	p := newPuller(t, t.TempDir())
	img, err := p.Resolve(context.Background(), x.ref)
	if err != nil {
		t.Fatal(err)
	}
	indices, err := p.Index(context.Background(), img, true)
	if err != nil {
		t.Fatal(err)
	}
	defer indices.Close()
	if indices.TwinBytes() == 0 {
		t.Error("no twin")
	}
	check(t, p, x.ref, x.gzip, x.frame, x.frame)
}

// What the registry has is not made again; what it has lost is.
func TestTwinIsPushedAgain(t *testing.T) {
	x := newTwinned(t)
	p := newPuller(t, t.TempDir())
	pushIndex(t, p, x.ref)
	before := x.sentOf(x.blob).Load()
	pushIndex(t, p, x.ref)
	if n := x.sentOf(x.blob).Load(); n != before {
		t.Errorf("%d bytes of the layer were read again", n-before)
	}
	img, err := p.Resolve(context.Background(), x.ref)
	if err != nil {
		t.Fatal(err)
	}
	indices, err := p.Index(context.Background(), img, true)
	if err != nil {
		t.Fatal(err)
	}
	defer indices.Close()
	x.delete(t, x.open(t).Layers[1].Index().Twin.String())
	if _, err := p.Push(context.Background(), img, indices); err == nil || !strings.Contains(err.Error(), "not any more") {
		t.Errorf("the twin is neither here nor there: %v", err)
	}
	pushIndex(t, p, x.ref)
	x.read(t, x.open(t).Layers[1], 5<<20, 1000)
}

// Without a push there is no twin, and --show says what it costs.
func TestNoTwinWithoutPush(t *testing.T) {
	x := newTwinned(t)
	root := t.TempDir()
	p := newPuller(t, root)
	img, err := p.Resolve(context.Background(), x.ref)
	if err != nil {
		t.Fatal(err)
	}
	indices, err := p.Index(context.Background(), img, false)
	if err != nil {
		t.Fatal(err)
	}
	if n := indices.TwinBytes(); n != 0 {
		t.Errorf("twins of %d bytes", n)
	}
	check(t, p, x.ref, x.gzip, x.frame, x.frame)
	pushIndex(t, p, x.ref) // although the store has an index that will do without a push
	h := x.open(t).Layers[1].Index().Header
	if h.Twin == "" {
		t.Error("no twin was pushed")
	}
	report, err := newPuller(t, t.TempDir()).Report(context.Background(), img)
	if err != nil {
		t.Fatal(err)
	}
	if r := report[1]; !r.Lazy || r.TwinBytes != h.TwinSize || !strings.Contains(r.Why, "twin") {
		t.Errorf("report %+v", r)
	}
	if r := report[0]; !r.Lazy || r.TwinBytes != 0 || strings.Contains(r.Why, "twin") {
		t.Errorf("report %+v", r)
	}
}

// A layer without spans says why it is not lazy.
func TestReportWithoutSpans(t *testing.T) {
	s := newServer(t, true)
	ref := s.host + "/app:1"
	small, _ := layerTarOf(t, 4, 1000)
	tarball := append(small, make([]byte, index.MaxSpan)...)
	s.pushLayers(t, ref, types.OCIManifestSchema1, layer{static.NewLayer(zstandard(t, tarball), types.OCILayerZStd), tarball})
	p := newPuller(t, t.TempDir())
	img, err := p.Resolve(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Index(context.Background(), img, false); err != nil {
		t.Fatal(err)
	}
	report, err := p.Report(context.Background(), img)
	if err != nil || report[0].Lazy || !strings.Contains(report[0].Why, "no place to resume within 32 MiB") || !strings.Contains(report[0].Why, "--push") {
		t.Errorf("report %+v (%v)", report, err)
	}
}

// Bytes of a twin that are not what the index says are fetched once more, and
// never shown.
func TestTwinDamaged(t *testing.T) {
	x := newTwinned(t)
	pushIndex(t, newPuller(t, t.TempDir()), x.ref)
	l := x.open(t).Layers[1]
	d := &damage{blob: l.Index().Twin.String()}
	x.damage.Store(d)
	d.times.Store(1)
	x.read(t, l, 1<<20, 1000)
	if st := l.Stats(); st.Refetched != 1 {
		t.Errorf("%+v", st)
	}
	d.times.Store(1 << 30)
	n, err := l.ReadAtContext(context.Background(), make([]byte, 1000), 8<<20)
	if n != 0 || !errors.Is(err, format.ErrCorrupt) {
		t.Errorf("%d bytes, error %v", n, err)
	}
	x.damage.Store(nil)
	x.read(t, l, 8<<20, 1000)
}

// What a layer is compressed with is seen, whatever its media type says.
func TestMediaTypes(t *testing.T) {
	tarball, file := layerTarOf(t, 3, 100_000)
	empty := make([]byte, 1024) // a tar without entries
	encodings := map[string]func([]byte) []byte{
		"tar":  func(p []byte) []byte { return p },
		"gzip": func(p []byte) []byte { return gzipped(t, p) },
		"zstd": func(p []byte) []byte { return zstandard(t, p) },
	}
	medias := map[types.MediaType]types.MediaType{
		types.OCILayer: types.OCIManifestSchema1, types.OCILayerZStd: types.OCIManifestSchema1, types.OCIUncompressedLayer: types.OCIManifestSchema1,
		types.DockerLayer: types.DockerManifestSchema2, types.DockerUncompressedLayer: types.DockerManifestSchema2,
		"application/vnd.docker.image.rootfs.diff.tar.zstd": types.DockerManifestSchema2,
	}
	for media, manifest := range medias {
		for name, encode := range encodings {
			t.Run(string(media)+" "+name, func(t *testing.T) {
				s := newServer(t, true)
				ref := s.host + "/app:1"
				var layers []layer
				for _, tarball := range [][]byte{tarball, empty, nil} {
					layers = append(layers, layer{static.NewLayer(encode(tarball), media), tarball})
				}
				s.pushLayers(t, ref, manifest, layers...)
				check(t, newPuller(t, t.TempDir()), ref, file)
				p := newPuller(t, t.TempDir())
				pushIndex(t, p, ref)
				img, err := p.Open(context.Background(), ref)
				if err != nil {
					t.Fatal(err)
				}
				defer img.Close()
				for _, l := range img.Layers[1:] { // nothing to fetch
					if err := l.Verify(context.Background()); err != nil {
						t.Error(err)
					}
				}
				check(t, p, ref, file)
			})
		}
	}
}
