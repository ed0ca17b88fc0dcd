package content

import (
	"iter"
	"sort"

	"github.com/peelfs/peel/content/index"
)

// missing returns the spans [lo, hi) that hold what is missing of the n bytes
// at off.
func (l *Layer) missing(off, n int64) (lo, hi int) {
	if len(l.spans) == 0 {
		return 0, 1
	}
	first, last := int(off/index.BlockSize), int((off+n-1)/index.BlockSize)
	for first < last && l.present.blocks.has(first) {
		first++
	}
	for last > first && l.present.blocks.has(last) {
		last--
	}
	from, to := l.runs.tarRange(int64(first)*index.BlockSize, int64(last+1)*index.BlockSize)
	return l.spansOf(from, to)
}

// spansOf returns the spans [lo, hi) that hold the range [from, to) of the tar.
func (l *Layer) spansOf(from, to int64) (lo, hi int) {
	if from >= to {
		return 0, 0
	}
	lo = sort.Search(len(l.spans), func(i int) bool { return l.spans[i].TarOff+l.spans[i].TarLen > from })
	hi = sort.Search(len(l.spans), func(i int) bool { return l.spans[i].TarOff >= to })
	return lo, hi
}

// pieces returns the runs of a span, without what of them is of its neighbours.
func (l *Layer) pieces(i int) iter.Seq[run] {
	return func(yield func(run) bool) {
		s := &l.spans[i]
		end := s.TarOff + s.TarLen
		for r := l.runs.afterTar(s.TarOff); r < l.runs.len(); r++ {
			x := l.runs.at(r)
			if x.tar >= end {
				return
			}
			from, to := max(x.tar, s.TarOff), min(x.tar+x.len, end)
			if !yield(run{tar: from, flat: x.flat + from - x.tar, len: to - from}) {
				return
			}
		}
	}
}

// write puts the files' data of a span into the flat blob.
func (l *Layer) write(i int, tar []byte) error {
	s := &l.spans[i]
	buf := l.store.flats.get(s.TarLen)[:0]
	defer func() { l.store.flats.put(buf) }()
	var at int64 // of buf in the flat blob
	for x := range l.pieces(i) {
		if gap := x.flat - at - int64(len(buf)); len(buf) > 0 && gap < index.BlockSize {
			buf = append(buf, make([]byte, gap)...)
		} else {
			if _, err := l.flat.WriteAt(buf, at); err != nil {
				return err
			}
			buf, at = buf[:0], x.flat
		}
		from := x.tar - s.TarOff
		buf = append(buf, tar[from:from+x.len]...)
	}
	_, err := l.flat.WriteAt(buf, at)
	return err
}

// mark makes a span present, and with it every block whose data is now all
// there. Of two processes that finish neighbours at once, both have set their
// span before either looks at the block that they share.
func (l *Layer) mark(i int) {
	l.present.spans.set(i, i+1)
	for x := range l.pieces(i) {
		lo, hi := x.blocks()
		if hi-lo > 2 {
			l.present.blocks.set(lo+1, hi-1)
		}
		for _, b := range []int{lo, hi - 1} {
			if l.whole(b) {
				l.present.blocks.set(b, b+1)
			}
		}
	}
	l.dirty.Store(true)
}

// whole reports whether every span is present that has data of the block.
func (l *Layer) whole(block int) bool {
	from, to := l.runs.tarRange(int64(block)*index.BlockSize, int64(block+1)*index.BlockSize)
	lo, hi := l.spansOf(from, to)
	return l.present.spans.hasAll(lo, hi)
}

// missingOf returns the places of those runs of a span that are not here.
func (l *Layer) missingOf(i int) (places []int64) {
	for x := range l.pieces(i) {
		if lo, hi := x.blocks(); !l.present.blocks.hasAll(lo, hi) {
			places = append(places, x.flat)
		}
	}
	return places
}

// overlay copies into p, which is of off of the flat blob, what a span's tar
// has of it.
func (l *Layer) overlay(p []byte, off int64, span int, tar []byte) {
	for x := range l.pieces(span) {
		from, to := max(x.flat, off), min(x.flat+x.len, off+int64(len(p)))
		if from < to {
			at := x.tar - l.spans[span].TarOff + from - x.flat
			copy(p[from-off:to-off], tar[at:])
		}
	}
}
