package compare

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// node is what one name of a tree leads to.
type node struct {
	stat    unix.Stat_t
	dirent  fs.FileMode // type as the directory gives it
	xattrs  []string    // "name=value", sorted
	target  string      // of a symlink
	first   string      // the first path in order that leads to the same inode
	subdirs uint64      // of a directory
	hash    [sha256.Size]byte
}

func parent(path string) string { return filepath.Dir(path) }

// scan reads the whole tree below root. The keys are paths relative to it.
func scan(root string) (map[string]*node, error) {
	nodes := map[string]*node{}
	type inode struct{ dev, ino uint64 }
	firsts := map[inode]string{}
	var hashing errgroup.Group
	hashing.SetLimit(runtime.GOMAXPROCS(0))

	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		n, err := read(path)
		if err != nil {
			return err
		}
		nodes[rel] = n
		n.dirent = entry.Type()
		if n.isDir() && rel != "." {
			nodes[parent(rel)].subdirs++
		}
		// WalkDir goes in the order of names, so "first" is the same path in
		// both trees if the same names share an inode.
		id := inode{n.stat.Dev, n.stat.Ino}
		if _, seen := firsts[id]; !seen {
			firsts[id] = rel
		}
		n.first = firsts[id]
		if n.kind() == "file" {
			hashing.Go(func() (err error) {
				n.hash, err = hash(path)
				return err
			})
		}
		return nil
	})
	return nodes, errors.Join(err, hashing.Wait())
}

// read returns all of a node but its hash and its place among other nodes.
func read(path string) (*node, error) {
	n := &node{}
	if err := unix.Lstat(path, &n.stat); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	var err error
	if n.kind() == "symlink" {
		if n.target, err = os.Readlink(path); err != nil {
			return nil, err
		}
	}
	n.xattrs, err = xattrs(path)
	return n, err
}

func xattrs(path string) ([]string, error) {
	names := make([]byte, 64<<10) // the kernel's limit on a list of names
	size, err := unix.Llistxattr(path, names)
	if err == unix.ENOTSUP {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	var all []string
	value := make([]byte, 64<<10) // and on a value
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		size, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, &os.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
		all = append(all, name+"="+strconv.Quote(string(value[:size])))
	}
	slices.Sort(all)
	return all, nil
}

func hash(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

func (n *node) isDir() bool { return n.stat.Mode&unix.S_IFMT == unix.S_IFDIR }

func (n *node) kind() string {
	switch n.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return fmt.Sprintf("type %o", n.stat.Mode&unix.S_IFMT)
}

// diff returns how n differs from other, which has the same path.
func (n *node) diff(other *node, path string) []Difference {
	if n.kind() != other.kind() {
		return []Difference{{path, "type", n.kind(), other.kind()}}
	}
	var found []Difference
	a, b := n.facts(), other.facts()
	for i := range a {
		if a[i].value != b[i].value {
			found = append(found, Difference{path, a[i].what, a[i].value, b[i].value})
		}
	}
	return found
}

type fact struct{ what, value string }

// facts returns what is compared, for any node in the same order.
func (n *node) facts() []fact {
	s := &n.stat
	facts := []fact{
		{"mode", fmt.Sprintf("%04o", s.Mode&07777)},
		{"owner", fmt.Sprintf("%d:%d", s.Uid, s.Gid)},
		{"modified", time.Unix(s.Mtim.Unix()).UTC().Format(time.RFC3339Nano)},
		{"extended attributes", strings.Join(n.xattrs, " ")},
		{"symlink", n.target},
		{"shares its inode with", n.first},
		{"links", n.links()},
		{"device", fmt.Sprintf("%d,%d", unix.Major(s.Rdev), unix.Minor(s.Rdev))},
		{"type in the directory", n.dirent.String()},
	}
	if !n.isDir() {
		facts = append(facts,
			fact{"size", strconv.FormatInt(s.Size, 10)},
			fact{"contents", fmt.Sprintf("sha256:%x", n.hash)})
	}
	return facts
}

// links returns the link count. A directory's is either 2 and one for each
// directory in it or, on file systems that do not count, 1: both are right.
func (n *node) links() string {
	if n.isDir() && (n.stat.Nlink == 1 || n.stat.Nlink == 2+n.subdirs) {
		return "as a directory's"
	}
	return strconv.FormatUint(n.stat.Nlink, 10)
}
