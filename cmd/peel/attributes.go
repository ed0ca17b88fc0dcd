package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// attributes are the options of mount(8) that the kernel keeps for each mount.
var attributes = map[string]unix.MountAttr{
	"nosuid":      {Attr_set: unix.MOUNT_ATTR_NOSUID},
	"suid":        {Attr_clr: unix.MOUNT_ATTR_NOSUID},
	"nodev":       {Attr_set: unix.MOUNT_ATTR_NODEV},
	"dev":         {Attr_clr: unix.MOUNT_ATTR_NODEV},
	"noexec":      {Attr_set: unix.MOUNT_ATTR_NOEXEC},
	"exec":        {Attr_clr: unix.MOUNT_ATTR_NOEXEC},
	"nosymfollow": {Attr_set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":   {Attr_clr: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"nodiratime":  {Attr_set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":    {Attr_clr: unix.MOUNT_ATTR_NODIRATIME},
	"noatime":     {Attr_set: unix.MOUNT_ATTR_NOATIME, Attr_clr: unix.MOUNT_ATTR__ATIME},
	"strictatime": {Attr_set: unix.MOUNT_ATTR_STRICTATIME, Attr_clr: unix.MOUNT_ATTR__ATIME},
	"relatime":    {Attr_set: unix.MOUNT_ATTR_RELATIME, Attr_clr: unix.MOUNT_ATTR__ATIME},
}

// byFusermount are those that an ordinary user's mount always has, and the one
// that fusermount3 can be asked for.
const byFusermount = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// parseAttributes reads a list of them, of which the last one counts, for root
// or for an ordinary user.
func parseAttributes(list string, root bool) (unix.MountAttr, error) {
	var a unix.MountAttr
	for name := range strings.SplitSeq(list, ",") {
		one, ok := attributes[name]
		if !ok && name != "" {
			return a, fmt.Errorf("mount option %q: want nosuid, nodev, noexec, nosymfollow, noatime or nodiratime; the rest are flags of their own, see peel mount --help", name)
		}
		a.Attr_set = a.Attr_set&^one.Attr_clr | one.Attr_set
		a.Attr_clr |= one.Attr_clr & unix.MOUNT_ATTR__ATIME // a new mount has nothing else to clear
	}
	if rest := a.Attr_set &^ byFusermount; !root && (rest != 0 || a.Attr_clr != 0) {
		return a, errors.New("an ordinary user's mount is always nosuid,nodev, and can be noexec; other mount options need root")
	}
	return a, nil
}

// setAttributes gives them to a new mount, of which nobody has been told yet.
func setAttributes(dir string, a unix.MountAttr) error {
	if a == (unix.MountAttr{}) || os.Geteuid() != 0 {
		return nil
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, &a); err != nil {
		return fmt.Errorf("set the mount options of %s: %w", dir, err)
	}
	return nil
}
