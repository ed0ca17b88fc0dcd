package transfer

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxMembers   = 100_000 // of an archive
	maxLinks     = 8       // that lead to one another
	maxUnpacking = 200     // bytes out of each byte of a compressed archive
	minUnpacking = 1 << 20 // bytes out of any compressed archive, however small
)

// archive is a tar file, of which the headers are read once, and again if the
// file is replaced. A compressed one is unpacked to a file without a name.
type archive struct {
	path string
	lock mutex // held while the headers are read
	now  *members
}

// members is what was in an archive when its headers were read.
type members struct {
	id       fs.FileInfo // of the archive, to know it again
	unpacked *os.File    // of a compressed archive; else nil
	byName   map[string]member
	endless  bool          // the blocks that end a tar file are not there
	docker   *dockerImages // if it is a docker-archive
}

// member is a file or a link within an archive.
type member struct {
	off, size int64  // of the data
	link      string // a hard link's or symbolic link's target, by name; else ""
}

// openArchive opens the archive at a path.
func (c *Client) openArchive(ctx context.Context, path string) (*archiveTree, error) {
	c.mu.Lock()
	a := c.archives[path]
	if a == nil {
		a = &archive{path: path, lock: make(mutex, 1)}
		c.archives[path] = a
	}
	c.mu.Unlock()
	return a.open(ctx)
}

// openTree is openArchive for who needs no more than the files.
func (c *Client) openTree(ctx context.Context, path string) (tree, error) {
	t, err := c.openArchive(ctx, path)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (a *archive) open(ctx context.Context) (*archiveTree, error) {
	f, info, err := openTar(a.path)
	if err != nil {
		return nil, err
	}
	if err := a.lock.lock(ctx); err != nil {
		_ = f.Close()
		return nil, err
	}
	defer a.lock.unlock()
	if a.now == nil || !sameFile(a.now.id, info) {
		m, err := readMembers(ctx, f, info)
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		a.forget()
		a.now = m
	}
	if a.now.unpacked == nil {
		return &archiveTree{members: a.now, f: f}, nil
	}
	_ = f.Close() // it was only read from
	if f, err = duplicate(a.now.unpacked); err != nil {
		return nil, err
	}
	return &archiveTree{members: a.now, f: f}, nil
}

// close removes what was unpacked. Trees that are open are not disturbed.
func (a *archive) close() {
	a.lock <- struct{}{}
	defer a.lock.unlock()
	a.forget()
}

func (a *archive) forget() {
	if a.now != nil && a.now.unpacked != nil {
		_ = a.now.unpacked.Close() // nobody gets to see what was written to it
	}
	a.now = nil
}

func openTar(path string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, placeError(err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = readError(err)
	case info.IsDir():
		err = fmt.Errorf("%s is a folder; an image layout is written %s:PATH", path, schemeLayout)
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// duplicate returns a second descriptor for a file, which is only good for
// ReadAt.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the descriptor of %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// readMembers reads the headers of an archive, after it has unpacked it if it
// has to.
func readMembers(ctx context.Context, f *os.File, info fs.FileInfo) (*members, error) {
	m := &members{id: info, docker: newDockerImages()}
	kind, err := sniff(f)
	if err != nil {
		return nil, err
	}
	var from io.ReaderAt = f
	size := info.Size()
	switch kind {
	case "":
	case "gzip":
		if m.unpacked, size, err = unpack(ctx, f, size); err != nil {
			return nil, fmt.Errorf("unpack the archive to a temporary file in %s, which TMPDIR can change: %w", os.TempDir(), err)
		}
		from = m.unpacked
	default:
		return nil, fmt.Errorf("the archive is compressed with %s, of which no part can be read alone: unpack it first, as \"%s -d %s\" does", kind, kind, f.Name())
	}
	if err := m.read(ctx, from, size); err != nil {
		if m.unpacked != nil {
			_ = m.unpacked.Close()
		}
		return nil, err
	}
	return m, nil
}

// sniff tells by its first bytes how a file is compressed; "" if it is not.
func sniff(f io.ReaderAt) (string, error) {
	var b [10]byte
	if _, err := f.ReadAt(b[:], 0); err != nil && err != io.EOF {
		return "", readError(err)
	}
	for _, c := range []struct {
		off         int
		magic, name string
	}{
		{0, "\x1f\x8b", "gzip"},
		{0, "\x28\xb5\x2f\xfd", "zstd"},
		{0, "\xfd7zXZ\x00", "xz"},
		{4, "1AY&SY", "bzip2"}, // what comes before it could begin a member's name
		{0, "\x04\x22\x4d\x18", "lz4"},
	} {
		if bytes.HasPrefix(b[c.off:], []byte(c.magic)) {
			return c.name, nil
		}
	}
	return "", nil
}

// unpack unpacks a gzip file to a file without a name in the folder for
// temporary files.
func unpack(ctx context.Context, f io.ReaderAt, size int64) (*os.File, int64, error) {
	to, err := os.CreateTemp("", "peel-archive-")
	if err != nil {
		return nil, 0, err
	}
	err = os.Remove(to.Name())
	var n int64
	if err == nil {
		n, err = gunzip(ctx, to, io.NewSectionReader(f, 0, size), max(minUnpacking, maxUnpacking*size))
	}
	if err != nil {
		_ = to.Close()
		return nil, 0, err
	}
	return to, n, nil
}

func gunzip(ctx context.Context, w io.Writer, r io.Reader, limit int64) (int64, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return 0, readError(err)
	}
	n, err := io.Copy(w, io.LimitReader(contextReader{ctx, z}, limit+1))
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("it is truncated: %w", err)
	case err == nil && n > limit:
		err = fmt.Errorf("it has more than %d bytes; if that is right, unpack it by hand", limit)
	}
	return n, err
}

// contextReader fails when the context has ended.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// read reads the headers of a tar file of size bytes, and skips the data. Of
// several members with one name the last one counts, as when they are
// extracted.
func (m *members) read(ctx context.Context, f io.ReaderAt, size int64) error {
	at := io.NewSectionReader(f, 0, size)
	r := tar.NewReader(at) // which reads no further than the header, and then seeks
	m.byName = map[string]member{}
	for n := 0; ; n++ {
		h, err := r.Next()
		off, seekErr := at.Seek(0, io.SeekCurrent)
		switch {
		case err == io.EOF:
			m.endless = !endsAt(f, off)
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("the archive is truncated, after %d members: %w", n, err)
		case errors.Is(err, tar.ErrHeader) && n == 0:
			return errors.New("the archive is not a tar file")
		case err != nil:
			return fmt.Errorf("read the archive after %d members: %w", n, readError(err))
		case n == maxMembers:
			return fmt.Errorf("the archive has more than %d members", maxMembers)
		case ctx.Err() != nil || seekErr != nil:
			return cmp.Or(ctx.Err(), seekErr)
		}
		name, one, err := newMember(h, off)
		if err != nil {
			return fmt.Errorf("the archive's member %q: %w", h.Name, err)
		}
		if one.size > size-off {
			return fmt.Errorf("the archive is truncated, within the member %q: %w", h.Name, io.ErrUnexpectedEOF)
		}
		m.byName[name] = one
	}
}

// endsAt reports whether a tar file ends at off as it should, with blocks of
// zeros.
func endsAt(f io.ReaderAt, off int64) bool {
	var block [512]byte
	if off < int64(len(block)) || off%int64(len(block)) != 0 {
		return false
	}
	n, _ := f.ReadAt(block[:], off-int64(len(block))) // an error leaves it short
	return n == len(block) && block == [512]byte{}
}

// newMember returns a member by its header and the place of its data. What is
// neither a file nor a link has a size of -1.
func newMember(h *tar.Header, off int64) (string, member, error) {
	if path.IsAbs(h.Name) || slices.Contains(strings.Split(h.Name, "/"), "..") {
		return "", member{}, errors.New("its name leads outside of the archive")
	}
	name, m := path.Clean(h.Name), member{off: off, size: -1}
	switch h.Typeflag {
	case tar.TypeReg:
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return name, m, nil // its data is in pieces
			}
		}
		m.size = h.Size
	case tar.TypeSymlink:
		m.link = path.Join(path.Dir(name), h.Linkname)
		if path.IsAbs(h.Linkname) || !fs.ValidPath(m.link) {
			m.link = ".." // an error for whoever follows it
		}
	case tar.TypeLink:
		if m.link = path.Clean(h.Linkname); path.IsAbs(h.Linkname) || !fs.ValidPath(m.link) {
			m.link = ".."
		}
	}
	return name, m, nil
}

