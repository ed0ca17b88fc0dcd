package content

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/peelfs/peel/content/format"
)

// completed verifies the layer in the background.
func (l *Layer) completed() {
	l.wg.Go(func() {
		if err := l.Verify(l.ctx); err != nil && l.ctx.Err() == nil {
			l.log().Error("a complete layer is not verified", "error", err)
		}
	})
}

// Verify checks a complete layer as a whole against the digest that the
// image's configuration gives, once: until then every span is only as good as
// the index. It runs by itself when the last span has arrived. A layer that
// does not pass is dropped; the error then wraps format.ErrCorrupt.
func (l *Layer) Verify(ctx context.Context) error {
	l.verifying.Lock()
	defer l.verifying.Unlock()
	if l.verified {
		return nil
	}
	l.mu.Lock()
	bad := l.bad
	l.mu.Unlock()
	if bad != nil {
		return bad
	}
	if !l.complete() {
		return fmt.Errorf("layer %s is not complete", l.id.Blob)
	}
	start := time.Now()
	err := format.Verify(ctx, l.index, l.flat)
	debug.FreeOSMemory() // the entries were most of what the process has used since it mounted
	if errors.Is(err, format.ErrCorrupt) {
		l.reject(err)
	}
	if err != nil {
		return fmt.Errorf("verify layer %s: %w", l.id.Blob, err)
	}
	l.verified = true
	l.log().Info("layer complete and verified", "bytes", l.Size(), "took", time.Since(start).Round(time.Millisecond))
	if err := l.store.meta.setVerified(l.id.Blob); !l.store.full.noted(err) {
		return err
	}
	return nil // it is verified again when it is opened next
}

// reject drops a layer that is not what the image says, so that it is fetched
// anew, with another index, when it is opened next. Until then reads fail.
func (l *Layer) reject(cause error) {
	l.log().Error("a layer is not what its image says: everything of it is dropped", "error", cause)
	l.mu.Lock()
	l.bad = fmt.Errorf("layer %s was dropped, mount the image anew: %w", l.id.Blob, cause)
	l.mu.Unlock()
	l.present.blocks.clear()
	l.present.spans.clear()
	err := errors.Join(l.store.meta.forgetLayer(l.id.Blob), os.RemoveAll(l.dir))
	if err != nil {
		l.log().Error("cannot drop a layer", "error", err)
	}
}

// fetchWhole fills a layer that has no spans: its blob is read once, and its
// data counts when all of it has been checked.
func (l *Layer) fetchWhole(ctx context.Context, src Blob) error {
	body, _, err := src.Open(ctx, 0, l.id.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = format.Build(ctx, l.id, body, format.Options{Flat: l.flat})
	if l.store.full.noted(err); err != nil {
		return asFull(err)
	}
	l.present.blocks.set(0, l.blocks())
	l.present.spans.set(0, 1)
	l.dirty.Store(true)
	return nil
}
