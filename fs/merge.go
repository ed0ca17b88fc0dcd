package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// Bounds of a tree. They keep a crafted index from taking more memory or time
// than its own size warrants; no real image comes near them.
const (
	maxLayers = 1 << 14
	maxWalk   = 1024    // components of one name, those of the symlinks on its way included
	maxLinks  = 40      // symlinks on the way of one name, as in the kernel
	maxMade   = 1 << 20 // directories that no entry names

	// Work is counted in bytes that are looked at on the way of names. Names
	// that are close together need little of it, because the last directory is
	// remembered.
	workBase  = 64 << 20 // of an image
	workEntry = 1 << 10  // and for each of its entries
	workStep  = 16       // of a path component, beside its bytes
)

// Merge makes one tree of an image's layers, lowest first, as the OCI image
// specification's layer.md says ("Applying Changesets"). The entries are not
// kept. Layers that an extractor would not unpack are an error that names the
// entry.
//
// Where the specification is silent, Merge does what umoci does when it
// unpacks: entries count in the order of the tar, a later one of the same name
// replaces the earlier one, a directory over a directory changes its
// attributes and keeps what is in it. A parent that is a symlink is followed,
// inside the root: with lib -> usr/lib, the entry lib/x is usr/lib/x. (An
// overlay of single layers would show a directory lib instead.) A parent that
// is missing, or is neither directory nor symlink, becomes a directory, 0755
// and of root. A hard link's own attributes are ignored. Where no layer names
// the root it has those of a made parent.
//
// A whiteout hides names of lower layers only, wherever it stands in its
// layer. Names that start with ".wh..wh." (aufs kept its own files under them)
// and what lies below any name that starts with ".wh." are left out.
func Merge(layers [][]index.Entry) (*Tree, error) {
	if len(layers) > maxLayers {
		return nil, fmt.Errorf("merge: %d layers, more than %d", len(layers), maxLayers)
	}
	n := 1
	for _, entries := range layers {
		n += len(entries)
	}
	m := newMerger(n + n/16)
	m.work = workBase + workEntry*int64(n)
	for l, entries := range layers {
		m.layer = uint16(l)
		for i := range entries {
			if err := m.apply(&entries[i]); err != nil {
				return nil, fmt.Errorf("merge: layer %d, entry %q: %w", l, clip(entries[i].Name), err)
			}
		}
	}
	return m.tree(len(layers))
}

var errWork = fmt.Errorf("the image's names lead on longer ways than %d bytes, and %d for each entry", workBase, workEntry)

// clip shortens a name for an error.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}

// none is a slot without a node: a name that was there and is hidden.
const none = math.MaxUint32

// slot is one name in one directory while layers are merged. Slot 0 is the
// root. A name that goes away leaves its slot with none, in its place in the
// directory's list; it leaves the list when the list is next gone through.
type slot struct {
	name   string
	parent uint32
	inode  uint32
	child  uint32 // the directory's first name, 0 if it has none
	next   uint32 // the next name of the parent, 0 at the end
	layer  uint32 // 1 + the last layer with an entry of this name, or below it
	opaque uint32 // 1 + the last layer that is known to have hidden all below that was lower
}

type slotKey struct {
	parent uint32
	name   string
}

type merger struct {
	slots   []slot
	find    map[slotKey]uint32
	inodes  []inode // nlink is set at the end; a symlink's off is its place in targets
	targets []string
	xattrs  [][]index.Xattr
	xattrAt map[string]uint32 // place in xattrs, by the set's serialised form
	layer   uint16
	made    int
	work    int64 // that may still be done
	live    int   // slots that are not none

	xattrKey []byte // scratch space of xattrSet

	// The directory that the last entry was in. Tars go directory by directory,
	// so this saves most walks. It is forgotten when a name on the way may have
	// changed its meaning.
	lastDir  string
	lastSlot uint32
}

// newMerger returns a merger with a root, and room for n nodes: to grow as it
// goes would take twice the memory.
func newMerger(n int) *merger {
	return &merger{
		slots:   append(make([]slot, 0, n), slot{}),
		find:    make(map[slotKey]uint32, n),
		inodes:  append(make([]inode, 0, n), inode{mode: unix.S_IFDIR | 0o755}),
		xattrs:  [][]index.Xattr{nil},
		xattrAt: make(map[string]uint32),
		live:    1,
	}
}

