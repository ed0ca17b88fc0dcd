package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAttach(t *testing.T) {
	l := newLayout(t)
	d := l.image([]byte("layer"))
	// What this package does not know stays.
	l.files["index.json"] = []byte(`{"schemaVersion":2,"vnd.example":{"b":1,"a":1e400},"manifests":[{"vnd.example":true,"mediaType":"` + d.MediaType + `","digest":"` + d.Digest.String() + `","size":0}]}`)
	dir := folderOf(t, l.files)
	if err := os.Chmod(dir+"/index.json", 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, Options{})
	img := c.resolve(t, "oci:"+dir)
	one := randomBytes(100_000)
	pushed := push(t, c, img, indexType, BytesBlob("application/one", map[string]string{"layer": "1"}, one))

	list, err := c.Referrers(t.Context(), img, indexType)
	if err != nil || len(list) != 1 || list[0].Digest != pushed || list[0].ArtifactType != indexType {
		t.Fatalf("listed %+v, %v; want %s", list, err, pushed)
	}
	a, err := c.Artifact(t.Context(), img, list[0])
	if err != nil || len(a.Blobs) != 1 || a.Blobs[0].Annotations["layer"] != "1" {
		t.Fatalf("%+v, %v", a, err)
	}
	var buf bytes.Buffer
	if err := c.FetchBlob(t.Context(), img, a.Blobs[0], &buf); err != nil || !bytes.Equal(buf.Bytes(), one) {
		t.Errorf("fetched %d bytes, %v", buf.Len(), err)
	}
	if again := c.resolve(t, "oci:"+dir); again.Digest != img.Digest {
		t.Errorf("now the image is %s", again.Digest)
	}
	index := readAll(t, dir+"/index.json")
	for _, part := range []string{`"vnd.example":{"b":1,"a":1e400}`, `{"vnd.example":true,`, `"artifactType":"` + indexType + `"`} {
		if !bytes.Contains(index, []byte(part)) {
			t.Errorf("%s is not in %s", part, index)
		}
	}
	info, err := os.Stat(dir + "/index.json")
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("index.json: %v, %v", info.Mode(), err)
	}
	checkFiles(t, dir, len(l.files)+3) // manifest, empty config, blob

	// The same artifact again changes nothing, but repairs what is damaged.
	path := filepath.Join(dir, blobName(a.Blobs[0].Digest))
	writeFile(t, path, one[1:])
	push(t, c, img, indexType, BytesBlob("application/one", map[string]string{"layer": "1"}, one))
	if !bytes.Equal(readAll(t, path), one) {
		t.Error("the damaged blob was left as it was")
	}
	if again, err := os.Stat(dir + "/index.json"); err != nil || !os.SameFile(again, info) {
		t.Errorf("index.json was written again, %v", err)
	}
}

// checkFiles checks that every blob of a layout has its digest, and that there
// are n files in all.
func checkFiles(t *testing.T, dir string, n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		n--
		if strings.Contains(path, "/blobs/") && filepath.Base(path) != digest.FromBytes(readAll(t, path)).Encoded() {
			t.Errorf("%s has another digest", path)
		}
		return nil
	})
	if err != nil || n != 0 {
		t.Errorf("%d files are missing, %v", n, err)
	}
}

