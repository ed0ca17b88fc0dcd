package format

import (
	"archive/tar"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/peelfs/peel/content/index"
)

// paxXattr is the prefix of the PAX records that hold extended attributes.
const paxXattr = "SCHILY.xattr."

// readTar takes the tar apart: each entry, and the digest of its data if it has
// any, to add; the files' data to flat; the rest to framing. A layer that asks
// for too much of use is refused.
func readTar(in io.Reader, use *usage, framing io.Writer, flat io.WriterAt, add func(*index.Entry, *index.SHA256) error) error {
	t := &tarReader{in: in, use: use, framing: framing}
	t.tr = tar.NewReader(t)
	out := &flatWriter{to: flat}
	sum := sha256.New()
	buf := make([]byte, 128<<10)
	for {
		e, err := t.next()
		if err == io.EOF {
			if err := t.drain(); err != nil {
				return fmt.Errorf("read what follows the end of the tar: %w", err)
			}
			return out.flush()
		}
		if err != nil {
			return fmt.Errorf("read tar at byte %d: %w", t.n, err)
		}
		if e == nil {
			continue
		}
		var digest *index.SHA256
		if e.Type == index.Regular && e.Size == 0 { // or a sparse file that says so
			if _, err := t.tr.Read(buf[:1]); err != nil && err != io.EOF {
				return fmt.Errorf("entry %s: its data is not empty: %w", quote(e.Name), err)
			}
		}
		if e.Type == index.Regular && e.Size > 0 {
			if err := t.data(e, sum, out, buf); err != nil {
				return fmt.Errorf("entry %s: %w", quote(e.Name), err)
			}
			digest = new(index.SHA256)
			sum.Sum(digest[:0])
		}
		if err := add(e, digest); err != nil {
			return err
		}
	}
}

// tarReader reads a tar's headers, counts its bytes, and gives those that are
// no file's data to the framing.
type tarReader struct {
	in      io.Reader
	tr      *tar.Reader
	use     *usage
	n       int64 // bytes read
	framing io.Writer
	part    part
	head    []byte // the blocks read of the entry's headers
	pad     int    // bytes to read before them
}

// part is what the tar's bytes are being read as.
type part uint8

const (
	inHeaders part = iota
	inData
	behindEnd
)

// maxHead bounds the headers of one entry, in bytes. It has room for four that
// are as long as archive/tar takes them: PAX, a map of extents, a long name and
// a long link.
const maxHead = 4<<20 + 64<<10

// Read is what archive/tar reads through; it reads no further than it must.
func (t *tarReader) Read(p []byte) (int, error) {
	n, err := t.in.Read(p)
	t.n += int64(n)
	if t.part == inData || n == 0 {
		return n, err
	}
	if t.part == inHeaders {
		skip := min(n, t.pad)
		t.pad -= skip
		if t.head = append(t.head, p[skip:n]...); len(t.head) > maxHead {
			return n, fmt.Errorf("more than %d bytes of headers", maxHead)
		}
	}
	if err := t.use.size(t.n); err != nil {
		return n, err
	}
	if _, err := t.framing.Write(p[:n]); err != nil {
		return n, err
	}
	return n, err
}

// next returns the next entry, or nil where the header is none.
func (t *tarReader) next() (*index.Entry, error) {
	t.head, t.pad = t.head[:0], int(-t.n&(tarBlock-1))
	h, err := t.tr.Next()
	if err == io.EOF {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("entry %s: %w", quote(rawName(t.head)), err)
	}
	e, err := entryOf(h)
	if err == nil && e != nil && e.Type == index.Regular && e.Size > 0 {
		if f := sparseFormatOf(h); f != notSparse {
			err = t.sparse(f, h, e)
		} else {
			e.TarOff = t.n
		}
	}
	if err == nil && e != nil {
		err = t.use.add(e, t.n)
	}
	if err != nil {
		return nil, fmt.Errorf("entry %s: %w", quote(h.Name), err)
	}
	return e, nil
}

// quote returns a name for an error, and the start of a long one.
func quote(name string) string {
	if len(name) > 200 {
		return fmt.Sprintf("%q... (%d bytes)", name[:200], len(name))
	}
	return strconv.Quote(name)
}

