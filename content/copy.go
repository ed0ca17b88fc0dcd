package content

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

const (
	// copyStep is how much of a file is in memory at once.
	copyStep = 1 << 20

	// cloneLeast is the shortest file that is worth the calls that make two
	// flat blobs share its blocks, where the file system can.
	cloneLeast = 64 << 10
)

// copyChecked puts a file into a flat blob that another flat blob has at from.
// Nothing is written that has not been checked: of the place that it is
// written to, some may be present.
func (s *Store) copyChecked(ctx context.Context, dst *os.File, f file, src *os.File, from int64) error {
	if f.size >= cloneLeast && !s.noClone.Load() {
		err := s.clone(ctx, dst, f, src, from)
		if err == nil || !cannotClone(err) {
			return err
		}
		s.noClone.Store(true)
	}
	buf := s.tars.get(copyStep)[:copyStep]
	defer s.tars.put(buf)
	var sums []index.SHA256 // of each step, if there are several
	whole := sha256.New()
	err := steps(ctx, buf, src, from, f.size, func(p []byte, _ int64) error {
		if f.size > copyStep {
			sums = append(sums, sha256.Sum256(p))
		}
		_, err := whole.Write(p)
		return err
	})
	if err != nil {
		return err
	}
	if index.SHA256(whole.Sum(nil)) != f.digest {
		return errOther
	}
	if f.size <= copyStep {
		_, err := dst.WriteAt(buf[:f.size], f.off)
		return err
	}
	return steps(ctx, buf, src, from, f.size, func(p []byte, at int64) error {
		if sha256.Sum256(p) != sums[at/copyStep] {
			return errOther
		}
		_, err := dst.WriteAt(p, f.off+at)
		return err
	})
}

var errOther = errors.New("it does not have the digest that it should have")

// steps reads n bytes at off of src into buf, and calls fn for each bufferful.
func steps(ctx context.Context, buf []byte, src io.ReaderAt, off, n int64, fn func(p []byte, at int64) error) error {
	for at := int64(0); at < n; at += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), n-at)]
		if _, err := src.ReadAt(p, off+at); err != nil {
			return err
		}
		if err := fn(p, at); err != nil {
			return err
		}
	}
	return nil
}

// clone is copyChecked by sharing blocks. They are first shared with a file
// that nobody else can write to, and checked there.
func (s *Store) clone(ctx context.Context, dst *os.File, f file, src *os.File, from int64) (err error) {
	own, err := s.TempFile()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, own.Close()) }()
	n := index.Align(f.size)
	if err := cloneRange(own, 0, src, from, n); err != nil {
		return err
	}
	buf := s.tars.get(copyStep)[:copyStep]
	defer s.tars.put(buf)
	whole := sha256.New()
	if err := steps(ctx, buf, own, 0, n, func(p []byte, at int64) error {
		data := min(int64(len(p)), f.size-at)
		for _, b := range p[data:] {
			if b != 0 { // the rest of the last block
				return errOther
			}
		}
		_, err := whole.Write(p[:data])
		return err
	}); err != nil {
		return err
	}
	if index.SHA256(whole.Sum(nil)) != f.digest {
		return errOther
	}
	return cloneRange(dst, f.off, own, 0, n)
}

func cloneRange(dst *os.File, to int64, src *os.File, from, n int64) error {
	r := unix.FileCloneRange{Src_fd: int64(src.Fd()), Src_offset: uint64(from), Src_length: uint64(n), Dest_offset: uint64(to)}
	if err := unix.IoctlFileCloneRange(int(dst.Fd()), &r); err != nil {
		return fmt.Errorf("clone %d bytes of %s: %w", n, src.Name(), err)
	}
	return nil
}

// cannotClone reports whether it is the file system that does not clone.
func cannotClone(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL)
}
