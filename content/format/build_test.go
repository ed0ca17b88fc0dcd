package format_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/content/internal/sample"
)

// made is what tests share, because it takes its time: a tar, its files' data
// by name, and its blobs by encoding.
var made struct {
	once  sync.Once
	tar   []byte
	files map[string][]byte
	blobs sync.Map
}

func theTar(t testing.TB) ([]byte, map[string][]byte) {
	t.Helper()
	made.once.Do(func() { made.tar, made.files = sample.Tar(t, 1) })
	return slices.Clip(made.tar), made.files
}

// blobOf returns the tar, and it in an encoding.
func blobOf(t testing.TB, encoding string) (tarball, blob []byte) {
	t.Helper()
	tarball, _ = theTar(t)
	b, ok := made.blobs.Load(encoding)
	if !ok {
		b, _ = made.blobs.LoadOrStore(encoding, sample.Encodings[encoding](t, tarball))
	}
	return tarball, b.([]byte)
}

// memory is a flat blob in memory.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if need := off + int64(len(p)); need > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, need-int64(len(m.b)))...)
	}
	return copy(m.b[off:], p), nil
}

// build builds an index and opens it.
func build(t testing.TB, tar, blob []byte) (*index.File, *memory) {
	t.Helper()
	flat := new(memory)
	raw, err := format.Build(context.Background(), sample.Layer(tar, blob), bytes.NewReader(blob), format.Options{Flat: flat})
	if err != nil {
		t.Fatal(err)
	}
	f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return f, flat
}

// decodeAll decodes every span by itself. blob is what the spans are of.
func decodeAll(t testing.TB, f *index.File, blob []byte) []byte {
	t.Helper()
	_, _, encoding := f.SpanBlob()
	spans, err := f.Spans()
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for i := range spans {
		s := &spans[i]
		window, err := f.Window(s)
		if err != nil {
			t.Fatal(err)
		}
		got, err := format.Decode(encoding, s, blob[s.BlobOff:s.BlobOff+s.BlobLen], window, nil)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, got...)
	}
	return out
}

func TestBuild(t *testing.T) {
	_, files := theTar(t)
	for name := range sample.Encodings {
		t.Run(name, func(t *testing.T) {
			tarball, blob := blobOf(t, name)
			f, flat := build(t, tarball, blob)
			if got := decodeAll(t, f, blob); !bytes.Equal(got, tarball) {
				t.Error("the spans together are not the tar")
			}
			checkFiles(t, f, flat, tarball, files)
			checkFraming(t, f, tarball)
		})
	}
}

// checkFiles compares the entries, and the flat blob, with the files.
func checkFiles(t *testing.T, f *index.File, flat *memory, tarball []byte, files map[string][]byte) {
	t.Helper()
	entries, err := f.Entries()
	if err != nil {
		t.Fatal(err)
	}
	digests, err := f.Digests()
	if err != nil {
		t.Fatal(err)
	}
	flat.b = append(flat.b, make([]byte, f.FlatSize-int64(len(flat.b)))...)
	tr := tar.NewReader(bytes.NewReader(tarball))
	for _, e := range entries {
		h, err := tr.Next()
		if err != nil {
			t.Fatal(err)
		}
		if e.Mode != uint32(h.Mode) || int(e.UID) != h.Uid || e.Sec != h.ModTime.Unix() || int(e.Nsec) != h.ModTime.Nanosecond() {
			t.Errorf("%s: entry %+v, header %+v", e.Name, e, h)
		}
		if e.Type != index.Regular {
			continue
		}
		want, ok := files[e.Name]
		if !ok || int64(len(want)) != e.Size {
			t.Fatalf("%s: %d bytes, should be %d", e.Name, e.Size, len(want))
		}
		if !bytes.Equal(flat.b[e.Off:e.Off+e.Size], want) {
			t.Errorf("%s: flat blob has other bytes", e.Name)
		}
		if e.Size > 0 {
			if digests[0] != sha256.Sum256(want) {
				t.Errorf("%s: wrong digest", e.Name)
			}
			digests = digests[1:]
		}
	}
	if _, err := tr.Next(); err != io.EOF || len(digests) > 0 {
		t.Errorf("after the last entry: %v, %d digests left", err, len(digests))
	}
}

