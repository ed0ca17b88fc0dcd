package transfer

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPushManifest(t *testing.T) {
	reg := newRegistry(t, nil)
	reg.putImage("1", []byte("layer"))
	c := newClient(t, Options{})
	img := c.resolve(t, reg.host+"/app:1")
	d := push(t, c, img, indexType, BytesBlob("application/x", map[string]string{"b": "2", "a": "1"}, []byte("data")))
	raw, doc, err := c.source(img.at, "pull").manifest(t.Context(), d.String())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"` + indexType + `",` +
		`"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"data":"e30="},` +
		`"layers":[{"mediaType":"application/x","digest":"` + digest.FromString("data").String() + `","size":4,"annotations":{"a":"1","b":"2"}}],` +
		`"subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + img.Digest.String() + `","size":` + strconv.Itoa(len(img.Manifest)) + `}}`
	if string(raw) != want {
		t.Errorf("manifest:\n%s\nwant:\n%s", raw, want)
	}
	if doc.artifactType() != indexType {
		t.Errorf("artifact type %q", doc.artifactType())
	}
	if !reg.has("/v2/app/blobs/" + ocispec.DescriptorEmptyJSON.Digest.String()) {
		t.Error("the empty config was not pushed")
	}
	puts := reg.count("/blobs/uploads/")
	push(t, c, img, indexType, BytesBlob("application/x", map[string]string{"a": "1", "b": "2"}, []byte("data")))
	if again := reg.count("/blobs/uploads/"); again != puts {
		t.Errorf("%d requests to upload what was there", again-puts)
	}
}

// A token to pull with is not enough; one to push with is asked for at once.
func TestPushScope(t *testing.T) {
	auth := &bearer{lifetime: 1000}
	reg := newRegistry(t, auth.spoil)
	reg.putImage("1", []byte("layer"))
	c := newClient(t, Options{Keychain: &keys{cfg: alice}})
	img := c.resolve(t, reg.host+"/app:1")
	push(t, c, img, indexType, BytesBlob("x", nil, []byte("data")))
	if auth.scopes != "repository:app:push,pull" || auth.asked != 2 {
		t.Errorf("scope %q after %d tokens", auth.scopes, auth.asked)
	}
}

func TestPushFile(t *testing.T) {
	b := randomBytes(1 << 20)
	path := filepath.Join(t.TempDir(), "index")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var failures atomic.Int64
	reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if req.Method == http.MethodPut && req.ContentLength == 1<<20 && failures.Add(1) <= 2 {
			_, _ = io.CopyN(io.Discard, req.Body, 1000)
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		honest.ServeHTTP(w, req)
	})
	reg.putImage("1", []byte("layer"))
	c := newClient(t, Options{})
	img := c.resolve(t, reg.host+"/app:1")
	blob := ArtifactBlob{MediaType: "x", Digest: digest.FromBytes(b), Size: int64(len(b)), Open: func() (io.ReadCloser, error) { return os.Open(path) }}
	push(t, c, img, indexType, blob)
	var buf bytes.Buffer
	if err := c.FetchBlob(t.Context(), img, descriptor("", b), &buf); err != nil || !bytes.Equal(buf.Bytes(), b) {
		t.Errorf("fetched %d bytes, %v", buf.Len(), err)
	}
	if failures.Load() != 3 {
		t.Errorf("sent %d times, want 3", failures.Load())
	}
}

// The fallback tag keeps what others put there, also if they overwrite it
// while we do.
func TestPushConcurrently(t *testing.T) {
	theirs := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/x","digest":"` +
		digest.SHA512.FromString("theirs").String() + `","size":6,"annotations":{"kept":"yes"}}]}`)
	var overwrite sync.Once
	reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if strings.Contains(req.URL.Path, "/referrers/") {
			http.NotFound(w, req)
			return
		}
		if req.Method == http.MethodPut && strings.Contains(req.URL.Path, "/manifests/sha256-") {
			overwrite.Do(func() { req.Body = io.NopCloser(bytes.NewReader(theirs)) })
		}
		honest.ServeHTTP(w, req)
	})
	reg.putImage("1", []byte("layer"))
	c := newClient(t, Options{})
	img := c.resolve(t, reg.host+"/app:1")
	var wg sync.WaitGroup
	for _, s := range []string{"a", "b", "c"} {
		wg.Go(func() {
			if _, err := c.PushArtifact(t.Context(), img, indexType, []ArtifactBlob{BytesBlob("x", nil, []byte(s))}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := c.Referrers(t.Context(), img, "")
	if err != nil || len(list) != 4 || !reflect.DeepEqual(list[0].Annotations, map[string]string{"kept": "yes"}) {
		t.Errorf("%d entries, %+v, %v", len(list), list, err)
	}
}

func TestPushFails(t *testing.T) {
	for name, tc := range map[string]struct {
		method, path string
		answer       http.HandlerFunc
		want         string
		is           error
	}{
		"not allowed":         {http.MethodPost, "/blobs/uploads/", answer(403, ""), "docker login", ErrUnauthorized},
		"no upload address":   {http.MethodPost, "/blobs/uploads/", answer(202, ""), "no usable address", nil},
		"blob refused":        {http.MethodPut, "/blobs/uploads/", answer(400, `{"errors":[{"code":"DIGEST_INVALID"}]}`), "DIGEST_INVALID", nil},
		"manifest refused":    {http.MethodPut, "/manifests/sha256:", answer(400, `{"errors":[{"code":"MANIFEST_INVALID","message":"no subjects here"}]}`), "MANIFEST_INVALID: no subjects here", nil},
		"tag is write-locked": {http.MethodPut, "/manifests/sha256-", answer(405, ""), "405", nil},
		"tag is never there":  {http.MethodPut, "/manifests/sha256-", answer(201, ""), "keeps losing", nil},
		"unavailable":         {http.MethodHead, "/blobs/", answer(503, ""), "503", ErrUnavailable},
	} {
		reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
			switch {
			case req.Method == tc.method && strings.Contains(req.URL.Path, tc.path):
				tc.answer(w, req)
			case strings.Contains(req.URL.Path, "/referrers/"):
				http.NotFound(w, req)
			default:
				honest.ServeHTTP(w, req)
			}
		})
		reg.putImage("1", []byte("layer"))
		c := newClient(t, Options{})
		img := c.resolve(t, reg.host+"/app:1")
		_, err := c.PushArtifact(t.Context(), img, indexType, []ArtifactBlob{BytesBlob("x", nil, []byte("data"))})
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "attach "+indexType+" to "+img.Reference) || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: got %v, want %q and %v", name, err, tc.want, tc.is)
		}
	}
}

// A registry that redirects to a blob has it. Where it leads is not asked: the
// address may be signed for GET alone.
func TestPushBlobElsewhere(t *testing.T) {
	reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if req.Method == http.MethodHead {
			http.Redirect(w, req, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
			return
		}
		honest.ServeHTTP(w, req)
	})
	reg.putImage("1", []byte("layer"))
	c := newClient(t, Options{})
	push(t, c, c.resolve(t, reg.host+"/app:1"), indexType, BytesBlob("x", nil, []byte("data")))
	if n := reg.count("/uploads/"); n != 0 {
		t.Errorf("%d uploads", n)
	}
}
