package link

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serve accepts connections on loopback and gives each to handle, until the
// test ends. It returns the address.
func serve(t *testing.T, handle func(*net.TCPConn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		wg.Wait()
	})
	return listener.Addr().String()
}

func newLink(t *testing.T, target string, opts Options) *Link {
	t.Helper()
	l, err := New(target, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, l *Link) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// within fails the test if run takes less than want, by more than a hundredth,
// or longer than the tolerance allows. A busy machine can make a link slower,
// never faster, so of three tries the fastest counts.
func within(t *testing.T, want time.Duration, tolerance float64, run func()) {
	t.Helper()
	var took []time.Duration
	for range 3 {
		start := time.Now()
		run()
		got := time.Since(start)
		if got.Seconds() < 0.99*want.Seconds() {
			t.Errorf("took %v, want at least %v", got, want)
		}
		if got.Seconds() <= (1+tolerance)*want.Seconds() {
			return
		}
		took = append(took, got)
	}
	t.Errorf("took %v, want %v and at most %.0f %% more", took, want, 100*tolerance)
}

func TestRate(t *testing.T) {
	const size = 10_000_000
	receive := func(c *net.TCPConn) { io.Copy(io.Discard, c) }
	tests := []struct {
		name        string
		connections int
		up          bool
	}{
		{"one down", 1, false},
		{"eight down", 8, false},
		{"sixty-four down", 64, false},
		{"one up", 1, true},
		{"eight up", 8, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			share := size / test.connections
			far := func(c *net.TCPConn) {
				if test.up {
					receive(c)
					return
				}
				c.Write(make([]byte, share))
			}
			l := newLink(t, serve(t, far), Options{Rate: 100e6})
			within(t, 800*time.Millisecond, 0.05, func() {
				before := l.Sent() + l.Received()
				var wg sync.WaitGroup
				for range test.connections {
					conn := dial(t, l)
					wg.Go(func() {
						if test.up {
							conn.Write(make([]byte, share))
							conn.CloseWrite()
						}
						receive(conn)
					})
				}
				wg.Wait()
				got := l.Sent() + l.Received() - before
				if want := int64(share * test.connections); got != want {
					t.Errorf("counted %d bytes, want %d", got, want)
				}
			})
		})
	}
}

func TestDirectionsDoNotShareTheRate(t *testing.T) {
	const size = 5_000_000
	l := newLink(t, serve(t, func(c *net.TCPConn) { io.Copy(c, c) }), Options{Rate: 100e6})
	within(t, 400*time.Millisecond, 0.1, func() {
		conn := dial(t, l)
		go func() {
			conn.Write(make([]byte, size))
			conn.CloseWrite()
		}()
		if n, err := io.Copy(io.Discard, conn); n != size || err != nil {
			t.Fatalf("got %d bytes back, %v, want %d", n, err, size)
		}
	})
}

func TestRoundTrip(t *testing.T) {
	const rtt = 20 * time.Millisecond
	l := newLink(t, serve(t, func(c *net.TCPConn) { io.Copy(c, c) }), Options{RTT: rtt, Rate: 100e6})
	ping := func(conn *net.TCPConn) {
		conn.Write([]byte("ping"))
		if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	var conn *net.TCPConn
	within(t, 2*rtt, 0.25, func() { // with the connection's set-up
		conn = dial(t, l)
		ping(conn)
	})
	for range 3 {
		within(t, rtt, 0.25, func() { ping(conn) })
	}
}

func TestBytesArriveUnchanged(t *testing.T) {
	l := newLink(t, serve(t, func(c *net.TCPConn) { io.Copy(c, c) }), Options{Rate: 1e9, RTT: time.Millisecond})
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		conn := dial(t, l)
		wg.Go(func() {
			sent := make([]byte, 1<<20)
			rand.NewChaCha8([32]byte{byte(seed)}).Read(sent)
			go func() {
				conn.Write(sent)
				conn.CloseWrite()
			}()
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("connection %d: %d bytes came back, %v, not the %d that were sent", seed, len(got), err, len(sent))
			}
		})
	}
	wg.Wait()
}

