package content_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/content/internal/sample"
)

// source is a blob in memory. It counts what is asked of it, and may be faulty.
type source struct {
	blob     []byte
	whole    atomic.Bool // serves no ranges
	requests atomic.Int64
	bytes    atomic.Int64
	damage   atomic.Int64              // how many more bodies to damage
	hold     func(ctx context.Context) // called before each body
	ask      func(off int64)           // called before each body
	err      atomic.Pointer[error]
}

func (s *source) Open(ctx context.Context, off, n int64) (io.ReadCloser, bool, error) {
	if s.hold != nil {
		s.hold(ctx)
	}
	if s.ask != nil {
		s.ask(off)
	}
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	if err := s.err.Load(); err != nil {
		return nil, false, *err
	}
	s.requests.Add(1)
	if s.whole.Load() {
		off, n = 0, int64(len(s.blob))
	}
	s.bytes.Add(n)
	body := s.blob[off : off+n]
	if s.damage.Add(-1) >= 0 {
		body = bytes.Clone(body)
		body[len(body)/2] ^= 0x10
	}
	return io.NopCloser(bytes.NewReader(body)), s.whole.Load(), nil
}

// layer is a layer with its index and its flat blob, as a test knows it.
type layer struct {
	id    format.Layer
	own   *source // the layer's blob
	src   *source // what its spans are of: its blob or its twin
	raw   []byte
	flat  []byte
	spans []index.Span

	entries []index.Entry
}

// built keeps what newLayer has made, by encoding.
var built sync.Map

func newLayer(t testing.TB, encoding string) *layer {
	t.Helper()
	l, ok := built.Load(encoding)
	if !ok {
		tar, _ := sample.Tar(t, 7)
		l, _ = built.LoadOrStore(encoding, layerOf(t, tar, encoding))
	}
	return l.(*layer).fresh()
}

// fresh returns the layer with sources that have not been asked for anything.
func (l *layer) fresh() *layer {
	fresh := *l
	fresh.own = &source{blob: l.own.blob}
	fresh.src = fresh.own
	if l.src != l.own {
		fresh.src = &source{blob: l.src.blob}
	}
	return &fresh
}

// encodings are the ways that a layer can be read: as each encoding, and from
// the twin of one.
func encodings() []string { return append(slices.Sorted(maps.Keys(sample.Encodings)), "twin") }

func layerOf(t testing.TB, tar []byte, encoding string) *layer {
	t.Helper()
	var twin bytes.Buffer
	var o format.Options
	if encoding == "twin" {
		encoding, o.Twin = "zstd", &twin
	}
	blob := sample.Encodings[encoding](t, tar)
	l := &layer{id: sample.Layer(tar, blob), own: &source{blob: blob}, src: &source{blob: blob}}
	var err error
	if l.raw, err = format.Build(context.Background(), l.id, bytes.NewReader(blob), o); err != nil {
		t.Fatal(err)
	}
	if o.Twin != nil {
		l.src.blob = twin.Bytes()
	} else {
		l.src = l.own
	}
	f, err := index.Open(bytes.NewReader(l.raw), int64(len(l.raw)))
	if err != nil {
		t.Fatal(err)
	}
	if l.spans, err = f.Spans(); err != nil {
		t.Fatal(err)
	}
	entries, err := f.Entries()
	if err != nil {
		t.Fatal(err)
	}
	l.entries = entries
	l.flat = make([]byte, f.FlatSize)
	for i := range entries {
		for x := range entries[i].Extents() {
			copy(l.flat[entries[i].Off+x.Off:], tar[x.TarOff:x.TarOff+x.Len])
		}
	}
	return l
}

// of is the layer's content.Source.
func (l *layer) of(blob digest.Digest, size int64) content.Blob {
	src := l.src
	if blob == l.id.Blob {
		src = l.own
	}
	if digest.FromBytes(src.blob) != blob || int64(len(src.blob)) != size {
		panic("no such blob")
	}
	return src
}

