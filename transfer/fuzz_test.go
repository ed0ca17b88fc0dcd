package transfer

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// sameAnswer is a transport that gives every request the same answer.
type sameAnswer struct {
	code   int
	header http.Header
	body   []byte
	asked  []*http.Request
}

func (a *sameAnswer) RoundTrip(req *http.Request) (*http.Response, error) {
	a.asked = append(a.asked, req)
	return &http.Response{
		StatusCode: a.code, Header: a.header, Request: req,
		Body: io.NopCloser(bytes.NewReader(a.body)), ContentLength: int64(len(a.body)),
	}, nil
}

// client returns a client whose every request gets the answer.
func (a *sameAnswer) client(t testing.TB) *testClient {
	c := newClient(t, Options{Attempts: 1})
	c.wire.next = a
	return c
}

// FuzzLogin gives any challenge (WWW-Authenticate), and any answer to the
// request for a token. A password goes to no other host than a challenge over
// TLS names, and never in the clear.
func FuzzLogin(f *testing.F) {
	f.Add(`Bearer realm="https://auth.test/token",service="r.test",scope="repository:app:pull"`, []byte(`{"token":"t","expires_in":60}`))
	f.Add(`Basic realm="r.test"`, []byte(nil))
	f.Add(`bearer realm=http://plain.test/,service="\"",x`, []byte(`{"access_token":"a","token":["x"]}`))
	f.Add(`Bearer realm="http://plain.test/token",service="r.test"`, []byte(`{"token":"t"}`))
	f.Add(`Negotiate, Bearer realm="`, []byte(`<html>`))
	f.Fuzz(func(t *testing.T, challenge string, token []byte) {
		a := &sameAnswer{code: http.StatusOK, header: http.Header{}, body: token}
		n, err := name.NewRepository("r.test/app")
		if err != nil {
			t.Fatal(err)
		}
		r := newRepo(a.client(t).Client, n, "pull")
		refused := &http.Response{
			StatusCode: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {challenge}}, Body: http.NoBody,
			Request: newRequest(t.Context(), http.MethodGet, r.url("manifests/1")),
		}
		cfg := authn.AuthConfig{Username: "u", Password: "secret"}
		got, err := r.authorization(t.Context(), refused, authn.FromConfig(cfg), &cfg)
		if scheme, _, _ := strings.Cut(got, " "); err == nil && got != "" && scheme != "Basic" && scheme != "Bearer" {
			t.Errorf("%q gives %q", challenge, got)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", challenge, err)
		}
		for _, req := range a.asked {
			if req.URL.Scheme != "https" && !isLoopback(req.URL.Host) && req.Header.Get("Authorization") != "" {
				t.Errorf("%q: the password goes to %s", challenge, safeURL(req.URL))
			}
		}
	})
}

// FuzzNextPage gives any Link header: the next page is the same registry's.
func FuzzNextPage(f *testing.F) {
	f.Add(`</v2/app/referrers/x?n=2>; rel="next"`)
	f.Add(`<//evil.test/x>; rel=next`)
	f.Add(`<http://r.test:80/x>;rel="next", <y>; rel="last"`)
	u := &url.URL{Scheme: "https", Host: "r.test", Path: "/v2/app/referrers/x"}
	f.Fuzz(func(t *testing.T, link string) {
		if next := nextPage(u, http.Header{"Link": {link}}); next != nil && !sameHost(next, u.Host) {
			t.Errorf("%q leads to %s", link, next)
		}
	})
}

// FuzzStatusError gives any failure with any body: what is shown of it is one
// short line.
func FuzzStatusError(f *testing.F) {
	f.Add(404, []byte(`{"errors":[{"code":"NAME_UNKNOWN","message":"no such thing"}]}`))
	f.Add(500, []byte(`{"errors":[{"code":null,"message":"a\nb\u001b"}]}`))
	f.Add(403, []byte(`<html>`))
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		a := &sameAnswer{code: code, body: body}
		resp, err := a.RoundTrip(newRequest(t.Context(), http.MethodGet, &url.URL{Scheme: "https", Host: "r.test", Path: "/v2/"}))
		if err != nil {
			t.Fatal(err)
		}
		if text := newStatusError(resp, "r.test").Error(); len(text) > 2000 || strings.ContainsAny(text, "\n\x1b\x00") {
			t.Errorf("%d %q gives %q", code, body, text)
		}
	})
}

// pages is a source whose documents are any bytes.
type pages struct{ list, one []byte }

func (p pages) referrers(context.Context, digest.Digest, string) ([]ocispec.Descriptor, error) {
	doc, err := parseDocument(p.list)
	if err != nil {
		return nil, err
	}
	return doc.Manifests, nil
}

func (p pages) manifest(context.Context, string) ([]byte, *document, error) {
	doc, err := parseDocument(p.one)
	return p.one, doc, err
}

func (p pages) blob(ocispec.Descriptor) opener { return nil }

// FuzzReferrers gives any list of what refers to an image, and any manifest for
// each entry that does not say its type.
func FuzzReferrers(f *testing.F) {
	const id = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
	list := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":"` + id + `","artifactType":"t"},{"digest":"` + id + `"},{"digest":"x"}]}`
	f.Add([]byte(list), []byte(`{"schemaVersion":2,"artifactType":"t","config":{"digest":"`+id+`","size":2},"layers":[]}`), "t")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{}]}`), []byte(`{"schemaVersion":2,"manifests":[]}`), "")
	f.Fuzz(func(t *testing.T, list, manifest []byte, artifactType string) {
		img := &Image{Digest: id}
		found, err := listReferrers(t.Context(), pages{list, manifest}, img, artifactType)
		for _, d := range found {
			if err != nil || artifactType != "" && d.ArtifactType != artifactType {
				t.Errorf("%+v is not a %q (%v)", d, artifactType, err)
			}
		}
	})
}
