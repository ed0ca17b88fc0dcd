package content

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/peelfs/peel/content/index"
)

// numbered returns the entries of n files, and digests that no other first has.
func numbered(first, n int) (entries []index.Entry, digests []index.SHA256) {
	for i := range n {
		entries = append(entries, index.Entry{Name: fmt.Sprint(i), Type: index.Regular, Size: int64(i%5) * 3000})
		if i%5 > 0 {
			digests = append(digests, sha256.Sum256(binary.AppendUvarint(nil, uint64(first+i))))
		}
	}
	index.LayOut(entries)
	return entries, digests
}

func TestFileTable(t *testing.T) {
	const n = 1000
	entries, digests := numbered(0, n)
	entries[42].Sparse = []index.Extent{{Len: 100}}
	digests[2], digests[3] = digests[1], digests[1]
	raw, err := encodeFiles(entries, digests)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "files")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	table, err := openFileTable(path, index.LayOut(entries))
	if err != nil {
		t.Fatal(err)
	}
	defer table.close()
	for i := range entries {
		e := &entries[i]
		if e.Size == 0 {
			continue
		}
		d := digests[0]
		digests = digests[1:]
		for _, off := range []int64{e.Off, e.Off + e.Size - 1} {
			f, ok := table.holding(off)
			if ok != (e.Sparse == nil) || ok && f != (file{d, e.Off, e.Size}) {
				t.Errorf("%d: at %d is %+v, %t", i, off, f, ok)
			}
		}
		if f, ok := table.holding(e.Off + e.Size); ok && e.Size%index.BlockSize != 0 {
			t.Errorf("%d: after it is %+v", i, f)
		}
		at, ok := table.find(d)
		var same []file
		for ; ok && table.at(at).digest == d; at++ {
			same = append(same, table.at(at))
		}
		if found := slices.Contains(same, file{d, e.Off, e.Size}); found != (e.Sparse == nil) {
			t.Errorf("%d is not among %+v", i, same)
		}
	}
	if _, ok := table.find(sha256.Sum256([]byte("other"))); ok {
		t.Error("a digest is found that is of no file")
	}
	if _, err := encodeFiles(entries, nil); err == nil {
		t.Error("a table without digests")
	}
}

// BenchmarkDonors looks for files in a store of 20 images with 100,000 files
// each: for some that one of them has, and for some that none has.
func BenchmarkDonors(b *testing.B) {
	const images, files, blocks = 20, 100_000, 300_000
	d := donors{dir: b.TempDir()}
	defer d.close()
	for n := range images {
		entries, digests := numbered(n*files, files)
		raw, err := encodeFiles(entries, digests)
		if err != nil {
			b.Fatal(err)
		}
		mem, err := newMap(1, blocks)
		if err != nil {
			b.Fatal(err)
		}
		p, err := viewMap(mem, 1, blocks)
		if err != nil {
			b.Fatal(err)
		}
		p.blocks.set(0, blocks)
		dir := filepath.Join(d.dir, fmt.Sprint(n))
		if err := os.Mkdir(dir, 0o700); err != nil {
			b.Fatal(err)
		}
		for name, raw := range map[string][]byte{"files": raw, "map": mem} {
			if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	memory := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / 1e6
	}
	before := memory()
	for name, there := range map[string]bool{"here": true, "nowhere": false} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				at := i * 7919 % (images * files)
				if !there {
					at += images * files
				}
				if at%5 == 0 {
					at++
				}
				f := file{digest: sha256.Sum256(binary.AppendUvarint(nil, uint64(at))), size: int64(at%5) * 3000}
				if d.has(f) != there {
					b.Fatalf("file %d", at)
				}
			}
			b.ReportMetric(memory()-before, "MB")
		})
	}
}
