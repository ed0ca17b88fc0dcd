package format_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/content/internal/sample"
)

// buildTwin builds an index with a twin.
func buildTwin(t *testing.T, tar, blob []byte) (*index.File, []byte) {
	t.Helper()
	var twin bytes.Buffer
	raw, err := format.Build(t.Context(), sample.Layer(tar, blob), bytes.NewReader(blob), format.Options{Twin: &twin})
	if err != nil {
		t.Fatal(err)
	}
	f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return f, twin.Bytes()
}

func TestTwin(t *testing.T) {
	tarball, _ := theTar(t)
	var first []byte
	for name := range sample.Encodings {
		t.Run(name, func(t *testing.T) {
			_, blob := blobOf(t, name)
			f, twin := buildTwin(t, tarball, blob)
			if got := decodeAll(t, f, twin); !bytes.Equal(got, tarball) {
				t.Error("the spans together are not the tar")
			}
			of, size, _ := f.SpanBlob()
			if of != f.Twin || of != digest.FromBytes(twin) || size != int64(len(twin)) {
				t.Errorf("the index names a twin %s of %d bytes; it is %s of %d", f.Twin, f.TwinSize, digest.FromBytes(twin), len(twin))
			}
			spans, err := f.Spans()
			if err != nil || int64(len(spans)) != (f.TarSize+format.SpanSize-1)/format.SpanSize {
				t.Errorf("%d spans of %d bytes (%v)", len(spans), f.TarSize, err)
			}
			if first == nil {
				first = twin
			}
			if !bytes.Equal(twin, first) {
				t.Error("the twin depends on how the layer was compressed")
			}
		})
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	if _, twin := buildTwin(t, tarball, tarball); !bytes.Equal(twin, first) {
		t.Error("the twin depends on the number of processors")
	}
}

// A layer without data has no twin.
func TestTwinOfNothing(t *testing.T) {
	for name, blob := range map[string][]byte{"nothing": nil, "zstd": sample.Skippable(nil), "gzip": sample.Gzip(t, nil, 6)} {
		if f, twin := buildTwin(t, nil, blob); f.Twin != "" || f.TwinSize != 0 || len(twin) > 0 {
			t.Errorf("%s: twin %q of %d bytes", name, f.Twin, len(twin))
		}
	}
}

func TestTwinDiskFull(t *testing.T) {
	tarball, _ := theTar(t)
	full := errors.New("no space left on device")
	_, err := format.Build(t.Context(), sample.Layer(tarball, tarball), bytes.NewReader(tarball), format.Options{Twin: failing{full}})
	if !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
}

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// A span that is too long ends the build at once if it is asked to, and
// otherwise leaves the layer without spans.
func TestNoResume(t *testing.T) {
	short := sample.Wrap(t, make([]byte, 2<<20))
	long := sample.Wrap(t, make([]byte, index.MaxSpan))
	half := sample.Wrap(t, make([]byte, format.LongSpan+2<<20))
	skipped := slices.Concat(sample.Zstd(t, short[:1<<20]), sample.Skippable(make([]byte, 2*index.MaxSpan)), sample.Zstd(t, short[1<<20:]))
	tests := map[string]struct {
		tar, blob []byte
		most      int64 // of the blob may be read
		spans     int   // without MaxSpan
	}{
		"one frame":             {long, sample.Zstd(t, long), 64 << 10, 0},
		"one block":             {half, sample.OneBlock(half), format.LongSpan + 4<<20, 1},
		"a long frame at last":  {append(short[:len(short):len(short)], long...), append(sample.Zstd(t, short), sample.Zstd(t, long)...), 128 << 10, 0},
		"a long frame at first": {append(half[:len(half):len(half)], short...), append(sample.Zstd(t, half), sample.Zstd(t, short)...), 64 << 10, 2},
		"much to skip":          {short, skipped, int64(len(skipped)), 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := sample.Layer(tt.tar, tt.blob)
			counted := &counter{Reader: bytes.NewReader(tt.blob)}
			_, err := format.Build(t.Context(), l, counted, format.Options{MaxSpan: format.LongSpan})
			if !errors.Is(err, format.ErrNoResume) || counted.n > tt.most {
				t.Errorf("error %v after %d of %d bytes", err, counted.n, len(tt.blob))
			}
			f, _ := build(t, tt.tar, tt.blob)
			if spans, err := f.Spans(); err != nil || len(spans) != tt.spans {
				t.Errorf("%d spans (%v), want %d", len(spans), err, tt.spans)
			}
		})
	}
	for name := range sample.Encodings {
		tarball, blob := blobOf(t, name)
		if _, err := format.Build(t.Context(), sample.Layer(tarball, blob), bytes.NewReader(blob), format.Options{MaxSpan: format.LongSpan}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type counter struct {
	io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}