func TestBackPressure(t *testing.T) {
	written := make(chan int64, 1)
	l := newLink(t, serve(t, func(c *net.TCPConn) {
		c.SetWriteBuffer(64 << 10)
		c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, _ := io.Copy(c, zeros{})
		written <- n
	}), Options{RTT: 10 * time.Millisecond})
	conn := dial(t, l)
	conn.SetReadBuffer(64 << 10) // and nobody reads
	// The buffers of four sockets and the window. Without back-pressure it
	// would be the gigabytes that loopback carries in half a second.
	if n, limit := <-written, int64(32<<20); n > limit {
		t.Errorf("the server could write %d bytes to a client that reads none, want at most %d", n, limit)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestHalfClose(t *testing.T) {
	l := newLink(t, serve(t, func(c *net.TCPConn) {
		got, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %s", got)
	}), Options{RTT: time.Millisecond})
	conn := dial(t, l)
	conn.Write([]byte("all"))
	conn.CloseWrite()
	if answer, err := io.ReadAll(conn); string(answer) != "got all" || err != nil {
		t.Errorf("got %q, %v, want the answer after the end of the request", answer, err)
	}
}

func TestRefusedAndReset(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	reset := serve(t, func(c *net.TCPConn) { c.SetLinger(0) })
	for name, target := range map[string]string{"refused": gone.Addr().String(), "reset": reset} {
		t.Run(name, func(t *testing.T) {
			// The reset may come before the client knows that it is connected.
			conn, err := net.Dial("tcp", newLink(t, target, Options{}).Addr())
			if err == nil {
				defer conn.Close()
				_, err = conn.Read(make([]byte, 1))
			}
			if !errors.Is(err, syscall.ECONNRESET) && (name == "refused" || err != io.EOF) {
				t.Errorf("got error %v, want a reset", err)
			}
		})
	}
}

func TestCloseCutsConnections(t *testing.T) {
	l := newLink(t, serve(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }), Options{Rate: 1e6, RTT: time.Second})
	conn := dial(t, l)
	done := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		done <- err
	}()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("the connection lives on")
	}
}

func TestRequests(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	t.Cleanup(server.Close)
	l := newLink(t, strings.TrimPrefix(server.URL, "http://"), Options{})
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	want := []Request{
		{Method: "GET", Path: "/v2/"},
		{Method: "GET", Path: "/v2/a/blobs/sha256:1?x=y", Range: "bytes=5-9"},
		{Method: "POST", Path: "/v2/a/blobs/uploads/"},
		{Method: "HEAD", Path: "/v2/a/manifests/latest"},
	}
	for _, r := range want {
		body := io.Reader(http.NoBody)
		if r.Method == "POST" {
			body = strings.NewReader("GET /not/a/request HTTP/1.1\r\n\r\n")
		}
		req, err := http.NewRequest(r.Method, "http://"+l.Addr()+r.Path, body)
		if err != nil {
			t.Fatal(err)
		}
		if r.Range != "" {
			req.Header.Set("Range", r.Range)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	got := l.Requests()
	for i := range got {
		got[i].Time = time.Time{}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestWhatIsNotHTTPPasses(t *testing.T) {
	l := newLink(t, serve(t, func(c *net.TCPConn) { io.Copy(c, c) }), Options{})
	conn := dial(t, l)
	sent := append([]byte("\x16\x03\x01"), make([]byte, 1<<20)...)
	go conn.Write(sent)
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("what is not HTTP did not come back unchanged: %v", err)
	}
	if n := len(l.Requests()); n > 0 {
		t.Errorf("noted %d requests, want none", n)
	}
}

func Example() {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	l, err := New(server.Listener.Addr().String(), Options{Rate: 100e6, RTT: 20 * time.Millisecond})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	resp, err := http.Get("http://" + l.Addr() + "/v2/")
	if err != nil {
		fmt.Println(err)
		return
	}
	resp.Body.Close()
	for _, r := range l.Requests() {
		fmt.Println(r.Method, r.Path)
	}
	// Output: GET /v2/
}
