package peeld_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
)

// file is an entry of a layer that a test makes.
type file struct {
	name, data string
	tar.Header
}

func regular(name, data string) file {
	return file{name, data, tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}}
}

func layerOf(t *testing.T, files ...file) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := f.Header
		h.Name, h.Size = f.name, int64(len(f.data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// imageOf makes an image of the layers, for this machine's platform.
func imageOf(t *testing.T, layers ...mutate.Addendum) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Append(img, layers...); err != nil {
		t.Fatal(err)
	}
	return img
}

// noise is n bytes that do not compress.
func noise(n int) string {
	out := make([]byte, n)
	x := uint64(n)
	for i := range out {
		x = x*6364136223846793005 + 1442695040888963407
		out[i] = byte(x >> 56)
	}
	return string(out)
}

// A chain of layers of every kind is one file system: read whole since it is
// small or has no index, foreign and got from where the image says, and not to
// be shown alone.
func TestMixedChain(t *testing.T) {
	needRoot(t)
	foreign := layerOf(t, regular("foreign", "f"))
	blob, err := foreign.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	defer elsewhere.Close()
	big := noise(200_000)
	img := imageOf(t,
		mutate.Addendum{Layer: layerOf(t, regular("dir/big", big), regular("dir/gone", "x"))},
		mutate.Addendum{Layer: foreign, MediaType: types.OCIRestrictedLayer, URLs: []string{elsewhere.URL + "/layer"}},
		mutate.Addendum{Layer: layerOf(t, file{"dir/hard", "", tar.Header{Typeflag: tar.TypeLink, Linkname: "dir/big"}})},
		mutate.Addendum{Layer: layerOf(t, regular("dir/.wh.gone", ""), regular("small", "s"))},
	)
	push(t, img, "mixed", false)
	n := newNode(t, link.Options{}, "")
	root, err := n.Mount(t.Context(), n.pull(t, "mixed"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"dir/big": big, "dir/hard": big, "foreign": "f", "small": "s"} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s has %d bytes that are not those of the image, %v", name, len(got), err)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "dir/gone")); !os.IsNotExist(err) {
		t.Errorf("a file that a layer removes is there: %v", err)
	}
	n.noneLeft(t)
	if got := n.lowers(t); got != 2 {
		t.Errorf("%d layers are mounted, want the first and the last", got)
	}
}

// As many layers as an image may have.
func Test127Layers(t *testing.T) {
	needRoot(t)
	var layers []mutate.Addendum
	for i := range 127 {
		layers = append(layers, mutate.Addendum{Layer: layerOf(t, regular(fmt.Sprintf("file-%03d", i), fmt.Sprint(i)), regular("last", fmt.Sprint(i)))})
	}
	push(t, imageOf(t, layers...), "many", false)
	n := newNode(t, link.Options{}, "")
	root, err := n.Mount(t.Context(), n.pull(t, "many"))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 63, 126} {
		if got, err := os.ReadFile(filepath.Join(root, fmt.Sprintf("file-%03d", i))); err != nil || string(got) != fmt.Sprint(i) {
			t.Errorf("layer %d: got %q, %v", i, got, err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(root, "last")); err != nil || string(got) != "126" {
		t.Errorf("the last layer's file has %q, %v", got, err)
	}
	n.noneLeft(t)
}

// With index = "eager" an image without indices is unpacked, by peeld and not
// by containerd.
func TestEager(t *testing.T) {
	img := made(t, images.Python)
	push(t, img, img.Name+"-eager", false)
	n := newNode(t, link.Options{}, "index = \"eager\"\nsmall_layer = 0")
	if out := n.run(t, n.pull(t, img.Name+"-eager")); !strings.Contains(out, images.Ready) {
		t.Errorf("it printed %q", out)
	}
	if got := n.lowers(t); got != 0 {
		t.Errorf("%d layers are mounted, and all should be unpacked", got)
	}
	n.noneLeft(t)
}

// With index = "push" the first node that has to read an image whole makes it
// lazy for all others.
func TestSecondNode(t *testing.T) {
	img := made(t, images.Python)
	repo := img.Name + "-second"
	push(t, img, repo, false)
	first := newNode(t, link.Options{}, `index = "push"`)
	if out := first.run(t, first.pull(t, repo)); !strings.Contains(out, images.Ready) {
		t.Errorf("it printed %q", out)
	}
	if err := first.peeld.WaitForLog(t.Context(), "indices are attached"); err != nil {
		t.Fatal(err)
	}
	second := newNode(t, link.Options{}, "")
	if out := second.run(t, second.pull(t, repo)); !strings.Contains(out, images.Ready) {
		t.Errorf("it printed %q", out)
	}
	if got, all := second.link.Received(), compressed(t, img); got > all/4 {
		t.Errorf("the second node took %d of %d bytes", got, all)
	}
	first.noneLeft(t)
	second.noneLeft(t)
}
