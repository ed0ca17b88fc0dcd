package content_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/peelfs/peel/content/format"
)

// A whole layer comes in few requests, once, and is verified.
func TestFetch(t *testing.T) {
	for _, encoding := range encodings() {
		t.Run(encoding, func(t *testing.T) {
			l := newLayer(t, encoding)
			from := l.open(t, openStore(t, t.TempDir()))
			defer from.Close()
			l.read(t, from, int64(len(l.flat)/2), 1) // what is here already is not asked for again
			l.src.requests.Store(0)
			if err := from.Fetch(t.Context()); err != nil {
				t.Fatal(err)
			}
			requests, most := l.src.requests.Load(), int64(len(l.src.blob)>>23)+3 // pieces of 8 MiB, and two ends
			if st := from.Stats(); !st.Complete || st.Present != st.Bytes || requests > most {
				t.Errorf("%d requests, want at most %d; %+v", requests, most, st)
			}
			if got := l.src.bytes.Load(); got > int64(len(l.src.blob))*11/10 {
				t.Errorf("%d bytes came, and the blob has %d", got, len(l.src.blob))
			}
			l.src.requests.Store(0)
			l.read(t, from, 0, int64(len(l.flat)))
			if err := errors.Join(from.Fetch(t.Context()), from.Verify(t.Context())); err != nil || l.src.requests.Load() != 0 {
				t.Errorf("once it is here: %v, %d requests", err, l.src.requests.Load())
			}
		})
	}
}

// A source that knows no ranges is read once.
func TestFetchWholeBody(t *testing.T) {
	l := newLayer(t, "tar")
	l.src.whole.Store(true)
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	if err := from.Fetch(t.Context()); err != nil || l.src.requests.Load() != 1 {
		t.Errorf("%v, %d requests", err, l.src.requests.Load())
	}
}

// What ends a fetch does not keep the next one from being whole.
func TestFetchFails(t *testing.T) {
	l := newLayer(t, "gzip")
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	away := errors.New("away")
	l.src.err.Store(&away)
	if err := from.Fetch(t.Context()); !errors.Is(err, away) {
		t.Errorf("with its source away: %v", err)
	}
	l.src.err.Store(nil)
	l.src.damage.Store(1 << 30)
	if err := from.Fetch(t.Context()); !errors.Is(err, format.ErrCorrupt) {
		t.Errorf("of damaged data: %v", err)
	}
	l.src.damage.Store(0)
	ctx, cancel := context.WithCancel(t.Context())
	l.src.hold = func(context.Context) { cancel() }
	if err := from.Fetch(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("when it is cancelled: %v", err)
	}
	if err := from.Fetch(t.Context()); err != nil || !from.Stats().Complete {
		t.Errorf("at last: %v, %+v", err, from.Stats())
	}
}

// Reads go on while the layer is fetched, and go before it.
func TestFetchAndRead(t *testing.T) {
	l := newLayer(t, "members")
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	done := make(chan error, 1)
	go func() { done <- from.Fetch(t.Context()) }()
	for off := int64(len(l.flat)) - 1; off > 0; off -= int64(len(l.flat) / 16) {
		p := make([]byte, 1)
		if _, err := from.ReadAtContext(t.Context(), p, off); err != nil || !bytes.Equal(p, l.flat[off:off+1]) {
			t.Fatalf("read at %d: %q, %v", off, p, err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
