package content

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/peelfs/peel/content/index"
)

// FuzzMap opens any bytes as the map of what is present. One of another size is
// damaged; of the rest every question has an answer.
func FuzzMap(f *testing.F) {
	good, err := newMap(3, 100)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, uint8(3), uint8(100), []byte("durable"))
	f.Add(good[:mapHeader], uint8(0), uint8(0), []byte(nil))
	f.Fuzz(func(t *testing.T, raw []byte, spans, blocks uint8, durable []byte) {
		file := fileOf(t, raw)
		p, err := openMap(file, int(spans), int(blocks))
		if err != nil {
			if !errors.Is(err, errDamaged) {
				t.Fatal(err)
			}
			return
		}
		defer p.close()
		for _, set := range []bitmap{p.spans, p.blocks} {
			for i := range set.n {
				if set.has(i) != set.hasAll(i, i+1) {
					t.Errorf("%d is in the set and is not", i)
				}
			}
		}
		snapshot := p.snapshot()
		if err := p.restore(durable); err != nil {
			t.Fatal(err)
		}
		if got := p.snapshot(); len(durable) == len(got) && !bytes.Equal(got, durable) || len(durable) != len(got) && p.spans.count()+p.blocks.count() > 0 {
			t.Errorf("%x is restored as %x", durable, got)
		}
		if err := p.restore(snapshot); err != nil || !bytes.Equal(p.snapshot(), snapshot) {
			t.Errorf("a snapshot is not restored (%v)", err)
		}
		if ok, err := p.current(); !ok || err != nil {
			t.Errorf("a restored map is not of this start of the machine (%v)", err)
		}
	})
}

// FuzzRuns opens any bytes as the table of runs, and asks it everything.
func FuzzRuns(f *testing.F) {
	entries := []index.Entry{{Size: 5000, TarOff: 512}, {Size: 1 << 20, Sparse: []index.Extent{{Off: 4096, TarOff: 6144, Len: 9000}}}, {Size: 1, TarOff: 16384}}
	index.LayOut(entries)
	f.Add(encodeRuns(entries), int64(0), int64(4096))
	f.Add([]byte("not a whole number of runs"), int64(-5), int64(1)<<62)
	f.Fuzz(func(t *testing.T, raw []byte, lo, hi int64) {
		r, err := openRuns(fileOf(t, raw).Name())
		if err != nil {
			if !errors.Is(err, errDamaged) {
				t.Fatal(err)
			}
			return
		}
		defer r.close()
		if r.len() != len(raw)/runSize {
			t.Errorf("%d runs in %d bytes", r.len(), len(raw))
		}
		for _, i := range []int{r.afterTar(lo), r.afterFlat(lo)} {
			if i < 0 || i > r.len() {
				t.Errorf("run %d of %d", i, r.len())
			}
		}
		r.tarRange(lo, hi)
	})
}

func fileOf(t *testing.T, raw []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
