package content

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"

	"github.com/peelfs/peel/content/index"
)

// file is a file of a layer that has data: what it must be, and where it is in
// the flat blob.
type file struct {
	digest    index.SHA256
	off, size int64 // bytes
}

func (f file) blocks() (lo, hi int) {
	return int(f.off / index.BlockSize), int(index.Align(f.off+f.size) / index.BlockSize)
}

// fileTable is a layer's files that have data, to be found by digest and by
// place. It follows from the index. It is read where it is needed and neither
// kept in memory nor mapped: stores have millions of files.
//
// The file: the records in order of their digests, each the digest and two
// little-endian 64-bit numbers, place and size; then the records' numbers, 32
// bit each, in order of their places.
//
// Sparse files are left out: what they take is not what they seem to have.
type fileTable struct {
	f    *os.File
	n    int
	flat int64 // length of the flat blob, in bytes
}

const (
	fileRecord = len(index.SHA256{}) + 16 // bytes
	fileNumber = 4
)

func encodeFiles(entries []index.Entry, digests []index.SHA256) ([]byte, error) {
	var all []file
	for i := range entries {
		e := &entries[i]
		if e.Type != index.Regular || e.Size == 0 {
			continue
		}
		if len(digests) == 0 {
			return nil, fmt.Errorf("%w: it has fewer digests than files with data", index.ErrFormat)
		}
		if e.Sparse == nil {
			all = append(all, file{digests[0], e.Off, e.Size})
		}
		digests = digests[1:]
	}
	slices.SortFunc(all, func(a, b file) int { return bytes.Compare(a.digest[:], b.digest[:]) })
	order := make([]int, len(all))
	out := make([]byte, 0, len(all)*(fileRecord+fileNumber))
	for i, f := range all {
		order[i] = i
		out = append(out, f.digest[:]...)
		out = binary.LittleEndian.AppendUint64(out, uint64(f.off))
		out = binary.LittleEndian.AppendUint64(out, uint64(f.size))
	}
	slices.SortFunc(order, func(a, b int) int { return int(all[a].off/index.BlockSize - all[b].off/index.BlockSize) })
	for _, i := range order {
		out = binary.LittleEndian.AppendUint32(out, uint32(i))
	}
	return out, nil
}

// openFileTable opens the table of a layer whose flat blob has that length.
func openFileTable(path string, flat int64) (t fileTable, err error) {
	if t.f, err = os.Open(path); err != nil {
		return fileTable{}, err
	}
	st, err := t.f.Stat()
	if err == nil && st.Size()%int64(fileRecord+fileNumber) != 0 {
		err = fmt.Errorf("%w: %s has %d bytes, which is no table", errDamaged, path, st.Size())
	}
	if err != nil {
		return fileTable{}, errors.Join(err, t.f.Close())
	}
	t.flat, t.n = flat, int(st.Size())/(fileRecord+fileNumber)
	return t, nil
}

func (t fileTable) close() error {
	if t.f == nil {
		return nil
	}
	return t.f.Close()
}

// at returns the i-th file in order of digests; the zero file if it cannot be
// read or cannot be, and then the table only finds less.
func (t fileTable) at(i int) (f file) {
	var b [fileRecord]byte
	if i >= t.n {
		return file{}
	}
	if _, err := t.f.ReadAt(b[:], int64(i)*int64(fileRecord)); err != nil {
		return file{}
	}
	n := copy(f.digest[:], b[:])
	f.off, f.size = int64(binary.LittleEndian.Uint64(b[n:])), int64(binary.LittleEndian.Uint64(b[n+8:]))
	if f.off < 0 || f.off%index.BlockSize != 0 || f.size <= 0 || f.size > t.flat-f.off {
		return file{}
	}
	return f
}

// byPlace returns the i-th file in order of places.
func (t fileTable) byPlace(i int) file {
	var b [fileNumber]byte
	if _, err := t.f.ReadAt(b[:], int64(t.n)*int64(fileRecord)+int64(i)*fileNumber); err != nil {
		return file{}
	}
	return t.at(int(binary.LittleEndian.Uint32(b[:])))
}

// find returns the first of the files that have the digest.
func (t fileTable) find(d index.SHA256) (i int, ok bool) {
	return sort.Find(t.n, func(i int) int {
		got := t.at(i).digest
		return bytes.Compare(d[:], got[:])
	})
}

// from returns the number, in order of places, of the first file that ends
// after off of the flat blob.
func (t fileTable) from(off int64) int {
	return sort.Search(t.n, func(i int) bool { f := t.byPlace(i); return f.off+f.size > off })
}

// holding returns the file that has the byte at off of the flat blob.
func (t fileTable) holding(off int64) (file, bool) {
	i := t.from(off)
	if i == t.n {
		return file{}, false
	}
	f := t.byPlace(i)
	return f, f.size > 0 && f.off <= off
}
