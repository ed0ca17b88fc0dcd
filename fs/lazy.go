package fs

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/fs/erofs"
)

// wholer is a Blob that may be a complete local file: then the kernel reads
// that, and the blob is not asked at all.
type wholer interface {
	// Whole returns the path of a file that has all of the blob.
	Whole() (path string, ok bool)
}

var errLazyRoot = errors.New("mounting EROFS needs root")

// mountLazy mounts the tree as one EROFS image whose devices are the layers'
// flat blobs: local files where they are complete, files of a Blobs elsewhere.
func mountLazy(dir string, tree *Tree, blobs []Blob, opts Options, backing erofs.Backing) (*Server, error) {
	if os.Geteuid() != 0 {
		return nil, errLazyRoot
	}
	state, err := os.MkdirTemp(opts.State, "lazy-")
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", opts.Image, err)
	}
	defer os.RemoveAll(state) // the kernel keeps open what it needs
	meta := filepath.Join(state, "meta.erofs")
	if err := writeImage(meta, tree, blobs); err != nil {
		return nil, fmt.Errorf("mount %s: %w", opts.Image, err)
	}
	devices, shown, err := devices(filepath.Join(state, "blobs"), blobs, opts)
	if err != nil {
		return nil, err
	}
	_, err = erofs.Mount(meta, devices, dir, erofs.MountOptions{Backing: backing})
	if shown != nil {
		err = errors.Join(err, shown.Detach()) // it lives as long as the mount
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", opts.Image, err)
	}
	s := &Server{dir: dir, driver: EROFS}
	if backing == erofs.Loop {
		s.driver = Loop
	}
	if shown != nil {
		s.done, s.stats = shown.done, shown.stats
		return s, nil
	}
	s.stats, s.watched = new(counters), true
	s.done, err = watchUnmount(dir)
	return s, err
}

// devices returns the files of the blobs, and the Blobs that shows those that
// are not complete; nil if all are.
func devices(dir string, blobs []Blob, opts Options) (paths []string, shown *Blobs, err error) {
	for i, b := range blobs {
		if w, ok := b.(wholer); ok {
			if path, ok := w.Whole(); ok {
				paths = append(paths, path)
				continue
			}
		}
		if shown == nil {
			if err := os.Mkdir(dir, 0o700); err != nil {
				return nil, nil, err
			}
			if shown, err = MountBlobs(dir, opts); err != nil {
				return nil, nil, err
			}
		}
		name := strconv.Itoa(i)
		if n, ok := b.(fmt.Stringer); ok {
			name = n.String()
		}
		paths = append(paths, shown.Add(name, b))
	}
	return paths, shown, nil
}

// writeImage writes the metadata of a tree as an EROFS image.
func writeImage(path string, tree *Tree, blobs []Blob) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sizes := make([]int64, len(blobs))
	for i, b := range blobs {
		sizes[i] = b.Size()
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err := erofs.Write(w, nodes(tree), sizes); err != nil {
		return err
	}
	return w.Flush()
}

// nodes returns the tree as the EROFS writer takes it.
func nodes(t *Tree) *erofs.Node {
	all := make([]erofs.Node, t.Len()+1) // by NodeID
	entries := make([]index.Entry, t.Len()+1)
	names := make([]erofs.Dirent, 0, len(t.names))
	for i := range t.Len() {
		id := NodeID(i + 1)
		a := t.Attr(id)
		entries[id] = index.Entry{
			Type: a.Type, Link: t.Readlink(id), Mode: a.Mode, UID: a.UID, GID: a.GID,
			Major: a.Major, Minor: a.Minor, Sec: a.Sec, Nsec: a.Nsec, Size: a.Size, Off: a.Off, Xattrs: t.Xattrs(id),
		}
		all[id].Entry, all[id].Device = &entries[id], a.Layer+1
		if a.Type != index.Dir {
			continue
		}
		first := len(names)
		for name, child := range t.Children(id) {
			names = append(names, erofs.Dirent{Name: name, Node: &all[child]})
			entries[child].Name = name
		}
		all[id].Children = names[first:len(names):len(names)]
	}
	return &all[Root]
}
