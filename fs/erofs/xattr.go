package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/peelfs/peel/content/index"
)

// Names of the two attributes that hold an ACL.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// xattr is an extended attribute in the terms of the format: EROFS_XATTR_INDEX_*
// stands for the start of its name.
type xattr struct {
	index  uint8
	suffix string
	value  string
}

// size is what the attribute takes on disk. Entries are aligned to 4 bytes.
func (x *xattr) size() int {
	return (xattrEntrySize + len(x.suffix) + len(x.value) + 3) &^ 3
}

// splitXattr finds the index for a name. The format knows no other namespaces
// than those that Linux knows.
func splitXattr(name string) (idx uint8, suffix string, ok bool) {
	switch name {
	case aclAccess:
		return 2, "", true
	case aclDefault:
		return 3, "", true
	}
	for _, p := range [...]struct {
		prefix string
		index  uint8
	}{{"user.", 1}, {"trusted.", 4}, {"security.", 6}} {
		if suffix, ok := strings.CutPrefix(name, p.prefix); ok {
			return p.index, suffix, true
		}
	}
	return 0, "", false
}

// parseXattr checks an attribute and puts it into the terms of the format, if
// it has any for the name.
func parseXattr(name, value string) (x xattr, ok bool, err error) {
	idx, suffix, ok := splitXattr(name)
	if !ok {
		return x, false, nil
	}
	acl := name == aclAccess || name == aclDefault
	switch {
	case suffix == "" && !acl:
		return x, false, errors.New("no name after the prefix")
	case len(name) > maxXattrName:
		return x, false, fmt.Errorf("name of %d bytes", len(name))
	case strings.IndexByte(name, 0) >= 0:
		return x, false, errors.New("NUL in the name")
	case len(value) > maxXattr:
		return x, false, fmt.Errorf("value of %d bytes", len(value))
	}
	if acl {
		err = checkACL(value)
	}
	return xattr{idx, suffix, value}, true, err
}

// checkACL refuses an ACL that the kernel could not decode: nobody could open
// the file. The form is that of posix_acl_xattr_header and its entries.
func checkACL(v string) error {
	le := binary.LittleEndian
	b := []byte(v)
	if len(b) < 4 || le.Uint32(b) != 2 || len(b)%8 != 4 {
		return errors.New("not an ACL of version 2")
	}
	for b = b[4:]; len(b) > 0; b = b[8:] {
		tag, perm, id := le.Uint16(b), le.Uint16(b[2:]), le.Uint32(b[4:])
		named := tag == 0x02 || tag == 0x08 // ACL_USER, ACL_GROUP
		switch tag {
		case 0x01, 0x02, 0x04, 0x08, 0x10, 0x20:
		default:
			return fmt.Errorf("unknown ACL tag %#x", tag)
		}
		if perm > 7 || named && id == 1<<32-1 {
			return fmt.Errorf("impossible ACL entry %#x:%#x:%#x", tag, id, perm)
		}
	}
	return nil
}

// xattrBody is what stands behind an inode: ids of shared attributes, then the
// inode's own.
type xattrBody struct {
	shared []uint32
	own    []xattr // until layOut, all
	size   int     // in bytes
}

// newBody checks an entry's attributes and counts their uses.
func (s *sharedXattrs) newBody(list []index.Xattr) (*xattrBody, error) {
	var all []xattr
	last := ""
	for _, x := range list {
		if x.Name <= last {
			return nil, fmt.Errorf("xattr %.64q is out of order or double", x.Name)
		}
		last = x.Name
		parsed, ok, err := parseXattr(x.Name, x.Value)
		if err != nil {
			return nil, fmt.Errorf("xattr %.64q: %w", x.Name, err)
		}
		if ok {
			all = append(all, parsed)
			s.uses[parsed]++
		}
	}
	if all == nil {
		return nil, nil
	}
	return &xattrBody{own: all}, nil
}

// layOut decides which attributes are shared, and finds the size.
func (b *xattrBody) layOut(s *sharedXattrs) error {
	if b == nil {
		return nil
	}
	b.size = xattrHeaderSize
	own := b.own[:0]
	for _, x := range b.own {
		if s.uses[x] > 1 && len(b.shared) < maxShared {
			b.shared = append(b.shared, s.id(x))
			b.size += sharedIDSize
		} else {
			own = append(own, x)
			b.size += x.size()
		}
	}
	b.own = own
	if b.size > maxXattrBody {
		return fmt.Errorf("extended attributes of %d bytes are too many", b.size)
	}
	if s.size/4 > math.MaxUint32 {
		return fmt.Errorf("shared extended attributes of %d bytes are too many", s.size)
	}
	return nil
}

// bytes is what the body takes on disk.
func (b *xattrBody) bytes() int {
	if b == nil {
		return 0
	}
	return b.size
}

// icount is that size in the terms of i_xattr_icount.
func (b *xattrBody) icount() uint16 {
	if b == nil {
		return 0
	}
	return uint16(1 + (b.size-xattrHeaderSize)/4)
}

func (b *xattrBody) append(to []byte) []byte {
	if b == nil {
		return to
	}
	to = appendXattrHeader(to, b.shared)
	for i := range b.own {
		to = appendXattrEntry(to, &b.own[i])
	}
	return to
}

// sharedXattrs is the area of the image for attributes that several inodes
// have. There an attribute's id is its offset in units of 4 bytes.
type sharedXattrs struct {
	uses map[xattr]int // how many inodes have it
	ids  map[xattr]uint32
	list []xattr // in the order of their ids
	size int64   // of the list, in bytes
}

// id returns the place of x in the area, which it gets if it has none.
func (s *sharedXattrs) id(x xattr) uint32 {
	id, ok := s.ids[x]
	if !ok {
		id = uint32(s.size / 4)
		s.ids[x] = id
		s.list = append(s.list, x)
		s.size += int64(x.size())
	}
	return id
}
