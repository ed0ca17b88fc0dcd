package transfer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const indexType = "application/vnd.example.index.v1"

// onReferrers makes a spoil function that only touches the Referrers API.
func onReferrers(f http.HandlerFunc) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if strings.Contains(req.URL.Path, "/referrers/") {
			f(w, req)
		} else {
			honest.ServeHTTP(w, req)
		}
	}
}

// conformant adds what go-containerregistry's registry lacks: artifact types,
// the filter, one entry a page, and the confirmation of a subject.
type conformant struct{ list []ocispec.Descriptor }

func (c *conformant) spoil(w http.ResponseWriter, req *http.Request, honest http.Handler) {
	switch {
	case strings.Contains(req.URL.Path, "/referrers/"):
		var left []ocispec.Descriptor
		for _, d := range c.list {
			if f := req.URL.Query().Get("artifactType"); (f == "" || f == d.ArtifactType) && d.Digest.String() > req.URL.Query().Get("last") {
				left = append(left, d)
			}
		}
		if len(left) > 1 {
			left = left[:1]
			q := req.URL.Query()
			q.Set("last", left[0].Digest.String())
			w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, req.URL.Path, q.Encode()))
		}
		b, _ := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: left})
		_, _ = w.Write(b)
	case req.Method == http.MethodPut && strings.Contains(req.URL.Path, "/manifests/"):
		b, _ := io.ReadAll(req.Body)
		req.Body = io.NopCloser(bytes.NewReader(b))
		var m ocispec.Manifest
		_ = json.Unmarshal(b, &m)
		d := descriptor(m.MediaType, b)
		if d.ArtifactType = m.ArtifactType; !slices.ContainsFunc(c.list, func(o ocispec.Descriptor) bool { return o.Digest == d.Digest }) {
			c.list = append(c.list, d)
			slices.SortFunc(c.list, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
		}
		w.Header().Set("OCI-Subject", m.Subject.Digest.String())
		honest.ServeHTTP(w, req)
	default:
		honest.ServeHTTP(w, req)
	}
}

func answer(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}
}

const webPage = "<!DOCTYPE html><title>Welcome to our registry</title>"

// An artifact that was pushed is found again in every kind of registry.
func TestArtifact(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil    func(http.ResponseWriter, *http.Request, http.Handler)
		fallback bool
	}{
		"Referrers API":                        {new(conformant).spoil, false},
		"Referrers API without artifact types": {nil, false},
		"no Referrers API":                     {onReferrers(http.NotFound), true},
		"web page":                             {onReferrers(answer(200, webPage)), true},
		"garbage":                              {onReferrers(answer(200, `{"ok":true}`)), true},
		"400":                                  {onReferrers(answer(400, "")), true},
		"401":                                  {onReferrers(answer(401, "")), true},
		"403":                                  {onReferrers(answer(403, "")), true},
		"405":                                  {onReferrers(answer(405, "")), true},
		"501":                                  {onReferrers(answer(501, "")), true},
	} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t, tc.spoil)
			reg.putImage("1", []byte("layer"))
			c := newClient(t, Options{})
			img := c.resolve(t, reg.host+"/app:1")
			if list, err := c.Referrers(t.Context(), img, ""); err != nil || len(list) != 0 {
				t.Errorf("before: %v, %v", list, err)
			}
			one, two := randomBytes(100_000), []byte("two")
			blobs := []ArtifactBlob{BytesBlob("application/one", map[string]string{"layer": "1"}, one), BytesBlob("application/two", nil, two)}
			d := push(t, c, img, indexType, blobs...)
			push(t, c, img, "application/other", BytesBlob("x", nil, two))
			if again := push(t, c, img, indexType, blobs...); again != d {
				t.Errorf("pushed again as %s, was %s", again, d)
			}
			if all, err := c.Referrers(t.Context(), img, ""); err != nil || len(all) != 2 {
				t.Errorf("all: %+v, %v", all, err)
			}
			list, err := c.Referrers(t.Context(), img, indexType)
			if err != nil || len(list) != 1 || list[0].ArtifactType != indexType || list[0].Digest != d {
				t.Fatalf("listed %+v, %v; want %s", list, err, d)
			}
			if tagged := reg.has("/v2/app/manifests/" + fallbackTag(img.Digest)); tagged != tc.fallback {
				t.Errorf("fallback tag written: %v", tagged)
			}
			a, err := c.Artifact(t.Context(), img, list[0])
			if err != nil || a.Digest != d || a.ArtifactType != indexType || len(a.Blobs) != 2 || a.Blobs[0].Annotations["layer"] != "1" {
				t.Fatalf("%+v, %v", a, err)
			}
			var buf bytes.Buffer
			if err := c.FetchBlob(t.Context(), img, a.Blobs[0], &buf); err != nil || !bytes.Equal(buf.Bytes(), one) {
				t.Errorf("fetched %d bytes, %v", buf.Len(), err)
			}
		})
	}
}

// has reports whether the honest registry has something.
func (r *testRegistry) has(path string) bool {
	w := httptest.NewRecorder()
	r.inner.ServeHTTP(w, httptest.NewRequest(http.MethodHead, path, nil))
	return w.Code == http.StatusOK
}

