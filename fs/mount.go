package fs

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Blob is one layer's flat blob. Its methods are called by many goroutines at
// once, until the mount's Wait returns. Blobs are compared, so it is a pointer
// or the like.
type Blob interface {
	// ReadAtContext is io.ReaderAt with a context: it fetches what is missing,
	// and waits for it. It must return soon after the context ends, with an
	// error that wraps the context's.
	ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)

	// Local returns an open file that holds [off, off+n) at the same offsets,
	// if all of it is present. The file must stay open, and the data in place,
	// as long as the mount lasts.
	Local(off, n int64) (f *os.File, ok bool)

	// Size is the length of the flat blob in bytes: whole blocks.
	Size() int64
}

// Options are the settings of a mount. The zero value is good.
type Options struct {
	Image       string        // the image's reference, for mount(8) and messages. Default "peel".
	Scratch     string        // folder of a writable overlay, see MountScratch. Default: the mount is read-only.
	Driver      Driver        // how the kernel shows the image. Default Auto.
	State       string        // folder for what a mount needs for a moment, on the store's file system. Default os.TempDir().
	NoExec      bool          // an ordinary user's mount runs no programs; root sets that with mount_setattr(2)
	ReadTimeout time.Duration // longest wait of a read for data that must be fetched. Default 30 s.
	Log         *slog.Logger  // where reads that failed are told. Default slog.Default().
}

// DefaultReadTimeout is how long a read waits for data, if Options says
// nothing else.
const DefaultReadTimeout = 30 * time.Second

// Stats counts a mount's reads, as the kernel sends them: what is in its page
// cache is not asked for again.
type Stats struct {
	Present uint64 // served from local data
	Fetched uint64 // had to wait for data
	Failed  uint64 // ended in an error; a process that is killed while it waits does not count
}

// withDefaults returns o with every unset field set.
func (o Options) withDefaults() Options {
	o.Image = cmp.Or(o.Image, "peel")
	o.Driver = cmp.Or(o.Driver, Auto)
	o.State = cmp.Or(o.State, os.TempDir())
	o.ReadTimeout = cmp.Or(o.ReadTimeout, DefaultReadTimeout)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

// Server is a mounted tree.
type Server struct {
	dir    string
	driver Driver
	why    string // the faster drivers do not work
	stats  *counters
	done   chan struct{}

	watched bool // done comes from watchUnmount
}

// Driver says how the kernel shows the tree, and why it is none of the faster
// drivers; "" if it is the fastest, or was asked for.
func (s *Server) Driver() (d Driver, why string) { return s.driver, s.why }

// Mount shows a tree in a directory. blobs are the layers' flat blobs, in the
// order of Merge's layers; the caller closes them after Wait has returned.
//
// Mounted by root, everyone may look into it as the modes allow, and setuid
// and device files work. For an ordinary user it goes through fusermount3: only
// that user sees it, and without setuid and devices.
//
// The process must not start programs from the mount, or in a working directory
// in it: between fork and exec the runtime cannot serve the files that the
// kernel then asks for. It may read the mount's files, but not map them.
func Mount(dir string, tree *Tree, blobs []Blob, opts Options) (*Server, error) {
	if len(blobs) != tree.Layers() {
		return nil, fmt.Errorf("mount %s: %d blobs for %d layers", dir, len(blobs), tree.Layers())
	}
	opts = opts.withDefaults()
	dir, err := mountPoint(dir)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", opts.Image, err)
	}
	if opts.Scratch == "" {
		return mountAny(dir, tree, blobs, opts)
	}
	return mountRW(dir, tree, blobs, opts)
}

// mountPoint returns the real path of a directory, by which it can be unmounted
// whatever becomes of the symlinks to it and of the working directory.
func mountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", err
	}
	if fi, err := os.Stat(abs); err != nil {
		return "", err
	} else if !fi.IsDir() {
		return "", fmt.Errorf("%s is not a directory", dir)
	}
	return abs, nil
}

// mountTree mounts the tree as a FUSE file system of its own.
func mountTree(dir string, tree *Tree, blobs []Blob, opts Options) (*Server, error) {
	raw := newRaw(tree, blobs, opts)
	srv, err := newServer(raw, dir, raw.options(opts))
	if err != nil {
		return nil, fmt.Errorf("mount %s on %s: %w%s", opts.Image, dir, err, mountHint(dir))
	}
	s := &Server{dir: dir, driver: TreeFUSE, stats: raw.stats, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		srv.Serve()
	}()
	if err := srv.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s on %s: %w", opts.Image, dir, err), s.Unmount())
	}
	return s, nil
}

// newServer is fuse.NewServer, but for what a child process inherits: mounting
// without fusermount3, go-fuse opens /dev/fuse for children too. One that
// outlived this process would keep the mount, with nobody to answer.
func newServer(raw fuse.RawFileSystem, dir string, o *fuse.MountOptions) (*fuse.Server, error) {
	if !o.DirectMountStrict {
		srv, err := fuse.NewServer(raw, dir, o)
		if err != nil {
			return nil, errors.New(strings.TrimSpace(err.Error())) // it ends with a newline
		}
		return srv, nil
	}
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	srv, err := fuse.NewServer(raw, dir, o)
	if err != nil {
		return nil, err
	}
	if err := closeOnExec("/dev/fuse"); err != nil {
		return nil, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	}
	return srv, nil
}