func openStore(t testing.TB, root string) *content.Store {
	t.Helper()
	s, err := content.Open(root, content.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// open adds the layer's index and opens it.
func (l *layer) open(t testing.TB, s *content.Store) *content.Layer {
	t.Helper()
	if err := s.AddIndex(context.Background(), l.id, l.raw, "test"); err != nil {
		t.Fatal(err)
	}
	got, err := s.Layer(l.id, l.of)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// read reads n bytes at off and compares them.
func (l *layer) read(t testing.TB, from *content.Layer, off, n int64) {
	t.Helper()
	p := make([]byte, n)
	got, err := from.ReadAtContext(context.Background(), p, off)
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if !bytes.Equal(p[:got], l.flat[off:min(off+n, int64(len(l.flat)))]) {
		t.Fatalf("wrong bytes at %d", off)
	}
	if f, ok := from.Local(off, int64(got)); !ok {
		t.Fatalf("%d bytes at %d have been read and are not present", got, off)
	} else if _, err := f.ReadAt(p[:got], off); err != nil || !bytes.Equal(p[:got], l.flat[off:off+int64(got)]) {
		t.Fatalf("the local file has wrong bytes at %d (%v)", off, err)
	}
}

// onceFetched fails if more was fetched than every byte once; neighbouring
// spans may share one.
func (l *layer) onceFetched(t testing.TB) {
	t.Helper()
	if got, most := l.src.bytes.Load(), int64(len(l.src.blob)+len(l.spans)); got > most {
		t.Errorf("%d bytes were fetched of a blob of %d", got, len(l.src.blob))
	}
}

func TestLazyReads(t *testing.T) {
	for _, encoding := range encodings() {
		t.Run(encoding, func(t *testing.T) {
			l := newLayer(t, encoding)
			from := l.open(t, openStore(t, t.TempDir()))
			defer from.Close()
			if st := from.Stats(); st.Present != 0 || st.Complete {
				t.Fatalf("before the first read: %+v", st)
			}
			r := rand.New(rand.NewPCG(1, 1))
			for range 300 {
				l.read(t, from, r.Int64N(int64(len(l.flat))), 1+r.Int64N(200_000))
			}
			l.read(t, from, 0, int64(len(l.flat)))
			l.onceFetched(t)
			if st := from.Stats(); st.Present != st.Bytes || st.Present != int64(len(l.flat)) || !st.Complete {
				t.Errorf("after the last read: %+v", st)
			}
		})
	}
}

func TestReadIsReaderAt(t *testing.T) {
	l := newLayer(t, "gzip")
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	size := int64(len(l.flat))
	for _, tt := range []struct {
		off, n int64
		want   int
		err    error
	}{{0, 10, 10, nil}, {size - 5, 5, 5, nil}, {size - 5, 6, 5, io.EOF}, {size, 1, 0, io.EOF}, {size + 9, 1, 0, io.EOF}} {
		n, err := from.ReadAtContext(context.Background(), make([]byte, tt.n), tt.off)
		if n != tt.want || err != tt.err {
			t.Errorf("%d bytes at %d: %d, %v; want %d, %v", tt.n, tt.off, n, err, tt.want, tt.err)
		}
	}
	if _, err := from.ReadAtContext(context.Background(), make([]byte, 1), -1); err == nil {
		t.Error("no error for a negative offset")
	}
}

// longLayer is a layer of one file, so long that it is not fetched whole.
func longLayer(t *testing.T) *layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	data := bytes.Repeat([]byte("long"), 5<<20)
	if err := w.WriteHeader(&tar.Header{Name: "long", Size: int64(len(data)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return layerOf(t, b.Bytes(), "tar")
}

func TestNothingIsFetchedOfALongFileButTheSpan(t *testing.T) {
	l := longLayer(t)
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	l.read(t, from, int64(len(l.flat))/2, 1)
	if got := from.Stats().SpansHere; got != 1 || l.src.requests.Load() != 1 {
		t.Errorf("%d spans in %d requests for one byte", got, l.src.requests.Load())
	}
}

// Small gaps to what is here are closed with the same request.
func TestGapsAreClosed(t *testing.T) {
	l := longLayer(t)
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	for i, want := range []struct{ span, with int }{{10, 10}, {14, 11}, {6, 9}, {24, 24}, {20, 23}} {
		l.read(t, from, l.inside(want.span), 1)
		l.read(t, from, l.inside(want.with), 1)
		if got := l.src.requests.Load(); got != int64(i+1) {
			t.Errorf("after the spans %d and %d: %d requests, want %d", want.span, want.with, got, i+1)
		}
	}
}

// A file is fetched whole with the first read of it, but the read waits only
// for what it needs.
func TestFilesAreFetchedWhole(t *testing.T) {
	l := newLayer(t, "tar")
	from := l.open(t, openStore(t, t.TempDir()))
	i := slices.IndexFunc(l.entries, func(e index.Entry) bool { return e.Size == 3<<20 })
	l.read(t, from, l.entries[i].Off, 1)
	l.read(t, from, l.entries[i].Off, 3<<20)
	if got := l.src.requests.Load(); got != 1 {
		t.Errorf("a file of 3 MiB took %d requests", got)
	}
	if err := from.Close(); err != nil {
		t.Error(err)
	}
}

// A read of what has been queued behind all reads, but is not the first of it,
// does not wait for itself.
func TestQueuedReadAheadIsWanted(t *testing.T) {
	l := longLayer(t)
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	asked, answer := make(chan int64, 10), make(chan struct{})
	l.src.ask = func(off int64) { asked <- off; <-answer }
	done := make(chan struct{}, 4)
	read := func(span int) { l.read(t, from, l.inside(span), 1); done <- struct{}{} }
	for i := range 3 { // in order, so that the fourth will be fetched ahead
		go read(i)
		<-asked
		answer <- struct{}{}
		<-done
	}
	<-asked // the fourth
	answer <- struct{}{}
	go read(4) // with two more behind it
	<-asked
	go read(6)
	if got := <-asked; got != l.spans[5].BlobOff {
		t.Errorf("the request for span 6 begins at %d, want %d: it is no read-ahead", got, l.spans[5].BlobOff)
	}
	close(answer)
	<-done
	<-done
}

// inside is a place in the flat blob that has data of one span only.
func (l *layer) inside(span int) int64 { return l.offOf(span) + index.BlockSize }

// Many readers of one place, in one process and in two, fetch it once.
func TestSingleFlight(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	one, two := openStore(t, root), openStore(t, root) // two stores are to locks as two processes
	a, b := l.open(t, one), l.open(t, two)
	defer a.Close()
	defer b.Close()
	var wg sync.WaitGroup
	for i := range 32 {
		from := []*content.Layer{a, b}[i%2]
		wg.Go(func() {
			r := rand.New(rand.NewPCG(9, uint64(i/8)))
			for range 20 {
				off := r.Int64N(int64(len(l.flat)))
				p := make([]byte, 100_000)
				n, err := from.ReadAtContext(context.Background(), p, off)
				if err != nil && err != io.EOF || !bytes.Equal(p[:n], l.flat[off:off+int64(n)]) {
					t.Errorf("at %d: %d bytes, %v", off, n, err)
				}
			}
		})
	}
	wg.Wait()
	l.onceFetched(t)
}

func TestReopen(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	s := openStore(t, root)
	from := l.open(t, s)
	l.read(t, from, 0, int64(len(l.flat)))
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	before := l.src.requests.Load()
	again, err := openStore(t, root).Layer(l.id, nil) // no registry at all
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	l.read(t, again, 0, int64(len(l.flat)))
	if l.src.requests.Load() != before {
		t.Error("what was present has been fetched again")
	}
}

// reboot makes the store believe that the machine was restarted.
func reboot(t *testing.T, root string) {
	t.Helper()
	maps, err := filepath.Glob(filepath.Join(root, "layers", "*", "map"))
	if err != nil || len(maps) == 0 {
		t.Fatal("no maps", err)
	}
	for _, path := range maps {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 16), 8); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

// After a restart of the machine only that is present which was synced.
func TestReboot(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	s, err := content.Open(root, content.Options{Log: slog.New(slog.DiscardHandler), SyncInterval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	from := l.open(t, s)
	l.read(t, from, 0, 1)
	synced := from.Stats().Present
	if err := from.Close(); err != nil { // syncs
		t.Fatal(err)
	}
	if from, err = s.Layer(l.id, l.of); err != nil {
		t.Fatal(err)
	}
	l.read(t, from, int64(len(l.flat))-1, 1)
	reboot(t, root) // before the second read was synced
	other := openStore(t, root)
	again, err := other.Layer(l.id, l.of)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := again.Stats().Present; got != synced || got == 0 {
		t.Errorf("%d bytes are present after a restart, %d were synced", got, synced)
	}
	l.read(t, again, 0, int64(len(l.flat)))
}

// A registry that ignores ranges is asked once.
func TestWholeBody(t *testing.T) {
	for _, encoding := range encodings() {
		t.Run(encoding, func(t *testing.T) {
			l := newLayer(t, encoding)
			l.src.whole.Store(true)
			from := l.open(t, openStore(t, t.TempDir()))
			defer from.Close()
			l.read(t, from, int64(len(l.flat))/2, 1000)
			l.read(t, from, 0, int64(len(l.flat)))
			if n := l.src.requests.Load(); n > 2 { // the second read may overlap the first one's body
				t.Errorf("%d requests", n)
			}
		})
	}
}

func TestDamageIsFetchedAgain(t *testing.T) {
	l := newLayer(t, "gzip")
	l.src.damage.Store(1)
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	l.read(t, from, 0, 1000)
	if st := from.Stats(); st.Refetched != 1 {
		t.Errorf("%+v", st)
	}
}

func TestDamageThatStays(t *testing.T) {
	l := newLayer(t, "gzip")
	l.src.damage.Store(1 << 30)
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	n, err := from.ReadAtContext(context.Background(), make([]byte, 1000), 0)
	if !errors.Is(err, format.ErrCorrupt) || n != 0 {
		t.Errorf("%d bytes, error %v", n, err)
	}
	if st := from.Stats(); st.Present != 0 {
		t.Errorf("wrong bytes are present: %+v", st)
	}
	l.src.damage.Store(0)
	l.read(t, from, 0, 1000)
}

func TestRegistryGone(t *testing.T) {
	l := newLayer(t, "gzip")
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	l.read(t, from, 0, 1)
	gone := errors.New("connection refused")
	l.src.err.Store(&gone)
	l.read(t, from, 0, 1) // present
	if _, err := from.ReadAtContext(context.Background(), make([]byte, 1), int64(len(l.flat))-1); !errors.Is(err, gone) {
		t.Errorf("error %v", err)
	}
	l.src.err.Store(nil)
	l.read(t, from, int64(len(l.flat))-1, 1)
}

// Read-ahead waits for reads that somebody waits for.
func TestDemandGoesFirst(t *testing.T) {
	l := longLayer(t)
	asked := make(chan int64, 100)
	answer := make(chan struct{})
	l.src.ask = func(off int64) {
		asked <- off
		<-answer
	}
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	read := func(off int64, done chan<- struct{}) {
		l.read(t, from, off, 1)
		done <- struct{}{}
	}
	done := make(chan struct{}, 10)
	for i := range 2 {
		go read(l.inside(i), done)
		<-asked
		answer <- struct{}{}
		<-done
	}
	go read(l.inside(2), done) // in order, so that span 3 will be fetched ahead
	<-asked
	go read(l.inside(4), done)
	if got := <-asked; got < l.spans[4].BlobOff {
		t.Errorf("the second request while a read waits is at %d of the blob, which is ahead of it", got)
	}
	answer <- struct{}{}
	answer <- struct{}{}
	<-done
	<-done
	if got := <-asked; got != l.spans[3].BlobOff && got != l.spans[5].BlobOff {
		t.Errorf("what is fetched ahead is at %d, want %d or %d", got, l.spans[3].BlobOff, l.spans[5].BlobOff)
	}
	close(answer)
}

// offOf returns where the first byte of a span is in the flat blob.
func (l *layer) offOf(span int) int64 {
	for i := range l.entries {
		for x := range l.entries[i].Extents() {
			if s := l.spans[span]; x.TarOff+x.Len > s.TarOff {
				return l.entries[i].Off + x.Off + max(0, s.TarOff-x.TarOff)
			}
		}
	}
	panic("no data")
}

func TestReadIsCancelled(t *testing.T) {
	l := newLayer(t, "gzip")
	asked := make(chan struct{}, 1)
	l.src.hold = func(ctx context.Context) { asked <- struct{}{}; <-ctx.Done() }
	s := openStore(t, t.TempDir())
	from := l.open(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error)
	go func() {
		_, err := from.ReadAtContext(ctx, make([]byte, 1), 0)
		failed <- err
	}()
	<-asked
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if err := from.Close(); err != nil { // ends the fetch too
		t.Error(err)
	}
}

// An index whose entries are not what the tar says passes span by span, but
// not as a whole.
func TestLyingIndex(t *testing.T) {
	l := newLayer(t, "gzip")
	f, err := index.Open(bytes.NewReader(l.raw), int64(len(l.raw)))
	if err != nil {
		t.Fatal(err)
	}
	l.raw = reencode(t, f, func(b *index.Builder) { b.Entries[3].Mode |= 0o4000; b.Entries[3].UID = 0 })
	root := t.TempDir()
	s := openStore(t, root)
	from := l.open(t, s)
	p := make([]byte, len(l.flat))
	if _, err := from.ReadAtContext(context.Background(), p, 0); err != nil && !errors.Is(err, format.ErrCorrupt) {
		t.Fatal(err) // the check of the whole layer may be faster than the read
	}
	if err := from.Verify(context.Background()); !errors.Is(err, format.ErrCorrupt) {
		t.Errorf("error %v", err)
	}
	if _, err := from.ReadAtContext(context.Background(), p, 0); !errors.Is(err, format.ErrCorrupt) {
		t.Errorf("error of a read: %v", err)
	}
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Layer(l.id, l.of); !errors.Is(err, content.ErrNoIndex) {
		t.Errorf("the layer is still in the store: %v", err)
	}
}

func TestVerify(t *testing.T) {
	l := newLayer(t, "members")
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	if err := from.Verify(context.Background()); err == nil {
		t.Error("a layer that is not complete is verified")
	}
	l.read(t, from, 0, int64(len(l.flat)))
	if err := from.Verify(context.Background()); err != nil {
		t.Error(err)
	}
}

// reencode copies an index with a change.
func reencode(t *testing.T, f *index.File, change func(*index.Builder)) []byte {
	t.Helper()
	b, err := index.NewBuilder()
	if err != nil {
		t.Fatal(err)
	}
	b.Header = f.Header
	if b.Entries, err = f.Entries(); err != nil {
		t.Fatal(err)
	}
	spans, err := f.Spans()
	if err != nil {
		t.Fatal(err)
	}
	for i := range spans {
		w, err := f.Window(&spans[i])
		if err != nil {
			t.Fatal(err)
		}
		spans[i].Window = index.Range{}
		if w != nil {
			spans[i].Window = b.AddWindow(w)
		}
	}
	b.Spans = spans
	if b.Digests, err = f.Digests(); err != nil {
		t.Fatal(err)
	}
	framing, err := f.Framing()
	if err != nil {
		t.Fatal(err)
	}
	defer framing.Close()
	if _, err := io.Copy(b.Framing(), framing); err != nil {
		t.Fatal(err)
	}
	change(b)
	raw, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A layer without spans is fetched whole, at the first read.
func TestLayerWithoutSpans(t *testing.T) {
	l := newLayer(t, "gzip")
	f, err := index.Open(bytes.NewReader(l.raw), int64(len(l.raw)))
	if err != nil {
		t.Fatal(err)
	}
	l.raw = reencode(t, f, func(b *index.Builder) { b.Spans = nil })
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	l.read(t, from, 5000, 1)
	l.read(t, from, 0, int64(len(l.flat)))
	if n := l.src.requests.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestDamagedStore(t *testing.T) {
	tests := map[string]func(t *testing.T, path string){
		"truncated": func(t *testing.T, path string) {
			if err := os.Truncate(path, 17); err != nil {
				t.Fatal(err)
			}
		},
		"missing": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	}
	for _, file := range []string{"index", "runs", "flat", "map"} {
		for name, damage := range tests {
			t.Run(file+" "+name, func(t *testing.T) {
				l := newLayer(t, "gzip")
				root := t.TempDir()
				s := openStore(t, root)
				if err := l.open(t, s).Close(); err != nil {
					t.Fatal(err)
				}
				damage(t, filepath.Join(root, "layers", l.id.Blob.Encoded(), file))
				if _, err := s.Layer(l.id, l.of); !errors.Is(err, content.ErrNoIndex) {
					t.Fatalf("error %v", err)
				}
				from := l.open(t, s)
				defer from.Close()
				l.read(t, from, 0, int64(len(l.flat)))
			})
		}
	}
}

func TestIngest(t *testing.T) {
	for _, encoding := range encodings() {
		t.Run(encoding, func(t *testing.T) {
			l := newLayer(t, encoding)
			root := t.TempDir()
			var read atomic.Int64
			var wg sync.WaitGroup
			for range 3 { // at once, as three processes
				s := openStore(t, root)
				wg.Go(func() {
					if err := s.Ingest(context.Background(), l.id, l.own, func(n int) { read.Add(int64(n)) }); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if l.own.requests.Load() != 1 || read.Load() != l.id.Size {
				t.Errorf("%d requests, %d of %d bytes", l.own.requests.Load(), read.Load(), l.id.Size)
			}
			from, err := openStore(t, root).Layer(l.id, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer from.Close()
			l.read(t, from, 0, int64(len(l.flat)))
			if !from.Stats().Complete {
				t.Error("not complete")
			}
		})
	}
}

func TestIngestFails(t *testing.T) {
	l := newLayer(t, "gzip")
	l.src.damage.Store(1)
	root := t.TempDir()
	s := openStore(t, root)
	if err := s.Ingest(context.Background(), l.id, l.src, nil); err == nil {
		t.Fatal("no error for a damaged blob")
	}
	if left, _ := filepath.Glob(filepath.Join(root, "*", l.id.Blob.Encoded(), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := s.Ingest(context.Background(), l.id, l.src, nil); err != nil {
		t.Errorf("the second time: %v", err)
	}
}

// What a killed process has left of a layer is removed when the store is opened
// next, but not what another process is making.
func TestSweep(t *testing.T) {
	l := newLayer(t, "gzip")
	root := t.TempDir()
	s := openStore(t, root)
	left := filepath.Join(root, "tmp", sample.Layer(nil, nil).Blob.Encoded())
	if err := os.MkdirAll(filepath.Join(left, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	making := filepath.Join(root, "tmp", l.id.Blob.Encoded())
	l.src.hold = func(context.Context) {
		openStore(t, root)
		if _, err := os.Stat(making); err != nil {
			t.Errorf("what is being made was removed: %v", err)
		}
	}
	if err := s.Ingest(context.Background(), l.id, l.src, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was left is still there: %v", err)
	}
}

func TestIndexOfAnotherLayer(t *testing.T) {
	l := newLayer(t, "gzip")
	other := newLayer(t, "tar")
	s := openStore(t, t.TempDir())
	if err := s.AddIndex(context.Background(), l.id, other.raw, "test"); !errors.Is(err, index.ErrFormat) {
		t.Errorf("error %v", err)
	}
	if err := s.AddIndex(context.Background(), l.id, l.raw[:len(l.raw)/2], "test"); !errors.Is(err, index.ErrFormat) {
		t.Errorf("error %v", err)
	}
}

func TestImages(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	want := content.Image{Ref: "example.com/a:1", Platform: "linux/amd64", Digest: "sha256:x", Manifest: []byte("{}"), Config: []byte("[]")}
	if err := s.PutImage(want); err != nil {
		t.Fatal(err)
	}
	got, found, err := openStore(t, root).Image(want.Ref, want.Platform)
	if err != nil || !found || got.Digest != want.Digest || !bytes.Equal(got.Manifest, want.Manifest) {
		t.Errorf("%+v, %v, %v", got, found, err)
	}
	if _, found, err := s.Image(want.Ref, "linux/arm64"); found || err != nil {
		t.Errorf("found for another platform: %v, %v", found, err)
	}
}
