package erofs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/peelfs/peel/content/index"
)

// addWhiteout notes what an entry does to lower layers, if that is what it is
// for. Whiteouts are put into the tree at the end, because an entry of the same
// layer, before or after, is stronger.
func (l *layer) addWhiteout(name string) (is bool, err error) {
	dir, base := splitPath(name)
	for part := range strings.SplitSeq(dir, "/") {
		switch {
		case strings.HasPrefix(part, whiteoutMeta):
			return true, nil
		case strings.HasPrefix(part, whiteoutPrefix):
			return false, fmt.Errorf("%q is a whiteout, not a directory", part)
		}
	}
	removed, ok := strings.CutPrefix(base, whiteoutPrefix)
	switch {
	case !ok:
		return false, nil
	case base != whiteoutOpaque && strings.HasPrefix(base, whiteoutMeta):
		return true, nil
	}
	// What is removed may have a name of full length: the whiteout's own name
	// never becomes one.
	if err := checkPath(strings.TrimSuffix(name, base) + removed); err != nil {
		return false, fmt.Errorf("whiteout: %w", err)
	}
	if _, err := l.dir(dir); err != nil {
		return false, err
	}
	if base == whiteoutOpaque {
		l.opaque = append(l.opaque, dir)
	} else {
		l.whiteouts = append(l.whiteouts, strings.TrimSuffix(name, base)+removed)
	}
	return true, nil
}

// whiteOut puts the whiteouts into the tree: first what makes a directory
// opaque, because no whiteout is to be below one.
func (l *layer) whiteOut() {
	for _, name := range slices.Concat(l.opaque, l.whiteouts) {
		if n := l.find(name); n == l.root && l.mayHave(".") {
			l.unfit = append(l.unfit, ".") // overlayfs does not look there
		} else if n != nil && n.Entry.Type == index.Dir {
			makeOpaque(n)
		}
	}
	removed := &Node{Entry: &index.Entry{Name: "a whiteout", Type: index.Char}}
	known := make(map[string]bool)
	for _, name := range l.whiteouts {
		dir, base := splitPath(name)
		if l.find(name) == nil && l.mayHave(name) && !l.bare(dir, known) {
			l.put(l.find(dir), name, base, removed)
		}
	}
}

// bare says whether a directory has nothing of the layers below. A whiteout
// would do harm there: overlayfs lists a directory that is in one layer only as
// it is. The answer for every directory is kept in known.
func (l *layer) bare(dir string, known map[string]bool) bool {
	if is, ok := known[dir]; ok {
		return is
	}
	n := l.find(dir)
	is := n == nil || n.Entry.Type != index.Dir || isOpaque(n)
	if !is && dir != "." {
		parent, _ := splitPath(dir)
		is = l.bare(parent, known)
	}
	known[dir] = is
	return is
}

// mayHave says whether the layers below may have that name.
func (l *layer) mayHave(name string) bool {
	return l.below == nil || l.below(name) != nil
}

// find returns the node of a cleaned name, or nil.
func (l *layer) find(name string) *Node {
	if name == "." {
		return l.root
	}
	if at, ok := l.places[name]; ok {
		return at.node()
	}
	return nil
}

// makeOpaque hides what lower layers have in a directory.
func makeOpaque(n *Node) {
	if isOpaque(n) {
		return
	}
	e := *n.Entry
	at, _ := slices.BinarySearchFunc(e.Xattrs, overlayOpaque, compareXattr)
	e.Xattrs = slices.Insert(slices.Clone(e.Xattrs), at, index.Xattr{Name: overlayOpaque, Value: "y"})
	n.Entry = &e
}

func isOpaque(n *Node) bool {
	_, ok := slices.BinarySearchFunc(n.Entry.Xattrs, overlayOpaque, compareXattr)
	return ok
}

func compareXattr(x index.Xattr, name string) int { return strings.Compare(x.Name, name) }
