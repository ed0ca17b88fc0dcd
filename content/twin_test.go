package content_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/content/internal/sample"
)

// A layer that decoding can resume in is read once and has no twin; of one that
// it cannot, the second reading makes the twin.
func TestBuildIndex(t *testing.T) {
	short, _ := sample.Tar(t, 7)
	long := sample.Wrap(t, make([]byte, format.LongSpan))
	tests := map[string]struct {
		tar, blob []byte
		twin      bool
	}{
		"gzip":             {short, sample.Gzip(t, short, 6), false},
		"zstd of many":     {short, sample.Encodings["frames"](t, short), false},
		"short zstd":       {short, sample.Zstd(t, short), false},
		"long zstd":        {long, sample.Zstd(t, long), true},
		"gzip of a block":  {long, sample.OneBlock(long), true},
		"long zstd behind": {append(short[:1<<20:1<<20], long...), append(sample.Zstd(t, short[:1<<20]), sample.Zstd(t, long)...), true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			id := sample.Layer(tt.tar, tt.blob)
			for _, allowed := range []bool{true, false} {
				src := &source{blob: tt.blob}
				var twin bytes.Buffer
				var to io.Writer
				if allowed {
					to = &twin
				}
				read := 0
				raw, err := content.BuildIndex(context.Background(), id, src, to, func(n int) { read += n })
				if err != nil {
					t.Fatal(err)
				}
				f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
				if err != nil {
					t.Fatal(err)
				}
				if want := tt.twin && allowed; (f.Twin != "") != want || (twin.Len() > 0) != want {
					t.Errorf("twin %q, %d bytes of it were written", f.Twin, twin.Len())
				}
				if n := src.requests.Load(); n > 1 && !(tt.twin && allowed) {
					t.Errorf("read %d times", n)
				}
				if int64(read) != id.Size {
					t.Errorf("progress is at %d of %d at the end", read, id.Size)
				}
			}
		})
	}
}

func TestBuildIndexDiskFull(t *testing.T) {
	long := sample.Wrap(t, make([]byte, format.LongSpan))
	blob := sample.Zstd(t, long)
	r, w := io.Pipe()
	full := errors.New("no space left on device")
	r.CloseWithError(full)
	if _, err := content.BuildIndex(context.Background(), sample.Layer(long, blob), &source{blob: blob}, w, nil); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
}

// Bytes of a twin that are not what the index says are fetched once more.
func TestTwinDamaged(t *testing.T) {
	l := newLayer(t, "twin")
	l.src.damage.Store(1)
	from := l.open(t, openStore(t, t.TempDir()))
	defer from.Close()
	l.read(t, from, 0, int64(len(l.flat)))
	if st := from.Stats(); st.Refetched != 1 || !st.Complete {
		t.Errorf("%+v", st)
	}
	if n := l.own.requests.Load(); n > 0 {
		t.Errorf("%d requests for the layer itself", n)
	}
	if err := from.Verify(context.Background()); err != nil {
		t.Error(err)
	}
}

// What has no data is complete, and verified, by its index alone.
func TestEmptyLayers(t *testing.T) {
	var dirs bytes.Buffer // more than a span of headers
	w := tar.NewWriter(&dirs)
	for i := range 3000 {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("dir%d/", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, tarball := range map[string][]byte{"nothing": nil, "no entries": make([]byte, 1024), "folders": dirs.Bytes()} {
		for encoding, blob := range map[string][]byte{
			"tar": tarball, "gzip": sample.Gzip(t, tarball, 6), "zstd": sample.Zstd(t, tarball, zstd.WithZeroFrames(true)), "skippable": append(sample.Skippable(nil), sample.Zstd(t, tarball)...),
		} {
			t.Run(name+" "+encoding, func(t *testing.T) {
				id := sample.Layer(tarball, blob)
				raw, err := content.BuildIndex(context.Background(), id, &source{blob: blob}, new(bytes.Buffer), nil)
				if err != nil {
					t.Fatal(err)
				}
				added, ingested := openStore(t, t.TempDir()), openStore(t, t.TempDir())
				if err := added.AddIndex(context.Background(), id, raw, "test"); err != nil {
					t.Fatal(err)
				}
				if err := ingested.Ingest(context.Background(), id, &source{blob: blob}, nil); err != nil {
					t.Fatal(err)
				}
				for _, s := range []*content.Store{added, ingested} {
					l, err := s.Layer(id, nil)
					if err != nil {
						t.Fatal(err)
					}
					defer l.Close()
					if err := l.Verify(context.Background()); err != nil || !l.Stats().Complete {
						t.Errorf("%v: %+v", err, l.Stats())
					}
					if n, err := l.ReadAtContext(context.Background(), make([]byte, 1), 0); n != 0 || err != io.EOF {
						t.Errorf("read %d, %v", n, err)
					}
				}
			})
		}
	}
}

// A span of headers is not fetched, and is not missing: not after a restart of
// the machine either.
func TestSpanOfHeaders(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	var files [][]byte
	for i := range 6000 {
		h := tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("dir%d/", i)}
		var data []byte
		if i%3000 == 100 {
			data = sample.Text(rand.New(rand.NewPCG(uint64(i), 2)), 5000)
			h = tar.Header{Name: fmt.Sprintf("file%d", i), Size: int64(len(data))}
			files = append(files, data)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	id := sample.Layer(b.Bytes(), b.Bytes())
	src := &source{blob: b.Bytes()}
	root := t.TempDir()
	s := openStore(t, root)
	raw, err := content.BuildIndex(context.Background(), id, src, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddIndex(context.Background(), id, raw, "test"); err != nil {
		t.Fatal(err)
	}
	reboot(t, root)
	src.bytes.Store(0)
	l, err := s.Layer(id, func(digest.Digest, int64) content.Blob { return src })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	before := l.Stats()
	for i, data := range files {
		off, got := int64(i)*index.Align(5000), make([]byte, len(data))
		if _, err := l.ReadAtContext(context.Background(), got, off); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("at %d: %v", off, err)
		}
	}
	if st := l.Stats(); before.SpansHere == 0 || before.Complete || !st.Complete || src.bytes.Load() > 2*format.SpanSize {
		t.Errorf("first %+v, then %+v, with %d bytes", before, st, src.bytes.Load())
	}
	if err := l.Verify(context.Background()); err != nil {
		t.Error(err)
	}
}

// A hole is not fetched, and is not missing: not after a restart either.
func TestHoleAfterReboot(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "sparse"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "sparse"), 1<<20); err != nil {
		t.Fatal(err)
	}
	tarball, err := exec.Command("tar", "-C", dir, "-S", "-c", "sparse").Output()
	if err != nil {
		t.Fatal(err)
	}
	id, src, root := sample.Layer(tarball, tarball), &source{blob: tarball}, t.TempDir()
	raw, err := content.BuildIndex(context.Background(), id, src, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t, root)
	if err := s.AddIndex(context.Background(), id, raw, "test"); err != nil {
		t.Fatal(err)
	}
	reboot(t, root)
	l, err := s.Layer(id, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := []byte("something")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := l.ReadAtContext(ctx, got, 1<<19); err != nil || !bytes.Equal(got, make([]byte, len(got))) {
		t.Errorf("read %q of a hole (%v)", got, err)
	}
}
