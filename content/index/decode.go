package index

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// cursor reads varints and strings from bytes that are not to be trusted.
// After a failure it returns zeros; bad says so.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) varint() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

// size reads a length or a distance in bytes; anything above 1<<60 is bad, so
// that the sum of two of them does not overflow.
func (c *cursor) size() int64 {
	v := c.uvarint()
	if v > 1<<60 {
		c.bad = true
		return 0
	}
	return int64(v)
}

// number reads a 32-bit number.
func (c *cursor) number() uint32 {
	v := c.uvarint()
	if v > 1<<32-1 {
		c.bad = true
	}
	return uint32(v)
}

// take returns the next n bytes, which alias the input.
func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.bad, c.b = true, nil
		return nil
	}
	p := c.b[:n]
	c.b = c.b[n:]
	return p
}

func (c *cursor) str() string { return string(c.take(c.uvarint())) }

// columns is the entries section taken apart.
type columns [numColumns]cursor

func splitColumns(raw []byte) (*columns, error) {
	c := cursor{b: raw}
	cols := new(columns)
	for i := range cols {
		cols[i].b = c.take(c.uvarint())
	}
	if c.bad || len(c.b) > 0 {
		return nil, fmt.Errorf("%w: the entries' columns do not fit", ErrFormat)
	}
	return cols, nil
}

// done reports an error if a column was too short or is not used up.
func (c *columns) done() error {
	for i := range c {
		if c[i].bad || len(c[i].b) > 0 {
			return fmt.Errorf("%w: column %d of the entries is too short or too long", ErrFormat, i)
		}
	}
	return nil
}

func decodeEntries(raw []byte, n int) ([]Entry, error) {
	cols, err := splitColumns(raw)
	if err != nil {
		return nil, err
	}
	if len(cols[colTypes].b) != n {
		return nil, fmt.Errorf("%w: %d entries, the header says %d", ErrFormat, len(cols[colTypes].b), n)
	}
	names, err := decodeNames(&cols[colNameLens], &cols[colNames], n)
	if err != nil {
		return nil, err
	}
	sets := decodeXattrSets(&cols[colXattrSets])
	texts := make([]int64, len(sets)) // bytes
	for i, set := range sets {
		texts[i] = textOf(set)
	}
	var text int64 // of all entries: a set counts for each that has it
	entries := make([]Entry, n)
	var prev int64 // seconds
	var end int64  // of the data before
	for i := range entries {
		e := &entries[i]
		e.Name = names[i]
		e.Type = Type(cols[colTypes].take(1)[0])
		e.Mode = cols[colModes].number()
		e.UID = cols[colOwners].number()
		e.GID = cols[colOwners].number()
		e.Sec = prev + cols[colSeconds].varint()
		e.Nsec = cols[colNanos].number()
		prev = e.Sec
		if end, err = cols.ofType(e, i, end); err != nil {
			return nil, err
		}
		if set := cols[colXattrs].uvarint(); set > uint64(len(sets)) {
			return nil, fmt.Errorf("%w: entry %.200q has attributes %d of %d", ErrFormat, e.Name, set, len(sets))
		} else if set > 0 {
			e.Xattrs = sets[set-1]
			text += texts[set-1]
		}
		if text += int64(len(e.Name) + len(e.Link)); text > MaxText {
			return nil, fmt.Errorf("%w: entry %.200q: the names, links and attributes take more than %d bytes", ErrFormat, e.Name, MaxText)
		}
	}
	return entries, cols.done()
}

// ofType decodes what only some types of entry have. It takes and returns
// where the data before ends in the tar.
func (c *columns) ofType(e *Entry, i int, end int64) (int64, error) {
	switch e.Type {
	case Regular:
		e.Size = c[colSizes].size()
		if sparse := &c[colSparse]; len(sparse.b) > 0 {
			if peek := *sparse; peek.uvarint() == uint64(i) {
				*sparse = peek
				return sparse.extents(e, end)
			}
		}
		if e.Size > 0 {
			e.TarOff = end + c[colPlaces].size()
			end = e.TarOff + e.Size
		}
		if e.Size > MaxFlat || end < 0 || end > maxTar {
			return 0, fmt.Errorf("%w: %.200q has %d bytes", ErrFormat, e.Name, e.Size)
		}
	case Symlink, Hardlink:
		e.Link = c[colLinks].str()
	case Char, Block:
		e.Major, e.Minor = c[colDevices].number(), c[colDevices].number()
	case Dir, Fifo:
	default:
		return 0, fmt.Errorf("%w: entry %.200q has the unknown type %d", ErrFormat, e.Name, e.Type)
	}
	return end, nil
}

