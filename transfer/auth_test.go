package transfer

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
)

// keys is a keychain with one credential, which a test can change.
type keys struct {
	mu  sync.Mutex
	cfg authn.AuthConfig
}

func (k *keys) Resolve(authn.Resource) (authn.Authenticator, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cfg == (authn.AuthConfig{}) {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(k.cfg), nil
}

func (k *keys) set(cfg authn.AuthConfig) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cfg = cfg
}

// bearer makes a registry ask for tokens, which it gives to alice.
type bearer struct {
	mu       sync.Mutex
	issued   int    // tokens
	uses     int    // left of the last one
	lifetime int    // uses of a token
	scopes   string // asked for last
	anyone   bool   // may have a token
	asked    int    // requests for a token
	answer   string // of the token server, if not a token
}

func (b *bearer) spoil(w http.ResponseWriter, req *http.Request, honest http.Handler) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if req.URL.Path == "/token" {
		b.asked++
		user, pass, _ := req.BasicAuth()
		if req.FormValue("refresh_token") == "s3cret-identity" { // OAuth 2
			user, pass = "alice", "s3cret-password"
		}
		switch {
		case b.answer != "":
			_, _ = w.Write([]byte(b.answer))
		case b.anyone || user == "alice" && pass == "s3cret-password":
			b.issued++
			b.uses, b.scopes = b.lifetime, req.URL.Query().Get("scope")
			_, _ = fmt.Fprintf(w, `{"token":"t0ken-%d"}`, b.issued)
		default:
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}`))
		}
		return
	}
	pushes := req.Method != http.MethodGet && req.Method != http.MethodHead
	if req.Header.Get("Authorization") != fmt.Sprintf("Bearer t0ken-%d", b.issued) || b.uses == 0 || pushes && !strings.Contains(b.scopes, "push") {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, req.Host))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	b.uses--
	honest.ServeHTTP(w, req)
}

var alice = authn.AuthConfig{Username: "alice", Password: "s3cret-password"}

func TestBearer(t *testing.T) {
	auth := &bearer{lifetime: 1000}
	reg := newRegistry(t, auth.spoil)
	reg.putImage("1", []byte("a"))
	c := newClient(t, Options{Keychain: &keys{cfg: alice}})
	c.resolve(t, reg.host+"/app:1")
	if n := c.Stats().Requests; n != 4 {
		t.Errorf("%d requests, want 4: refused, token, manifest, config", n)
	}
	if auth.scopes != "repository:app:pull" {
		t.Errorf("scope %q", auth.scopes)
	}
	c.resolve(t, reg.host+"/app:1")
	if auth.asked != 1 {
		t.Errorf("%d tokens for one repository", auth.asked)
	}
}

func TestBearerCredentials(t *testing.T) {
	for name, tc := range map[string]struct {
		auth *bearer
		cfg  authn.AuthConfig
	}{
		"anonymous":      {&bearer{anyone: true}, authn.AuthConfig{}},
		"identity token": {&bearer{}, authn.AuthConfig{IdentityToken: "s3cret-identity"}},
		"access token":   {&bearer{answer: `{"access_token":"t0ken-0"}`}, alice},
		"registry token": {&bearer{}, authn.AuthConfig{RegistryToken: "t0ken-0"}},
	} {
		tc.auth.lifetime, tc.auth.uses = 10, 10
		reg := newRegistry(t, tc.auth.spoil)
		reg.putImage("1", []byte("a"))
		c := newClient(t, Options{Keychain: &keys{cfg: tc.cfg}})
		if _, err := c.Resolve(t.Context(), reg.host+"/app:1"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A token that expires in the middle of a layer is renewed, also when the
// connection breaks at the same time.
func TestBearerExpires(t *testing.T) {
	layer := randomBytes(100_000)
	auth := &bearer{lifetime: 3}
	reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if req.URL.Path == "/v2/app/blobs/"+digest.FromBytes(layer).String() {
			w = &cutter{w, 10_000}
		}
		auth.spoil(w, req, honest)
	})
	c := newClient(t, Options{Keychain: &keys{cfg: alice}, Attempts: 100})
	b := openBlob(t, c, reg, layer)
	if got, _, err := read(t.Context(), b, 1, 99_999); err != nil || !bytes.Equal(got, layer[1:]) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if auth.issued < 4 {
		t.Errorf("%d tokens", auth.issued)
	}
}

// However many requests a refused token fails, one new token is asked for.
func TestBearerRenewedOnce(t *testing.T) {
	const parallel = 8
	layer := randomBytes(1000)
	auth := &bearer{lifetime: 1000}
	var refused sync.WaitGroup
	refused.Add(parallel)
	reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if req.Header.Get("Authorization") == "Bearer expired" {
			refused.Done()
			refused.Wait() // all are refused before any asks for a token
		}
		auth.spoil(w, req, honest)
	})
	c := newClient(t, Options{Keychain: &keys{cfg: alice}})
	b := openBlob(t, c, reg, layer)
	expired := "Bearer expired"
	b.from.(*remoteBlob).r.auth.Store(&expired)
	auth.asked = 0
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			if got, _, err := read(t.Context(), b, 0, 10); err != nil || !bytes.Equal(got, layer[:10]) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if auth.asked != 1 {
		t.Errorf("%d tokens asked for", auth.asked)
	}
}

func TestBearerRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg    authn.AuthConfig
		answer string
		want   string
		is     error
	}{
		"wrong password":    {authn.AuthConfig{Username: "alice", Password: "wr0ng-password"}, "", "wrong password", ErrUnauthorized},
		"nobody":            {authn.AuthConfig{}, "", `"docker login 127.0.0.1:`, ErrUnauthorized},
		"refused token":     {authn.AuthConfig{RegistryToken: "s3cret-token"}, "", "401", ErrUnauthorized},
		"token is refused":  {alice, `{"token":"s3cret-other"}`, "401", ErrUnauthorized},
		"no token":          {alice, `{"refresh_token":"s3cret-refresh"}`, "no token", nil},
		"token server HTML": {alice, `<html>`, "not JSON", nil},
	} {
		auth := &bearer{lifetime: 10, answer: tc.answer}
		reg := newRegistry(t, auth.spoil)
		reg.putImage("1", []byte("a"))
		_, err := newClient(t, Options{Keychain: &keys{cfg: tc.cfg}}).Resolve(t.Context(), reg.host+"/app:1")
		if err == nil || !strings.Contains(err.Error(), tc.want) || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: got %v, want %q and %v", name, err, tc.want, tc.is)
		}
		if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "wr0ng")) {
			t.Errorf("%s: a secret is in %v", name, err)
		}
	}
}

