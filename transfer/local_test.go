package transfer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// testLayout is the files of an image layout.
type testLayout struct {
	t     testing.TB
	files map[string][]byte
	index ocispec.Index
}

func newLayout(t testing.TB) *testLayout {
	l := &testLayout{t: t, files: map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}}
	l.index = ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	l.list()
	return l
}

// list adds entries to index.json.
func (l *testLayout) list(entries ...ocispec.Descriptor) {
	l.t.Helper()
	l.index.Manifests = append(l.index.Manifests, entries...)
	l.files["index.json"] = marshal(l.t, l.index)
}

// blob adds a blob.
func (l *testLayout) blob(mediaType string, b []byte) ocispec.Descriptor {
	d := descriptor(mediaType, b)
	l.files[blobName(d.Digest)] = b
	return d
}

// image adds an image of gzip layers, which it does not list.
func (l *testLayout) image(tars ...[]byte) ocispec.Descriptor {
	l.t.Helper()
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	cfg.RootFS.Type = "layers"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, b := range tars {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(b))
		m.Layers = append(m.Layers, l.blob(ocispec.MediaTypeImageLayerGzip, gzipped(l.t, b)))
	}
	m.Config = l.blob(ocispec.MediaTypeImageConfig, marshal(l.t, cfg))
	return l.blob(ocispec.MediaTypeImageManifest, marshal(l.t, m))
}

// referrer adds a manifest that refers to another one, and does not list it.
func (l *testLayout) referrer(subject ocispec.Descriptor, artifactType, note string) ocispec.Descriptor {
	l.t.Helper()
	return l.blob(ocispec.MediaTypeImageManifest, marshal(l.t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType,
		Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{ocispec.DescriptorEmptyJSON},
		Subject: &subject, Annotations: map[string]string{"note": note},
	}))
}

func tagged(d ocispec.Descriptor, tag string) ocispec.Descriptor {
	d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	return d
}

// folderOf writes files to a new folder and returns its path.
func folderOf(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	for name, b := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, path, b)
	}
	return dir
}

func writeFile(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// tarOf returns a tar file of regular files, in the order of their names, and
// of what more adds.
func tarOf(t testing.TB, files map[string][]byte, more ...tar.Header) []byte {
	t.Helper()
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		more = append(more, tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))})
	}
	for _, h := range more {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[h.Name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fileOf writes bytes to a new file and returns its path.
func fileOf(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive.tar")
	writeFile(t, path, b)
	return path
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(b)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func mapFS(files map[string][]byte) fstest.MapFS {
	m := fstest.MapFS{}
	for name, b := range files {
		m[name] = &fstest.MapFile{Data: b}
	}
	return m
}

// run runs a program that writes or reads images.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("the package %s is not installed", name)
		}
		t.Skipf("the package %s is not installed", name)
	}
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// testTars are the tar files of two layers, the second one of 300 kB.
func testTars(t testing.TB) [][]byte {
	return [][]byte{
		tarOf(t, map[string][]byte{"etc/hostname": []byte("lower\n")}),
		tarOf(t, map[string][]byte{"big": randomBytes(300_000), "etc/hostname": []byte("upper\n")}),
	}
}

// sources puts the same two layers into every kind of source, and returns the
// references.
func sources(t *testing.T) map[string]string {
	t.Helper()
	tars := testTars(t)
	l := newLayout(t)
	d := l.image(tars...)
	l.list(tagged(d, "1"))
	dir, tmp := folderOf(t, l.files), t.TempDir()
	reg := newRegistry(t, nil)
	for _, b := range l.files {
		reg.putBlob(b)
	}
	reg.putManifest("1", d.MediaType, l.files[blobName(d.Digest)])
	run(t, "skopeo", "copy", "oci:"+dir+":1", "oci-archive:"+tmp+"/oci.tar:1")
	run(t, "skopeo", "copy", "oci:"+dir+":1", "docker-archive:"+tmp+"/docker.tar:app:1")
	b, err := os.ReadFile(tmp + "/docker.tar")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, tmp+"/docker.tgz", gzipped(t, b))
	return map[string]string{
		"registry":           reg.host + "/app:1",
		"layout":             "oci:" + dir + ":1",
		"layout, no tag":     "oci:" + dir,
		"layout by digest":   "oci:" + dir + "@" + d.Digest.String(),
		"OCI archive":        "oci-archive:" + tmp + "/oci.tar:1",
		"docker archive":     "docker-archive:" + tmp + "/docker.tar:app:1",
		"gzip":               "docker-archive:" + tmp + "/docker.tgz",
		"archive of layout":  "oci-archive:" + fileOf(t, tarOf(t, l.files)),
		"old docker archive": "docker-archive:" + fileOf(t, oldDockerArchive(t, "app:1", tars...)) + ":docker.io/library/app:1",
	}
}

