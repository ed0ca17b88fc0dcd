package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// statAll takes the attributes of everything below a directory.
func statAll(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	for _, name := range names {
		if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: filepath.Join(dir, name), Err: err}
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := statAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

const bufferSize = 128 << 10

// readAll opens each file and reads it to its end.
func readAll(names []string) error {
	buf := make([]byte, bufferSize)
	for _, name := range names {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: name, Err: err}
		}
		for {
			n, err := unix.Read(fd, buf)
			if err != nil {
				return errors.Join(&os.PathError{Op: "read", Path: name, Err: err}, unix.Close(fd))
			}
			if n == 0 {
				break
			}
		}
		if err := unix.Close(fd); err != nil {
			return &os.PathError{Op: "close", Path: name, Err: err}
		}
	}
	return nil
}

// open opens a file and returns its size.
func open(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// sequential reads a job's part of the file from its start to its end.
func sequential(path string, job, jobs int) error {
	f, size, err := open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, bufferSize)
	share := size / int64(jobs)
	for off := share * int64(job); off < share*int64(job+1); off += bufferSize {
		if _, err := f.ReadAt(buf, off); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

const page = 4 << 10

// openPages opens a file and returns its size in whole pages, of which it has
// at least one.
func openPages(path string) (*os.File, int64, error) {
	f, size, err := open(path)
	if err == nil && size < page {
		err = errors.Join(fmt.Errorf("%s has %d bytes, which is no whole page", path, size), f.Close())
	}
	return f, size / page, err
}

// random reads n pages of the file from anywhere, the same for every file.
func random(path string, seed uint64, n int) error {
	f, pages, err := openPages(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, page)
	where := rand.New(rand.NewPCG(seed, 5))
	for range n {
		if _, err := f.ReadAt(buf, where.Int64N(pages)*page); err != nil {
			return err
		}
	}
	return nil
}

// mapped touches n pages of the mapped file, anywhere.
func mapped(path string, seed uint64, n int) error {
	f, pages, err := openPages(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := unix.Mmap(int(f.Fd()), 0, int(pages*page), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", path, err)
	}
	where := rand.New(rand.NewPCG(seed, 6))
	var sum byte
	for range n {
		sum += data[where.Int64N(pages)*page]
	}
	runtime.KeepAlive(sum) // so that the compiler does not leave the reads out
	return unix.Munmap(data)
}
