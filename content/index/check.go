package index

import (
	"fmt"
	"iter"
	"strings"
)

// Limits on one layer, so that neither a hostile layer nor a crafted index
// costs more memory or disk than they say.
const (
	MaxEntries = 2 << 20   // entries
	MaxExtents = 1 << 20   // extents of all sparse files together
	MaxText    = 256 << 20 // bytes of all names, links and extended attributes together
	MaxFlat    = 1 << 40   // bytes of flat blob; the map of what is present takes a 32,768th of it
	MaxSize    = 256 << 20 // bytes of the serialised index
)

// Limits of the model.
const (
	maxTar    = 1 << 50  // bytes of tar, and of blob
	maxName   = 4096     // bytes of a name: PATH_MAX
	maxPart   = 255      // bytes of one component: NAME_MAX
	maxLink   = 4096     // bytes of a symlink's target
	maxValue  = 64 << 10 // bytes of an extended attribute: XATTR_SIZE_MAX
	maxXattrs = 1 << 20  // extended attributes of all distinct sets together
)

// check holds an index against the rules that FORMAT.md lists.
func check(h *Header, entries []Entry, spans []Span, digests int) error {
	if err := h.check(len(entries), len(spans)); err != nil {
		return err
	}
	if err := checkEntries(entries, h.TarSize); err != nil {
		return err
	}
	if n := Text(entries); n > MaxText {
		return fmt.Errorf("%w: the names, links and attributes take %d bytes, more than %d", ErrFormat, n, MaxText)
	}
	files := 0
	for i := range entries {
		if entries[i].Type == Regular && entries[i].Size > 0 {
			files++
		}
	}
	if files != digests {
		return fmt.Errorf("%w: %d files with data and %d digests", ErrFormat, files, digests)
	}
	return checkSpans(spans, h, maxRaw)
}

// check holds the header against the rules, with the numbers that it says.
func (h *Header) check(entries, spans int) error {
	for _, n := range []int64{h.BlobSize, h.TarSize, h.TwinSize} {
		if n < 0 || n > maxTar {
			return fmt.Errorf("%w: blob of %d bytes, tar of %d bytes, twin of %d bytes", ErrFormat, h.BlobSize, h.TarSize, h.TwinSize)
		}
	}
	if h.FlatSize < 0 || h.FlatSize > MaxFlat || h.FlatSize%BlockSize != 0 {
		return fmt.Errorf("%w: flat blob of %d bytes, at most %d are possible", ErrFormat, h.FlatSize, int64(MaxFlat))
	}
	if entries < 0 || entries > MaxEntries || spans < 0 || spans > maxSpans {
		return fmt.Errorf("%w: %d entries and %d spans are too many", ErrFormat, entries, spans)
	}
	if (h.Twin != "") != (h.TwinSize > 0) || h.Twin != "" && spans == 0 {
		return fmt.Errorf("%w: twin %q of %d bytes and %d spans", ErrFormat, h.Twin, h.TwinSize, spans)
	}
	return nil
}

func checkEntries(entries []Entry, tarSize int64) error {
	var end int64 // of the data before, in the tar
	extents := 0
	sound := make(map[*Xattr]bool) // sets of attributes, by the first: entries share them
	for i := range entries {
		e := &entries[i]
		err := e.check()
		if err == nil && len(e.Xattrs) > 0 && !sound[&e.Xattrs[0]] {
			err = checkXattrs(e.Xattrs)
			sound[&e.Xattrs[0]] = true
		}
		if err != nil {
			return fmt.Errorf("%w: entry %.200q: %w", ErrFormat, e.Name, err)
		}
		if extents += len(e.Sparse); extents > MaxExtents {
			return fmt.Errorf("%w: entry %.200q: the sparse files have more than %d extents", ErrFormat, e.Name, MaxExtents)
		}
		for x := range e.Extents() {
			if x.TarOff < end || x.TarOff+x.Len > tarSize {
				return fmt.Errorf("%w: entry %.200q: data at %d of a tar of %d bytes", ErrFormat, e.Name, x.TarOff, tarSize)
			}
			end = x.TarOff + x.Len
		}
		if e.Type == Regular && e.Off+e.Size > MaxFlat {
			return fmt.Errorf("%w: entry %.200q: %d bytes at %d exceed a flat blob", ErrFormat, e.Name, e.Size, e.Off)
		}
	}
	return nil
}

