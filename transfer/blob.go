package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// enoughProgress is how many bytes must come between two failures for the
// later one to count as the first.
const enoughProgress = 64 << 10

// Blob is one blob of an image's repository, such as a layer. It may remember
// where the bytes are, so use one Blob for all ranges. It is safe for
// concurrent use.
type Blob struct {
	d    ocispec.Descriptor
	of   reference
	from opener
}

// opener opens ranges of one blob. They are within the blob, and not empty.
type opener interface {
	open(ctx context.Context, off, n int64) (body io.ReadCloser, whole bool, err error)
}

// Blob returns a blob of the image's repository, such as a layer.
func (c *Client) Blob(img *Image, d ocispec.Descriptor) *Blob { return c.blob(img.at, d) }

func (c *Client) blob(of reference, d ocispec.Descriptor) *Blob {
	return &Blob{d: d, of: of, from: c.source(of, transport.PullScope).blob(d)}
}

// String names the image that the blob is of.
func (b *Blob) String() string { return b.of.String() }

// Open returns the n bytes at off, unverified. If the registry sends the whole
// blob, or all of it was asked for, whole is true, and the body runs from the
// blob's first byte to its last, whatever off and n were.
//
// A connection that breaks or stalls is taken up again where it ended; a
// registry that does not answer as it should is asked again; both within the
// limits of Options. After that Read returns an error that wraps
// ErrUnavailable and, if the body was too short, io.ErrUnexpectedEOF. The
// body ends with the context.
//
// Local files are opened anew by each call, so that they may be away in
// between. Opening fails if the blob's size is not what the descriptor says.
func (b *Blob) Open(ctx context.Context, off, n int64) (body io.ReadCloser, whole bool, err error) {
	if off < 0 || n < 0 || off > b.d.Size || n > b.d.Size-off {
		return nil, false, fmt.Errorf("read %d bytes at %d of blob %s: it has %d bytes", n, off, b.d.Digest, b.d.Size)
	}
	if n == 0 {
		return http.NoBody, b.d.Size == 0, nil
	}
	return b.from.open(ctx, off, n)
}

// readAll returns the whole blob, verified. It is for small ones.
func (b *Blob) readAll(ctx context.Context) ([]byte, error) {
	var buf bytes.Buffer
	if err := b.copyTo(ctx, &buf); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// copyTo writes the whole blob to w. Only if it returns nil are the bytes
// those that the digest is of.
func (b *Blob) copyTo(ctx context.Context, w io.Writer) error {
	body, _, err := b.Open(ctx, 0, b.d.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	h := digest.SHA256.Digester()
	if _, err := io.Copy(io.MultiWriter(w, h.Hash()), body); err != nil {
		return err
	}
	if h.Digest() != b.d.Digest {
		return fmt.Errorf("blob %s of %s: what came has digest %s", b.d.Digest, b.of, h.Digest())
	}
	return nil
}

// remoteBlob is a blob of a registry. It remembers where the registry
// redirected to.
type remoteBlob struct {
	r        *repo
	d        ocispec.Descriptor
	location atomic.Pointer[url.URL] // where the bytes are, if not in the registry itself
}

func (r *repo) blob(d ocispec.Descriptor) opener { return &remoteBlob{r: r, d: d} }

func (b *remoteBlob) open(ctx context.Context, off, n int64) (body io.ReadCloser, whole bool, err error) {
	r := &blobReader{b: b, ctx: ctx, pos: off, end: off + n}
	if err := r.connect(true); err != nil {
		return nil, false, r.failure(err)
	}
	return r, r.pos == 0 && r.end == b.d.Size, nil
}

// get asks once for the bytes [off, end). Either the answer's body starts at
// off and does not go beyond end, or it is the whole blob.
func (b *remoteBlob) get(ctx context.Context, off, end int64) (body io.ReadCloser, whole bool, err error) {
	if loc := b.location.Load(); loc != nil {
		body, whole, err := b.getFrom(ctx, loc, off, end)
		if err == nil || ctx.Err() != nil {
			return body, whole, err
		}
		// Signed addresses expire, and blob stores say so in many ways.
		b.location.CompareAndSwap(loc, nil)
		b.r.c.opts.Log.Debug("asking the registry for the blob's place again", "image", b.r.name.Name(), "blob", b.d.Digest, "err", err)
	}
	body, whole, err = b.getFrom(ctx, b.r.url("blobs/"+b.d.Digest.String()), off, end)
	if errors.Is(err, ErrNotFound) && len(b.d.URLs) > 0 {
		return b.getElsewhere(ctx, err, off, end)
	}
	return body, whole, err
}

// getElsewhere asks where the image says that a blob is that its registry need
// not have: descriptor.md, "urls". missing is what the registry answered.
func (b *remoteBlob) getElsewhere(ctx context.Context, missing error, off, end int64) (io.ReadCloser, bool, error) {
	errs := []error{missing}
	for _, s := range b.d.URLs {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || b.r.secure.Load()) {
			errs = append(errs, errors.New("the image names an address that is not used: it is no https one"))
			continue
		}
		body, whole, err := b.getFrom(ctx, u, off, end)
		if err == nil {
			b.location.CompareAndSwap(nil, u)
			return body, whole, nil
		}
		errs = append(errs, err)
	}
	return nil, false, errors.Join(errs...)
}

func (b *remoteBlob) getFrom(ctx context.Context, u *url.URL, off, end int64) (body io.ReadCloser, whole bool, err error) {
	req := newRequest(ctx, http.MethodGet, u)
	if off != 0 || end != b.d.Size {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, end-1))
	}
	resp, err := b.r.do(req, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return nil, false, err
	}
	if err := b.checkAnswer(resp, off, end); err != nil {
		_ = resp.Body.Close()
		return nil, false, fmt.Errorf("GET %s: %w", safeURL(resp.Request.URL), err)
	}
	if at := resp.Request.URL; at.Host != u.Host || at.Path != u.Path {
		b.location.Store(at)
	}
	return resp.Body, resp.StatusCode == http.StatusOK, nil
}

