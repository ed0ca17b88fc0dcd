package format

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"runtime"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/index"
	"golang.org/x/sync/errgroup"
)

// LongSpan is the length of span, in bytes of tar, from which on a layer is
// better read from a twin: so much is fetched for any byte of it.
const LongSpan = 8 << 20

// twin is the tar compressed again, each span as a zstd frame. The same tar
// gives the same twin with the same version of the compressor.
type twin struct {
	to    io.Writer
	enc   *zstd.Encoder
	spans []index.Span
	tar   int64 // bytes of it in spans
	size  int64 // bytes written
	sum   hash.Hash
}

func newTwin(to io.Writer) (*twin, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(twinWorkers()), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	return &twin{to: to, enc: enc, sum: sha256.New()}, err
}

// twinWorkers is how many frames are compressed at once: compressing is slower
// than all else.
func twinWorkers() int { return min(4, runtime.GOMAXPROCS(0)) }

// piece is a span on its way.
type piece struct {
	tar, z []byte
	digest index.SHA256
	done   chan struct{} // has a value when z and digest are there
}

// read compresses the tar in spans of the given length. They are written in
// order.
func (t *twin) read(ctx context.Context, tar io.Reader, spanSize int64) error {
	g, ctx := errgroup.WithContext(ctx)
	free, order := make(chan *piece, 2*twinWorkers()), make(chan *piece, 2*twinWorkers())
	for range cap(free) {
		free <- &piece{done: make(chan struct{}, 1)}
	}
	g.Go(func() error {
		for {
			p, err := receive(ctx, free)
			if err != nil {
				return err
			}
			p.tar = slices.Grow(p.tar[:0], int(spanSize))[:spanSize]
			n, err := io.ReadFull(tar, p.tar)
			if p.tar = p.tar[:n]; n > 0 {
				order <- p // has room for every piece there is
				g.Go(func() error { t.compress(p); return nil })
			}
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				close(order)
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	g.Go(func() error {
		for {
			p, err := receive(ctx, order)
			if err == io.EOF {
				return nil
			}
			if err == nil {
				_, err = receive(ctx, p.done)
			}
			if err == nil {
				err = t.write(p)
			}
			if err != nil {
				return err
			}
			free <- p
		}
	})
	return g.Wait()
}

func (t *twin) compress(p *piece) {
	p.z = t.enc.EncodeAll(p.tar, p.z[:0])
	p.digest = sha256.Sum256(p.tar)
	p.done <- struct{}{}
}

func (t *twin) write(p *piece) error {
	s := index.Span{TarOff: t.tar, TarLen: int64(len(p.tar)), BlobOff: t.size, BlobLen: int64(len(p.z)), Digest: p.digest}
	if _, err := t.to.Write(p.z); err != nil {
		return fmt.Errorf("write %d bytes at %d of the twin: %w", s.BlobLen, t.size, err)
	}
	t.sum.Write(p.z)
	t.spans = append(t.spans, s)
	t.tar, t.size = t.tar+s.TarLen, t.size+s.BlobLen
	return nil
}

func (t *twin) digest() digest.Digest { return digest.NewDigest(digest.SHA256, t.sum) }
