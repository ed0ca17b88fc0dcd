package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var errScratchRoot = errors.New("a writable mount is an overlay, which needs root: mount it read-only, or as root")

// MountScratch mounts an overlay on dir that shows the file system mounted on
// lower and takes writes to the folder scratch, in upper and work. What is
// already in upper stays and is shown, so a scratch folder can be used again.
//
// lower is then unmounted: it lives on beneath the overlay, out of sight, and
// ends with it, whoever unmounts that. It needs root. scratch must be on a
// file system that can hold an overlay's upper layer, such as ext4, xfs, btrfs
// or tmpfs, but not another overlay.
func MountScratch(dir, lower, scratch string) error {
	if os.Geteuid() != 0 {
		return errScratchRoot
	}
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	if err := makeUpper(lower, upper); err != nil {
		return fmt.Errorf("scratch overlay: upper layer: %w", err)
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		return fmt.Errorf("scratch overlay: %w", err)
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s",
		escapeOption(lower), escapeOption(upper), escapeOption(work))
	if err := unix.Mount("peel", dir, "overlay", 0, data); err != nil {
		return fmt.Errorf("mount overlay on %s with its upper layer in %s: %w", dir, scratch, err)
	}
	if err := unix.Unmount(lower, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return errors.Join(fmt.Errorf("detach %s: %w", lower, err), unix.Unmount(dir, unix.MNT_DETACH))
	}
	return nil
}

// makeUpper makes the overlay's upper layer. The overlay's root has the
// attributes of upper, so a new one takes those of lower.
func makeUpper(lower, upper string) error {
	if err := os.Mkdir(upper, 0o700); errors.Is(err, os.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(lower, &st); err != nil {
		return fmt.Errorf("stat %s: %w", lower, err)
	}
	if err := copyXattrs(lower, upper); err != nil {
		return err
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	if err := errors.Join(
		unix.Chown(upper, int(st.Uid), int(st.Gid)),
		unix.Chmod(upper, st.Mode&0o7777),
		unix.UtimesNanoAt(unix.AT_FDCWD, upper, times, 0),
	); err != nil {
		return fmt.Errorf("set the attributes of %s: %w", upper, err)
	}
	return nil
}

func copyXattrs(from, to string) error {
	list := make([]byte, xattrMax)
	n, err := unix.Listxattr(from, list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	} else if err != nil {
		return fmt.Errorf("list the attributes of %s: %w", from, err)
	}
	value := make([]byte, xattrMax)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Getxattr(from, name, value)
		if err == nil {
			err = unix.Setxattr(to, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("copy attribute %s from %s to %s: %w", name, from, to, err)
		}
	}
	return nil
}

// escapeOption escapes what separates options and lower layers in the options
// of an overlay.
func escapeOption(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(path)
}