// checkAnswer refuses an answer whose header says that its body is neither
// the start of the bytes [off, end), of which the rest is asked for later,
// nor the whole blob.
func (b *remoteBlob) checkAnswer(resp *http.Response, off, end int64) error {
	first, last := int64(0), b.d.Size-1
	if resp.StatusCode == http.StatusPartialContent {
		if t := resp.Header.Get("Content-Type"); strings.HasPrefix(t, "multipart/") {
			return broken("the answer to a single range is %s", scrub(t))
		}
		header := resp.Header.Get("Content-Range")
		var total int64
		var ok bool
		first, last, total, ok = parseContentRange(header)
		if !ok || first != off || last >= end || total != -1 && total != b.d.Size {
			return broken("the answer to bytes %d-%d of %d has Content-Range %q", off, end-1, b.d.Size, scrub(header))
		}
	}
	if n := resp.ContentLength; n >= 0 && n != last-first+1 {
		return broken("the answer with bytes %d-%d of %d has a length of %d bytes", first, last, b.d.Size, n)
	}
	return nil
}

// parseContentRange reads a Content-Range header (RFC 9110, section 14.4).
// first and last are both within the range; total is -1 if it is not known.
func parseContentRange(s string) (first, last, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, size, ok2 := strings.Cut(s, "/")
	a, z, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, false
	}
	nums := []int64{0, 0, -1}
	for i, text := range []string{a, z, size} {
		if i == 2 && text == "*" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 63)
		if err != nil {
			return 0, 0, 0, false
		}
		nums[i] = int64(n)
	}
	first, last, total = nums[0], nums[1], nums[2]
	return first, last, total, first <= last && (total == -1 || last < total)
}

// blobReader reads the bytes [pos, end) of a blob from as many answers as it
// takes.
type blobReader struct {
	b        *remoteBlob
	ctx      context.Context // that of Open
	body     io.ReadCloser   // at pos; nil if there is no connection
	pos, end int64
	err      error // of every further Read

	came     int64 // bytes since the last failure
	failures int   // without enough progress between them
	since    time.Time
	broken   error // why the last connection ended
}

func (r *blobReader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	for {
		if r.body == nil {
			if err := r.reconnect(); err != nil {
				r.err = r.failure(err)
				return 0, r.err
			}
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.end-r.pos)])
		r.pos += int64(n)
		r.came += int64(n)
		if r.pos == r.end {
			r.hangUp()
			r.err = io.EOF
			return n, io.EOF
		}
		if err != nil {
			r.hangUp()
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			r.broken = broken("the connection broke at byte %d: %w", r.pos, err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// Close ends the transfer.
func (r *blobReader) Close() error {
	r.hangUp()
	if r.err == nil {
		r.err = fmt.Errorf("blob %s: %w", r.b.d.Digest, os.ErrClosed)
	}
	return nil
}

func (r *blobReader) hangUp() {
	if r.body != nil {
		_ = r.body.Close() // it was only read from
		r.body = nil
	}
}

// reconnect takes up a broken transfer.
func (r *blobReader) reconnect() error {
	if err := r.mayAskAgain(r.broken); err != nil {
		return err
	}
	return r.connect(false)
}

// connect gets a body at pos. A registry that answers the first request with
// the whole blob is taken at its word: the range becomes all of it. Later,
// what was read before is skipped.
func (r *blobReader) connect(first bool) error {
	for {
		body, whole, err := r.b.get(r.ctx, r.pos, r.end)
		if err == nil && whole {
			if first {
				r.pos, r.end = 0, r.b.d.Size
			} else if _, err = io.CopyN(io.Discard, body, r.pos); err != nil {
				_ = body.Close()
				err = broken("the connection broke before byte %d: %w", r.pos, err)
			}
		}
		if err == nil {
			r.body = body
			return nil
		}
		if err := r.mayAskAgain(err); err != nil {
			return err
		}
	}
}

// mayAskAgain returns nil, after a pause, if asking again may help against
// err, and otherwise the error to report.
func (r *blobReader) mayAskAgain(err error) error {
	var br *brokenError
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	} else if !errors.As(err, &br) {
		return err
	}
	if r.failures == 0 || r.came >= enoughProgress {
		r.failures, r.since = 0, time.Now()
	}
	r.came = 0
	r.failures++
	opts := &r.b.r.c.opts
	if r.failures >= opts.Attempts || time.Since(r.since) > opts.RetryTime {
		return fmt.Errorf("gave up after %d attempts: %w", r.failures, err)
	}
	opts.Log.Debug("taking up a broken transfer", "image", r.b.r.name.Name(), "blob", r.b.d.Digest, "at", r.pos, "err", err)
	if r.failures == 1 {
		return nil // most often the connection was just too old
	}
	r.b.location.Store(nil) // the registry may know a better place
	return r.b.r.c.retry.wait(r.ctx, r.b.r.c.retry.delay(r.failures-1))
}

func (r *blobReader) failure(err error) error {
	return fmt.Errorf("read blob %s of %s up to byte %d: %w", r.b.d.Digest, r.b.r.name, r.end, err)
}
