package transfer

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// tlsRegistry speaks HTTPS, and HTTP/2 where the client does.
type tlsRegistry struct {
	*testRegistry
	ca     string // file
	protos sync.Map
}

func newTLSRegistry(t *testing.T, spoil func(http.ResponseWriter, *http.Request, http.Handler)) *tlsRegistry {
	t.Helper()
	r := &tlsRegistry{testRegistry: newRegistry(t, nil)}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.protos.Store(req.Proto, true)
		if spoil != nil {
			spoil(w, req, r.inner)
		} else {
			r.inner.ServeHTTP(w, req)
		}
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "https://")
	r.ca = filepath.Join(t.TempDir(), "ca.pem")
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(r.ca, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTLS(t *testing.T) {
	reg := newTLSRegistry(t, nil)
	reg.putImage("1", []byte("a"))
	newClient(t, Options{CAFile: reg.ca}).resolve(t, reg.host+"/app:1")
	if _, ok := reg.protos.Load("HTTP/2.0"); !ok {
		t.Error("HTTP/2 was offered but not used")
	}
	c := newClient(t, Options{})
	_, err := c.Resolve(t.Context(), reg.host+"/app:1")
	if err == nil {
		t.Fatal("an unknown certificate was accepted")
	}
	c = newClient(t, Options{PlainHTTP: true, CAFile: reg.ca})
	if _, err := c.Resolve(t.Context(), reg.host+"/app:1"); err == nil || c.Stats().Requests != 1 {
		t.Errorf("with PlainHTTP: %v after %d requests", err, c.Stats().Requests)
	}
}

// A registry that is not on loopback is spoken to in HTTPS, unless told
// otherwise. Nothing leaves this machine: its address is dialled to loopback.
func TestPlainHTTP(t *testing.T) {
	plain := newRegistry(t, nil)
	plain.putImage("1", []byte("a"))
	secure := newTLSRegistry(t, nil)
	secure.putImage("1", []byte("a"))
	for _, tc := range []struct {
		to   string
		opts Options
		want string
	}{
		{plain.host, Options{PlainHTTP: true}, ""},
		{plain.host, Options{}, "plain HTTP, which must be allowed"},
		{secure.host, Options{CAFile: secure.ca}, ""},
		{secure.host, Options{}, "file of the CA"},
	} {
		c := newClient(t, tc.opts)
		c.transport.DialContext = dialTo(tc.to)
		c.transport.Proxy = nil
		_, err := c.Resolve(t.Context(), "example.com/app:1") // a name in httptest's certificate
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%+v: %v, want %q", tc.opts, err, tc.want)
		}
		if tc.want != "" && (len(c.pauses) > 0 || !errors.Is(err, ErrUnavailable)) {
			t.Errorf("%+v: tried again after %v", tc.opts, err)
		}
	}
}

// dialTo connects to the given address, whatever was asked for.
func dialTo(to string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, to)
	}
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "r.localhost:5000": true, "127.0.0.1": true,
		"127.9.9.9:80": true, "[::1]:5000": true, "::1": true,
		"example.com": false, "10.0.0.1:5000": false, "localhost.example.com": false, "128.0.0.1": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("isLoopback(%s) = %v", host, got)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		opts Options
		want string
	}{
		{Options{Platform: "linux"}, "linux"},
		{Options{Platform: "linux/"}, "linux/"},
		{Options{Platform: "a/b/c/d"}, "a/b/c/d"},
		{Options{CAFile: "/does/not/exist"}, "/does/not/exist"},
		{Options{CAFile: empty}, empty},
	} {
		if _, err := New(tc.opts); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("New(%+v): %v", tc.opts, err)
		}
	}
}

// The ranges of a busy start share connections instead of opening new ones.
func TestConnectionsAreReused(t *testing.T) {
	layer := randomBytes(100_000)
	reg := newRegistry(t, nil)
	c := newClient(t, Options{})
	var dials atomic.Int64
	dial := c.transport.DialContext
	c.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return dial(ctx, network, addr)
	}
	b := openBlob(t, c, reg, layer)
	if dials.Load() != 1 {
		t.Errorf("%d connections for manifest and config", dials.Load())
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range int64(20) {
				if got, _, err := read(t.Context(), b, i*1000, 1000); err != nil || !bytes.Equal(got, layer[i*1000:][:1000]) {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
			}
		})
	}
	wg.Wait()
	if n := dials.Load(); n > 20 {
		t.Errorf("%d connections for 160 ranges, 8 at a time", n)
	}
}
