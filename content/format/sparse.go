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
	paxSparseMinor   = "GNU.sparse.minor"
	oldHeaderMap     = 386 // where the map is in the header block
	oldHeaderEntries = 4
	oldExtraEntries  = 21 // in each block that extends it
)

// Places in a header block of a tar (POSIX.1-1988, ustar).
const (
	tarBlock    = 512
	headerName  = 100 // bytes of the name, which comes first
	headerSize  = 124 // where the size is
	headerType  = 156 // where the type is
	sizeOfField = 12  // bytes of a number
)

// sparseFormat is where the map of a sparse file's data is.
type sparseFormat uint8

const (
	notSparse  sparseFormat = iota
	oldSparse               // in the header, and in blocks that follow it
	paxSparse               // in a PAX record: 0.0 and 0.1
	pax1Sparse              // before the data: 1.0
)

// sparseFormatOf tells what archive/tar takes the header for.
func sparseFormatOf(h *tar.Header) sparseFormat {
	if h.Typeflag == tar.TypeGNUSparse {
		return oldSparse
	}
	major, minor := h.PAXRecords[paxSparseMajor], h.PAXRecords[paxSparseMinor]
	switch {
	case major == "1" && minor == "0":
		return pax1Sparse
	case major == "0" && (minor == "0" || minor == "1"), major+minor == "" && h.PAXRecords[paxSparseMap] != "":
		return paxSparse
	}
	return notSparse
}

// mainHeader returns where in an entry's headers the one is that the others
// extend: it comes last. It is -1 if it is not there.
func mainHeader(head []byte) int {
	off := int64(0)
	for off >= 0 && off+tarBlock <= int64(len(head)) {
		block := head[off : off+tarBlock]
		switch block[headerType] {
		case tar.TypeXHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
			size, err := tarNumber(block[headerSize : headerSize+sizeOfField])
			if err != nil || size < 0 {
				return -1
			}
			off += tarBlock + (size+tarBlock-1)&^(tarBlock-1)
		default:
			return int(off)
		}
	}
	return -1
}

// rawName returns the name in the last header block, as it stands there: of
// a header that archive/tar refuses there is no other.
func rawName(head []byte) string {
	off := max(0, mainHeader(head))
	name, _, _ := bytes.Cut(head[off:min(len(head), off+headerName)], []byte{0})
	return string(name)
}

// sparse gives the entry its extents. The data begins where the reader stands.
func (t *tarReader) sparse(f sparseFormat, h *tar.Header, e *index.Entry) error {
	head := t.head[max(0, mainHeader(t.head)):]
	var pairs []int64
	var err error
	switch {
	case len(head) < tarBlock:
		err = errors.New("its header is not found")
	case f == oldSparse:
		pairs, err = oldSparseMap(head)
	case f == pax1Sparse:
		pairs, err = sparseMap1(head[tarBlock:])
	default:
		pairs, err = sparseMap01(h.PAXRecords[paxSparseMap])
	}
	if err != nil {
		return fmt.Errorf("map of a sparse file: %w", err)
	}
	e.Sparse = []index.Extent{}
	at := t.n
	for i := 0; i+1 < len(pairs); i += 2 {
		off, n := pairs[i], pairs[i+1]
		if off < 0 || n < 0 || off > e.Size || n > e.Size-off {
			return fmt.Errorf("map of a sparse file: %d bytes at %d of %d", n, off, e.Size)
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
	pairs, err := appendOldPairs(nil, head[oldHeaderMap:], oldHeaderEntries)
	more := head[oldHeaderMap+24*oldHeaderEntries] != 0
	for head = head[tarBlock:]; err == nil && more; head = head[tarBlock:] {
		if len(head) < tarBlock {
			return nil, io.ErrUnexpectedEOF
		}
		pairs, err = appendOldPairs(pairs, head, oldExtraEntries)
		more = head[24*oldExtraEntries] != 0
	}
	return pairs, err
}

func appendOldPairs(pairs []int64, b []byte, n int) ([]int64, error) {
	for i := range n {
		field := b[24*i : 24*i+24]
		if field[0] == 0 {
			break
		}
		for _, f := range [][]byte{field[:sizeOfField], field[sizeOfField:]} {
			v, err := tarNumber(f)
			if err != nil {
				return nil, err
			}
			pairs = append(pairs, v)
		}
	}
	return pairs, nil
}

// tarNumber reads a number in octal, or in base 256 where the top bit is set.
func tarNumber(f []byte) (int64, error) {
	if f[0]&0x80 == 0 {
		text, _, _ := bytes.Cut(bytes.Trim(f, " \x00"), []byte{0})
		if len(text) == 0 {
			return 0, nil
		}
		return strconv.ParseInt(string(text), 8, 64)
	}
	v := int64(f[0] & 0x7f)
	for _, b := range f[1:] {
		if v >= 1<<54 {
			return 0, errors.New("number is too large")
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
		return nil, errors.New("an odd number of fields")
	}
	return pairs, nil
}

// sparseMap1 reads the map of PAX format 1.0: lines of decimal numbers, the
// first being how many pairs follow. It fills the blocks b.
func sparseMap1(b []byte) ([]int64, error) {
	number := func() (int64, error) {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if b = rest; !ok {
			return 0, io.ErrUnexpectedEOF
		}
		return strconv.ParseInt(string(line), 10, 64)
	}
	n, err := number()
	if err != nil {
		return nil, err
	}
	if n < 0 || n > int64(len(b))/4 { // the shortest pair
		return nil, fmt.Errorf("%d pairs in %d bytes", n, len(b))
	}
	pairs := make([]int64, 0, 2*n)
	for range 2 * n {
		v, err := number()
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, v)
	}
	if len(b) >= tarBlock {
		return nil, fmt.Errorf("%d bytes follow it", len(b))
	}
	return pairs, nil
}
