package link

import (
	"bufio"
	"io"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Request is an HTTP/1.1 request that entered the link.
type Request struct {
	Time   time.Time // when its header was complete
	Method string
	Path   string // path and query, as sent
	Range  string // the header of that name; empty if there was none
}

type requestLog struct {
	mu       sync.Mutex
	requests []Request
}

func (r *requestLog) add(req Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, req)
}

func (r *requestLog) all() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// parser follows one connection's bytes and notes the requests in them. What
// is not HTTP/1.1 it ignores to the end of the connection.
type parser struct {
	pipe *io.PipeWriter
	done chan struct{}
}

func newParser(log *requestLog) *parser {
	r, w := io.Pipe()
	p := &parser{pipe: w, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		limited := &io.LimitedReader{R: r}
		in := bufio.NewReader(limited)
		for {
			limited.N = 1 << 20 // what claims a longer header is not HTTP
			req, err := http.ReadRequest(in)
			if err != nil {
				break
			}
			limited.N = math.MaxInt64
			log.add(Request{time.Now(), req.Method, req.RequestURI, req.Header.Get("Range")})
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				break
			}
		}
		_, _ = io.Copy(io.Discard, r) // ends with close
	}()
	return p
}

// write takes the connection's next bytes and returns when they are parsed.
func (p *parser) write(data []byte) { _, _ = p.pipe.Write(data) }

func (p *parser) close() {
	p.pipe.Close()
	<-p.done
}