// Whoever attaches at the same time, nothing is lost.
func TestAttachConcurrently(t *testing.T) {
	l := newLayout(t)
	d := l.image([]byte("layer"))
	l.list(tagged(d, "1"))
	dir := folderOf(t, l.files)
	var wg sync.WaitGroup
	for i := range 5 {
		c := newClient(t, Options{})
		img := c.resolve(t, "oci:"+dir+":1")
		wg.Go(func() {
			for j := range 3 {
				if _, err := c.PushArtifact(t.Context(), img, indexType, []ArtifactBlob{BytesBlob("x", nil, []byte{byte(i), byte(j)})}); err != nil {
					t.Error(err)
				}
				if _, err := c.Resolve(t.Context(), "oci:"+dir+":1"); err != nil { // never half an index.json
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	c := newClient(t, Options{})
	list, err := c.Referrers(t.Context(), c.resolve(t, "oci:"+dir), indexType)
	if err != nil || len(list) != 15 {
		t.Errorf("%d artifacts, %v", len(list), err)
	}
	checkFiles(t, dir, len(l.files)+31)
}

func TestAttachFails(t *testing.T) {
	l := newLayout(t)
	l.list(l.image([]byte("layer")))
	data := BytesBlob("x", nil, []byte("data"))
	short, wrong, broken, hostile := data, data, data, data
	short.Size++
	wrong.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("atad")), nil }
	broken.Open = func() (io.ReadCloser, error) { return nil, errors.New("no such data") }
	hostile.Digest = "sha256:../../../x"
	for name, tc := range map[string]struct {
		blob   ArtifactBlob
		damage func(dir string) error
		want   string
		is     error
	}{
		"wrong size":       {short, nil, "write blob " + short.Digest.String() + ": what came has 4 bytes", nil},
		"wrong digest":     {wrong, nil, "what came has 4 bytes and digest", nil},
		"does not open":    {broken, nil, "no such data", nil},
		"hostile digest":   {hostile, nil, "digest", nil},
		"layout is away":   {data, os.RemoveAll, "no such file", ErrUnavailable},
		"no layout":        {data, func(dir string) error { return os.Remove(dir + "/oci-layout") }, "no such file", ErrNotFound},
		"no index":         {data, func(dir string) error { return os.Remove(dir + "/index.json") }, "list the artifact in index.json", ErrNotFound},
		"index is damaged": {data, func(dir string) error { return os.WriteFile(dir+"/index.json", []byte("{"), 0o644) }, "read index.json", nil},
		"index is full":    {data, fillIndex, "more than 4194304", nil},
		"blobs lead away": {data, func(dir string) error {
			return errors.Join(os.RemoveAll(dir+"/blobs"), os.Symlink(os.TempDir(), dir+"/blobs"))
		}, "escapes", nil},
		"blobs is no folder": {data, func(dir string) error {
			return errors.Join(os.RemoveAll(dir+"/blobs"), os.WriteFile(dir+"/blobs", nil, 0o644))
		}, "not a directory", nil},
	} {
		dir := folderOf(t, l.files)
		c := newClient(t, Options{})
		img := c.resolve(t, "oci:"+dir)
		if tc.damage != nil {
			if err := tc.damage(dir); err != nil {
				t.Fatal(err)
			}
		}
		before, _ := os.ReadFile(dir + "/index.json")
		_, err := c.PushArtifact(t.Context(), img, indexType, []ArtifactBlob{tc.blob})
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "attach "+indexType+" to oci:"+dir) || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: got %v, want %q and %v", name, err, tc.want, tc.is)
		}
		if after, _ := os.ReadFile(dir + "/index.json"); !bytes.Equal(before, after) {
			t.Errorf("%s: index.json has changed", name)
		}
		if _, err := os.Lstat(filepath.Join(dir, tempFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the temporary file: %v", name, err)
		}
	}
}

// fillIndex makes index.json as large as it may be.
func fillIndex(dir string) error {
	b, err := os.ReadFile(dir + "/index.json")
	if err != nil {
		return err
	}
	b = append(b[:len(b)-1], `,"annotations":{"x":"`...)
	b = append(b, bytes.Repeat([]byte("x"), maxManifest-len(b)-3)...)
	return os.WriteFile(dir+"/index.json", append(b, `"}}`...), 0o644)
}

// A process that was killed leaves its temporary file, which may be anything.
func TestAttachAfterKill(t *testing.T) {
	l := newLayout(t)
	l.list(l.image([]byte("layer")))
	dir := folderOf(t, l.files)
	c := newClient(t, Options{})
	img := c.resolve(t, "oci:"+dir)
	if err := os.Symlink(ocispec.ImageIndexFile, filepath.Join(dir, tempFile)); err != nil {
		t.Fatal(err)
	}
	push(t, c, img, indexType, BytesBlob("x", nil, []byte("data")))
	if list, err := c.Referrers(t.Context(), img, indexType); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	checkFiles(t, dir, len(l.files)+3)
}

func TestAttachWaits(t *testing.T) {
	l := newLayout(t)
	l.list(l.image([]byte("layer")))
	dir := folderOf(t, l.files)
	c := newClient(t, Options{})
	img := c.resolve(t, "oci:"+dir)
	root, err := openRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	release, err := lockLayout(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	if _, err := c.PushArtifact(ctx, img, indexType, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "lock oci-layout") {
		t.Errorf("got %v", err)
	}
	checkFiles(t, dir, len(l.files))
	time.AfterFunc(3*lockPoll, release)
	push(t, c, img, indexType)
}

func TestAttachToArchive(t *testing.T) {
	l := newLayout(t)
	l.list(l.image([]byte("layer")))
	for _, ref := range []string{
		"oci-archive:" + fileOf(t, tarOf(t, l.files)),
		"docker-archive:" + fileOf(t, oldDockerArchive(t, "app:1", []byte("layer"))),
	} {
		c := newClient(t, Options{})
		_, err := c.PushArtifact(t.Context(), c.resolve(t, ref), indexType, nil)
		if err == nil || !strings.Contains(err.Error(), "skopeo copy "+ref+" oci:FOLDER:TAG") {
			t.Errorf("got %v", err)
		}
	}
}
