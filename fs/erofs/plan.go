package erofs

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/peelfs/peel/content/index"
)

// plan is the layout of an image: a first block with the superblock and the
// device table, then the inodes, each followed by its extended attributes and
// a table, a short symbolic link or the end of a directory; then the shared
// attributes, and last the blocks of directories and long symbolic links.
//
// The inodes of a directory's children stand together, in the order of their
// names, so that a listing with attributes reads the image forwards.
type plan struct {
	devices []int64
	inodes  []inode
	shared  sharedXattrs

	inodesOff int64 // of the first inode; all offsets are in bytes
	sharedOff int64
	dataOff   int64
	end       int64

	names []Dirent // for direntsOf
}

// inode is what a node becomes. There may be millions, so it is kept small.
type inode struct {
	node   *Node
	xattrs *xattrBody // nil if there are none
	off    int64      // in the image
	size   int64      // i_size
	block  int64      // flatPlain, flatInline: its first block, counted from dataOff
	parent int        // its directory, or one of them
	nlink  uint32
	depth  uint16
	layout dataLayout
}

func newPlan(root *Node, devices []int64) (*plan, error) {
	if err := checkDevices(devices); err != nil {
		return nil, err
	}
	p := &plan{devices: devices, shared: sharedXattrs{uses: make(map[xattr]int), ids: make(map[xattr]uint32)}}
	if err := p.collect(root); err != nil {
		return nil, err
	}
	return p, p.layOut()
}

// collect finds all nodes, puts them in order, and checks them.
func (p *plan) collect(root *Node) error {
	if err := p.add(root, 0, 0); err != nil {
		return fmt.Errorf("the root: %w", err)
	}
	if root.Entry.Type != index.Dir {
		return errors.New("the root is not a directory")
	}
	dirs := []int{0}
	for len(dirs) > 0 {
		d := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		first := len(p.inodes)
		if err := p.addChildren(d); err != nil {
			return err
		}
		for i := len(p.inodes) - 1; i >= first; i-- {
			if p.inodes[i].node.Entry.Type == index.Dir {
				dirs = append(dirs, i)
			}
		}
	}
	return nil
}

