// Package compare compares two directory trees in everything that a program
// inside them can see: names, types, modes, owners, times, extended
// attributes, links, devices, sizes and contents.
//
// It knows only the file system interface of the kernel, so it serves for any
// two ways of making the same tree. What belongs to the file system and not to
// the tree is left out: inode numbers, the sizes of directories, blocks used,
// and times of access and change.
package compare

import (
	"fmt"
	"maps"
	"slices"
)

// Difference is one thing that two trees do not have in common.
type Difference struct {
	Path string // relative to the roots of the trees
	What string // what differs, such as "mode" or "contents"
	A, B string // how it is in the first tree, and in the second
}

// String returns the difference on one line.
func (d Difference) String() string {
	return fmt.Sprintf("%s: %s: %s, and %s", d.Path, d.What, d.A, d.B)
}

// Trees compares the trees below the directories a and b, themselves included,
// and returns every difference in the order of paths. Where a name is in one
// tree only, nothing below it is reported.
//
// To see all of a tree takes the right to read it: usually root's.
func Trees(a, b string) ([]Difference, error) {
	type result struct {
		nodes map[string]*node
		err   error
	}
	second := make(chan result, 1)
	go func() {
		nodes, err := scan(b)
		second <- result{nodes, err}
	}()
	nodesA, err := scan(a)
	fromB := <-second
	if err != nil {
		return nil, err
	}
	if fromB.err != nil {
		return nil, fromB.err
	}
	return diff(nodesA, fromB.nodes), nil
}

func diff(a, b map[string]*node) []Difference {
	all := maps.Clone(a)
	maps.Copy(all, b)
	var found []Difference
	for _, path := range slices.Sorted(maps.Keys(all)) {
		na, nb := a[path], b[path]
		switch {
		case na != nil && nb != nil:
			found = append(found, na.diff(nb, path)...)
		case na != nil && b[parent(path)] != nil:
			found = append(found, Difference{path, "name", na.kind(), "nothing"})
		case nb != nil && a[parent(path)] != nil:
			found = append(found, Difference{path, "name", "nothing", nb.kind()})
		}
	}
	return found
}
