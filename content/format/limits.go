package format

import (
	"cmp"
	"fmt"

	"github.com/peelfs/peel/content/index"
)

// Limits bound what a layer may ask for, so that a hostile one costs no more
// memory, disk or time than they say. A layer beyond one of them is refused,
// and the error names the entry and the limit. A zero is the default.
type Limits struct {
	// Entries is the most headers of the tar. Default, and most:
	// index.MaxEntries.
	Entries int64

	// Text is the most bytes of names, link targets and extended attributes,
	// those of all entries together, as index.Text counts them. Default, and
	// most: index.MaxText.
	Text int64

	// Size is the most bytes of tar, and of files with their holes. Default,
	// and most: index.MaxFlat.
	Size int64

	// Ratio is how many times larger than its blob a layer may be, as Size
	// counts it, if it is larger than RatioFrom. Default: 200.
	Ratio int64

	// RatioFrom is the size in bytes below which any ratio is allowed: the zeros
	// of an empty disk image compress to a thousandth. Default: 4 GiB.
	RatioFrom int64

	// Index is the most bytes of the serialised index. Default, and most:
	// index.MaxSize.
	Index int64
}

// withDefaults returns the limits of a layer whose blob has this size.
func (l Limits) withDefaults() Limits {
	to := func(v *int64, most int64) { *v = min(cmp.Or(*v, most), most) }
	to(&l.Entries, index.MaxEntries)
	to(&l.Text, index.MaxText)
	to(&l.Size, index.MaxFlat)
	to(&l.Index, index.MaxSize)
	l.Ratio = cmp.Or(l.Ratio, 200)
	l.RatioFrom = cmp.Or(l.RatioFrom, 4<<30)
	return l
}

// usage counts what a layer has asked for.
type usage struct {
	Limits
	blob    int64 // bytes
	entries int64
	text    int64
	extents int64
	files   int64 // bytes in the flat blob
}

// add counts an entry that begins at a place of the tar.
func (u *usage) add(e *index.Entry, at int64) error {
	u.entries++
	u.text += index.Text([]index.Entry{*e})
	u.extents += int64(len(e.Sparse))
	switch {
	case u.entries > u.Entries:
		return fmt.Errorf("the layer has more than %d entries", u.Entries)
	case u.text > u.Text:
		return fmt.Errorf("the names, links and attributes of the layer take more than %d bytes", u.Text)
	case u.extents > index.MaxExtents:
		return fmt.Errorf("the sparse files of the layer have more than %d extents", index.MaxExtents)
	case e.Size < 0 || e.Size > u.Size:
		return fmt.Errorf("%d bytes, more than the %d that a layer may have", e.Size, u.Size)
	}
	if e.Type == index.Regular {
		u.files += index.Align(e.Size)
		if e.Sparse == nil {
			at += e.Size
		}
	}
	return u.size(max(u.files, at))
}

// size checks how large the layer is so far.
func (u *usage) size(n int64) error {
	switch {
	case n > u.Size:
		return fmt.Errorf("it makes the layer larger than %d bytes", u.Size)
	case n > u.RatioFrom && n/u.Ratio > u.blob:
		return fmt.Errorf("it makes the layer larger than %d bytes and than %d times its compressed %d", u.RatioFrom, u.Ratio, u.blob)
	}
	return nil
}
