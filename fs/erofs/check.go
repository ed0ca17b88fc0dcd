package erofs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/peelfs/peel/content/index"
)

// Limits of Linux, beyond which a file could not be unpacked either.
const (
	maxLink  = 4095 // bytes of a symbolic link: PATH_MAX less its NUL
	maxPath  = 4095
	maxDepth = (maxPath + 1) / 2 // directories that a path can go down
)

// checkName says whether a name can stand in a directory.
func checkName(name string) error {
	switch {
	case name == "", name == ".", name == "..":
		return errors.New("not a name")
	case len(name) > maxName:
		return fmt.Errorf("name of %d bytes, at most %d are possible", len(name), maxName)
	case strings.IndexByte(name, '/') >= 0:
		return errors.New("slash in a name")
	case strings.IndexByte(name, 0) >= 0:
		return errors.New("NUL in a name")
	}
	return nil
}

// checkDevices checks the lengths of flat blobs.
func checkDevices(devices []int64) error {
	for i, n := range devices {
		if n < 0 || n%blockSize != 0 {
			return fmt.Errorf("device %d: length %d is not in whole blocks", i+1, n)
		}
		if n/blockSize > maxBlocks {
			return fmt.Errorf("device %d: length %d needs addresses of more than 32 bits", i+1, n)
		}
	}
	return nil
}

// checkNode checks what a node says of itself; its names, children and
// attributes are checked where they are read.
func checkNode(n *Node, devices []int64) error {
	e := n.Entry
	if mode, _ := fileType(e.Type); mode == 0 {
		return fmt.Errorf("type %d has no inode", e.Type)
	}
	if e.Mode&^0o7777 != 0 {
		return fmt.Errorf("mode %#o has more than permission bits", e.Mode)
	}
	if e.Nsec >= 1e9 {
		return fmt.Errorf("time of %d nanoseconds", e.Nsec)
	}
	if len(n.Children) > 0 && e.Type != index.Dir {
		return errors.New("children, but not a directory")
	}
	switch e.Type {
	case index.Regular:
		return checkData(n, devices)
	case index.Symlink:
		if e.Link == "" || len(e.Link) > maxLink || strings.IndexByte(e.Link, 0) >= 0 {
			return fmt.Errorf("impossible target of a symbolic link: %.64q (%d bytes)", e.Link, len(e.Link))
		}
	case index.Char, index.Block:
		if e.Major > maxMajor || e.Minor > maxMinor {
			return fmt.Errorf("device number %d:%d is too large", e.Major, e.Minor)
		}
	}
	return nil
}

// checkData checks that a regular file lies within its device.
func checkData(n *Node, devices []int64) error {
	e := n.Entry
	if e.Size == 0 {
		return nil
	}
	if n.Device < 1 || n.Device > len(devices) {
		return fmt.Errorf("device %d of %d", n.Device, len(devices))
	}
	end := devices[n.Device-1]
	if e.Size < 0 || e.Off < 0 || e.Size > end || e.Off > end-index.Align(e.Size) {
		return fmt.Errorf("%d bytes at %d are not within the %d bytes of device %d", e.Size, e.Off, end, n.Device)
	}
	if e.Off%blockSize != 0 {
		return fmt.Errorf("data at %d is not at the start of a block", e.Off)
	}
	return nil
}
