// Package erofs writes EROFS images that hold metadata only: directories,
// attributes and, for every regular file, where its bytes lie on another
// device. That device is a layer's flat blob, so one small image and the flat
// blobs of its layers make a whole file system that the kernel reads by itself.
//
// An image holds either one layer that will be a lower directory of an
// overlay ([FromLayer]), or any tree of [Node] over any number of devices. The
// same tree always gives the same bytes. [Mount] mounts an image.
//
// The package knows the on-disk format, as in the kernel's
// fs/erofs/erofs_fs.h, whose names are kept here, and what overlayfs makes of
// whiteouts. It does not know how layers are merged, how a flat blob is filled
// or how an index is read. What it is given may be hostile: whatever the kernel
// would read differently from what the entries say is refused.
//
// It does not build on github.com/erofs/go-erofs (v0.3.1), which can merge
// layers over several devices, but gives every name an inode of its own, so
// that hard links are lost, and neither shares extended attributes nor writes
// the superblock's checksum; its device table is not where its superblock says.
package erofs

import (
	"fmt"
	"io"

	"github.com/peelfs/peel/content/index"
)

// Node is a file: what Linux calls an inode. A node that stands in more than
// one directory, or under more than one name, is a hard link; a directory
// stands in one place only.
type Node struct {
	// Entry holds the node's attributes, and the target of a symbolic link.
	// Its name is used in errors only. Its type is never index.Hardlink, and
	// its extended attributes are written as they are, except those of a
	// namespace that Linux does not know, which are left out: no program could
	// have set them or could read them.
	Entry *index.Entry

	// Device says where the data of a regular file lies: at Entry.Off of
	// this device, counted from 1. It means nothing for an empty file.
	Device int

	// Children are the names in a directory, without "." and "..". Write puts
	// them into the order of their bytes.
	Children []Dirent

	id int // place in plan.inodes, if the node there is this one
}

// Dirent is a name in a directory.
type Dirent struct {
	Name string
	Node *Node
}

// Write writes the image of the tree at root to w. The devices are the lengths
// in bytes of the flat blobs, which must be whole blocks; each must be given to
// [Mount] in the same order, even if no file lies there.
//
// A tree must not be in two calls of Write at the same time. What was written
// before an error is of no use; what can be wrong with the tree is found before
// the first byte.
func Write(w io.Writer, root *Node, devices []int64) error {
	p, err := newPlan(root, devices)
	if err != nil {
		return fmt.Errorf("lay out EROFS image: %w", err)
	}
	if err := p.write(w); err != nil {
		return fmt.Errorf("write EROFS image: %w", err)
	}
	return nil
}