// addChildren adds what stands in directory d.
func (p *plan) addChildren(d int) error {
	dir := p.inodes[d].node
	byName := func(a, b Dirent) int { return cmp.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(dir.Children, byName) {
		slices.SortFunc(dir.Children, byName)
	}
	for i, c := range dir.Children {
		if err := checkName(c.Name); err != nil {
			return fmt.Errorf("%.300q in directory %q: %w", c.Name, dir.Entry.Name, err)
		}
		if i > 0 && c.Name == dir.Children[i-1].Name {
			return fmt.Errorf("%q stands twice in directory %q", c.Name, dir.Entry.Name)
		}
		if err := p.add(c.Node, d, int(p.inodes[d].depth)+1); err != nil {
			return fmt.Errorf("%q in directory %q: %w", c.Name, dir.Entry.Name, err)
		}
		if c.Node.Entry.Type == index.Dir {
			p.inodes[d].nlink++ // its ".."
		}
	}
	return nil
}

// add adds a node, or a link if it is there already.
func (p *plan) add(n *Node, parent, depth int) error {
	if n == nil || n.Entry == nil {
		return errors.New("no node, or a node without an entry")
	}
	if n.id < len(p.inodes) && p.inodes[n.id].node == n {
		in := &p.inodes[n.id]
		if n.Entry.Type == index.Dir {
			return errors.New("a directory can stand in one place only")
		}
		if in.nlink == math.MaxUint32 {
			return errors.New("too many hard links")
		}
		in.nlink++
		return nil
	}
	if depth > maxDepth {
		return fmt.Errorf("more than %d directories deep", maxDepth)
	}
	if err := checkNode(n, p.devices); err != nil {
		return fmt.Errorf("entry %q: %w", n.Entry.Name, err)
	}
	in := inode{node: n, parent: parent, depth: uint16(depth), nlink: 1}
	if n.Entry.Type == index.Dir {
		in.nlink = 2 // its name and its "."
	}
	var err error
	if in.xattrs, err = p.shared.newBody(n.Entry.Xattrs); err != nil {
		return fmt.Errorf("entry %q: %w", n.Entry.Name, err)
	}
	n.id = len(p.inodes)
	if n.id == cap(p.inodes) {
		p.inodes = slices.Grow(p.inodes, n.id+64) // to the double: append takes less
	}
	p.inodes = append(p.inodes, in)
	return nil
}

// layOut gives every inode and every block its place.
func (p *plan) layOut() error {
	p.inodesOff = index.Align(superOffset + superBlockSize + int64(len(p.devices))*deviceSlotSize)
	if p.inodesOff>>slotBits > maxRootNid {
		return fmt.Errorf("%d devices are too many", len(p.devices))
	}
	off, blocks := p.inodesOff, int64(0)
	for i := range p.inodes {
		in := &p.inodes[i]
		if err := in.xattrs.layOut(&p.shared); err != nil {
			return fmt.Errorf("entry %q: %w", in.node.Entry.Name, err)
		}
		off = p.place(i, off)
		in.block = blocks
		blocks += in.blocks()
	}
	p.sharedOff = index.Align(off)
	p.dataOff = p.sharedOff + index.Align(p.shared.size)
	p.end = p.dataOff + blocks*blockSize
	if p.end/blockSize > maxBlocks {
		return fmt.Errorf("image of %d bytes needs addresses of more than 32 bits", p.end)
	}
	return nil
}

// place gives inode i its offset, at off or later, and its layout, and returns
// where the next one may stand.
func (p *plan) place(i int, off int64) int64 {
	in := &p.inodes[i]
	e := in.node.Entry
	off = alignTo(off, 1<<slotBits)
	if off%blockSize+inodeSize > blockSize {
		off = index.Align(off)
	}
	head := int64(inodeSize + in.xattrs.bytes())
	tail := int64(0)
	switch e.Type {
	case index.Regular:
		in.size = e.Size
		if e.Size > 0 {
			in.layout = chunkBased
			head = alignTo(head, chunkIndexSize)
			tail = int64(chunksOf(e.Size).n) * chunkIndexSize
		}
	case index.Dir, index.Symlink:
		in.size = int64(len(e.Link))
		if e.Type == index.Dir {
			in.size = p.dirSize(i)
		}
		// The kernel refuses what is inline in two blocks, and some versions
		// a symbolic link that is in another block than its inode.
		if t := in.size % blockSize; t > 0 && head+t <= blockSize {
			in.layout, tail = flatInline, t
			if off%blockSize+head+tail > blockSize {
				off = index.Align(off)
			}
		}
	}
	in.off = off
	return off + head + tail
}

// blocks is how many blocks in the data area an inode needs.
func (in *inode) blocks() int64 {
	switch in.layout {
	case flatPlain:
		return index.Align(in.size) / blockSize
	case flatInline:
		return in.size / blockSize
	}
	return 0
}

// nid is the inode's number in the format.
func (in *inode) nid() uint64 { return uint64(in.off) >> slotBits }

// dirSize returns the size of directory i: whole blocks and the used part of
// the last.
func (p *plan) dirSize(i int) (size int64) {
	for names := p.direntsOf(i); ; {
		n, used := fillBlock(names)
		if names = names[n:]; len(names) == 0 {
			return size + int64(used)
		}
		size += blockSize
	}
}

// direntsOf returns the names in directory i with "." and "..", in the order of
// their bytes: the kernel searches all of them by halving. The slice is valid
// until the next call.
func (p *plan) direntsOf(i int) []Dirent {
	in := &p.inodes[i]
	p.names = append(p.names[:0], in.node.Children...)
	for _, dot := range []Dirent{{".", in.node}, {"..", p.inodes[in.parent].node}} {
		at, _ := slices.BinarySearchFunc(p.names, dot.Name, func(d Dirent, name string) int {
			return cmp.Compare(d.Name, name)
		})
		p.names = slices.Insert(p.names, at, dot)
	}
	return p.names
}

// fillBlock returns how many names fit into one block of a directory, and how
// many bytes they take there.
func fillBlock(names []Dirent) (n, used int) {
	for n < len(names) {
		next := used + direntSize + len(names[n].Name)
		if next > blockSize {
			break
		}
		n, used = n+1, next
	}
	return n, used
}

// chunks is how a file is cut: all chunks but the last are whole, and each is
// one entry in a table.
type chunks struct {
	bits uint8 // a chunk is 1<<bits blocks
	n    int
}

// maxChunkBits makes chunks of at most 1 GiB, which is safe where the kernel's
// unsigned long has 32 bits.
const maxChunkBits = 30 - blockBits

// chunksOf cuts a file into as few chunks as possible: it lies in one run. The
// kernel reads no further than the block with the file's last byte, so the last
// chunk may reach beyond the end of the device.
func chunksOf(size int64) chunks {
	var c chunks
	for c.bits < maxChunkBits && size > blockSize<<c.bits {
		c.bits++
	}
	chunk := int64(blockSize) << c.bits
	c.n = int((size + chunk - 1) / chunk)
	return c
}

// alignTo rounds n up to a multiple of unit, a power of two.
func alignTo(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