// checkFraming writes the tar again from its framing and its files' data.
func checkFraming(t *testing.T, f *index.File, tarball []byte) {
	t.Helper()
	r, err := f.Framing()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	entries, err := f.Entries()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for i := range entries {
		for x := range entries[i].Extents() {
			if _, err := io.CopyN(&out, r, x.TarOff-int64(out.Len())); err != nil {
				t.Fatal(err)
			}
			out.Write(tarball[x.TarOff : x.TarOff+x.Len])
		}
	}
	if _, err := io.Copy(&out, r); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), tarball) {
		t.Error("framing and data together are not the tar")
	}
}

// GNU tar's own sparse files, in each of its formats.
func TestSparse(t *testing.T) {
	dir := t.TempDir()
	want := make([]byte, 5<<20)
	for i := range 30 { // more extents than an old header holds
		copy(want[i*150_000/4096*4096:], sample.Text(rand.New(rand.NewPCG(uint64(i), 2)), 5000))
	}
	path := filepath.Join(dir, "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for off := 0; off < len(want); off += 4096 {
		if b := want[off : off+4096]; !bytes.Equal(b, make([]byte, 4096)) {
			if _, err := f.WriteAt(b, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Truncate(int64(len(want))); err != nil {
		t.Fatal(err)
	}
	for _, format := range [][]string{{"--format=gnu"}, {"--sparse-version=0.0"}, {"--sparse-version=0.1"}, {"--sparse-version=1.0"}} {
		t.Run(format[0], func(t *testing.T) {
			args := append([]string{"-C", dir, "-S", "-c"}, format...)
			if !strings.HasPrefix(format[0], "--format") {
				args = append(args, "--format=posix")
			}
			tarball, err := exec.Command("tar", append(args, "sparse")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if len(tarball) > len(want)/2 {
				t.Fatalf("tar wrote %d bytes: it did not see the holes", len(tarball))
			}
			f, flat := build(t, tarball, tarball)
			entries, err := f.Entries()
			if err != nil {
				t.Fatal(err)
			}
			e := entries[0]
			if e.Name != "sparse" || e.Size != int64(len(want)) || len(e.Sparse) < 20 {
				t.Fatalf("entry %q of %d bytes in %d extents", e.Name, e.Size, len(e.Sparse))
			}
			flat.b = append(flat.b, make([]byte, f.FlatSize-int64(len(flat.b)))...)
			if !bytes.Equal(flat.b[:e.Size], want) {
				t.Error("flat blob has other bytes")
			}
			got := make([]byte, e.Size)
			for x := range e.Extents() {
				copy(got[x.Off:], tarball[x.TarOff:x.TarOff+x.Len])
			}
			if !bytes.Equal(got, want) {
				t.Error("the extents give other bytes")
			}
			checkFraming(t, f, tarball)
		})
	}
}

func TestBuildRefuses(t *testing.T) {
	tarball, blob := blobOf(t, "gzip")
	one := func(h tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Flush()
		return b.Bytes()
	}
	flip := bytes.Clone(blob)
	flip[len(flip)/2] ^= 1
	tests := map[string]struct {
		layer   format.Layer
		blob    []byte
		wrapped error
		says    string
	}{
		"truncated":      {sample.Layer(tarball, blob), blob[:len(blob)/2], nil, "unexpected EOF"},
		"bit flipped":    {sample.Layer(tarball, blob), flip, nil, "layer sha256:"},
		"too long":       {sample.Layer(tarball, blob), append(bytes.Clone(blob), blob...), nil, "layer sha256:"},
		"another blob":   {sample.Layer(tarball, tarball), blob, format.ErrCorrupt, "bytes long"},
		"another digest": {format.Layer{Blob: digest.FromString("x"), Size: int64(len(blob)), DiffID: digest.FromBytes(tarball)}, blob, format.ErrCorrupt, "digest"},
		"another diffID": {format.Layer{Blob: digest.FromBytes(blob), Size: int64(len(blob)), DiffID: digest.FromString("x")}, blob, format.ErrCorrupt, "configuration"},
		"climbing name":  {format.Layer{}, one(tar.Header{Name: "a/../../etc/passwd"}), nil, `".."`},
		"climbing link":  {format.Layer{}, one(tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "../x"}), nil, `".."`},
		"root is a file": {format.Layer{}, one(tar.Header{Name: "/", Typeflag: tar.TypeSymlink, Linkname: "x"}), nil, "root"},
		"long component": {format.Layer{}, one(tar.Header{Name: strings.Repeat("x", 256)}), nil, "256 bytes"},
		"xz":             {format.Layer{}, []byte("\xfd7zXZ\x00\x00\x04"), format.ErrUnsupported, "starts with"},
		"no tar":         {format.Layer{}, bytes.Repeat([]byte("no tar "), 1000), nil, "read tar"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			raw, err := format.Build(context.Background(), tt.layer, bytes.NewReader(tt.blob), format.Options{})
			if err == nil || raw != nil {
				t.Fatalf("an index of %d bytes and no error", len(raw))
			}
			if tt.wrapped != nil && !errors.Is(err, tt.wrapped) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q, should say %q and wrap %v", err, tt.says, tt.wrapped)
			}
		})
	}
}

// Absolute names are taken as relative to the image's root.
func TestAbsoluteName(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "//etc/./motd", Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	f, _ := build(t, b.Bytes(), b.Bytes())
	entries, err := f.Entries()
	if err != nil || len(entries) != 1 || entries[0].Name != "etc/motd" {
		t.Errorf("entries %+v, error %v", entries, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, encoding := range []string{"tar", "gzip", "frames", "skippable frames"} {
		t.Run(encoding, func(t *testing.T) {
			tarball, blob := blobOf(t, encoding)
			f, _ := build(t, tarball, blob)
			spans, err := f.Spans()
			if err != nil {
				t.Fatal(err)
			}
			s := &spans[1]
			window, err := f.Window(s)
			if err != nil || (len(window) > 0) != (encoding == "gzip") {
				t.Fatalf("a window of %d bytes, error %v", len(window), err)
			}
			decodeDamaged(t, f.Format, s, blob[s.BlobOff:s.BlobOff+s.BlobLen], window, tarball[s.TarOff:s.TarOff+s.TarLen])
		})
	}
}

// decodeDamaged changes a span's bytes. What it decodes to is either right or
// refused.
func decodeDamaged(t *testing.T, f index.Format, s *index.Span, good, window, want []byte) {
	r := rand.New(rand.NewPCG(4, 4))
	refused := 0
	for range 200 {
		bad, w := bytes.Clone(good), bytes.Clone(window)
		switch r.IntN(3) {
		case 0:
			bad[r.IntN(len(bad)-1)] ^= 1 << r.IntN(8)
		case 1:
			bad = bad[:r.IntN(len(bad)-2)]
		case 2:
			at := r.IntN(len(w) + 1)
			if at == len(w) || w[at] == 0 { // perhaps not referred to
				continue
			}
			w[at] ^= 1 << r.IntN(8)
		}
		got, err := format.Decode(f, s, bad, w, nil)
		if err == nil && !bytes.Equal(got, want) {
			t.Fatal("wrong bytes and no error")
		}
		if err != nil && (!errors.Is(err, format.ErrCorrupt) || got != nil) {
			t.Fatalf("error %v with %d bytes", err, len(got))
		}
		if err != nil {
			refused++
		}
	}
	if refused < 80 {
		t.Errorf("only %d were refused", refused)
	}
}

func TestBuildStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(make([]byte, 1024))
		cancel()
		w.CloseWithError(ctx.Err())
	}()
	if _, err := format.Build(ctx, format.Layer{}, r, format.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// A full disk ends the build with the disk's error.
func TestBuildDiskFull(t *testing.T) {
	tarball, _ := theTar(t)
	full := errors.New("no space left on device")
	_, err := format.Build(context.Background(), sample.Layer(tarball, tarball), bytes.NewReader(tarball), format.Options{Flat: failing{full}})
	if !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
}

type failing struct{ err error }

func (f failing) WriteAt([]byte, int64) (int, error) { return 0, f.err }

// seeds are short blobs of every encoding. Long ones cost the fuzzer its time.
func seeds(f *testing.F) map[string][]byte {
	tarball, _ := theTar(f)
	blobs := map[string][]byte{}
	for name, encode := range sample.Encodings {
		blobs[name] = encode(f, append(bytes.Clone(tarball[:3<<10]), make([]byte, 1024)...))
	}
	return blobs
}

// FuzzBuild gives Build any bytes as a blob.
func FuzzBuild(f *testing.F) {
	for _, blob := range seeds(f) {
		f.Add(blob)
	}
	f.Add([]byte("\x1f\x8b\x08"))
	f.Fuzz(func(t *testing.T, blob []byte) {
		raw, err := format.Build(t.Context(), sample.Layer(blob, blob), bytes.NewReader(blob), format.Options{})
		if err == nil && !bytes.Contains(raw, []byte("peel-idx")) {
			t.Error("neither an index nor an error")
		}
	})
}

// FuzzSpans compresses any bytes. What Build makes of them must decode, span by
// span, to what was compressed.
func FuzzSpans(f *testing.F) {
	for _, blob := range seeds(f) {
		f.Add(blob, 6)
	}
	f.Fuzz(func(t *testing.T, p []byte, level int) {
		tarball := sample.Wrap(t, p)
		var blob []byte
		if level = int(uint(level) % 11); level < 10 {
			blob = sample.Gzip(t, tarball, level)
		} else {
			for cut := range slices.Chunk(tarball, 2000+len(p)) {
				blob = append(blob, sample.Zstd(t, cut)...)
			}
		}
		raw, err := format.BuildSpans(t.Context(), sample.Layer(tarball, blob), bytes.NewReader(blob), format.Options{}, 4096)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			t.Fatal(err)
		}
		if got := decodeAll(t, fi, blob); !bytes.Equal(got, tarball) {
			t.Error("the spans together are not the tar")
		}
	})
}

// FuzzDecode gives Decode any bytes as a span's. They never pass for another
// tar than the one with the span's digest.
func FuzzDecode(f *testing.F) {
	for name, blob := range seeds(f) {
		for _, encoding := range []index.Format{index.Tar, index.Gzip, index.Zstd} {
			f.Add(uint8(encoding), blob, []byte("window"), uint8(0), strings.HasSuffix(name, "gzip"))
		}
	}
	f.Fuzz(func(t *testing.T, encoding uint8, blob, window []byte, bits uint8, member bool) {
		const n = 4096
		s := &index.Span{TarLen: n, BlobLen: int64(len(blob)), Bits: bits & 7, Member: member, Digest: sha256.Sum256(make([]byte, n))}
		got, err := format.Decode(index.Format(encoding), s, blob, window, nil)
		if err == nil && !bytes.Equal(got, make([]byte, n)) || err != nil && (!errors.Is(err, format.ErrCorrupt) || got != nil) {
			t.Errorf("%d bytes, error %v", len(got), err)
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	tarball, _ := sample.Tar(b, 6)
	for len(tarball) < 64<<20 {
		tarball = append(tarball[:len(tarball)-1024], tarball...)
	}
	for _, encoding := range []string{"gzip", "zstd", "zstd with a twin"} {
		name, _, twinned := strings.Cut(encoding, " ")
		blob := sample.Encodings[name](b, tarball)
		b.Run(encoding, func(b *testing.B) {
			b.SetBytes(int64(len(tarball)))
			for b.Loop() {
				var twin bytes.Buffer
				var o format.Options
				if twinned {
					o.Twin = &twin
				}
				raw, err := format.Build(context.Background(), sample.Layer(tarball, blob), bytes.NewReader(blob), o)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(100*float64(len(raw))/float64(len(blob)), "%index")
				b.ReportMetric(100*float64(twin.Len())/float64(len(blob)), "%twin")
			}
		})
	}
}
