package index_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/index"
)

// builder returns a builder with one entry of every type and three spans.
func builder(t testing.TB) *index.Builder {
	t.Helper()
	b, err := index.NewBuilder()
	if err != nil {
		t.Fatal(err)
	}
	b.Header = index.Header{
		Blob: digest.FromString("blob"), BlobSize: 1000, DiffID: digest.FromString("tar"), TarSize: 10_000, Format: index.Gzip,
	}
	b.Entries = []index.Entry{
		{Name: ".", Type: index.Dir, Mode: 0o755},
		{Name: "bin", Type: index.Dir, Mode: 0o755, Sec: -5, Nsec: 999_999_999},
		{Name: "bin/sh", Mode: 0o4755, UID: 1<<32 - 1, GID: 7, Size: 4097, TarOff: 512, Sec: 1 << 40,
			Xattrs: []index.Xattr{{Name: "security.capability", Value: "\x01\x00"}, {Name: "user.x", Value: ""}}},
		{Name: "bin/empty", Mode: 0o644},
		{Name: "bin/sh2", Type: index.Hardlink, Link: "bin/sh"},
		{Name: "bin/\xff\xfe", Type: index.Symlink, Link: "../..", Mode: 0o777},
		{Name: "dev/null", Type: index.Char, Major: 1, Minor: 3, Xattrs: []index.Xattr{{Name: "security.capability", Value: "\x01\x00"}, {Name: "user.x", Value: ""}}},
		{Name: "dev/loop", Type: index.Block, Major: 7, Minor: 1 << 20},
		{Name: "pipe", Type: index.Fifo},
		{Name: "sparse", Size: 1 << 30, Sparse: []index.Extent{{Off: 4096, TarOff: 6000, Len: 100}, {Off: 1<<30 - 1, TarOff: 6100, Len: 1}}},
		{Name: "hole", Size: 9000, Sparse: []index.Extent{}},
		{Name: ".wh.gone"},
		{Name: "bin/sh", Mode: 0o755, Size: 1, TarOff: 8000},
	}
	b.Digests = make([]index.SHA256, 4)
	for i := range b.Digests {
		b.Digests[i][0] = byte(i)
	}
	b.Spans = []index.Span{
		{TarLen: 4000, BlobLen: 400, Member: true, Digest: index.SHA256{1}},
		{TarOff: 4000, TarLen: 5000, BlobOff: 399, BlobLen: 101, Bits: 5, Digest: index.SHA256{2}, Window: b.AddWindow(bytes.Repeat([]byte("window"), 5000))},
		{TarOff: 9000, TarLen: 1000, BlobOff: 500, BlobLen: 500, Bits: 0, Digest: index.SHA256{3}, Window: b.AddWindow([]byte("w"))},
	}
	if _, err := io.WriteString(b.Framing(), strings.Repeat("framing", 1000)); err != nil {
		t.Fatal(err)
	}
	return b
}

// twinned makes the builder's index one of a layer with a twin.
func twinned(b *index.Builder) {
	b.Header.Format, b.Header.Twin, b.Header.TwinSize = index.Zstd, digest.FromString("twin"), 2000
	b.Spans = []index.Span{{TarLen: 9000, BlobLen: 1500, Digest: index.SHA256{1}}, {TarOff: 9000, TarLen: 1000, BlobOff: 1500, BlobLen: 500}}
}

func open(t testing.TB, raw []byte) *index.File {
	t.Helper()
	f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRoundTrip(t *testing.T) {
	b := builder(t)
	raw, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, raw)
	if f.Header != b.Header {
		t.Errorf("header %+v, want %+v", f.Header, b.Header)
	}
	entries, err := f.Entries()
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if !reflect.DeepEqual(entries[i], b.Entries[i]) {
			t.Errorf("entry\n%+v, want\n%+v", entries[i], b.Entries[i])
		}
	}
	spans, err := f.Spans()
	if err != nil || !reflect.DeepEqual(spans, b.Spans) {
		t.Errorf("spans\n%+v, want\n%+v (%v)", spans, b.Spans, err)
	}
	for i, want := range []string{"", strings.Repeat("window", 5000), "w"} {
		if w, err := f.Window(&spans[i]); err != nil || string(w) != want {
			t.Errorf("window %d has %d bytes, want %d (%v)", i, len(w), len(want), err)
		}
	}
	if d, err := f.Digests(); err != nil || !reflect.DeepEqual(d, b.Digests) {
		t.Errorf("digests %v (%v)", d, err)
	}
	r, err := f.Framing()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != strings.Repeat("framing", 1000) {
		t.Errorf("framing of %d bytes (%v)", len(got), err)
	}
}

