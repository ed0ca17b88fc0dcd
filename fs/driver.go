package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/fs/erofs"
)

// Driver is how the kernel shows an image.
type Driver string

// The drivers. EROFS is the fastest, TreeFUSE works everywhere, and Auto takes
// the first that works, in this order.
const (
	Auto     Driver = "auto"
	EROFS    Driver = "erofs" // an EROFS image of the metadata, data from files: Linux 6.12, root
	Loop     Driver = "loop"  // the same through loop devices: root
	TreeFUSE Driver = "tree"  // a FUSE tree: any user
)

// drivers is the order in which Auto tries.
var drivers = [...]Driver{EROFS, Loop, TreeFUSE}

// ParseDriver returns the driver of a name.
func ParseDriver(name string) (Driver, error) {
	if d := Driver(name); d == Auto || slices.Contains(drivers[:], d) {
		return d, nil
	}
	return "", fmt.Errorf("driver %q: want auto, erofs, loop or tree", name)
}

// Support says whether a driver works here.
type Support struct {
	Driver Driver
	Err    error // why not; nil if it works
}

// Probe tries every driver on an empty image, in the folder state, where a
// store is or will be.
func Probe(state string) ([]Support, error) {
	dir, err := os.MkdirTemp(state, "probe-")
	if err != nil {
		return nil, fmt.Errorf("try the mount drivers: %w", err)
	}
	defer os.RemoveAll(dir)
	tree, err := Merge([][]index.Entry{{{Name: "file", Size: 1, Mode: 0o644}}})
	if err != nil {
		return nil, err
	}
	target := filepath.Join(dir, "mnt")
	if err := os.Mkdir(target, 0o700); err != nil {
		return nil, fmt.Errorf("try the mount drivers: %w", err)
	}
	var all []Support
	for _, d := range drivers {
		s, err := Mount(target, tree, []Blob{zeroBlob{}}, Options{Image: "probe", Driver: d, State: dir})
		if err == nil {
			err = s.Unmount()
		}
		all = append(all, Support{d, err})
	}
	return all, nil
}

// mountAny mounts with the driver that was asked for, or with the first one
// that works. It says what kept the others from working.
func mountAny(dir string, tree *Tree, blobs []Blob, opts Options) (*Server, error) {
	if opts.Driver != Auto {
		return mountDriver(opts.Driver, dir, tree, blobs, opts)
	}
	var errs []error
	var why []string
	for _, d := range drivers {
		s, err := mountDriver(d, dir, tree, blobs, opts)
		if err == nil {
			s.why = strings.Join(why, "; ")
			return s, nil
		}
		errs = append(errs, err)
		why = append(why, fmt.Sprintf("not %s: %v", d, err))
	}
	if os.Geteuid() != 0 {
		return nil, errs[len(errs)-1] // the others need root, which everyone knows
	}
	return nil, errors.Join(errs...)
}

func mountDriver(d Driver, dir string, tree *Tree, blobs []Blob, opts Options) (*Server, error) {
	switch d {
	case EROFS:
		return mountLazy(dir, tree, blobs, opts, erofs.File)
	case Loop:
		return mountLazy(dir, tree, blobs, opts, erofs.Loop)
	}
	return mountTree(dir, tree, blobs, opts)
}

// zeroBlob is a blob of one block, for Probe.
type zeroBlob struct{}

func (zeroBlob) ReadAtContext(_ context.Context, p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

func (zeroBlob) Local(int64, int64) (*os.File, bool) { return nil, false }

func (zeroBlob) Size() int64 { return index.BlockSize }