// closeOnExec keeps children from inheriting what this process has open of a
// file.
func closeOnExec(path string) error {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range fds {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || to != path {
			continue // the descriptor of the listing itself is gone
		}
		if fd, err := strconv.Atoi(e.Name()); err == nil {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// mountRW mounts the tree out of sight and an overlay over it on dir.
func mountRW(dir string, tree *Tree, blobs []Blob, opts Options) (*Server, error) {
	if os.Geteuid() != 0 {
		return nil, errScratchRoot
	}
	lower := filepath.Join(opts.Scratch, "lower")
	if err := os.MkdirAll(lower, 0o700); err != nil {
		return nil, fmt.Errorf("mount %s: scratch folder: %w", opts.Image, err)
	}
	s, err := mountAny(lower, tree, blobs, opts)
	if err != nil {
		return nil, err
	}
	if err := MountScratch(dir, lower, opts.Scratch); err != nil {
		return nil, errors.Join(err, s.Unmount())
	}
	s.dir = dir
	if s.watched { // what was watched is out of sight now
		s.done, err = watchUnmount(dir)
	}
	return s, err
}

// fuseOptions says how the kernel is to treat our file systems: as something
// that never changes, so that it asks for each thing once.
func fuseOptions(opts Options) *fuse.MountOptions {
	o := &fuse.MountOptions{
		FsName: opts.Image,
		Name:   "peel",
		Logger: slog.NewLogLogger(opts.Log.Handler(), slog.LevelWarn),

		// The kernel checks modes and ACLs itself, from what it has cached.
		Options: []string{"default_permissions"},

		// Every goroutine that waits for a request has a buffer of this size.
		// Read-ahead stays at the kernel's 128 KiB: go-fuse cannot ask for
		// more, and more would fetch spans that nobody reads.
		MaxWrite: 512 << 10,

		// Read-ahead requests at once. Those that wait for the network must not
		// keep those that are present from being sent; the default is 12.
		MaxBackground: 1024,

		ExplicitDataCacheControl: true,
		EnableSymlinkCaching:     true,

		// Passthrough makes nested overlays fail. Without asynchronous direct
		// I/O a loop device would wait for each request before it sends the next.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		ExtraCapabilities:    fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_ASYNC_DIO,
	}
	if os.Geteuid() == 0 {
		o.AllowOther = true
		o.DirectMountStrict = true
		o.DirectMountFlags = unix.MS_RDONLY // and not, as is the default, NOSUID and NODEV
	} else {
		o.Options = append(o.Options, "ro")
		if opts.NoExec {
			o.Options = append(o.Options, "noexec")
		}
	}
	return o
}

// mountHint says what usually keeps a mount from working.
func mountHint(dir string) string {
	if _, err := os.Stat("/dev/fuse"); errors.Is(err, os.ErrNotExist) {
		return "; there is no /dev/fuse: load the fuse module, or give the container the device"
	}
	if os.Geteuid() == 0 {
		return ""
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		return "; an ordinary user mounts through fusermount3: install the package fuse3"
	}
	if unix.Access("/dev/fuse", unix.R_OK|unix.W_OK) != nil {
		return "; an ordinary user may not open /dev/fuse: chmod 666 /dev/fuse, as distributions have it"
	}
	if unix.Access(dir, unix.W_OK) != nil {
		return "; an ordinary user can only mount on a folder of their own"
	}
	return ""
}

// Wait returns when the tree is unmounted, by whomever, and its last read has
// ended.
func (s *Server) Wait() { <-s.done }

// Unmount unmounts the tree and waits until its last read has ended. It is no
// error if it is unmounted already. If it is in use the error wraps
// unix.EBUSY, and the mount stays as it is.
//
// A process that may be killed should leave it to another one to call the
// function Unmount: the kernel waits for reads in flight while it unmounts, and
// one that dies in there never gets to close what it serves them by.
func (s *Server) Unmount() error {
	select {
	case <-s.done:
		return nil
	default:
	}
	if err := Unmount(s.dir); err != nil {
		return err
	}
	s.Wait()
	return nil
}

// Unmount unmounts what any process has mounted on dir. It is no error if
// nothing is. If it is in use the error wraps unix.EBUSY.
func Unmount(dir string) error {
	var err error
	if os.Geteuid() == 0 {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	} else if out, ferr := exec.Command("fusermount3", "-u", "--", dir).CombinedOutput(); ferr != nil {
		err = fmt.Errorf("%w: %s", ferr, bytes.TrimSpace(out))
		if bytes.Contains(out, []byte("busy")) {
			err = unix.EBUSY // fusermount3 only says it
		} else if bytes.Contains(out, []byte("not found in")) || bytes.Contains(out, []byte("not mounted")) {
			err = unix.EINVAL
		}
	}
	switch {
	case err == nil, errors.Is(err, unix.EINVAL): // EINVAL: nothing is mounted there
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unmount %s: in use, a process has a file open or its working directory there: %w", dir, err)
	}
	return fmt.Errorf("unmount %s: %w", dir, err)
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats { return s.stats.load() }
