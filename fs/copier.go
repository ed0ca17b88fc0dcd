package fs

import (
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/peelfs/peel/content/index"
)

// tree copies what is still reachable, breadth first, so that the names of a
// directory lie side by side.
func (m *merger) tree(layers int) (*Tree, error) {
	t := &Tree{
		inodes: make([]inode, 0, m.live),
		names:  make([]name, 0, m.live-1),
		xattrs: m.xattrs,
		layers: layers,
	}
	c := copier{m: m, t: t, ids: make([]NodeID, len(m.inodes))}
	dirs := []uint32{0}
	c.node(0)
	t.inodes[0].aux = uint32(Root)
	for ; len(dirs) > 0; dirs = dirs[1:] {
		dirs = append(dirs, c.dir(dirs[0])...)
		if uint64(len(c.arena)) > math.MaxUint32 {
			return nil, errors.New("merge: more than 4 GiB of names")
		}
	}
	t.arena = string(c.arena)
	return t, nil
}

// copier copies a merged tree into its final form.
type copier struct {
	m     *merger
	t     *Tree
	ids   []NodeID // of the merger's inodes; 0 if not yet copied
	arena []byte
	sub   []uint32
	list  []uint32
}

// dir copies a directory's names, and returns the slots of those that are
// directories. The slice is good until the next call.
func (c *copier) dir(s uint32) []uint32 {
	m, t := c.m, c.t
	id := c.ids[m.slots[s].inode]
	c.list, c.sub = c.list[:0], c.sub[:0]
	for k := m.slots[s].child; k != 0; k = m.slots[k].next {
		if m.slots[k].inode != none {
			c.list = append(c.list, k)
		}
	}
	slices.SortFunc(c.list, func(a, b uint32) int {
		return strings.Compare(m.slots[a].name, m.slots[b].name)
	})
	t.inode(id).off, t.inode(id).size = int64(len(t.names)), int64(len(c.list))
	for _, k := range c.list {
		child := c.node(m.slots[k].inode)
		text := m.slots[k].name
		t.names = append(t.names, name{off: uint32(len(c.arena)), len: uint32(len(text)), node: child})
		c.arena = append(c.arena, text...)
		if n := t.inode(child); n.kind() == index.Dir {
			n.aux = uint32(id)
			t.inode(id).nlink++
			c.sub = append(c.sub, k)
		} else {
			n.nlink++
		}
	}
	return c.sub
}

// node copies an inode, unless an earlier link to it has, and returns its id.
func (c *copier) node(i uint32) NodeID {
	if c.ids[i] != 0 {
		return c.ids[i]
	}
	n := c.m.inodes[i]
	switch n.kind() {
	case index.Dir:
		n.nlink = 2
	case index.Symlink:
		target := c.m.targets[n.off]
		n.off = int64(len(c.arena))
		c.arena = append(c.arena, target...)
	case index.Regular:
		c.t.bytes += n.size
	}
	c.t.inodes = append(c.t.inodes, n)
	c.ids[i] = NodeID(len(c.t.inodes))
	return c.ids[i]
}