// basic makes a registry ask for a password.
func basic(password *string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if _, pass, ok := req.BasicAuth(); !ok || pass != *password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		honest.ServeHTTP(w, req)
	}
}

func TestBasic(t *testing.T) {
	password := alice.Password
	reg := newRegistry(t, basic(&password))
	reg.putImage("1", []byte("a"))
	ref := reg.host + "/app:1"
	k := &keys{cfg: alice}
	c := newClient(t, Options{Keychain: k})
	c.resolve(t, ref)
	if n := c.Stats().Requests; n != 3 {
		t.Errorf("%d requests, want 3", n)
	}

	// Passwords from credential helpers expire. Refused once is enough to
	// know that one has, and the helper has another.
	password = "n3w-password"
	before := c.Stats().Requests
	if _, err := c.Resolve(t.Context(), ref); !errors.Is(err, ErrUnauthorized) || c.Stats().Requests != before+1 {
		t.Errorf("got %v after %d requests", err, c.Stats().Requests-before)
	}
	k.set(authn.AuthConfig{Auth: "YWxpY2U6bjN3LXBhc3N3b3Jk"}) // alice:n3w-password
	c.resolve(t, ref)
}

// leaks are faults in which registries and stores repeat what is secret.
func leaks(blobs *store, layer []byte) map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"expired address": func(w http.ResponseWriter, req *http.Request) {
			blobs.redirect(w, req)
			blobs.rotate(99, http.StatusForbidden)
		},
		"store is broken": func(w http.ResponseWriter, req *http.Request) {
			blobs.redirect(w, req)
			blobs.rotate(100, http.StatusServiceUnavailable)
		},
		"store is gone": func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, "http://127.0.0.1:1/x?X-Signature=sig-1", http.StatusFound)
		},
		"user in the address": func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, "http://u:s3cret@127.0.0.1:1/x", http.StatusFound)
		},
		"bad address": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://[bad?X-Signature=sig-1")
			w.WriteHeader(http.StatusFound)
		},
		"registry repeats the query": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"errors":[{"code":"DENIED","message":"no to https://x/?X-Signature=sig-1 and eyJhbGciOiJub25lIn0.t0ken.xxxxxxxxxxxxxxxxxxxxxxxx"}]}`))
		},
		"registry repeats the header": func(w http.ResponseWriter, req *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(req.Header.Get("Authorization")))
		},
		"cut": func(w http.ResponseWriter, req *http.Request) {
			serve(&cutter{w, 5}, req, layer)
		},
	}
}

// Nothing secret is in any error or log, whatever goes wrong.
func TestNoSecrets(t *testing.T) {
	layer := randomBytes(50_000)
	secrets := []string{"s3cret", "t0ken", "sig-", "YWxpY2U6", "X-Signature"}
	blobs := newStore(t, layer)
	auth := &bearer{lifetime: 1 << 30}
	var fault http.HandlerFunc
	reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if fault != nil && req.URL.Path != "/token" && req.Header.Get("Authorization") != "" {
			fault(w, req)
			return
		}
		auth.spoil(w, req, honest)
	})
	c := newClient(t, Options{Keychain: &keys{cfg: alice}, Attempts: 2})
	b := openBlob(t, c, reg, layer)
	for name, f := range leaks(blobs, layer) {
		fault = f
		_, _, err := read(t.Context(), b, 1, 1000)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, s := range secrets {
			if strings.Contains(err.Error(), s) {
				t.Errorf("%s: %q is in the error %v", name, s, err)
			}
		}
	}
	if !strings.Contains(c.log.String(), "attempt=1") {
		t.Errorf("nothing was logged:\n%s", &c.log)
	}
	for _, s := range secrets {
		if strings.Contains(c.log.String(), s) {
			t.Errorf("%q is in the log:\n%s", s, &c.log)
		}
	}
}
