package fs

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// Blobs is a FUSE file system that shows flat blobs as files, NAME/blob each.
// EROFS mounts have them as devices: the kernel then reads metadata by itself,
// and asks this process only for data that it has not cached. One Blobs serves
// any number of mounts.
//
// As in raw there are no handles, and node ids are places in a table: blob i
// has the folder 2i+2 and the file 2i+3, and the root is 1.
type Blobs struct {
	fuse.RawFileSystem
	reader
	dir  string
	done chan struct{}

	mu    sync.RWMutex
	names map[string]int
	files []blobFile
}

type blobFile struct {
	name string
	Blob
}

// MountBlobs mounts a Blobs that has no blobs yet on dir. It needs root.
func MountBlobs(dir string, opts Options) (*Blobs, error) {
	opts = opts.withDefaults()
	b := &Blobs{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		reader:        newReader(opts),
		dir:           dir,
		done:          make(chan struct{}),
		names:         map[string]int{},
	}
	o := fuseOptions(opts)
	o.FsName, o.DisableXAttrs = "peel-blobs", true
	srv, err := newServer(b, dir, o)
	if err != nil {
		return nil, fmt.Errorf("mount flat blobs on %s: %w%s", dir, err, mountHint(dir))
	}
	go func() {
		defer close(b.done)
		srv.Serve()
	}()
	if err := srv.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount flat blobs on %s: %w", dir, err), b.Detach())
	}
	return b, nil
}

// Add shows a blob under a name, and returns the path of its file. A name that
// is there already keeps the blob that it has.
func (b *Blobs) Add(name string, blob Blob) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, ok := b.names[name]
	if !ok {
		i = len(b.files)
		b.names[name] = i
		b.files = append(b.files, blobFile{name: name})
	}
	if b.files[i].Blob == nil {
		b.files[i].Blob = blob
	}
	return filepath.Join(b.dir, name, "blob")
}

// Remove ends the use of a blob. Its name stays, since the kernel keeps it in
// mind, and gives errors until the same blob is added again.
func (b *Blobs) Remove(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i, ok := b.names[name]; ok {
		b.files[i].Blob = nil
	}
}

// Detach takes the file system out of sight. It lives on beneath the mounts
// that have its files as devices, and ends with the last of them.
func (b *Blobs) Detach() error {
	if err := unix.Unmount(b.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("detach %s: %w", b.dir, err)
	}
	return nil
}

// Wait returns when nothing can ask for a blob any more.
func (b *Blobs) Wait() { <-b.done }

// String is the name that FUSE's debugging output shows.
func (b *Blobs) String() string { return "peel-blobs" }

// file returns the blob of a file's node.
func (b *Blobs) file(node uint64) (blobFile, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	i := (node - 3) / 2
	if node < 3 || node%2 == 0 || i >= uint64(len(b.files)) {
		return blobFile{}, false
	}
	return b.files[i], b.files[i].Blob != nil
}

// Lookup finds a blob's folder in the root, or the file in that folder.
func (b *Blobs) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	b.mu.RLock()
	i, ok := b.names[name]
	b.mu.RUnlock()
	switch {
	case h.NodeId == fuse.FUSE_ROOT_ID && ok:
		out.NodeId = uint64(2*i + 2)
	case h.NodeId%2 == 0 && name == "blob":
		out.NodeId = h.NodeId + 1
	default:
		return fuse.ENOENT // which is not cached: the name may come
	}
	out.EntryValid, out.AttrValid = forever, forever
	return b.attr(out.NodeId, &out.Attr)
}

// GetAttr gives a folder's or a file's attributes.
func (b *Blobs) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = forever
	return b.attr(in.NodeId, &out.Attr)
}

func (b *Blobs) attr(node uint64, out *fuse.Attr) fuse.Status {
	*out = fuse.Attr{Ino: node, Mode: unix.S_IFDIR | 0o500, Nlink: 2, Blksize: index.BlockSize}
	if node%2 == 0 || node == fuse.FUSE_ROOT_ID {
		return fuse.OK
	}
	f, ok := b.file(node)
	if !ok {
		return fuse.Status(unix.ESTALE)
	}
	out.Mode, out.Nlink, out.Size = unix.S_IFREG|0o400, 1, uint64(f.Size())
	out.Blocks = out.Size / 512
	return fuse.OK
}

// Open says that there are no handles.
func (b *Blobs) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// OpenDir says that there are no handles.
func (b *Blobs) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// Flush has nothing to do.
func (b *Blobs) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Read gives what the kernel has not cached. It never gives less than was
// asked for, since a loop device would take the rest for zeros.
func (b *Blobs) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f, ok := b.file(in.NodeId)
	if !ok {
		return nil, fuse.Status(unix.ESTALE)
	}
	if in.Offset >= uint64(f.Size()) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	off := int64(in.Offset)
	buf = buf[:min(int64(len(buf)), f.Size()-off)]
	res, err := b.read(caller{cancel, in.Caller.Pid}, f.Blob, off, buf)
	if err == nil {
		return res, fuse.OK
	}
	return nil, b.fail(err, func() []any {
		return []any{"image", b.imageOf(f), "layer", f.name, "offset", off, "bytes", len(buf)}
	})
}

// Waiting returns how long each read has waited that waits for data now.
func (b *Blobs) Waiting() []time.Duration { return b.waits.waiting() }

// Stats returns the counts so far, of all mounts together.
func (b *Blobs) Stats() Stats { return b.stats.load() }

// ofImage is a Blob that says what image it is of; it may not know.
type ofImage interface{ Image() string }

// imageOf names the image of a blob, for messages.
func (b *Blobs) imageOf(f blobFile) string {
	if o, ok := f.Blob.(ofImage); ok {
		if image := o.Image(); image != "" {
			return image
		}
	}
	return b.image
}
