package transfer

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// putOneAndMany stores an image under the tag one, and an index that lists it
// under the tag many. It returns the manifest's digest and size.
func (r *testRegistry) putOneAndMany() (digest.Digest, int64) {
	r.t.Helper()
	d := r.putImage("one", []byte("a"))
	w := httptest.NewRecorder()
	r.inner.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/app/manifests/one", nil))
	size := int64(w.Body.Len())
	r.putManifest("many", ocispec.MediaTypeImageIndex, marshal(r.t, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		Manifests: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: size}},
	}))
	return d, size
}

// A manifest that does not have the digest that it was asked for by, or that the
// registry gives beside it, is asked for again.
func TestResolveDamaged(t *testing.T) {
	cut := func(b []byte) []byte { return b[:len(b)-1] }
	longer := func(b []byte) []byte { return append(b, ' ') }
	flipped := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for name, damage := range map[string]func([]byte) []byte{"cut": cut, "longer": longer, "flipped": flipped} {
		for _, tag := range []string{"one", "many"} {
			t.Run(name+" "+tag, func(t *testing.T) {
				var left atomic.Int64 // manifests to damage
				reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
					if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, "/manifests/") || left.Add(-1) < 0 {
						honest.ServeHTTP(w, req)
						return
					}
					rec := httptest.NewRecorder()
					honest.ServeHTTP(rec, req)
					w.Header().Set("Docker-Content-Digest", rec.Header().Get("Docker-Content-Digest"))
					_, _ = w.Write(damage(rec.Body.Bytes()))
				})
				d, _ := reg.putOneAndMany()
				for n := range int64(3) {
					left.Store(n)
					if img := newClient(t, Options{}).resolve(t, reg.host+"/app:"+tag); img.Digest != d {
						t.Errorf("after %d damaged answers it is %s", n, img.Digest)
					}
				}
				left.Store(1 << 30)
				_, err := newClient(t, Options{Attempts: 2}).Resolve(t.Context(), reg.host+"/app:"+tag)
				if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "the manifest is damaged: the registry says that it is") || left.Load() != 1<<30-2 {
					t.Errorf("got %v", err)
				}
				_, err = newClient(t, Options{Attempts: 1}).Resolve(t.Context(), reg.host+"/app@"+d.String())
				if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "it was asked for by "+d.String()) {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

// Where an index says how long a manifest is, so does the error about another.
func TestResolveShort(t *testing.T) {
	one := digest.FromString("not known yet")
	reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if strings.HasSuffix(req.URL.Path, one.String()) {
			_, _ = w.Write([]byte("{}"))
			return
		}
		honest.ServeHTTP(w, req)
	})
	var size int64
	one, size = reg.putOneAndMany()
	_, err := newClient(t, Options{Attempts: 1}).Resolve(t.Context(), reg.host+"/app:many")
	if err == nil || !strings.Contains(err.Error(), "what came is 2 bytes") || !strings.Contains(err.Error(), fmt.Sprintf("its descriptor says %d bytes", size)) {
		t.Errorf("got %v", err)
	}
}