func (c *cursor) extents(e *Entry, end int64) (int64, error) {
	n := c.uvarint()
	if n > uint64(len(c.b))/3 || n > MaxExtents {
		return 0, fmt.Errorf("%w: %.200q has %d extents", ErrFormat, e.Name, n)
	}
	e.Sparse = make([]Extent, n)
	var off int64
	for i := range e.Sparse {
		x := Extent{Off: off + c.size(), TarOff: end + c.size(), Len: c.size()}
		off, end = x.Off+x.Len, x.TarOff+x.Len
		if x.Off < 0 || x.Len <= 0 || off > e.Size || off < 0 || end < 0 || end > maxTar {
			return 0, fmt.Errorf("%w: %.200q has an extent outside its %d bytes", ErrFormat, e.Name, e.Size)
		}
		e.Sparse[i] = x
	}
	return end, nil
}

// decodeNames builds all names in one piece of memory.
func decodeNames(lens, suffixes *cursor, n int) ([]string, error) {
	type cut struct{ shared, suffix uint64 }
	cuts := make([]cut, n)
	var total, prev uint64
	for i := range cuts {
		c := cut{lens.uvarint(), lens.uvarint()}
		if c.shared > prev || c.suffix > maxName {
			return nil, fmt.Errorf("%w: name %d is cut wrong", ErrFormat, i)
		}
		prev = c.shared + c.suffix
		if prev > maxName {
			return nil, fmt.Errorf("%w: name %d has %d bytes, at most %d are allowed", ErrFormat, i, prev, maxName)
		}
		if total += prev; total > MaxText {
			return nil, fmt.Errorf("%w: the names are longer than %d bytes", ErrFormat, MaxText)
		}
		cuts[i] = c
	}
	var arena strings.Builder
	arena.Grow(int(total))
	names := make([]string, n)
	start := 0 // of the name before
	for i, c := range cuts {
		begin := arena.Len()
		arena.WriteString(arena.String()[start : start+int(c.shared)])
		arena.Write(suffixes.take(c.suffix))
		if suffixes.bad {
			return nil, fmt.Errorf("%w: the names end with name %d of %d", ErrFormat, i, n)
		}
		start, names[i] = begin, arena.String()[begin:]
	}
	return names, nil
}

func decodeXattrSets(c *cursor) [][]Xattr {
	var sets [][]Xattr
	total := uint64(0)
	for len(c.b) > 0 {
		n := c.uvarint()
		if total += n; n > uint64(len(c.b))/2 || total > maxXattrs || len(sets) > maxXattrs {
			c.bad = true
			return nil
		}
		set := make([]Xattr, n)
		for i := range set {
			set[i] = Xattr{Name: c.str(), Value: c.str()}
		}
		sets = append(sets, set)
	}
	return sets
}

func decodeSpans(raw []byte, n int) ([]Span, error) {
	const least = 1 + 4 + len(SHA256{}) // bytes of the shortest span
	if n > len(raw)/least {
		return nil, fmt.Errorf("%w: %d spans in %d bytes", ErrFormat, n, len(raw))
	}
	c := cursor{b: raw}
	spans := make([]Span, n)
	var tar, blob, window int64
	for i := range spans {
		s := &spans[i]
		if flags := c.take(1); flags != nil {
			s.Bits, s.Member = flags[0]&7, flags[0]&flagMember != 0
		}
		s.TarOff, s.TarLen = tar, c.size()
		s.BlobOff, s.BlobLen = blob+c.size(), c.size()
		s.Window = Range{Off: window, Len: c.size()}
		copy(s.Digest[:], c.take(uint64(len(SHA256{}))))
		tar, blob, window = tar+s.TarLen, s.BlobOff, window+s.Window.Len
		if tar < 0 || tar > maxTar || blob < 0 || blob > maxTar || window > maxRaw {
			return nil, fmt.Errorf("%w: span %d lies outside", ErrFormat, i)
		}
	}
	if c.bad || len(c.b) > 0 {
		return nil, fmt.Errorf("%w: the spans do not fit their section", ErrFormat)
	}
	return spans, nil
}
