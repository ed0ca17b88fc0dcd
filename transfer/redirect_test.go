package transfer

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// store is a blob store at another host than the registry. Its addresses are
// signed and expire.
type store struct {
	*httptest.Server
	mu      sync.Mutex
	valid   string // the signature
	refusal int    // status for any other
	leaked  string // an Authorization header that reached it
	served  int    // requests
	refused int    // requests
}

func newStore(t *testing.T, layer []byte) *store {
	s := &store{valid: "sig-1", refusal: http.StatusForbidden}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.leaked += req.Header.Get("Authorization")
		if sig := req.URL.Query().Get("X-Signature"); sig != s.valid {
			s.refused++
			w.WriteHeader(s.refusal)
			_, _ = fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"wrong signature %s"}]}`, sig)
			return
		}
		s.served++
		serve(w, req, layer)
	}))
	t.Cleanup(s.Close)
	return s
}

// redirect sends the client to the store with a valid signature.
func (s *store) redirect(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	http.Redirect(w, req, s.URL+"/bucket/blob?"+url.Values{"X-Signature": {s.valid}}.Encode(), http.StatusTemporaryRedirect)
}

func (s *store) rotate(n, refusal int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.valid, s.refusal = fmt.Sprintf("sig-%d", n), refusal
}

func TestBlobRedirect(t *testing.T) {
	layer := randomBytes(10_000)
	blobs := newStore(t, layer)
	redirect := onBlob(layer, blobs.redirect)
	auth := &bearer{lifetime: 1000}
	reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		auth.spoil(w, req, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { redirect(w, req, honest) }))
	})
	b := openBlob(t, newClient(t, Options{Keychain: &keys{cfg: alice}}), reg, layer)
	check := func(what string, redirects int) {
		t.Helper()
		for off := range int64(3) {
			if got, _, err := read(t.Context(), b, off*100, 100); err != nil || !bytes.Equal(got, layer[off*100:off*100+100]) {
				t.Errorf("%s: got %d bytes, %v", what, len(got), err)
			}
		}
		if n := reg.count(b.d.Digest.String()); n != redirects {
			t.Errorf("%s: the registry was asked %d times, want %d", what, n, redirects)
		}
	}
	check("fresh", 1)
	check("remembered", 1)
	for i, code := range []int{400, 401, 403, 404, 410} {
		blobs.rotate(i+2, code)
		check(fmt.Sprintf("expired with %d", code), i+2)
	}
	if blobs.leaked != "" {
		t.Errorf("the store got %q", blobs.leaked)
	}
}

// Where the store is gone, the registry may know another.
func TestBlobStoreMoves(t *testing.T) {
	layer := randomBytes(10_000)
	first, second := newStore(t, layer), newStore(t, layer)
	at := first
	reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) {
		if at == nil {
			serve(w, req, layer)
			return
		}
		at.redirect(w, req)
	}))
	b := openBlob(t, newClient(t, Options{Attempts: 2}), reg, layer)
	if _, _, err := read(t.Context(), b, 0, 10); err != nil {
		t.Fatal(err)
	}
	at = second
	first.Close()
	if got, _, err := read(t.Context(), b, 0, 10); err != nil || !bytes.Equal(got, layer[:10]) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	at = nil // now the registry has it
	second.rotate(2, http.StatusForbidden)
	for range 2 {
		if got, _, err := read(t.Context(), b, 0, 10); err != nil || !bytes.Equal(got, layer[:10]) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
	}
	if second.refused != 1 {
		t.Errorf("the old place was asked %d times", second.refused)
	}
}

// A signed address that expires while it is read from is asked for again, and
// so is a token that expires at the same time.
func TestBlobRedirectExpires(t *testing.T) {
	layer := randomBytes(300_000)
	blobs := newStore(t, layer)
	expiries := 0
	blobs.Config.Handler = func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Query().Get("X-Signature") == blobs.valid {
				expiries++
				defer blobs.rotate(expiries+1, http.StatusForbidden)
				w = &cutter{w, 50_000}
			}
			inner.ServeHTTP(w, req)
		})
	}(blobs.Config.Handler)
	redirect := onBlob(layer, blobs.redirect)
	auth := &bearer{lifetime: 2}
	reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		auth.spoil(w, req, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { redirect(w, req, honest) }))
	})
	b := openBlob(t, newClient(t, Options{Keychain: &keys{cfg: alice}, Attempts: 100}), reg, layer)
	if got, _, err := read(t.Context(), b, 1, 299_999); err != nil || !bytes.Equal(got, layer[1:]) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if expiries < 6 || auth.issued < 3 || blobs.leaked != "" {
		t.Errorf("%d expiries, %d tokens, the store got %q", expiries, auth.issued, blobs.leaked)
	}
}

// A store that keeps answering with something else is left for the one that
// the registry names now.
func TestBlobStoreIsCaptured(t *testing.T) {
	layer := randomBytes(10_000)
	portal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush() // no length
		_, _ = w.Write([]byte(webPage))
	}))
	t.Cleanup(portal.Close)
	asked := 0
	reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, req *http.Request) {
		if asked++; asked == 1 {
			http.Redirect(w, req, portal.URL, http.StatusFound)
			return
		}
		serve(w, req, layer)
	}))
	b := openBlob(t, newClient(t, Options{}), reg, layer)
	got, whole, err := read(t.Context(), b, 100, 100)
	if err != nil || !whole || !bytes.Equal(got[len(webPage):], layer[len(webPage):]) {
		t.Errorf("got %d bytes, whole %v, %v", len(got), whole, err)
	}
	if got, _, err := read(t.Context(), b, 100, 100); err != nil || !bytes.Equal(got, layer[100:200]) {
		t.Errorf("afterwards: got %d bytes, %v", len(got), err)
	}
}

func TestBlobRefusesDowngrade(t *testing.T) {
	layer := randomBytes(100)
	blobs := newStore(t, layer)
	reg := newTLSRegistry(t, onBlob(layer, blobs.redirect))
	b := openBlob(t, newClient(t, Options{CAFile: reg.ca}), reg.testRegistry, layer)
	_, _, err := read(t.Context(), b, 0, 10)
	if err == nil || !strings.Contains(err.Error(), "refused to be sent from HTTPS to plain HTTP") || blobs.served != 0 {
		t.Errorf("got %v", err)
	}
}