// archiveTree is an archive that is open.
type archiveTree struct {
	*members
	f *os.File
}

func (t *archiveTree) Close() error { return t.f.Close() }

// Open opens a file. It can be read until the tree is closed.
func (t *archiveTree) Open(name string) (fs.File, error) {
	m, err := t.lookup(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &memberFile{SectionReader: io.NewSectionReader(t.f, m.off, m.size), name: path.Base(name)}, nil
}

// lookup finds a file, and follows links.
func (m *members) lookup(name string) (member, error) {
	for range maxLinks + 1 {
		f, ok := m.byName[name]
		switch {
		case name == "..":
			return f, errors.New("a link leads outside of the archive")
		case !ok && m.endless:
			return f, fmt.Errorf("the archive is truncated: %w", io.ErrUnexpectedEOF)
		case !ok:
			return f, fs.ErrNotExist
		case f.link != "":
			name = f.link
		case f.size < 0:
			return f, errors.New("it is not a regular file")
		default:
			return f, nil
		}
	}
	return member{}, fmt.Errorf("more than %d links follow each other", maxLinks)
}

// memberFile is a regular file of an archive.
type memberFile struct {
	*io.SectionReader
	name string
}

func (f *memberFile) Stat() (fs.FileInfo, error) {
	h := tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: f.Size(), Mode: 0o444}
	return h.FileInfo(), nil
}

func (f *memberFile) Close() error { return nil }
