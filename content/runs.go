package content

import (
	"encoding/binary"
	"fmt"
	"os"
	"sort"

	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// run is a piece of a file's data: where it is in the tar, and in the flat
// blob. Runs are in order in both.
type run struct{ tar, flat, len int64 }

// blocks returns the blocks of the flat blob that have data of the run.
func (x run) blocks() (lo, hi int) {
	return int(x.flat / index.BlockSize), int(index.Align(x.flat+x.len) / index.BlockSize)
}

const runSize = 24 // bytes: three little-endian 64-bit numbers

// runs is the table of a layer's runs. It follows from the index, but as a
// mapped file it costs no memory where nothing is being fetched.
type runs struct{ mem []byte }

// encodeRuns returns the table of the entries.
func encodeRuns(entries []index.Entry) []byte {
	var out []byte
	for i := range entries {
		e := &entries[i]
		for x := range e.Extents() {
			for _, v := range []int64{x.TarOff, e.Off + x.Off, x.Len} {
				out = binary.LittleEndian.AppendUint64(out, uint64(v))
			}
		}
	}
	return out
}

func openRuns(path string) (runs, error) {
	f, err := os.Open(path)
	if err != nil {
		return runs{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return runs{}, err
	}
	if st.Size()%runSize != 0 {
		return runs{}, fmt.Errorf("%w: %s has %d bytes, which is no table", errDamaged, path, st.Size())
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return runs{}, fmt.Errorf("map %s: %w", path, err)
	}
	return runs{mem}, nil
}

func (r runs) close() error {
	if r.mem == nil {
		return nil
	}
	return unix.Munmap(r.mem)
}

func (r runs) len() int { return len(r.mem) / runSize }

func (r runs) at(i int) run {
	b := r.mem[i*runSize:]
	return run{
		tar:  int64(binary.LittleEndian.Uint64(b)),
		flat: int64(binary.LittleEndian.Uint64(b[8:])),
		len:  int64(binary.LittleEndian.Uint64(b[16:])),
	}
}

// afterTar returns the first run that ends after off of the tar.
func (r runs) afterTar(off int64) int {
	return sort.Search(r.len(), func(i int) bool { x := r.at(i); return x.tar+x.len > off })
}

// afterFlat returns the first run that ends after off of the flat blob.
func (r runs) afterFlat(off int64) int {
	return sort.Search(r.len(), func(i int) bool { x := r.at(i); return x.flat+x.len > off })
}

// tarRange returns the least range of the tar that holds all data of the
// range [lo, hi) of the flat blob. It is empty where there is none.
func (r runs) tarRange(lo, hi int64) (from, to int64) {
	for i := r.afterFlat(lo); i < r.len(); i++ {
		x := r.at(i)
		if x.flat >= hi {
			break
		}
		if from == to {
			from = x.tar + max(0, lo-x.flat)
		}
		to = x.tar + min(x.len, hi-x.flat)
	}
	return from, to
}
