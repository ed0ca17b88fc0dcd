// Package format knows how a layer's blob is taken apart: how its index is
// obtained while the blob passes by once, and how one span of it is decoded.
//
// It does not know where a blob comes from or where its files are kept. A new
// format is a decoder that reports where decoding can resume, and a case in
// Decode.
package format

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/index"
	"golang.org/x/sync/errgroup"
)

// ErrNoResume says that a layer has no place to resume decoding for longer than
// Options.MaxSpan.
var ErrNoResume = errors.New("no place to resume decoding")

// ErrUnsupported is wrapped by errors about layers of a kind that is not known.
var ErrUnsupported = errors.New("unsupported layer format")

// SpanSize is the least length of a span but the last, in bytes of tar. What
// a start touches grows with it, and so shrinks the index: see DESIGN.md.
const SpanSize = 512 << 10

// Layer says what a blob must turn out to be.
type Layer struct {
	Blob   digest.Digest
	Size   int64         // of the blob, in bytes
	DiffID digest.Digest // of the tar in it
}

// Options say what Build makes besides the index. The zero value is nothing.
type Options struct {
	// Flat is written the files' data, each file at its place in the flat blob.
	Flat io.WriterAt

	// Twin is written the layer's twin: its tar in zstd frames of SpanSize,
	// which the index's spans are then of. It is for blobs that decoding
	// cannot resume in.
	Twin io.Writer

	// MaxSpan ends the build with ErrNoResume as soon as a span is longer, in
	// bytes of tar. The default is to go on: a layer that would have spans
	// longer than index.MaxSpan gets none.
	MaxSpan int64

	// Limits bound what the layer may ask for.
	Limits Limits
}

// Build reads a layer's blob from its start to its end and returns its
// serialised index. Nothing that was written counts unless Build returns
// without an error: digests are checked at the end.
//
// Decoding, hashing and taking the tar apart run side by side.
func Build(ctx context.Context, l Layer, blob io.Reader, o Options) ([]byte, error) {
	return build(ctx, l, blob, o, SpanSize)
}

func build(ctx context.Context, l Layer, blob io.Reader, o Options, spanSize int64) ([]byte, error) {
	use := &usage{Limits: o.Limits.withDefaults(), blob: l.Size}
	b, err := index.NewBuilder()
	if err != nil {
		return nil, err
	}
	b.Limit(use.Index)
	p, err := newPass(blob, b, o, spanSize)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.Blob, err)
	}
	g, ctx := errgroup.WithContext(ctx)
	diffID, spans, files := newFeed(ctx), newFeed(ctx), newFeed(ctx)
	free := make(chan []byte, 8) // bounds the bytes between the decoder and the slowest reader
	for range cap(free) {
		free <- nil // made when it is first used: most layers are small
	}
	var diff hash.Hash
	g.Go(func() error { return p.decode(ctx, free, diffID, spans, files) })
	g.Go(func() (err error) { diff, err = hashAll(diffID); return err })
	g.Go(func() error {
		if p.twin != nil {
			return p.twin.read(ctx, spans, spanSize)
		}
		return p.hashSpans(spans)
	})
	g.Go(func() error {
		return readTar(files, use, b.Framing(), o.Flat, func(e *index.Entry, sum *index.SHA256) error {
			b.Entries = append(b.Entries, *e)
			if sum != nil {
				b.Digests = append(b.Digests, *sum)
			}
			return nil
		})
	})
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.Blob, err)
	}
	if err := p.finish(l, digest.NewDigest(digest.SHA256, diff)); err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.Blob, err)
	}
	return b.Encode()
}

// pass is one reading of a blob: the decoder and the spans that it cuts.
type pass struct {
	src      *source
	dec      io.Reader
	format   index.Format
	out      *index.Builder
	spanSize int64
	maxSpan  int64 // see Options; 0 for none
	twin     *twin // nil for none

	tar    int64   // bytes decoded
	cuts   []int64 // where spans begin that the decoder is about to reach
	window []byte  // what the current span may refer to
	sums   []index.SHA256
}

// newPass looks at the first bytes of the blob to see what it is: media types
// are often wrong about compression.
func newPass(blob io.Reader, b *index.Builder, o Options, spanSize int64) (*pass, error) {
	p := &pass{src: newSource(blob), out: b, spanSize: spanSize, maxSpan: o.MaxSpan}
	head, err := p.src.peek(6)
	if err != nil {
		return nil, err
	}
	if o.Twin != nil {
		if p.twin, err = newTwin(o.Twin); err != nil {
			return nil, err
		}
		p.src.forget()
	}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		p.format = index.Gzip
		p.dec = newInflater(p.src, p.resumeAt)
	case isZstd(head):
		p.format = index.Zstd
		p.src.forget()
		if p.dec, err = newUnzstd(p.src, p.resumeAt); err != nil {
			return nil, err
		}
	case string(head) == "\xfd7zXZ\x00" || len(head) >= 3 && string(head[:3]) == "BZh":
		return nil, fmt.Errorf("%w: it starts with % x", ErrUnsupported, head)
	default:
		p.format = index.Tar
		p.dec = p.src
		p.src.forget()
	}
	return p, nil
}

