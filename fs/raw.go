package fs

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// forever is how many seconds the kernel may keep what it was told.
const forever = 1 << 32

// raw serves a tree to the kernel. A node id of the protocol is a NodeID, there
// are no handles (OPEN and OPENDIR say ENOSYS, after which the kernel opens
// without asking), and so there is no state: nothing to look up in a table,
// nothing to forget, and another process with the same tree could go on.
//
// What it does not implement says ENOSYS too, and the kernel does not ask
// again: FLUSH, FSYNC, ACCESS, LSEEK, IOCTL. Writes do not get here, since the
// mount is read-only.
type raw struct {
	fuse.RawFileSystem
	tree  *Tree
	blobs []Blob
	reader
}

func newRaw(tree *Tree, blobs []Blob, opts Options) *raw {
	return &raw{RawFileSystem: fuse.NewDefaultRawFileSystem(), tree: tree, blobs: blobs, reader: newReader(opts)}
}

// options are those of the mount.
func (r *raw) options(opts Options) *fuse.MountOptions {
	o := fuseOptions(opts)
	// Without them the kernel asks for security.capability once, and for ACLs
	// never. With EnableAcl it asks for each file's ACL that a check needs, so
	// that is for images that have any.
	o.DisableXAttrs, o.EnableAcl = !r.tree.hasXattrs(), r.tree.hasACLs()
	return o
}

func (r *raw) String() string { return "peel" }

// node returns the node of a request. The kernel only has ids that it was
// given, but it may have them from another process (see raw).
func (r *raw) node(h *fuse.InHeader) (NodeID, fuse.Status) {
	if h.NodeId == 0 || h.NodeId > uint64(r.tree.Len()) {
		return 0, fuse.Status(unix.ESTALE)
	}
	return NodeID(h.NodeId), fuse.OK
}

func (r *raw) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, status := r.node(h)
	if !status.Ok() {
		return status
	}
	if len(name) > nameMax {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	if id, ok := r.tree.Lookup(dir, name); ok {
		r.entry(id, out)
	} else {
		out.EntryValid = forever // with node id 0: the kernel keeps that there is none
	}
	return fuse.OK
}

func (r *raw) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	id, status := r.node(&in.InHeader)
	if status.Ok() {
		out.AttrValid = forever
		r.attr(id, &out.Attr)
	}
	return status
}

func (r *raw) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	id, status := r.node(h)
	if !status.Ok() {
		return nil, status
	}
	return []byte(r.tree.Readlink(id)), fuse.OK
}

func (r *raw) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

func (r *raw) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

func (r *raw) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// ReadDirPlus is what the kernel lists directories with, and no other way. It
// adds entries from an offset on until one does not fit. An entry's offset is
// that of the next one: "." is at 0, ".." at 1, and so on.
func (r *raw) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	id, status := r.node(&in.InHeader)
	if !status.Ok() {
		return status
	}
	dir := r.tree.inode(id)
	if dir.kind() != index.Dir {
		return fuse.ENOTDIR
	}
	names := r.tree.list(id)
	for at := in.Offset; at < uint64(len(names))+2; at++ {
		e := fuse.DirEntry{Off: at + 1}
		var child NodeID
		switch at {
		case 0:
			e.Name, e.Ino, e.Mode = ".", uint64(id), dir.mode
		case 1:
			e.Name, e.Ino, e.Mode = "..", uint64(dir.aux), unix.S_IFDIR
		default:
			n := names[at-2]
			child = n.node
			e.Name, e.Ino, e.Mode = r.tree.text(n), uint64(child), r.tree.inode(child).mode
		}
		o := out.AddDirLookupEntry(e)
		if o == nil {
			break
		}
		if child != 0 { // the kernel wants no attributes of "." and ".."
			r.entry(child, o)
		}
	}
	return fuse.OK
}

func (r *raw) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	id, status := r.node(h)
	if !status.Ok() {
		return 0, status
	}
	for _, x := range r.tree.Xattrs(id) {
		if x.Name == attr {
			return fill(dest, x.Value)
		}
	}
	return 0, fuse.ENOATTR
}

func (r *raw) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	id, status := r.node(h)
	if !status.Ok() {
		return 0, status
	}
	var b strings.Builder
	for _, x := range r.tree.Xattrs(id) {
		b.WriteString(x.Name)
		b.WriteByte(0)
	}
	return fill(dest, b.String())
}

// fill copies an answer, or says how long it is if there is too little room.
func fill(dest []byte, value string) (uint32, fuse.Status) {
	if len(value) > len(dest) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

func (r *raw) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{
		Blocks:  uint64(index.Align(r.tree.bytes)) / index.BlockSize,
		Files:   uint64(r.tree.Len()),
		Bsize:   index.BlockSize,
		Frsize:  index.BlockSize,
		NameLen: nameMax,
	}
	return fuse.OK
}

func (r *raw) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	id, status := r.node(&in.InHeader)
	if !status.Ok() {
		return nil, status
	}
	n := r.tree.inode(id)
	if n.kind() != index.Regular {
		return nil, fuse.EINVAL
	}
	if in.Offset >= uint64(n.size) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	off := int64(in.Offset)
	buf = buf[:min(int64(len(buf)), n.size-off)]
	res, err := r.read(caller{cancel, in.Caller.Pid}, r.blobs[n.layer], n.off+off, buf)
	if err == nil {
		return res, fuse.OK
	}
	return nil, r.fail(err, func() []any {
		return []any{"image", r.image, "path", r.tree.Path(id), "layer", n.layer, "offset", off, "bytes", len(buf)}
	})
}

// entry fills in the answer that a name has a node.
func (r *raw) entry(id NodeID, out *fuse.EntryOut) {
	out.NodeId = uint64(id)
	out.EntryValid, out.AttrValid = forever, forever
	r.attr(id, &out.Attr)
}

// attr fills in what stat(2) shows. Access and change time are the
// modification time, since layers have no other. A file counts the blocks of
// its whole length, a directory one.
func (r *raw) attr(id NodeID, out *fuse.Attr) {
	n := r.tree.inode(id)
	*out = fuse.Attr{
		Ino:       uint64(id),
		Mode:      n.mode,
		Nlink:     n.nlink,
		Owner:     fuse.Owner{Uid: n.uid, Gid: n.gid},
		Atime:     uint64(n.sec),
		Mtime:     uint64(n.sec),
		Ctime:     uint64(n.sec),
		Atimensec: n.nsec,
		Mtimensec: n.nsec,
		Ctimensec: n.nsec,
		Blksize:   index.BlockSize,
	}
	switch n.kind() {
	case index.Regular, index.Symlink:
		out.Size = uint64(n.size)
	case index.Dir:
		out.Size = index.BlockSize
	case index.Char, index.Block:
		out.Rdev = n.aux
	}
	out.Blocks = (out.Size + 511) / 512
}