func push(t *testing.T, c *testClient, img *Image, artifactType string, blobs ...ArtifactBlob) digest.Digest {
	t.Helper()
	d, err := c.PushArtifact(t.Context(), img, artifactType, blobs)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestReferrersAhead(t *testing.T) {
	reg := newRegistry(t, onReferrers(http.NotFound))
	reg.putImage("1", []byte("layer"))
	c := newClient(t, Options{ReferrersAhead: true})
	d := push(t, c, c.resolve(t, reg.host+"/app:1"), indexType)
	img := c.resolve(t, reg.host+"/app:1")
	before := c.Stats().Requests
	list, err := c.Referrers(t.Context(), img, indexType)
	if err != nil || len(list) != 1 || list[0].Digest != d || c.Stats().Requests != before {
		t.Errorf("%+v, %v after %d requests", list, err, c.Stats().Requests-before)
	}
	push(t, c, img, indexType, BytesBlob("x", nil, []byte("new")))
	if list, err = c.Referrers(t.Context(), img, indexType); err != nil || len(list) != 2 {
		t.Errorf("the second time: %+v, %v", list, err)
	}
}

func TestReferrersFail(t *testing.T) {
	for name, tc := range map[string]struct {
		api, tag http.HandlerFunc
		want     string
		is       error
	}{
		"unavailable":      {answer(503, ""), nil, "503", ErrUnavailable},
		"tag unavailable":  {http.NotFound, answer(503, ""), "503", ErrUnavailable},
		"not authorized":   {answer(401, ""), answer(401, ""), "401", ErrUnauthorized},
		"web pages only":   {answer(200, webPage), answer(200, webPage), "read manifest sha256-", nil},
		"tag is no index":  {http.NotFound, answer(200, `{"schemaVersion":2,"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}`), "not an index", nil},
		"no manifest now":  {answer(200, `{"schemaVersion":2,"manifests":[{"digest":"`+digest.FromString("x").String()+`"}]}`), answer(503, ""), "503", ErrUnavailable},
		"broken next page": {brokenPage, nil, "page 2", nil},
	} {
		reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
			switch {
			case strings.Contains(req.URL.Path, "/referrers/"):
				tc.api(w, req)
			case strings.Contains(req.URL.Path, "/manifests/sha256"):
				tc.tag(w, req)
			default:
				honest.ServeHTTP(w, req)
			}
		})
		reg.putImage("1", []byte("layer"))
		c := newClient(t, Options{ReferrersAhead: true}) // its failure does not fail Resolve
		img := c.resolve(t, reg.host+"/app:1")
		list, err := c.Referrers(t.Context(), img, indexType)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), img.Reference) || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: %v, %v; want %q and %v", name, list, err, tc.want, tc.is)
		}
	}
}

func brokenPage(w http.ResponseWriter, req *http.Request) {
	if req.URL.Query().Get("page") == "2" {
		_, _ = w.Write([]byte(webPage))
		return
	}
	w.Header().Set("Link", `<?page=2>; rel="next"`)
	_, _ = w.Write([]byte(`{"schemaVersion":2,"manifests":[]}`))
}

// Entries of others do not hide ours: other digests, missing manifests, other
// kinds of document, and a link that leads away or round in a circle.
func TestReferrersOfOthers(t *testing.T) {
	var list string
	reg := newRegistry(t, onReferrers(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Link", fmt.Sprintf(`<http://r.test%s>; rel="next"`, req.URL.Path))
		_, _ = w.Write([]byte(list))
	}))
	d := reg.putImage("1", []byte("layer"))
	index := reg.putManifest("", ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[]}`))
	garbage := reg.putManifest("", "application/x", []byte(`garbage`))
	list = fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":"sha512:1"},{"digest":"../../x"},{"digest":%q},{"digest":%q},{"digest":%q},{"digest":%q,"artifactType":%q}]}`,
		digest.FromString("missing"), index, garbage, d, indexType)
	c := newClient(t, Options{})
	img := c.resolve(t, reg.host+"/app:1")
	got, err := c.Referrers(t.Context(), img, indexType)
	if err != nil || len(got) != 1 || got[0].Digest != d {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestReferrerPages(t *testing.T) {
	reg := newRegistry(t, onReferrers(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Link", `<?again>; rel=next`)
		_, _ = w.Write([]byte(`{"schemaVersion":2,"manifests":[]}`))
	}))
	reg.putImage("1", []byte("layer"))
	c := newClient(t, Options{})
	img := c.resolve(t, reg.host+"/app:1")
	if _, err := c.Referrers(t.Context(), img, ""); err != nil || reg.count("/referrers/") != maxReferrerPages {
		t.Errorf("%d pages, %v", reg.count("/referrers/"), err)
	}
}

func TestArtifactRefuses(t *testing.T) {
	reg := newRegistry(t, nil)
	reg.putImage("1", []byte("layer"))
	reg.putImage("2", []byte("other"))
	c := newClient(t, Options{})
	img, other := c.resolve(t, reg.host+"/app:1"), c.resolve(t, reg.host+"/app:2")
	foreign := push(t, c, other, indexType)
	index := reg.putManifest("", ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[]}`))
	for d, want := range map[digest.Digest]string{
		foreign:                      "does not refer to " + img.Digest.String(),
		img.Digest:                   "does not refer to",
		index:                        "an index",
		digest.FromString("missing"): "404",
		"../../../x":                 "digest",
	} {
		a, err := c.Artifact(t.Context(), img, ocispec.Descriptor{Digest: d})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want %q", d, a, err, want)
		}
	}
}