// apply applies one entry of the current layer.
func (m *merger) apply(e *index.Entry) error {
	if err := check(e); err != nil {
		return err
	}
	if e.Name == "." {
		if e.Type != index.Dir {
			return errors.New("the root must be a directory")
		}
		m.setAttr(&m.inodes[0], e)
		return nil
	}
	dir, base := splitName(e.Name)
	if strings.HasPrefix(dir, ".wh.") || strings.Contains(dir, "/.wh.") {
		return nil
	}
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		return m.whiteout(dir, hidden)
	}
	parent, _, err := m.walk(dir, true)
	if err != nil {
		return err
	}
	s := m.slot(parent, base)
	m.mark(s)
	if e.Type == index.Hardlink {
		return m.link(s, e.Link)
	}
	if e.Type != index.Dir || !m.isDir(s) {
		m.put(s, inode{})
	}
	m.setAttr(&m.inodes[m.slots[s].inode], e)
	return nil
}

// link gives a slot the node that another name has. What the slot had goes
// first, as in an extraction, so that a link to itself finds nothing.
func (m *merger) link(s uint32, target string) error {
	m.remove(s)
	dir, base := splitName(target)
	parent, ok, err := m.walk(dir, false)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(target), err)
	}
	to, found := m.find[slotKey{parent, base}]
	if !ok || !found || m.slots[to].inode == none {
		return fmt.Errorf("hard link to %q, which is not there", clip(target))
	}
	if m.isDir(to) {
		return fmt.Errorf("hard link to %q, which is a directory", clip(target))
	}
	m.slots[s].inode = m.slots[to].inode
	m.live++
	return nil
}

// whiteout hides one name of the lower layers, or all of a directory's.
func (m *merger) whiteout(dir, hidden string) error {
	opaque := hidden == ".wh..opq"
	switch {
	case opaque:
	case strings.HasPrefix(hidden, ".wh."):
		return nil
	case hidden == "" || hidden == "." || hidden == "..":
		return errors.New("whiteout of no name")
	}
	parent, ok, err := m.walk(dir, false)
	if err != nil || !ok {
		return err
	}
	if opaque {
		m.hideChildren(parent)
		return nil
	}
	if s, ok := m.find[slotKey{parent, hidden}]; ok {
		m.hide(s)
	}
	return nil
}

// hide removes a slot's node, unless it is the current layer's own: then only
// what lies below it and is not.
func (m *merger) hide(s uint32) {
	if m.slots[s].layer != uint32(m.layer)+1 {
		m.remove(s)
	} else if m.isDir(s) {
		m.hideChildren(s)
	}
}

// hideChildren hides what lies below a directory. Nothing lower can come back
// in the same layer, so once a layer is enough; this keeps the time linear
// however many opaque entries a layer has.
func (m *merger) hideChildren(dir uint32) {
	d := &m.slots[dir]
	if d.opaque == uint32(m.layer)+1 {
		return
	}
	d.opaque = uint32(m.layer) + 1
	kept := uint32(0)
	for c := d.child; c != 0; {
		next := m.slots[c].next
		m.hide(c)
		if m.slots[c].inode == none {
			m.forget(c)
		} else {
			m.slots[c].next = kept
			kept = c
		}
		c = next
	}
	m.slots[dir].child = kept
}

// walk finds the directory that a path names, following symlinks inside the
// root; ".." of the root is the root. If makeDirs is set, what is missing or is
// not a directory becomes one; otherwise ok tells whether there is such a
// directory.
func (m *merger) walk(path string, makeDirs bool) (dir uint32, ok bool, err error) {
	if path == m.lastDir {
		return m.lastSlot, true, nil
	}
	cur, rest := uint32(0), path
	links := 0
	for steps := 0; rest != ""; steps++ {
		if steps == maxWalk {
			return 0, false, fmt.Errorf("more than %d path components on its way", maxWalk)
		}
		var comp string
		comp, rest, _ = strings.Cut(rest, "/")
		if m.work -= workStep + int64(len(comp)); m.work < 0 {
			return 0, false, errWork
		}
		switch comp {
		case "", ".":
			continue
		case "..":
			cur = m.slots[cur].parent
			continue
		}
		s, found := m.find[slotKey{cur, comp}]
		switch {
		case found && m.isDir(s):
			cur = s
		case found && m.isSymlink(s):
			if links++; links > maxLinks {
				return 0, false, fmt.Errorf("more than %d symlinks on its way", maxLinks)
			}
			target := m.targets[m.inodes[m.slots[s].inode].off]
			if target[0] == '/' {
				cur = 0
			}
			rest = target + "/" + rest
			m.work -= int64(len(rest))
		case !makeDirs:
			return 0, false, nil
		default:
			if cur, err = m.makeDir(cur, comp); err != nil {
				return 0, false, err
			}
		}
	}
	m.lastDir, m.lastSlot = path, cur
	return cur, true, nil
}

