package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"
)

// dripEvery is the time between two bytes of an answer that drips.
const dripEvery = 20 * time.Millisecond

// maxForeign bounds what is kept of another blob to answer with.
const maxForeign = 1 << 20

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	m, over := p.next(r)
	if code := m.status(); code != 0 {
		p.note(m.fault)
		refuse(w, r, m.fault, code)
		return
	}
	if m.fault == Whole {
		if r.Header.Get("Range") == "" {
			m.fault = ""
		} else {
			r.Header.Del("Range")
		}
	}
	resp, err := p.ask(r.Context(), r.Method, r.URL.Path, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	p.remember(r.URL.Path)
	if r.Method == http.MethodHead || resp.StatusCode >= 300 || resp.ContentLength <= 0 {
		m.fault = "" // there is nothing to spoil
	}
	a := &answer{Response: resp, w: w, request: r, over: over}
	if m.fault != "" {
		a.at = int64(m.place * float64(resp.ContentLength))
		p.note(m.fault)
	}
	if m.fault == Foreign {
		err = p.exchange(a)
	}
	if err == nil {
		err = a.send(m.fault)
	}
	if err != nil {
		panic(http.ErrAbortHandler) // which closes the connection
	}
}

// refuse answers with a status alone.
func refuse(w http.ResponseWriter, r *http.Request, f Fault, code int) {
	switch f {
	case Unauthorized:
		w.Header().Set("WWW-Authenticate", `Basic realm="faults"`)
	case Busy:
		w.Header().Set("Retry-After", "1")
	case Circle:
		w.Header().Set("Location", r.URL.Path+"?"+again)
	}
	w.WriteHeader(code)
}

// ask sends a request to the target. What it has besides method and path it
// takes from like, which may be nil.
func (p *Proxy) ask(ctx context.Context, method, path string, like *http.Request) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+p.target+path, nil)
	if err != nil {
		return nil, err
	}
	if like != nil {
		req.Header, req.Body, req.ContentLength, req.Host = like.Header.Clone(), like.Body, like.ContentLength, like.Host
		if like.URL.RawQuery != again {
			req.URL.RawQuery = like.URL.RawQuery
		}
	}
	return p.transport.RoundTrip(req)
}

// exchange gives the answer the bytes of another blob, repeated as often as it
// takes. Where no other is known it takes each byte's complement: that is no
// blob's.
func (p *Proxy) exchange(a *answer) error {
	path, err := p.another(a.request.URL.Path)
	if err != nil {
		a.Body = struct {
			io.Reader
			io.Closer
		}{&flipper{r: a.Body, mask: 0xff, every: true}, a.Body}
		return nil
	}
	resp, err := p.ask(a.request.Context(), http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	bytes, err := io.ReadAll(io.LimitReader(resp.Body, maxForeign))
	if err != nil || len(bytes) == 0 {
		return fmt.Errorf("read %s to answer with: %d bytes, %w", path, len(bytes), err)
	}
	a.Body = io.NopCloser(&repeat{bytes: bytes})
	return nil
}

// answer is the target's answer on its way to the client.
type answer struct {
	*http.Response
	w       http.ResponseWriter
	request *http.Request
	over    <-chan struct{} // closed when the faults end
	at      int64           // the byte of the body where the fault is
}

// send sends the answer with a fault. After an error the connection must not be
// used again.
func (a *answer) send(f Fault) error {
	length, body := a.ContentLength, io.Reader(a.Body)
	switch f {
	case Short:
		length = a.at
	case Long:
		length += 1 + a.at
		body = io.MultiReader(body, &repeat{bytes: make([]byte, 4<<10)})
	case Flip:
		body = &flipper{r: body, skip: a.at, mask: 1 << (a.at % 8)}
	}
	maps.Copy(a.w.Header(), a.Header)
	if length >= 0 {
		a.w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	}
	a.w.WriteHeader(a.StatusCode)
	if a.request.Method == http.MethodHead {
		return nil
	}
	switch f {
	case Reset, Truncate, Stall, Drip:
		return a.breakOff(f, body)
	}
	if length >= 0 {
		_, err := io.CopyN(a.w, body, length)
		return err
	}
	_, err := io.Copy(a.w, body)
	return err
}

// breakOff sends the body up to the fault, and then as the fault has it.
func (a *answer) breakOff(f Fault, body io.Reader) error {
	if _, err := io.CopyN(a.w, body, a.at); err != nil {
		return err
	}
	control := http.NewResponseController(a.w)
	if err := control.Flush(); err != nil {
		return err
	}
	switch f {
	case Reset:
		conn, _, err := control.Hijack()
		if err != nil {
			return err
		}
		_ = conn.(*net.TCPConn).SetLinger(0) // Close then resets; if not, it ends
		return conn.Close()
	case Stall:
		select {
		case <-a.over:
		case <-a.request.Context().Done():
		}
		return io.ErrUnexpectedEOF
	case Drip:
		return a.drip(body, control)
	}
	return nil // net/http closes a connection whose body was too short
}

// drip sends the rest of the body a byte at a time, until the faults end.
func (a *answer) drip(body io.Reader, control *http.ResponseController) error {
	tick := time.NewTicker(dripEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-a.request.Context().Done():
			return a.request.Context().Err()
		case <-a.over:
			_, err := io.Copy(a.w, body)
			return err
		}
		if _, err := io.CopyN(a.w, body, 1); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := control.Flush(); err != nil {
			return err
		}
	}
}

// flipper changes the bits of mask in the byte after skip others, or in every
// byte.
type flipper struct {
	r     io.Reader
	skip  int64
	mask  byte
	every bool
}

func (f *flipper) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if f.every {
		for i := range p[:n] {
			p[i] ^= f.mask
		}
		return n, err
	}
	if f.skip >= 0 && f.skip < int64(n) {
		p[f.skip] ^= f.mask
	}
	f.skip -= int64(n)
	return n, err
}

// repeat reads the same bytes over and over.
type repeat struct {
	bytes []byte
	rest  bytes.Reader
}

func (r *repeat) Read(p []byte) (int, error) {
	if r.rest.Len() == 0 {
		r.rest.Reset(r.bytes)
	}
	return r.rest.Read(p)
}
