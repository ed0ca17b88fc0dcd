package fs

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/peelfs/peel/content/index"
)

// Limits of what Linux can show. The kernel would refuse an extractor that
// went beyond them.
const (
	nameMax   = 255      // NAME_MAX
	pathMax   = 4096     // PATH_MAX, with its final NUL
	xattrMax  = 64 << 10 // XATTR_SIZE_MAX, XATTR_LIST_MAX
	majorBits = 12
	minorBits = 20
)

// check refuses an entry that cannot be shown as the tar has it. An index is
// bytes from the network, so nothing is taken for granted.
func check(e *index.Entry) error {
	if e.Name != "." {
		if err := checkName(e.Name); err != nil {
			return err
		}
	}
	if e.Mode&^0o7777 != 0 {
		return fmt.Errorf("mode %#o has more than permission bits", e.Mode)
	}
	if e.Nsec >= 1e9 {
		return fmt.Errorf("time with %d nanoseconds", e.Nsec)
	}
	switch e.Type {
	case index.Dir, index.Fifo:
	case index.Regular:
		if e.Size < 0 || e.Off < 0 || e.Off%index.BlockSize != 0 || e.Off > math.MaxInt64-e.Size {
			return fmt.Errorf("%d bytes at %d are no place in a layer", e.Size, e.Off)
		}
	case index.Symlink:
		if e.Link == "" || len(e.Link) >= pathMax || strings.IndexByte(e.Link, 0) >= 0 {
			return fmt.Errorf("symlink with a target that no file system can hold: %q", clip(e.Link))
		}
	case index.Hardlink:
		if err := checkName(e.Link); err != nil {
			return fmt.Errorf("hard link to %q: %w", clip(e.Link), err)
		}
	case index.Char, index.Block:
		if e.Major >= 1<<majorBits || e.Minor >= 1<<minorBits {
			return fmt.Errorf("device number %d:%d does not exist on Linux", e.Major, e.Minor)
		}
	default:
		return fmt.Errorf("unknown type %d", e.Type)
	}
	return checkXattrs(e.Xattrs)
}

// checkName refuses a name that is not clean and relative.
func checkName(name string) error {
	if len(name) >= pathMax {
		return fmt.Errorf("name of %d bytes", len(name))
	}
	for comp := range strings.SplitSeq(name, "/") {
		switch {
		case comp == "":
			return errors.New("name that is absolute, empty or not clean")
		case comp == "." || comp == "..":
			return fmt.Errorf("name with %q in it", comp)
		case len(comp) > nameMax:
			return fmt.Errorf("name with a part of %d bytes, more than %d", len(comp), nameMax)
		case strings.IndexByte(comp, 0) >= 0:
			return errors.New("name with a NUL byte")
		}
	}
	return nil
}

func checkXattrs(set []index.Xattr) error {
	list := 0
	for _, x := range set {
		if x.Name == "" || len(x.Name) > nameMax || strings.IndexByte(x.Name, 0) >= 0 {
			return fmt.Errorf("extended attribute with the name %q", clip(x.Name))
		}
		if len(x.Value) > xattrMax {
			return fmt.Errorf("extended attribute %s of %d bytes", x.Name, len(x.Value))
		}
		if list += len(x.Name) + 1; list > xattrMax {
			return errors.New("more extended attributes than can be listed")
		}
	}
	return nil
}