func TestTwin(t *testing.T) {
	b := builder(t)
	if blob, size, f := b.Header.SpanBlob(); blob != b.Header.Blob || size != 1000 || f != index.Gzip {
		t.Errorf("the spans are of %s, %d bytes of %s", blob, size, f)
	}
	twinned(b)
	raw, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, raw)
	if f.Header != b.Header {
		t.Errorf("header %+v, want %+v", f.Header, b.Header)
	}
	if blob, size, format := f.SpanBlob(); blob != digest.FromString("twin") || size != 2000 || format != index.Zstd {
		t.Errorf("the spans are of %s, %d bytes of %s", blob, size, format)
	}
	if spans, err := f.Spans(); err != nil || !reflect.DeepEqual(spans, b.Spans) {
		t.Errorf("spans %+v (%v)", spans, err)
	}
}

func TestDeterministic(t *testing.T) {
	one, err := builder(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	two, err := builder(t).Encode()
	if err != nil || !bytes.Equal(one, two) {
		t.Errorf("the same index gives other bytes (%v)", err)
	}
}

func TestLayOut(t *testing.T) {
	entries := []index.Entry{{Size: 1}, {Type: index.Dir}, {Size: 4096}, {}, {Size: 4097}, {Size: 1}}
	if got := index.LayOut(entries); got != 5*4096 {
		t.Errorf("flat blob of %d bytes", got)
	}
	for i, want := range []int64{0, 0, 4096, 8192, 8192, 16384} {
		if entries[i].Off != want {
			t.Errorf("entry %d is at %d, want %d", i, entries[i].Off, want)
		}
	}
}

func TestCheckName(t *testing.T) {
	long := strings.Repeat("x", 255)
	for name, ok := range map[string]bool{
		".": true, "a": true, "a/b": true, "..a": true, "a..": true, "...": true, "\xff": true, " ": true, long: true, long + "/" + long: true,
		"": false, "/": false, "/a": false, "a/": false, "a//b": false, "..": false, "a/..": false, "a/../b": false, "./a": false, "a/.": false,
		"a\x00b": false, long + "x": false, strings.Repeat("a/", 3000) + "a": false,
	} {
		if err := index.CheckName(name); (err == nil) != ok {
			t.Errorf("%.20q: %v", name, err)
		}
	}
}

// Encode refuses what Open would.
func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(b *index.Builder){
		"climbing name":           func(b *index.Builder) { b.Entries[2].Name = "../sh" },
		"climbing hard link":      func(b *index.Builder) { b.Entries[4].Link = "/etc/passwd" },
		"symlink to nothing":      func(b *index.Builder) { b.Entries[5].Link = "" },
		"mode with a type":        func(b *index.Builder) { b.Entries[2].Mode = 0o100755 },
		"unknown type":            func(b *index.Builder) { b.Entries[0].Type = 77 },
		"negative size":           func(b *index.Builder) { b.Entries[2].Size = -1 },
		"enormous size":           func(b *index.Builder) { b.Entries[9].Size = 1 << 60 },
		"data outside the tar":    func(b *index.Builder) { b.Entries[12].TarOff = 10_000 },
		"data that overlaps":      func(b *index.Builder) { b.Entries[12].TarOff = 600 },
		"a second and more":       func(b *index.Builder) { b.Entries[1].Nsec = 1e9 },
		"unsorted attributes":     func(b *index.Builder) { x := b.Entries[2].Xattrs; x[0], x[1] = x[1], x[0] },
		"too few digests":         func(b *index.Builder) { b.Digests = b.Digests[1:] },
		"gap between spans":       func(b *index.Builder) { b.Spans[1].TarOff++ },
		"spans end early":         func(b *index.Builder) { b.Spans = b.Spans[:2] },
		"span outside the blob":   func(b *index.Builder) { b.Spans[2].BlobLen++ },
		"bytes between spans":     func(b *index.Builder) { b.Spans[2].BlobOff++; b.Spans[2].BlobLen-- },
		"span of no blob":         func(b *index.Builder) { b.Spans[2].BlobLen = 0 },
		"member within a byte":    func(b *index.Builder) { b.Spans[1].Member = true },
		"windows out of order":    func(b *index.Builder) { b.Spans[2].Window.Off = 0 },
		"span too long":           func(b *index.Builder) { b.Header.TarSize, b.Spans[2].TarLen = index.MaxSpan+9001, index.MaxSpan+1 },
		"digest of another kind":  func(b *index.Builder) { b.Header.Blob = "sha512:" + digest.Digest(strings.Repeat("0", 128)) },
		"negative size of a blob": func(b *index.Builder) { b.Header.BlobSize = -1 },
		"zstd within a byte":      func(b *index.Builder) { b.Header.Format = index.Zstd },
		"twin of no bytes":        func(b *index.Builder) { twinned(b); b.Header.TwinSize = 0 },
		"bytes of no twin":        func(b *index.Builder) { twinned(b); b.Header.Twin = "" },
		"twin without spans":      func(b *index.Builder) { twinned(b); b.Spans = nil },
		"span outside the twin":   func(b *index.Builder) { twinned(b); b.Header.TwinSize-- },
		"twin of another kind": func(b *index.Builder) {
			twinned(b)
			b.Header.Twin = "sha512:" + digest.Digest(strings.Repeat("0", 128))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := builder(t)
			change(b)
			if raw, err := b.Encode(); err == nil {
				t.Errorf("%d bytes and no error", len(raw))
			}
		})
	}
}

