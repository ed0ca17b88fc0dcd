// Package fs shows an image as a file system.
//
// It knows how layers become one tree (Merge), how the kernel asks for that
// tree (a FUSE server on go-fuse's raw interface), and how a mount is made and
// undone. It does not know registries, how a layer is indexed, or where data
// comes from: a Blob gives the bytes of a layer, and fetches what is missing.
package fs

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// NodeID names a node (an inode) of a Tree. IDs run from Root to Tree.Len; 0
// is no node. The same layers always give the same IDs, so an ID may outlive
// the process that made the tree. It is also the inode number that stat(2)
// shows and the node id of the FUSE protocol.
type NodeID uint32

// Root is the node of the root directory.
const Root NodeID = 1

// Attr is what a Tree knows of one node.
type Attr struct {
	Type  index.Type // never index.Hardlink: links share a node
	Mode  uint32     // permission, setuid, setgid and sticky bits: 07777
	UID   uint32
	GID   uint32
	Nlink uint32
	Major uint32 // device number, of index.Char and index.Block
	Minor uint32
	Nsec  uint32 // modification time: nanoseconds in [0, 1e9)
	Sec   int64  // modification time: seconds since 1970, negative before
	Layer int    // the layer, as an index into Merge's argument, that the node comes from

	// Of regular files only.
	Size int64 // length in bytes
	Off  int64 // where the data starts in the flat blob of Layer
}

// Tree is an image's whole directory tree, as its layers make it. It does not
// change, so any number of goroutines may read it.
//
// It takes 68 bytes for each name, and the names themselves.
type Tree struct {
	inodes []inode         // by NodeID-1
	names  []name          // each directory's, sorted, one directory after the other
	arena  string          // names and symlink targets
	xattrs [][]index.Xattr // distinct sets, by inode.xattrs; the first is empty
	layers int
	bytes  int64 // sum of the regular files' sizes
}

// inode is one node. What size, off and aux hold depends on the type.
type inode struct {
	sec    int64
	size   int64  // bytes of a file or of a symlink's target; number of names in a directory
	off    int64  // a file's place in the flat blob; a target's in the arena; a directory's first name
	mode   uint32 // type and permission bits, as st_mode
	uid    uint32
	gid    uint32
	nlink  uint32
	nsec   uint32
	aux    uint32 // a device's number; a directory's parent
	xattrs uint32
	layer  uint16
}

// name is one name in a directory.
type name struct {
	off  uint32 // in the arena
	len  uint32
	node NodeID
}

// Len returns the number of nodes, which is also the highest NodeID.
func (t *Tree) Len() int { return len(t.inodes) }

// Layers returns the number of layers that the tree was merged from.
func (t *Tree) Layers() int { return t.layers }

// Attr returns the attributes of a node.
func (t *Tree) Attr(id NodeID) Attr {
	n := t.inode(id)
	a := Attr{
		Type:  n.kind(),
		Mode:  n.mode &^ unix.S_IFMT,
		UID:   n.uid,
		GID:   n.gid,
		Nlink: n.nlink,
		Nsec:  n.nsec,
		Sec:   n.sec,
		Layer: int(n.layer),
	}
	switch a.Type {
	case index.Regular:
		a.Size, a.Off = n.size, n.off
	case index.Char, index.Block:
		a.Major, a.Minor = unix.Major(uint64(n.aux)), unix.Minor(uint64(n.aux))
	}
	return a
}

// Children yields a directory's names in byte order, and each one's node. Of
// a node that is no directory it yields nothing.
func (t *Tree) Children(dir NodeID) iter.Seq2[string, NodeID] {
	return func(yield func(string, NodeID) bool) {
		for _, n := range t.list(dir) {
			if !yield(t.text(n), n.node) {
				return
			}
		}
	}
}

// Lookup returns the node that a directory has under one name (not a path).
func (t *Tree) Lookup(dir NodeID, child string) (NodeID, bool) {
	list := t.list(dir)
	i, ok := slices.BinarySearchFunc(list, child, func(n name, want string) int {
		return cmp.Compare(t.text(n), want)
	})
	if !ok {
		return 0, false
	}
	return list[i].node, true
}

// Readlink returns the target of a symlink as it stands in the image, and ""
// of any other node.
func (t *Tree) Readlink(id NodeID) string {
	n := t.inode(id)
	if n.kind() != index.Symlink {
		return ""
	}
	return t.arena[n.off : n.off+n.size]
}

// Xattrs returns the extended attributes of a node, sorted by name. The
// caller must not change the slice.
func (t *Tree) Xattrs(id NodeID) []index.Xattr { return t.xattrs[t.inode(id).xattrs] }

// Parent returns the parent of a directory. The root's is the root itself, as
// "..", and that of a node that is no directory is 0.
func (t *Tree) Parent(dir NodeID) NodeID {
	n := t.inode(dir)
	if n.kind() != index.Dir {
		return 0
	}
	return NodeID(n.aux)
}

// Path returns one path of a node, from the root and with a leading slash. It
// is for messages: it looks through the whole tree.
func (t *Tree) Path(id NodeID) string {
	var parts []string
	for id != Root {
		at := slices.IndexFunc(t.names, func(n name) bool { return n.node == id })
		if at < 0 {
			return ""
		}
		parts = append(parts, t.text(t.names[at]))
		id = 1 + NodeID(slices.IndexFunc(t.inodes, func(n inode) bool {
			return n.kind() == index.Dir && n.off <= int64(at) && int64(at) < n.off+n.size
		}))
	}
	slices.Reverse(parts)
	return "/" + strings.Join(parts, "/")
}

func (t *Tree) hasXattrs() bool { return len(t.xattrs) > 1 }

func (t *Tree) hasACLs() bool {
	return slices.ContainsFunc(t.xattrs, func(set []index.Xattr) bool {
		return slices.ContainsFunc(set, func(x index.Xattr) bool {
			return strings.HasPrefix(x.Name, "system.posix_acl_")
		})
	})
}

func (t *Tree) inode(id NodeID) *inode { return &t.inodes[id-1] }

func (t *Tree) text(n name) string { return t.arena[n.off : n.off+n.len] }

// list returns a directory's names, and nil of any other node.
func (t *Tree) list(dir NodeID) []name {
	n := t.inode(dir)
	if n.kind() != index.Dir {
		return nil
	}
	return t.names[n.off : n.off+n.size]
}

// kind returns the type that is in the mode.
func (n *inode) kind() index.Type { return index.TypeOf(n.mode) }
