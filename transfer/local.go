package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// tree is the files of a folder or an archive, by their slash-separated names.
// It is opened for one task and closed after it.
type tree interface {
	fs.FS // its regular files are io.ReaderAt
	io.Closer
}

// rootTree is a folder. No symbolic link leads out of it.
type rootTree struct{ *os.Root }

func openRoot(path string) (rootTree, error) {
	info, err := os.Stat(path) // first, since opening a pipe may wait
	if err != nil {
		return rootTree{}, placeError(err)
	}
	if !info.IsDir() {
		return rootTree{}, fmt.Errorf("%s is not a folder; a tar file is written %s:PATH or %s:PATH", path, schemeOCIArchive, schemeDockerArchive)
	}
	root, err := os.OpenRoot(path)
	return rootTree{root}, placeError(err)
}

// Open opens a file. It does not wait for anyone at the other end of a pipe.
func (t rootTree) Open(name string) (fs.File, error) {
	f, err := t.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err // not f, which would be an fs.File that is not nil
	}
	return f, nil
}

// localFile is a regular file of a tree.
type localFile struct {
	fs.File
	io.ReaderAt
	size int64     // bytes
	tree io.Closer // closed with the file, if not nil
}

func openFile(t fs.FS, name string) (*localFile, error) {
	f, err := t.Open(name)
	if err != nil {
		return nil, fileError(err)
	}
	info, err := f.Stat()
	at, ok := f.(io.ReaderAt)
	if err == nil && (!ok || !info.Mode().IsRegular()) {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		_ = f.Close()
		return nil, fileError(err)
	}
	return &localFile{File: f, ReaderAt: at, size: info.Size()}, nil
}

func (f *localFile) Close() error {
	err := f.File.Close()
	if f.tree != nil {
		err = errors.Join(err, f.tree.Close())
	}
	return err
}

// readFile reads a file of at most limit bytes.
func readFile(t fs.FS, name string, limit int64) ([]byte, error) {
	f, err := openFile(t, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.size > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, f.size, limit)
	}
	b := make([]byte, f.size)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("read %s: %w", name, readError(err))
	}
	return b, nil
}

// localBlob is a blob that is a file.
type localBlob struct {
	d  ocispec.Descriptor
	in finder
	of localRef
}

// finder finds the file of a blob. The file stands alone: what it is in need
// not be closed.
type finder interface {
	find(ctx context.Context, d digest.Digest) (*localFile, error)
}

func (b *localBlob) open(ctx context.Context, off, n int64) (body io.ReadCloser, whole bool, err error) {
	f, err := b.in.find(ctx, b.d.Digest)
	if err == nil && f.size != b.d.Size {
		_ = f.Close()
		err = fmt.Errorf("its file has %d bytes, but its descriptor says %d", f.size, b.d.Size)
	}
	if err != nil {
		return nil, false, fmt.Errorf("read blob %s of %s: %w", b.d.Digest, b.of, err)
	}
	return &localBody{b: b, ctx: ctx, f: f, pos: off, end: off + n}, off == 0 && n == b.d.Size, nil
}

// localBody reads the bytes [pos, end) of a blob's file.
type localBody struct {
	b        *localBlob
	ctx      context.Context // that of Open
	f        *localFile
	pos, end int64
}

func (r *localBody) Read(p []byte) (int, error) {
	if r.pos == r.end {
		return 0, io.EOF
	}
	err := r.ctx.Err()
	n := 0
	if err == nil {
		n, err = r.f.ReadAt(p[:min(int64(len(p)), r.end-r.pos)], r.pos)
		r.pos += int64(n)
	}
	if n > 0 || err == nil {
		return n, nil // an error that lasts is met again
	}
	return 0, fmt.Errorf("read blob %s of %s at byte %d: %w", r.b.d.Digest, r.b.of, r.pos, readError(err))
}

func (r *localBody) Close() error { return r.f.Close() }

// localError is a failure of the file system, as one of the errors that
// callers branch on.
type localError struct{ err, kind error }

func (e *localError) Error() string        { return e.err.Error() }
func (e *localError) Unwrap() error        { return e.err }
func (e *localError) Is(target error) bool { return target == e.kind }

// placeError is for opening a folder or an archive. What is not there may be
// on a disk that is away, as a registry may.
func placeError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &localError{err, ErrUnavailable}
	}
	return fileError(err)
}

// fileError is for opening a file within a folder or an archive.
func fileError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &localError{err, ErrNotFound}
	case errors.Is(err, fs.ErrPermission):
		return &localError{err, ErrUnauthorized}
	}
	return readError(err)
}

// readError is for reading a file, which has not ended where it should not.
func readError(err error) error {
	switch {
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENOTCONN):
		return &localError{err, ErrUnavailable}
	}
	return err
}