// check holds one entry, but for its attributes, against the rules.
func (e *Entry) check() error {
	if err := CheckName(e.Name); err != nil {
		return err
	}
	switch {
	case e.Type > Fifo:
		return fmt.Errorf("unknown type %d", e.Type)
	case e.Mode&^07777 != 0:
		return fmt.Errorf("mode %#o", e.Mode)
	case e.Nsec >= 1e9:
		return fmt.Errorf("%d nanoseconds", e.Nsec)
	case e.Size < 0 || e.Size > MaxFlat:
		return fmt.Errorf("%d bytes", e.Size)
	case e.Type == Symlink && (e.Link == "" || len(e.Link) > maxLink || strings.IndexByte(e.Link, 0) >= 0):
		return fmt.Errorf("symlink to %.100q (%d bytes)", e.Link, len(e.Link))
	case e.Type == Hardlink:
		if err := CheckName(e.Link); err != nil {
			return fmt.Errorf("hard link to %.100q: %w", e.Link, err)
		}
	}
	return nil
}

// Text returns how many bytes the names, links and extended attributes of the
// entries take. A set of attributes counts for each entry that has it.
func Text(entries []Entry) (n int64) {
	for i := range entries {
		e := &entries[i]
		n += int64(len(e.Name)+len(e.Link)) + textOf(e.Xattrs)
	}
	return n
}

// textOf is what a set of extended attributes counts for: so much memory each
// attribute takes besides its bytes.
func textOf(set []Xattr) (n int64) {
	const each = 32
	for i := range set {
		n += int64(len(set[i].Name)+len(set[i].Value)) + each
	}
	return n
}

func checkXattrs(xattrs []Xattr) error {
	for i, x := range xattrs {
		if x.Name == "" || len(x.Name) > 255 || len(x.Value) > maxValue || strings.IndexByte(x.Name, 0) >= 0 {
			return fmt.Errorf("extended attribute %.100q of %d bytes", x.Name, len(x.Value))
		}
		if i > 0 && xattrs[i-1].Name >= x.Name {
			return fmt.Errorf("extended attribute %.100q is out of order", x.Name)
		}
	}
	return nil
}

// CheckName reports whether an entry may have the name: cleaned, relative, no
// component longer than a kernel takes.
func CheckName(name string) error {
	if name == "." {
		return nil
	}
	if len(name) > maxName {
		return fmt.Errorf("name of %d bytes", len(name))
	}
	if strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("name with a NUL")
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return fmt.Errorf("name with a component %q", part)
		case len(part) > maxPart:
			return fmt.Errorf("name with a component of %d bytes", len(part))
		}
	}
	return nil
}

// checkSpans holds the spans against the rules. No spans at all is a layer
// that cannot be fetched in pieces.
func checkSpans(spans []Span, h *Header, windows int64) error {
	if len(spans) == 0 {
		return nil
	}
	_, size, format := h.SpanBlob()
	var tar, blob, end, window int64
	for i := range spans {
		s := &spans[i]
		switch {
		case s.TarOff != tar || s.TarLen <= 0 || s.TarLen > MaxSpan:
			return fmt.Errorf("%w: span %d has %d bytes at %d", ErrFormat, i, s.TarLen, s.TarOff)
		case s.BlobLen <= 0 || s.BlobOff < blob || s.BlobOff+s.BlobLen > size || s.BlobOff > end || s.BlobOff < end-1:
			return fmt.Errorf("%w: span %d is %d bytes at %d of the blob", ErrFormat, i, s.BlobLen, s.BlobOff)
		case s.Bits > 7 || s.Bits > 0 && s.Member || s.BlobLen > 2*MaxSpan:
			return fmt.Errorf("%w: span %d starts in the middle of a byte that is a member's first", ErrFormat, i)
		case format != Gzip && (s.Bits > 0 || s.Member || s.Window.Len > 0):
			return fmt.Errorf("%w: span %d of a %s blob says what only those of gzip do", ErrFormat, i, format)
		case s.Window.Off != window && s.Window.Len > 0 || s.Window.Len < 0 || s.Window.Len > maxWindow+1024:
			return fmt.Errorf("%w: span %d has a window of %d bytes at %d", ErrFormat, i, s.Window.Len, s.Window.Off)
		}
		tar, blob, end, window = tar+s.TarLen, s.BlobOff, s.BlobOff+s.BlobLen, window+s.Window.Len
	}
	if tar != h.TarSize || window > windows {
		return fmt.Errorf("%w: the spans cover %d of %d bytes", ErrFormat, tar, h.TarSize)
	}
	return nil
}

// Extents returns the runs of the entry's data in the tar, in order, whether
// it is sparse or not. What is no regular file, and what is empty, has none.
func (e *Entry) Extents() iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		switch {
		case e.Type != Regular || e.Size == 0:
		case e.Sparse == nil:
			yield(Extent{TarOff: e.TarOff, Len: e.Size})
		default:
			for _, x := range e.Sparse {
				if !yield(x) {
					return
				}
			}
		}
	}
}
