package content

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/format"
)

// Cause is why data is fetched.
type Cause string

const (
	Demand    Cause = "demand"     // a read waits for it
	ReadAhead Cause = "read-ahead" // nobody did when it began: reads go through the layer in order
	Whole     Cause = "whole"      // all of the layer is wanted: it has no index, or Layer.Fetch was called
	Repair    Cause = "repair"     // what was here did not have its digest
)

// Fetch is a fetch of neighbouring spans, or of a whole layer, that has ended.
type Fetch struct {
	Layer   digest.Digest
	Cause   Cause
	Spans   int           // of the index, that have come and had their digest; 0 for a layer that has none
	Corrupt int           // times that a span had not
	Took    time.Duration // from the request until the last span was in the store
	Err     error
}

type causeKey struct{}

// because returns a context in which data is fetched for a cause.
func because(ctx context.Context, c Cause) context.Context {
	return context.WithValue(ctx, causeKey{}, c)
}

// CauseOf says why a Blob is opened: of the context that its Open is given. It
// is "" where the store has nothing to do with it.
func CauseOf(ctx context.Context) Cause {
	c, _ := ctx.Value(causeKey{}).(Cause)
	return c
}

// ended tells who observes the store of a fetch that began at a time.
func (s *Store) ended(ctx context.Context, layer digest.Digest, began time.Time, spans, corrupt int, err error) {
	if s.observe == nil || ctx.Err() != nil {
		return // a fetch that is given up is none
	}
	if errors.Is(err, format.ErrCorrupt) {
		corrupt++
	}
	s.observe(Fetch{Layer: layer, Cause: CauseOf(ctx), Spans: spans, Corrupt: corrupt, Took: time.Since(began), Err: err})
}

// Image names the image that missing data of the layer comes from; "" if its
// source does not say so, by a method String.
func (l *Layer) Image() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.src.(fmt.Stringer); ok {
		return s.String()
	}
	return ""
}

// log returns the store's log, for messages about this layer. l.mu is not held.
func (l *Layer) log() *slog.Logger {
	log := l.store.log.With("layer", l.id.Blob)
	if image := l.Image(); image != "" {
		log = log.With("image", image)
	}
	return log
}

// ReadWhole says of a layer in the store that it came without an index, so that
// it was read from its first byte to its last.
func (i LayerInfo) ReadWhole() bool { return i.From == builtHere }
