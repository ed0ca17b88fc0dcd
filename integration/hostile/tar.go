// Package hostile makes layers that no honest tool makes: of names that climb,
// sizes that cannot be, maps that lie, and streams that unpack to a thousand
// times their size.
//
// It knows tar, gzip and zstd to the byte, and what the OCI image
// specification and umoci make of each layer. It does not know peel.
package hostile

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Tar writes a tar. What archive/tar would not write, Raw does.
type Tar struct {
	w   *bufio.Writer
	n   int64
	err error
}

// header is a tar header as it stands in a block (POSIX.1-1988, ustar). Numbers
// are as they stand there, too.
type header struct {
	name, link       string // at most 100 bytes
	size             string // octal, or base 256
	mode, uid, mtime string // "" for a plain one
	major, minor     string
	kind             byte
	gnu              bool // GNU's magic in place of ustar's
	sparse           []byte
	wrongSum         bool
}

const (
	blockSize = 512
	modified  = 1_600_000_000 // the time of every entry, in seconds since 1970
)

// Raw writes a header and its data, padded to whole blocks.
func (t *Tar) Raw(h header, data []byte) {
	var b [blockSize]byte
	field := func(off, n int, s, otherwise string) {
		if s == "" {
			s = otherwise
		}
		copy(b[off:off+n], s)
	}
	field(0, 100, h.name, "")
	field(100, 8, h.mode, "0000644\x00")
	field(108, 8, h.uid, "0000000\x00")
	field(116, 8, "", "0000000\x00")
	field(124, 12, h.size, octal(int64(len(data))))
	field(136, 12, h.mtime, octal(modified))
	b[156] = h.kind
	field(157, 100, h.link, "")
	if h.gnu {
		copy(b[257:], "ustar  \x00")
	} else {
		copy(b[257:], "ustar\x0000")
	}
	field(329, 8, h.major, "0000000\x00")
	field(337, 8, h.minor, "0000000\x00")
	copy(b[386:], h.sparse)
	sum := int64(8 * ' ')
	for _, c := range b {
		sum += int64(c)
	}
	if h.wrongSum {
		sum++
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	t.put(b[:])
	t.put(data)
	t.pad()
}

func (t *Tar) pad() { t.put(make([]byte, -t.n&(blockSize-1))) }

// put writes bytes as they are.
func (t *Tar) put(p []byte) {
	if t.err == nil {
		_, t.err = t.w.Write(p)
	}
	t.n += int64(len(p))
}

// Write does the same for archive/tar.
func (t *Tar) Write(p []byte) (int, error) {
	t.put(p)
	return len(p), t.err
}

// Header writes what archive/tar would, and no data.
func (t *Tar) Header(h tar.Header) {
	h.ModTime = time.Unix(modified, 0)
	w := tar.NewWriter(t)
	t.err = errors.Join(t.err, w.WriteHeader(&h))
}

// File writes a regular file.
func (t *Tar) File(name, data string) {
	t.Header(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))})
	t.put([]byte(data))
	t.pad()
}

// Dir writes a directory.
func (t *Tar) Dir(name string) {
	t.Header(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755})
}

// Symlink and Link write links of either kind.
func (t *Tar) Symlink(name, target string) {
	t.Header(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777})
}

// Link writes a hard link.
func (t *Tar) Link(name, target string) {
	t.Header(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644})
}

// PAX writes a PAX header for the header that comes next, of keys and values
// in turn.
func (t *Tar) PAX(records ...string) { t.pax('x', records) }

func (t *Tar) pax(kind byte, records []string) {
	var b bytes.Buffer
	for i := 0; i < len(records); i += 2 {
		b.WriteString(paxRecord(records[i], records[i+1]))
	}
	t.Raw(header{name: "PaxHeaders.0/x", kind: kind}, b.Bytes())
}

// paxRecord is a record whose length counts itself, as PAX wants.
func paxRecord(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest)
	for len(fmt.Sprint(n))+len(rest) != n {
		n = len(fmt.Sprint(n)) + len(rest)
	}
	return fmt.Sprint(n) + rest
}

// End writes the blocks that a tar ends with.
func (t *Tar) End() { t.put(make([]byte, 2*blockSize)) }

// Zeros writes so many zero bytes.
func (t *Tar) Zeros(n int64) {
	zeros := make([]byte, 1<<20)
	for n > 0 && t.err == nil {
		k := min(n, int64(len(zeros)))
		t.put(zeros[:k])
		n -= k
	}
}

func octal(n int64) string { return fmt.Sprintf("%011o\x00", n) }

// base256 is a number as GNU tar writes those that octal has no room for, in a
// field of width bytes.
func base256(n int64, width int) string {
	fill := byte(n >> 63)
	b := bytes.Repeat([]byte{fill}, max(0, width-8))
	b = append(b, binary.BigEndian.AppendUint64(nil, uint64(n))[max(0, 8-width):]...)
	b[0] |= 0x80
	return string(b)
}

// oldMap is a map of extents as the old GNU format has it in its header, with
// the file's real size. It has room for four.
func oldMap(realSize int64, pairs ...int64) []byte {
	b := make([]byte, 24*4+1+12)
	for i, v := range pairs {
		copy(b[12*i:], octal(v))
	}
	copy(b[24*4+1:], octal(realSize))
	return b
}

// write writes the tar that fill makes.
func write(w io.Writer, fill func(*Tar)) error {
	t := &Tar{w: bufio.NewWriterSize(w, 1<<16)}
	fill(t)
	return errors.Join(t.err, t.w.Flush())
}

// deep is a path of so many directories.
func deep(n int) string { return strings.Repeat("d/", n) }