// Whatever is cut off or changed, there is an error, or the same index.
func TestDamage(t *testing.T) {
	for name, change := range map[string]func(*index.Builder){"layer": func(*index.Builder) {}, "twin": twinned} {
		t.Run(name, func(t *testing.T) {
			b := builder(t)
			change(b)
			raw, err := b.Encode()
			if err != nil {
				t.Fatal(err)
			}
			damage(t, raw)
		})
	}
}

func damage(t *testing.T, raw []byte) {
	for n := range raw {
		if _, err := index.Open(bytes.NewReader(raw[:n]), int64(n)); !errors.Is(err, index.ErrFormat) {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
	}
	if _, err := index.Open(bytes.NewReader(append(raw, 0)), int64(len(raw)+1)); !errors.Is(err, index.ErrFormat) {
		t.Errorf("a byte too many: %v", err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		bad := bytes.Clone(raw)
		for range 1 + r.IntN(3) {
			bad[r.IntN(len(bad))] = byte(r.Uint32())
		}
		readAll(t, bad)
	}
}

// readAll reads every part, and holds what is accepted against the promises of
// File.
func readAll(t testing.TB, raw []byte) {
	t.Helper()
	f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return
	}
	if entries, err := f.Entries(); err == nil {
		for i := range entries {
			e := &entries[i]
			if index.CheckName(e.Name) != nil || e.Size < 0 || e.Off%index.BlockSize != 0 || e.Off+e.Size > f.FlatSize {
				t.Fatalf("accepted %+v", e)
			}
			for x := range e.Extents() {
				if x.TarOff < 0 || x.Len <= 0 || x.TarOff+x.Len > f.TarSize || x.Off < 0 || x.Off+x.Len > e.Size {
					t.Fatalf("accepted %+v with %+v", e, x)
				}
			}
		}
	}
	if spans, err := f.Spans(); err == nil {
		_, size, _ := f.SpanBlob()
		var end int64
		for i := range spans {
			s := &spans[i]
			if s.TarOff != end || s.TarLen <= 0 || s.BlobOff < 0 || s.BlobOff+s.BlobLen > size {
				t.Fatalf("accepted %+v", s)
			}
			end += s.TarLen
			_, _ = f.Window(s)
		}
		if len(spans) > 0 && end != f.TarSize {
			t.Fatalf("spans cover %d of %d bytes", end, f.TarSize)
		}
	}
	_, _ = f.Digests()
	if r, err := f.Framing(); err == nil {
		_, _ = io.CopyN(io.Discard, r, 1<<20)
		r.Close()
	}
}

func TestVersion(t *testing.T) {
	raw, err := builder(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(raw[8:], 99)
	if _, err := index.Open(bytes.NewReader(raw), int64(len(raw))); !errors.Is(err, index.ErrFormat) || !strings.Contains(err.Error(), "version 99") {
		t.Errorf("error %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	raw, err := builder(f).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:200])
	b := builder(f)
	twinned(b)
	if raw, err = b.Encode(); err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) { readAll(t, raw) })
}

func BenchmarkEntries(b *testing.B) {
	bl, err := index.NewBuilder()
	if err != nil {
		b.Fatal(err)
	}
	bl.Header = index.Header{Blob: digest.FromString("b"), DiffID: digest.FromString("t"), TarSize: 1 << 40, BlobSize: 1 << 30, Format: index.Tar}
	for i := range 100_000 {
		bl.Entries = append(bl.Entries, index.Entry{
			Name: fmt.Sprintf("usr/lib/node_modules/package%d/lib/file%d.js", i/100, i), Mode: 0o644, Sec: 1.7e9, Size: 1000, TarOff: int64(i)*1536 + 512,
		})
	}
	bl.Digests = make([]index.SHA256, 100_000)
	raw, err := bl.Encode()
	if err != nil {
		b.Fatal(err)
	}
	f := open(b, raw)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Entries(); err != nil {
			b.Fatal(err)
		}
	}
}

func Example() {
	b, err := index.NewBuilder()
	if err != nil {
		panic(err)
	}
	b.Header = index.Header{Blob: digest.FromString("blob"), DiffID: digest.FromString("tar"), TarSize: 1536, BlobSize: 1536, Format: index.Tar}
	b.Entries = []index.Entry{{Name: "etc/motd", Mode: 0o644, Size: 5, TarOff: 512}}
	b.Digests = make([]index.SHA256, 1)
	b.Spans = []index.Span{{TarLen: 1536, BlobLen: 1536}}
	raw, err := b.Encode()
	if err != nil {
		panic(err)
	}
	f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		panic(err)
	}
	entries, err := f.Entries()
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s: %d bytes at %d of the tar, at %d of the flat blob\n", entries[0].Name, entries[0].Size, entries[0].TarOff, entries[0].Off)
	// Output: etc/motd: 5 bytes at 512 of the tar, at 0 of the flat blob
}