// data reads a file's bytes: to its place in the flat blob, and to sum.
func (t *tarReader) data(e *index.Entry, sum hash.Hash, out *flatWriter, buf []byte) error {
	t.part = inData
	defer func() { t.part = inHeaders }()
	sum.Reset()
	begin, left := t.n, e.Size
	for left > 0 {
		n, err := t.tr.Read(buf[:min(left, int64(len(buf)))])
		sum.Write(buf[:n])
		if err := out.write(buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
		switch {
		case left > 0 && err != nil:
			return fmt.Errorf("%d of %d bytes are missing: %w", left, e.Size, noEOF(err))
		case err != nil && err != io.EOF:
			return err
		}
	}
	var want int64
	for x := range e.Extents() {
		want += x.Len
	}
	if t.n-begin != want {
		return fmt.Errorf("its data takes %d bytes of the tar and should take %d", t.n-begin, want)
	}
	return out.align()
}

// drain reads what follows the end of the archive.
func (t *tarReader) drain() error {
	t.part = behindEnd
	_, err := io.Copy(io.Discard, struct{ io.Reader }{t})
	return err
}

// entryOf translates a header. Headers that are no file give nil. Nothing of
// the header's memory is kept: all of a PAX header, which may be a megabyte, is
// one string.
func entryOf(h *tar.Header) (*index.Entry, error) {
	e := &index.Entry{Mode: uint32(h.Mode) & 0o7777, Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond())}
	if h.ModTime.IsZero() {
		e.Sec, e.Nsec = 0, 0
	}
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		e.Type, e.Size = index.Regular, h.Size
	case tar.TypeDir:
		e.Type = index.Dir
	case tar.TypeSymlink:
		e.Type, e.Link = index.Symlink, strings.Clone(h.Linkname)
	case tar.TypeLink:
		e.Type = index.Hardlink
	case tar.TypeChar:
		e.Type = index.Char
	case tar.TypeBlock:
		e.Type = index.Block
	case tar.TypeFifo:
		e.Type = index.Fifo
	case tar.TypeXGlobalHeader:
		return nil, nil
	default:
		return nil, fmt.Errorf("unknown type %q of tar header", h.Typeflag)
	}
	var err error
	if e.Name, err = cleanName(h.Name); err != nil {
		return nil, err
	}
	if e.Type == index.Hardlink {
		if e.Link, err = cleanName(h.Linkname); err != nil {
			return nil, fmt.Errorf("hard link to %s: %w", quote(h.Linkname), err)
		}
	}
	if e.Name == "." && e.Type != index.Dir {
		return nil, errors.New("the root is no directory")
	}
	for _, v := range []struct {
		name string
		from int64
		to   *uint32
	}{{"user", int64(h.Uid), &e.UID}, {"group", int64(h.Gid), &e.GID}, {"major device number", h.Devmajor, &e.Major}, {"minor device number", h.Devminor, &e.Minor}} {
		if v.from < 0 || v.from > 1<<32-1 {
			return nil, fmt.Errorf("%s %d", v.name, v.from)
		}
		*v.to = uint32(v.from)
	}
	if e.Type != index.Char && e.Type != index.Block {
		e.Major, e.Minor = 0, 0
	}
	e.Xattrs = xattrsOf(h)
	return e, nil
}

func xattrsOf(h *tar.Header) []index.Xattr {
	var xattrs []index.Xattr
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, paxXattr); ok {
			xattrs = append(xattrs, index.Xattr{Name: strings.Clone(name), Value: strings.Clone(v)})
		}
	}
	slices.SortFunc(xattrs, func(a, b index.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return xattrs
}

// cleanName makes a name relative to the image's root. Absolute names are
// taken as relative, as every tar does; names that climb are refused.
func cleanName(name string) (string, error) {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New(`the name has a component ".."`)
		}
	}
	if name == "" {
		return "", errors.New("the name is empty")
	}
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		clean = "."
	}
	return strings.Clone(clean), index.CheckName(clean)
}