// resumeAt begins a span where decoding could resume, if the current one is
// long enough.
func (p *pass) resumeAt(r resume) {
	n := len(p.out.Spans)
	if p.twin != nil || n > 0 && r.tar-p.out.Spans[n-1].TarOff < p.spanSize {
		return
	}
	p.endSpan(r.tar, r.blob, r.bits)
	p.out.Spans = append(p.out.Spans, index.Span{TarOff: r.tar, BlobOff: r.blob, Bits: r.bits, Member: r.member})
	p.window = append(p.window[:0], r.window...)
	p.cuts = append(p.cuts, r.tar)
	p.src.keepFrom(r.blob)
}

// endSpan completes the current span, whose successor begins as given.
func (p *pass) endSpan(tar, blob int64, bits uint8) {
	n := len(p.out.Spans)
	if n == 0 {
		return
	}
	s := &p.out.Spans[n-1]
	s.TarLen, s.BlobLen = tar-s.TarOff, blob-s.BlobOff
	if bits > 0 {
		s.BlobLen++
	}
	if len(p.window) > 0 {
		if w := usedWindow(p.window, p.src.kept(), s.Bits); len(w) > 0 {
			s.Window = p.out.AddWindow(w)
		}
	}
}

// decode reads the tar to its end and hands every piece of it to all feeds.
// Before the end they hear of a failure by the context only, so that it is this
// error that is reported and not theirs.
func (p *pass) decode(ctx context.Context, free chan []byte, feeds ...*feed) error {
	for {
		buf, err := receive(ctx, free)
		if err != nil {
			return err
		}
		if buf == nil {
			buf = make([]byte, chunkSize)
		}
		n, err := p.fill(buf)
		c := newChunk(buf, n, len(feeds), free)
		c.cuts = p.takeCuts(n)
		p.tar += int64(n)
		if s := p.out.Spans; p.maxSpan > 0 && len(s) > 0 && p.tar-s[len(s)-1].TarOff > p.maxSpan {
			return fmt.Errorf("%w for more than %d bytes of its tar", ErrNoResume, p.maxSpan)
		}
		for _, f := range feeds {
			select {
			case f.in <- c:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err == io.EOF {
			for _, f := range feeds {
				close(f.in)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("decode %s at byte %d of the blob: %w", p.format, p.src.n, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// fill reads the next piece of tar. An uncompressed tar can be cut anywhere.
func (p *pass) fill(buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		if p.format == index.Tar {
			p.resumeAt(resume{tar: p.tar + int64(n), blob: p.tar + int64(n)})
		}
		m, err := p.dec.Read(buf[n:])
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// takeCuts returns where spans begin in the next n bytes of tar.
func (p *pass) takeCuts(n int) []int {
	var cuts []int
	for len(p.cuts) > 0 && p.cuts[0] < p.tar+int64(n) {
		cuts = append(cuts, int(p.cuts[0]-p.tar))
		p.cuts = p.cuts[1:]
	}
	return cuts
}

// hashSpans computes the digest of every span.
func (p *pass) hashSpans(in *feed) error {
	var h hash.Hash
	end := func() {
		if h != nil {
			p.sums = append(p.sums, index.SHA256(h.Sum(nil)))
		}
	}
	err := in.each(func(c *chunk) error {
		at := 0
		for _, cut := range c.cuts {
			if h != nil {
				h.Write(c.data[at:cut])
			}
			end()
			h, at = sha256.New(), cut
		}
		if h != nil {
			h.Write(c.data[at:])
		}
		return nil
	})
	end()
	return err
}

func hashAll(in *feed) (hash.Hash, error) {
	h := sha256.New()
	return h, in.each(func(c *chunk) error { h.Write(c.data); return nil })
}

// finish checks what came against what was promised, and completes the index.
func (p *pass) finish(l Layer, diffID digest.Digest) error {
	if p.src.n != l.Size {
		return fmt.Errorf("%w: it is %d bytes long and should be %d", ErrCorrupt, p.src.n, l.Size)
	}
	if got := p.src.digest(); got != l.Blob {
		return fmt.Errorf("%w: its bytes have the digest %s", ErrCorrupt, got)
	}
	if diffID != l.DiffID {
		return fmt.Errorf("%w: its tar has the digest %s, the image's configuration says %s", ErrCorrupt, diffID, l.DiffID)
	}
	p.out.Header = index.Header{
		Blob: l.Blob, BlobSize: l.Size, DiffID: l.DiffID, TarSize: p.tar, Format: p.format,
	}
	if p.twin != nil {
		if p.out.Spans = p.twin.spans; p.twin.size > 0 {
			p.out.Header.Twin, p.out.Header.TwinSize = p.twin.digest(), p.twin.size
		}
		return nil
	}
	return p.finishSpans()
}

// finishSpans completes the spans that the decoder has cut.
func (p *pass) finishSpans() error {
	p.endSpan(p.tar, p.src.n, 0)
	spans := p.out.Spans
	for n := len(spans); n > 0 && spans[n-1].TarLen == 0; n-- { // a place to resume, with nothing after it
		spans = spans[:n-1]
		if n > 1 {
			spans[n-2].BlobLen = p.src.n - spans[n-2].BlobOff
		}
	}
	most := int64(index.MaxSpan)
	if p.maxSpan > 0 {
		most = p.maxSpan
	}
	long := false
	for i := range spans {
		spans[i].Digest = p.sums[i]
		long = long || spans[i].TarLen > most || spans[i].BlobLen > 2*index.MaxSpan
	}
	if long && p.maxSpan > 0 {
		return fmt.Errorf("%w for more than %d bytes of its tar", ErrNoResume, p.maxSpan)
	}
	if long {
		spans = nil
	}
	p.out.Spans = spans
	return nil
}
