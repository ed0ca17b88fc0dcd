package images

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// overlayXattrs are overlayfs's own notes on its upper directory.
const overlayXattrs = "trusted.overlay."

// writeDiff writes the upper directory of an overlay as the tar of a layer:
// its whiteouts and opaque directories become those of the OCI image
// specification ("Representing Changes" in its layer.md).
func writeDiff(w io.Writer, upper string) error {
	d := differ{tar: tar.NewWriter(w), upper: upper, names: map[uint64]string{}}
	if err := filepath.WalkDir(upper, d.add); err != nil {
		return err
	}
	return d.tar.Close()
}

type differ struct {
	tar   *tar.Writer
	upper string
	names map[uint64]string // first name of each inode with several
}

func (d *differ) add(path string, _ fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	name, err := filepath.Rel(d.upper, path)
	if err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if isWhiteout(&stat) {
		return d.mark(filepath.Dir(name), ".wh."+filepath.Base(name))
	}
	header, opaque, err := d.header(path, name, &stat)
	if err != nil {
		return err
	}
	if err := d.tar.WriteHeader(header); err != nil {
		return err
	}
	if opaque {
		return d.mark(name, ".wh..wh..opq")
	}
	if header.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(d.tar, f)
	return err
}

// mark writes an empty file with a meaning.
func (d *differ) mark(dir, name string) error {
	return d.tar.WriteHeader(&tar.Header{Name: filepath.Join(dir, name), Typeflag: tar.TypeReg, Mode: 0o644})
}

func isWhiteout(stat *unix.Stat_t) bool {
	return stat.Mode&unix.S_IFMT == unix.S_IFCHR && stat.Rdev == 0
}

func (d *differ) header(path, name string, stat *unix.Stat_t) (h *tar.Header, opaque bool, err error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, false, err
	}
	var target string
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return nil, false, err
		}
	}
	if h, err = tar.FileInfoHeader(info, target); err != nil {
		return nil, false, err
	}
	h.Name = name
	h.Format = tar.FormatPAX
	h.Uname, h.Gname = "", "" // of this machine, not of the image
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if info.IsDir() {
		h.Name += "/"
	} else if stat.Nlink > 1 {
		if first, seen := d.names[stat.Ino]; seen {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return h, false, nil
		}
		d.names[stat.Ino] = name
	}
	opaque, err = addXattrs(h, path)
	return h, opaque, err
}

// addXattrs adds a file's extended attributes to its header, and reports
// whether they say that it is an opaque directory.
func addXattrs(h *tar.Header, path string) (opaque bool, err error) {
	names := make([]byte, 64<<10)
	size, err := unix.Llistxattr(path, names)
	if errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	for name := range strings.SplitSeq(string(names[:size]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return false, &os.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
		if strings.HasPrefix(name, overlayXattrs) {
			opaque = opaque || name == overlayXattrs+"opaque" && string(value[:n]) == "y"
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = string(value[:n])
	}
	return opaque, nil
}
