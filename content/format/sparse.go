package format

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/peelfs/peel/content/index"
)

// Sparse files, as GNU tar writes them (its manual, "Storing Sparse Files").
// archive/tar reads them but does not say where their data is, so the map is
// read again here, out of the bytes that archive/tar has just read.
const (
	paxSparseMap     = "GNU.sparse.map"
	paxSparseMajor   = "GNU.sparse.major"
	paxSparseName    = "GNU.sparse.name"
	oldHeaderMap     = 386 // where the map is in the header block
	oldHeaderEntries = 4
	oldExtraEntries  = 21 // in each block that extends it
	tarBlock         = 512
)

func isSparse(h *tar.Header) bool {
	return h.Typeflag == tar.TypeGNUSparse || h.PAXRecords[paxSparseMap] != "" || h.PAXRecords[paxSparseMajor] != ""
}

// sparse gives the entry its extents. The data begins where the reader stands.
func (t *tarReader) sparse(h *tar.Header, e *index.Entry) error {
	var pairs []int64
	var err error
	switch {
	case h.Typeflag == tar.TypeGNUSparse:
		pairs, err = oldSparseMap(t.head)
	case h.PAXRecords[paxSparseMajor] == "1":
		pairs, err = sparseMap1(t.head)
	default:
		pairs, err = sparseMap01(h.PAXRecords[paxSparseMap])
	}
	if err != nil {
		return err
	}
	e.Sparse = []index.Extent{}
	at := t.n
	for i := 0; i+1 < len(pairs); i += 2 {
		off, n := pairs[i], pairs[i+1]
		if off < 0 || n < 0 || off > e.Size || n > e.Size-off {
			return fmt.Errorf("its map has %d bytes at %d of %d", n, off, e.Size)
		}
		if n > 0 {
			e.Sparse = append(e.Sparse, index.Extent{Off: off, TarOff: at, Len: n})
		}
		at += n
	}
	return nil
}

// oldSparseMap reads the map of the old GNU format: in the header block, and
// in the blocks that follow it while one says that another does.
func oldSparseMap(head []byte) ([]int64, error) {
	start := -1
	for off := 0; off+tarBlock <= len(head); off += tarBlock {
		if b := head[off : off+tarBlock]; b[156] == tar.TypeGNUSparse && bytes.HasPrefix(b[257:], []byte("ustar  ")) {
			start = off
			break
		}
	}
	if start < 0 {
		return nil, errors.New("its header is not found")
	}
	block := head[start : start+tarBlock]
	pairs, err := appendOldPairs(nil, block[oldHeaderMap:], oldHeaderEntries)
	more := block[oldHeaderMap+24*oldHeaderEntries] != 0
	for off := start + tarBlock; err == nil && more; off += tarBlock {
		if off+tarBlock > len(head) {
			return nil, io.ErrUnexpectedEOF
		}
		block = head[off : off+tarBlock]
		pairs, err = appendOldPairs(pairs, block, oldExtraEntries)
		more = block[24*oldExtraEntries] != 0
	}
	return pairs, err
}

func appendOldPairs(pairs []int64, b []byte, n int) ([]int64, error) {
	for i := range n {
		field := b[24*i : 24*i+24]
		if field[0] == 0 {
			break
		}
		for _, f := range [][]byte{field[:12], field[12:]} {
			v, err := oldNumber(f)
			if err != nil {
				return nil, err
			}
			pairs = append(pairs, v)
		}
	}
	return pairs, nil
}

// oldNumber reads a number in octal, or in base 256 where the top bit is set.
func oldNumber(f []byte) (int64, error) {
	if f[0]&0x80 == 0 {
		return strconv.ParseInt(strings.Trim(string(f), " \x00"), 8, 64)
	}
	v := int64(f[0] & 0x7f)
	for _, b := range f[1:] {
		if v >= 1<<54 {
			return 0, errors.New("number in its map is too large")
		}
		v = v<<8 | int64(b)
	}
	return v, nil
}

// sparseMap01 reads the map of PAX format 0.1, and of 0.0, which archive/tar
// turns into it: offsets and lengths, separated by commas.
func sparseMap01(s string) ([]int64, error) {
	if s == "" {
		return nil, nil
	}
	var pairs []int64
	for field := range strings.SplitSeq(s, ",") {
		v, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, v)
	}
	if len(pairs)%2 != 0 {
		return nil, errors.New("its map has an odd number of fields")
	}
	return pairs, nil
}

// sparseMap1 reads the map of PAX format 1.0: lines of decimal numbers in the
// blocks before the data, the first being how many pairs follow. The map is
// the only thing between the last header block and the data, so it is found
// from the end: the fewest last blocks that parse.
func sparseMap1(head []byte) ([]int64, error) {
	for off := len(head) - tarBlock; off >= 0; off -= tarBlock {
		if pairs, ok := parseMap1(head[off:]); ok {
			return pairs, nil
		}
	}
	return nil, errors.New("its map is not found")
}

// parseMap1 parses a map that fills the blocks b, the last one with NULs.
func parseMap1(b []byte) ([]int64, bool) {
	number := func() (int64, bool) {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		b = rest
		v, err := strconv.ParseInt(string(line), 10, 64)
		return v, ok && err == nil && v >= 0
	}
	n, ok := number()
	if !ok || n > int64(len(b)) {
		return nil, false
	}
	pairs := make([]int64, 0, 2*n)
	for range 2 * n {
		v, ok := number()
		if !ok {
			return nil, false
		}
		pairs = append(pairs, v)
	}
	return pairs, len(b) < tarBlock && len(bytes.Trim(b, "\x00")) == 0
}
