package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// lookBelow looks at what the layers below show, all of them together. They
// are mounted for it, out of everybody's sight, when something is asked for:
// that is when a layer removes files, or has names without their directories.
type lookBelow struct {
	dirs []string // topmost first
	root int      // descriptor of the root, once there is one
	open bool
	err  error // the first that went wrong
}

// at is an erofs.Below.
func (b *lookBelow) at(name string) *index.Entry {
	if len(b.dirs) == 0 || b.err != nil {
		return nil
	}
	if !b.open {
		if b.root, b.err = b.mount(); b.err != nil {
			return nil
		}
		b.open = true
	}
	e, err := lookAt(b.root, name)
	if err != nil {
		b.err = fmt.Errorf("%q: %w", name, err)
	}
	return e
}

// mount returns a descriptor of the root of the layers below.
func (b *lookBelow) mount() (int, error) {
	if len(b.dirs) == 1 {
		return unix.Open(b.dirs[0], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, dir := range b.dirs {
		if err := unix.FsconfigSetString(fs, "lowerdir+", dir); err != nil {
			return -1, fmt.Errorf("lowerdir+=%s: %w", dir, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("mount %s: %w", strings.Join(b.dirs, ":"), err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
}

func (b *lookBelow) close() error {
	if !b.open {
		return nil
	}
	b.open = false
	return unix.Close(b.root)
}

// lookAt returns what stands at a name, or nil. No symbolic link on the way is
// followed: the name then stands in no directory.
func lookAt(root int, name string) (*index.Entry, error) {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		return nil, nil // a whiteout, where one layer alone is below
	}
	e := &index.Entry{
		Name: name, Type: index.TypeOf(st.Mode), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec),
	}
	if e.Type == index.Dir {
		e.Xattrs, err = xattrs(fd)
	}
	return e, err
}

// xattrs returns the extended attributes of a file, sorted by name.
func xattrs(fd int) ([]index.Xattr, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", fd) // O_PATH gives no attributes
	list := make([]byte, 64<<10)                // as long as the kernel makes it
	n, err := unix.Listxattr(path, list)
	if err != nil {
		return nil, err
	}
	var all []index.Xattr
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Getxattr(path, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		all = append(all, index.Xattr{Name: name, Value: string(value[:n])})
	}
	slices.SortFunc(all, func(a, b index.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}
