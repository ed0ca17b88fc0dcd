package format_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/content/internal/sample"
)

// tarOf writes headers, each followed by as many bytes as its size says.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A layer beyond a limit is refused, and the error names the entry and the
// limit; one that is just within is not.
func TestLimits(t *testing.T) {
	file := func(name string, size int64) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Format: tar.FormatPAX}
	}
	link := file("link", 0)
	link.Typeflag, link.Linkname = tar.TypeSymlink, strings.Repeat("l", 200)
	attr := file("attr", 0)
	attr.PAXRecords = map[string]string{"SCHILY.xattr.user.x": strings.Repeat("v", 200)}
	noise := make([]byte, 100_000)
	for i := range noise {
		noise[i] = byte(i * i >> 7)
	}
	tests := map[string]struct {
		tar    []byte
		limits format.Limits // the tar exceeds them by one
		more   format.Limits
		says   []string
	}{
		"entries":        {tarOf(t, file("a", 1), file("b", 1), file("c", 1)), format.Limits{Entries: 2}, format.Limits{Entries: 3}, []string{`"c"`, "more than 2 entries"}},
		"names":          {tarOf(t, file("short", 0), file(strings.Repeat("n", 200), 0)), format.Limits{Text: 204}, format.Limits{Text: 205}, []string{`"nnnn`, "more than 204 bytes"}},
		"targets":        {tarOf(t, link), format.Limits{Text: 203}, format.Limits{Text: 204}, []string{`"link"`, "more than 203 bytes"}},
		"attributes":     {tarOf(t, attr), format.Limits{Text: 241}, format.Limits{Text: 242}, []string{`"attr"`, "more than 241 bytes"}},
		"one size":       {tarOf(t, file("a", 1), file("big", 100_000)), format.Limits{Size: 99_999}, format.Limits{Size: 200_000}, []string{`"big"`, "99999"}},
		"all sizes":      {tarOf(t, file("a", 60_000), file("b", 60_000)), format.Limits{Size: 100_000}, format.Limits{Size: 200_000}, []string{`"b"`, "larger than 100000 bytes"}},
		"ratio":          {tarOf(t, file("a", 1), file("big", 500_000)), format.Limits{RatioFrom: 1000, Ratio: 20}, format.Limits{RatioFrom: 1 << 20, Ratio: 20}, []string{`"big"`, "20 times"}},
		"behind the end": {append(tarOf(t, file("a", 1)), make([]byte, 500_000)...), format.Limits{RatioFrom: 10_000, Ratio: 20}, format.Limits{RatioFrom: 1 << 20, Ratio: 20}, []string{"follows the end", "20 times"}},
		"index":          {append(tarOf(t, file("a", 1)), noise...), format.Limits{Index: 10_000}, format.Limits{Index: 200_000}, []string{"index", "more than 10000 bytes"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			blob := sample.Gzip(t, tt.tar, 9)
			build := func(l format.Limits) ([]byte, error) {
				return format.Build(t.Context(), sample.Layer(tt.tar, blob), bytes.NewReader(blob), format.Options{Limits: l})
			}
			if _, err := build(tt.more); err != nil {
				t.Error(err)
			}
			raw, err := build(tt.limits)
			if err == nil || raw != nil {
				t.Fatalf("an index of %d bytes and no error", len(raw))
			}
			for _, want := range tt.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

// A PAX header is one string. An index that kept a name of it would keep all of
// it, and a million small entries a terabyte.
func TestBuildKeepsNoHeaders(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range 200 {
		h := tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("%0200d", i), Format: tar.FormatPAX}
		if long := 1<<20 - 4000; i%2 == 0 {
			h.Name += strings.Repeat("/", long)
		} else {
			h.PAXRecords = map[string]string{"VENDOR.x": strings.Repeat("x", long), "SCHILY.xattr.user.x": "v"}
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	blob := sample.Gzip(t, b.Bytes(), 1)
	layer := sample.Layer(b.Bytes(), blob)
	b, w = bytes.Buffer{}, nil
	m := &meter{r: bytes.NewReader(blob)}
	if _, err := format.Build(t.Context(), layer, m, format.Options{}); err != nil {
		t.Fatal(err)
	}
	if n := m.most - m.first; m.reads < 10 || n > 60<<20 {
		t.Errorf("%d MiB of memory in use for 200 MiB of headers, in %d reads", n>>20, m.reads)
	}
}

// meter sees how much memory is in use while something is read.
type meter struct {
	r           io.Reader
	reads       int
	first, most uint64
}

func (m *meter) Read(p []byte) (int, error) {
	var st runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&st)
	if m.reads++; m.reads == 1 {
		m.first = st.HeapAlloc
	}
	m.most = max(m.most, st.HeapAlloc)
	return m.r.Read(p[:min(len(p), 16<<10)])
}

// FuzzTar gives Build any bytes as a tar. What it makes of them is what
// archive/tar does: the same files with the same data, whether from the flat
// blob or by the extents in the tar. And it can be verified.
func FuzzTar(f *testing.F) {
	long := strings.Repeat("long/", 60) + "name"
	f.Add(tarOf(f, tar.Header{Typeflag: tar.TypeReg, Name: long, Size: 700, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "v"}}))
	f.Add(tarOf(f, tar.Header{Typeflag: tar.TypeReg, Name: long, Size: 3, Format: tar.FormatGNU}, tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: long}))
	f.Fuzz(func(t *testing.T, tarball []byte) {
		flat := new(memory)
		limits := format.Limits{Size: 1 << 20} // so that no file is long to read
		layer := sample.Layer(tarball, tarball)
		raw, err := format.Build(t.Context(), layer, bytes.NewReader(tarball), format.Options{Flat: flat, Limits: limits})
		if err != nil {
			return
		}
		fi, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			t.Fatal(err)
		}
		flat.b = append(flat.b, make([]byte, fi.FlatSize-int64(len(flat.b)))...)
		sameAsTar(t, fi, flat.b, tarball)
		if err := format.Verify(t.Context(), fi, bytes.NewReader(flat.b)); err != nil {
			t.Errorf("verify: %v", err)
		}
	})
}

// sameAsTar compares the regular files of an index with those of its tar.
func sameAsTar(t *testing.T, f *index.File, flat, tarball []byte) {
	t.Helper()
	entries, err := f.Entries()
	if err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(bytes.NewReader(tarball))
	for i := range entries {
		h, err := tr.Next()
		for err == nil && h.Typeflag == tar.TypeXGlobalHeader {
			h, err = tr.Next()
		}
		if err != nil {
			t.Fatalf("entry %q is not in the tar: %v", entries[i].Name, err)
		}
		e := &entries[i]
		if e.Type != index.Regular {
			continue
		}
		want, err := io.ReadAll(tr)
		if err != nil || !bytes.Equal(flat[e.Off:e.Off+e.Size], want) {
			t.Fatalf("%q has other data in the flat blob (%v)", e.Name, err)
		}
		got := make([]byte, e.Size)
		for x := range e.Extents() {
			copy(got[x.Off:x.Off+x.Len], tarball[x.TarOff:])
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%q has other data by its extents", e.Name)
		}
	}
}