// A crafted index costs little more memory than its own size warrants: what
// shares and repeats is counted for each that has it.
func TestCraftedIndexIsBounded(t *testing.T) {
	big := make([]index.Xattr, 60)
	for i := range big {
		big[i] = index.Xattr{Name: fmt.Sprintf("user.%02d", i), Value: strings.Repeat("v", 60<<10)}
	}
	for name, change := range map[string]func(*index.Builder){
		"one set of attributes for all": func(b *index.Builder) {
			for i := range 100 {
				b.Entries = append(b.Entries, index.Entry{Name: fmt.Sprint(i), Xattrs: big})
			}
		},
		"one long name for all": func(b *index.Builder) {
			long := strings.Repeat(strings.Repeat("n", 250)+"/", 16)
			for i := range 70_000 {
				b.Entries = append(b.Entries, index.Entry{Name: long + fmt.Sprint(i)})
			}
		},
		"too many entries": func(b *index.Builder) { b.Entries = make([]index.Entry, index.MaxEntries+1) },
		"too many extents": func(b *index.Builder) {
			x := make([]index.Extent, index.MaxExtents/2+1)
			for i := range x {
				x[i] = index.Extent{Off: int64(2 * i), TarOff: int64(i), Len: 1}
			}
			y := slices.Clone(x)
			for i := range y {
				y[i].TarOff += int64(len(x))
			}
			b.Header.TarSize = 1 << 30
			b.Spans = nil
			b.Entries = []index.Entry{{Name: "a", Size: 1 << 30, Sparse: x}, {Name: "b", Size: 1 << 30, Sparse: y}}
			b.Digests = make([]index.SHA256, 2)
		},
		"files of 2 TiB": func(b *index.Builder) {
			b.Entries = []index.Entry{{Name: "a", Size: 1 << 40, Sparse: []index.Extent{}}, {Name: "b", Size: 1 << 40, Sparse: []index.Extent{}}}
			b.Digests = make([]index.SHA256, 2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := builder(t)
			change(b)
			if raw, err := b.Encode(); err == nil {
				t.Errorf("%d bytes and no error", len(raw))
			} else if !errors.Is(err, index.ErrFormat) {
				t.Error(err)
			}
		})
	}
}
