package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// FuzzEntries gives the entries' columns as they are before compression, which
// keeps a fuzzer out. What is accepted keeps the promises of File, and comes out
// the same when it is written again.
func FuzzEntries(f *testing.F) {
	entries := []Entry{
		{Name: ".", Type: Dir, Mode: 0o755},
		{Name: "a", Mode: 0o644, Size: 5, TarOff: 512, Xattrs: []Xattr{{Name: "user.x", Value: "v"}}},
		{Name: "ab", Type: Symlink, Link: "../x", Xattrs: []Xattr{{Name: "user.x", Value: "v"}}},
		{Name: "h", Type: Hardlink, Link: "a", Sec: -1},
		{Name: "null", Type: Char, Major: 1, Minor: 3, Nsec: 5},
		{Name: "sparse", Size: 1 << 20, Sparse: []Extent{{Off: 4096, TarOff: 1024, Len: 512}}},
	}
	LayOut(entries)
	f.Add(encodeEntries(entries), len(entries))
	f.Add(encodeEntries(nil), 0)
	const tarSize = 1 << 20
	f.Fuzz(func(t *testing.T, raw []byte, n int) {
		if n < 0 || n > 1<<16 {
			return // Open has checked it
		}
		entries, err := decodeEntries(raw, n)
		if err != nil {
			return
		}
		LayOut(entries)
		if checkEntries(entries, tarSize) != nil {
			return
		}
		for i := range entries {
			e := &entries[i]
			if CheckName(e.Name) != nil || e.Size < 0 || e.Off+e.Size > MaxFlat {
				t.Fatalf("accepted %+v", e)
			}
			for x := range e.Extents() {
				if x.TarOff < 0 || x.Len <= 0 || x.TarOff+x.Len > tarSize || x.Off < 0 || x.Off+x.Len > e.Size {
					t.Fatalf("accepted %+v with %+v", e, x)
				}
			}
		}
		again, err := decodeEntries(encodeEntries(entries), n)
		if err != nil {
			t.Fatal(err)
		}
		LayOut(again)
		if n > 0 && !reflect.DeepEqual(again, entries) {
			t.Errorf("written again they are\n%+v, and were\n%+v", again, entries)
		}
	})
}

// FuzzSpanTable does the same for the spans.
func FuzzSpanTable(f *testing.F) {
	spans := []Span{
		{TarLen: 4000, BlobLen: 400, Member: true},
		{TarOff: 4000, TarLen: 6000, BlobOff: 399, BlobLen: 601, Bits: 5, Window: Range{Len: 30}},
	}
	f.Add(encodeSpans(spans), len(spans), uint8(Gzip))
	f.Add(encodeSpans(spans[:1]), 1, uint8(Tar))
	f.Fuzz(func(t *testing.T, raw []byte, n int, format uint8) {
		if n < 0 || n > 1<<16 {
			return
		}
		h := Header{BlobSize: 1000, TarSize: 10_000, Format: Format(format)}
		spans, err := decodeSpans(raw, n)
		if err != nil || checkSpans(spans, &h, 1000) != nil {
			return
		}
		end := int64(0)
		for i, s := range spans {
			if s.TarOff != end || s.BlobOff < 0 || s.BlobOff+s.BlobLen > h.BlobSize || s.Window.Off < 0 || s.Window.Off+s.Window.Len > 1000 {
				t.Fatalf("accepted span %d: %+v", i, s)
			}
			end += s.TarLen
		}
		if n > 0 && end != h.TarSize {
			t.Errorf("accepted spans of %d bytes", end)
		}
		if again := encodeSpans(spans); n > 0 && !bytes.Equal(again, encodeSpans(mustDecode(t, again, n))) {
			t.Error("written again they are others")
		}
	})
}

func mustDecode(t *testing.T, raw []byte, n int) []Span {
	t.Helper()
	spans, err := decodeSpans(raw, n)
	if err != nil {
		t.Fatal(err)
	}
	return spans
}

// What is small when it is serialised and large in memory is refused when it is
// decoded, too.
func TestDecodeIsBounded(t *testing.T) {
	shared := make([]Entry, 5000)
	for i := range shared {
		shared[i] = Entry{Name: "x", Xattrs: []Xattr{{Name: "user.x", Value: strings.Repeat("v", 60<<10)}}}
	}
	cols := make([][]byte, numColumns)
	cols[colXattrSets] = append(binary.AppendUvarint(nil, 1<<24), make([]byte, 40<<20)...)
	var sets []byte
	for _, c := range cols {
		sets = append(binary.AppendUvarint(sets, uint64(len(c))), c...)
	}
	for name, tt := range map[string]struct {
		raw []byte
		n   int
	}{"a set that all entries share": {encodeEntries(shared), len(shared)}, "a set of 16 million": {sets, 0}} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, err := decodeEntries(tt.raw, tt.n); !errors.Is(err, ErrFormat) {
				t.Errorf("error %v", err)
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
				t.Errorf("%d MiB of memory", n>>20)
			}
		})
	}
}