// makeDir makes a directory that no entry names.
func (m *merger) makeDir(parent uint32, name string) (uint32, error) {
	if m.made++; m.made > maxMade {
		return 0, fmt.Errorf("more than %d directories without an entry of their own", maxMade)
	}
	s := m.slot(parent, name)
	m.put(s, inode{mode: unix.S_IFDIR | 0o755, layer: m.layer})
	return s, nil
}

// slot returns the slot of a name, which it makes if need be.
func (m *merger) slot(parent uint32, name string) uint32 {
	k := slotKey{parent, name}
	if s, ok := m.find[k]; ok {
		return s
	}
	s := uint32(len(m.slots))
	m.slots = append(m.slots, slot{name: name, parent: parent, inode: none, next: m.slots[parent].child})
	m.slots[parent].child = s
	m.find[k] = s
	return s
}

// mark notes that the current layer has an entry at or below s. If a slot is
// marked then so are those above it.
func (m *merger) mark(s uint32) {
	for s != 0 && m.slots[s].layer != uint32(m.layer)+1 {
		m.slots[s].layer = uint32(m.layer) + 1
		s = m.slots[s].parent
	}
}

// put gives a slot a new node.
func (m *merger) put(s uint32, n inode) {
	m.remove(s)
	m.slots[s].inode = uint32(len(m.inodes))
	m.inodes = append(m.inodes, n)
	m.live++
}

// remove takes a slot's node away, and all that is below it.
func (m *merger) remove(s uint32) {
	if m.slots[s].inode == none {
		return
	}
	if m.isDir(s) || m.isSymlink(s) {
		m.lastDir, m.lastSlot = "", 0
	}
	m.slots[s].inode = none
	m.live--
	c := m.slots[s].child
	m.slots[s].child = 0
	for c != 0 {
		m.remove(c)
		m.forget(c)
		c = m.slots[c].next
	}
}

// forget makes a slot that is in no list unreachable.
func (m *merger) forget(s uint32) {
	delete(m.find, slotKey{m.slots[s].parent, m.slots[s].name})
}

func (m *merger) isDir(s uint32) bool { return m.mode(s)&unix.S_IFMT == unix.S_IFDIR }

func (m *merger) isSymlink(s uint32) bool { return m.mode(s)&unix.S_IFMT == unix.S_IFLNK }

func (m *merger) mode(s uint32) uint32 {
	if i := m.slots[s].inode; i != none {
		return m.inodes[i].mode
	}
	return 0
}

// setAttr copies an entry's attributes to a node.
func (m *merger) setAttr(n *inode, e *index.Entry) {
	n.mode = fileType(e.Type) | e.Mode
	n.uid, n.gid = e.UID, e.GID
	n.sec, n.nsec = e.Sec, e.Nsec
	n.layer = m.layer
	switch e.Type {
	case index.Regular:
		n.size, n.off = e.Size, e.Off
	case index.Symlink:
		n.mode |= 0o777 // as Linux shows every symlink
		n.size, n.off = int64(len(e.Link)), int64(len(m.targets))
		m.targets = append(m.targets, e.Link)
	case index.Char, index.Block:
		n.aux = uint32(unix.Mkdev(e.Major, e.Minor))
	}
	n.xattrs = m.xattrSet(e.Xattrs)
}

// xattrSet returns the place of a set of extended attributes in m.xattrs. Most
// files of an image that has them share a few sets.
func (m *merger) xattrSet(set []index.Xattr) uint32 {
	if len(set) == 0 {
		return 0
	}
	key := m.xattrKey[:0]
	for _, x := range set {
		key = binary.AppendUvarint(key, uint64(len(x.Name)))
		key = append(key, x.Name...)
		key = binary.AppendUvarint(key, uint64(len(x.Value)))
		key = append(key, x.Value...)
	}
	m.xattrKey = key
	at, ok := m.xattrAt[string(key)]
	if !ok {
		at = uint32(len(m.xattrs))
		own := make([]index.Xattr, len(set))
		for i, x := range set {
			own[i] = index.Xattr{Name: strings.Clone(x.Name), Value: strings.Clone(x.Value)}
		}
		m.xattrs = append(m.xattrs, own)
		m.xattrAt[string(key)] = at
	}
	return at
}

// splitName splits a cleaned name into its directory, "" for the root's, and
// its last component.
func splitName(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

// fileType returns the type bits of st_mode.
func fileType(t index.Type) uint32 {
	switch t {
	case index.Dir:
		return unix.S_IFDIR
	case index.Symlink:
		return unix.S_IFLNK
	case index.Char:
		return unix.S_IFCHR
	case index.Block:
		return unix.S_IFBLK
	case index.Fifo:
		return unix.S_IFIFO
	}
	return unix.S_IFREG
}
