package content_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/format"
)

// causes is a source that names its image, and notes why it is read.
type causes struct {
	*source
	mu  sync.Mutex
	all map[content.Cause]int
}

func (c *causes) String() string { return "registry.test/img" }

// Every fetch is told with its cause, and the source hears the same cause.
func TestObserve(t *testing.T) {
	var log bytes.Buffer
	var mu sync.Mutex
	var seen []content.Fetch
	l := newLayer(t, "gzip")
	src := &causes{source: l.src, all: map[content.Cause]int{}}
	l.src.hold = func(ctx context.Context) {
		src.mu.Lock()
		defer src.mu.Unlock()
		src.all[content.CauseOf(ctx)]++
	}
	s, err := content.Open(t.TempDir(), content.Options{
		Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Observe: func(f content.Fetch) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, f)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	from := l.open(t, s)
	if from.Image() != "" {
		t.Errorf("a source without a name is %q", from.Image())
	}
	again, err := s.Layer(l.id, func(digest.Digest, int64) content.Blob { return src })
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(l.flat))
	l.src.damage.Store(1)
	l.read(t, again, size/2, 1)
	l.src.damage.Store(2)
	if _, err := again.ReadAtContext(t.Context(), make([]byte, 1), 0); !errors.Is(err, format.ErrCorrupt) {
		t.Fatal(err)
	}
	for off := int64(0); off < size; off += 64 << 10 {
		l.read(t, again, off, min(64<<10, size-off))
	}
	if err := errors.Join(from.Close(), again.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	spans, corrupt, failed, by := 0, 0, 0, map[content.Cause]int{}
	for _, f := range seen {
		spans, corrupt, by[f.Cause] = spans+f.Spans, corrupt+f.Corrupt, by[f.Cause]+1
		if f.Err != nil {
			failed++
		}
		if f.Layer != l.id.Blob || f.Took <= 0 {
			t.Errorf("%+v", f)
		}
	}
	if spans != len(l.spans) || corrupt != 3 || failed != 1 {
		t.Errorf("%d spans of %d, %d corrupt, %d failed", spans, len(l.spans), corrupt, failed)
	}
	if by[content.Demand] == 0 || by[content.ReadAhead] == 0 || src.all[content.Demand] != by[content.Demand]+2 || src.all[content.ReadAhead] != by[content.ReadAhead] {
		t.Errorf("fetched by cause %v; the source was read by cause %v", by, src.all)
	}
	if !bytes.Contains(log.Bytes(), []byte("image=registry.test/img")) {
		t.Errorf("the log does not name the image: %s", &log)
	}
}

// A layer without an index is one fetch, and no spans of an index.
func TestObserveIngest(t *testing.T) {
	l := newLayer(t, "gzip")
	var seen []content.Fetch
	s, err := content.Open(t.TempDir(), content.Options{Observe: func(f content.Fetch) { seen = append(seen, f) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Ingest(t.Context(), l.id, l.own, nil); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 1 || seen[0].Cause != content.Whole || seen[0].Spans != 0 || seen[0].Err != nil {
		t.Errorf("%+v", seen)
	}
}