// Every source does the same.
func TestSources(t *testing.T) {
	tars := testTars(t)
	t.Setenv("TMPDIR", t.TempDir())
	for name, ref := range sources(t) {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, Options{ReferrersAhead: true})
			img := c.resolve(t, ref)
			if img.Reference != ref || img.MediaType != ocispec.MediaTypeImageManifest || len(img.Layers) != 2 || img.Digest != digest.FromBytes(img.Manifest) {
				t.Fatalf("resolved %+v", img)
			}
			img.ahead.Store(nil)
			again, err := ParseImage(img.Reference, img.Manifest, img.Config)
			if err != nil || !reflect.DeepEqual(again, img) {
				t.Errorf("ParseImage = %+v, %v; want %+v", again, err, img)
			}
			for i, l := range again.Layers {
				testBlob(t, c.Blob(again, l.Descriptor), tars[i], l)
			}
			if list, err := c.Referrers(t.Context(), img, ""); err != nil || len(list) != 0 {
				t.Errorf("referrers %+v, %v", list, err)
			}
			if err := c.FetchBlob(t.Context(), img, descriptor("", []byte("nothing")), io.Discard); !errors.Is(err, ErrNotFound) {
				t.Errorf("a blob that is not there: %v", err)
			}
		})
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// testBlob compares a layer's blob with the tar file that is in it.
func testBlob(t *testing.T, b *Blob, want []byte, l Layer) {
	t.Helper()
	all, whole, err := read(t.Context(), b, 0, l.Size)
	if err != nil || !whole || digest.FromBytes(all) != l.Digest || int64(len(all)) != l.Size {
		t.Fatalf("%+v: read %d bytes, whole %v, %v", l, len(all), whole, err)
	}
	content := all
	if l.MediaType == ocispec.MediaTypeImageLayerGzip {
		z, err := gzip.NewReader(bytes.NewReader(all))
		if err != nil {
			t.Fatal(err)
		}
		if content, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(content, want) || digest.FromBytes(content) != l.DiffID {
		t.Errorf("layer %s has other contents", l.Digest)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		off := rng.Int64N(l.Size)
		n := rng.Int64N(l.Size - off)
		if got, whole, err := read(t.Context(), b, off, n); err != nil || whole || !bytes.Equal(got, all[off:off+n]) {
			t.Errorf("%d bytes at %d: got %d, whole %v, %v", n, off, len(got), whole, err)
		}
	}
	if _, _, err := b.Open(t.Context(), 1, l.Size); err == nil {
		t.Error("opened beyond the end")
	}
}

func TestLocalBlobEnds(t *testing.T) {
	l := newLayout(t)
	l.list(l.image(testTars(t)...))
	for name, ref := range map[string]string{"layout": "oci:" + folderOf(t, l.files), "archive": "oci-archive:" + fileOf(t, tarOf(t, l.files))} {
		c := newClient(t, Options{})
		img := c.resolve(t, ref)
		ctx, cancel := context.WithCancel(t.Context())
		body, _, err := c.Blob(img, img.Layers[1].Descriptor).Open(ctx, 0, 100_000)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(body, make([]byte, 10)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		if n, err := body.Read(make([]byte, 1)); n != 0 || !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: after the context's end: %d, %v", name, n, err)
		}
		if body, _, err = c.Blob(img, img.Layers[1].Descriptor).Open(t.Context(), 0, 100_000); err != nil {
			t.Fatal(err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
		if n, err := body.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: after Close: %d, %v", name, n, err)
		}
		if s := c.Stats(); s != (Stats{}) {
			t.Errorf("%s: over the wire: %+v", name, s)
		}
	}
}

// What is away is not the same as what is not there: it may come back.
func TestLocalAway(t *testing.T) {
	for name, ref := range sources(t) {
		scheme, rest, _ := strings.Cut(ref, ":")
		if name == "registry" {
			continue
		}
		path, _, _ := strings.Cut(rest, ":")
		path, _, _ = strings.Cut(path, "@")
		c := newClient(t, Options{})
		img := c.resolve(t, ref)
		b := c.Blob(img, img.Layers[0].Descriptor)
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.Open(t.Context(), 0, 10); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), path+": no such file") {
			t.Errorf("%s: open a blob: %v", name, err)
		}
		if _, err := c.Resolve(t.Context(), scheme+":"+rest); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), path+": no such file") {
			t.Errorf("%s: resolve: %v", name, err)
		}
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
		if _, _, err := read(t.Context(), b, 0, 10); err != nil {
			t.Errorf("%s: when it is back: %v", name, err)
		}
	}
}

// brokenFS fails to open any file.
type brokenFS struct{ err error }

func (b brokenFS) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: b.err}
}

func TestLocalErrors(t *testing.T) {
	kinds := []error{ErrNotFound, ErrUnauthorized, ErrUnavailable}
	for err, want := range map[error]error{
		unix.ENOENT: ErrNotFound,
		unix.EACCES: ErrUnauthorized,
		unix.EPERM:  ErrUnauthorized,
		unix.EIO:    ErrUnavailable,
		unix.ESTALE: ErrUnavailable,
		unix.ELOOP:  nil,
	} {
		_, got := openFile(brokenFS{err}, "x")
		for _, kind := range kinds {
			if errors.Is(got, kind) != (kind == want) || !errors.Is(got, err) {
				t.Errorf("%v became %v; want it to be %v", err, got, want)
			}
		}
	}
}

// A file that is shorter than it was, or longer, is no blob.
func TestLocalBlobSizes(t *testing.T) {
	l := newLayout(t)
	l.list(l.image(testTars(t)...))
	dir := folderOf(t, l.files)
	c := newClient(t, Options{})
	img := c.resolve(t, "oci:"+dir)
	d := img.Layers[1].Descriptor
	b, path := c.Blob(img, d), filepath.Join(dir, blobName(d.Digest))
	body, _, err := b.Open(t.Context(), 0, d.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if err := os.Truncate(path, 1000); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(body); !errors.Is(err, io.ErrUnexpectedEOF) || len(got) > 1000 || !strings.Contains(err.Error(), "at byte 1000") {
		t.Errorf("cut while it is read: %d bytes, %v", len(got), err)
	}
	for _, size := range []int64{0, 1000, d.Size - 1, d.Size + 1} {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.Open(t.Context(), 0, 10); err == nil || !strings.Contains(err.Error(), "descriptor says") {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
