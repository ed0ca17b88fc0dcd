// Package sample makes layers for the tests of the packages around it.
package sample

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/format"
)

// Text returns n bytes that compress about as well as programs do.
func Text(r *rand.Rand, n int) []byte {
	words := strings.Fields("kernel page cache lazy mount layer span index window tar header inode block read write")
	var b bytes.Buffer
	for b.Len() < n {
		if r.IntN(4) == 0 {
			fmt.Fprintf(&b, "%x", r.Uint64())
		}
		b.WriteString(words[r.IntN(len(words))])
	}
	return b.Bytes()[:n]
}

// Tar returns a tar of a few megabytes with every type of entry, and
// the data of its files by name.
func Tar(t testing.TB, seed uint64) ([]byte, map[string][]byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	files := map[string][]byte{}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	write := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			files[h.Name] = data
		}
	}
	write(tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o1777}, nil)
	for i, n := range []int{0, 1, 511, 512, 513, 4095, 4096, 4097, 100_000, 3 << 20, 70_000, 1 << 20} {
		write(tar.Header{
			Typeflag: tar.TypeReg, Name: fmt.Sprintf("d/file%d", i), Mode: 0o4755, Uid: i, Gid: 70000,
			ModTime: time.Unix(int64(i-5)*1e6, int64(i)*1001),
		}, Text(r, n))
	}
	write(tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Mode: 0o600}, make([]byte, 300_000))
	for i := range 40 { // what does not compress is stored, between what does
		mixed := Text(r, 20_000)
		for range 30_000 {
			mixed = append(mixed, byte(r.Uint32()))
		}
		write(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("mixed%d", i)}, append(mixed, Text(r, 20_000)...))
	}
	write(tar.Header{
		Typeflag: tar.TypeReg, Name: "caps", Mode: 0o755,
		PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02", "SCHILY.xattr.user.a": "b"},
	}, []byte("x"))
	write(tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "../d/file1"}, nil)
	write(tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "/d/file8"}, nil)
	write(tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}, nil)
	write(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo"}, nil)
	write(tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("long/", 40) + "name"}, Text(r, 5000))
	write(tar.Header{Typeflag: tar.TypeReg, Name: ".wh.gone"}, nil)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), files
}

// Encodings are the ways to encode a tar that an index can describe.
var Encodings = map[string]func(t testing.TB, tar []byte) []byte{
	"tar": func(_ testing.TB, tar []byte) []byte { return tar },
	"gzip": func(t testing.TB, tar []byte) []byte {
		return compress(t, tar, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })
	},
	"fast gzip": func(t testing.TB, tar []byte) []byte {
		return compress(t, tar, func(w io.Writer) io.WriteCloser {
			z, _ := kgzip.NewWriterLevel(w, 1)
			return z
		})
	},
	"stored gzip": func(t testing.TB, tar []byte) []byte {
		return compress(t, tar, func(w io.Writer) io.WriteCloser {
			z, _ := gzip.NewWriterLevel(w, gzip.NoCompression)
			return z
		})
	},
	"named gzip": func(t testing.TB, tar []byte) []byte {
		return compress(t, tar, func(w io.Writer) io.WriteCloser {
			z := gzip.NewWriter(w)
			z.Name, z.Comment, z.Extra = "layer.tar", "a comment", []byte("extra")
			return z
		})
	},
	"members": func(t testing.TB, tar []byte) []byte {
		var out []byte
		for n := 1; len(tar) > 0; n = n*3 + 1000 {
			n = min(n, len(tar))
			out = append(out, compress(t, tar[:n], func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })...)
			tar = tar[n:]
		}
		return out
	},
	"one block": func(_ testing.TB, tar []byte) []byte { return OneBlock(tar) },
	"zstd":      func(t testing.TB, tar []byte) []byte { return Zstd(t, tar) },
	"wide zstd": func(t testing.TB, tar []byte) []byte {
		return Zstd(t, tar, zstd.WithWindowSize(32<<20), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false))
	},
	"frames": func(t testing.TB, tar []byte) []byte {
		var out []byte
		for n := 1; len(tar) > 0; n = n*3 + 1000 {
			n = min(n, len(tar))
			out = append(out, Zstd(t, tar[:n], zstd.WithSingleSegment(n%2 == 0))...)
			tar = tar[n:]
		}
		return out
	},
	"skippable frames": func(t testing.TB, tar []byte) []byte {
		var out []byte
		for n := range 20 { // before, between and after the others, and an empty one among them
			at, end := len(tar)*n/20, len(tar)*(n+1)/20
			out = append(out, Skippable(make([]byte, n*1000))...)
			out = append(out, Zstd(t, tar[at:end])...)
			out = append(out, Zstd(t, nil, zstd.WithZeroFrames(true))...)
		}
		return append(out, Skippable([]byte("table of contents"))...)
	},
}

// Zstd compresses p into one frame.
func Zstd(t testing.TB, p []byte, o ...zstd.EOption) []byte {
	t.Helper()
	return compress(t, p, func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w, append([]zstd.EOption{zstd.WithEncoderConcurrency(1)}, o...)...)
		if err != nil {
			t.Fatal(err)
		}
		return z
	})
}

// Skippable returns a skippable zstd frame with p in it.
func Skippable(p []byte) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte("\x5e\x2a\x4d\x18"), uint32(len(p))), p...)
}

func compress(t testing.TB, p []byte, open func(io.Writer) io.WriteCloser) []byte {
	t.Helper()
	var b bytes.Buffer
	w := open(&b)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Wrap returns a tar of one file: p between text and noise.
func Wrap(t testing.TB, p []byte) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(len(p)), 3))
	data := append(Text(r, 25_000), p...)
	for range 5000 {
		data = append(data, byte(r.Uint32()))
	}
	data = append(data, Text(r, 25_000)...)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "file", Size: int64(len(data)), Format: tar.FormatPAX}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Gzip compresses p at a level from 0 to 9.
func Gzip(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	return compress(t, p, func(w io.Writer) io.WriteCloser {
		z, err := gzip.NewWriterLevel(w, level)
		if err != nil {
			t.Fatal(err)
		}
		return z
	})
}

// OneBlock returns p as a gzip member of one deflate block, of literals in the
// fixed code (RFC 1951, section 3.2.6): there is no place to resume in it.
func OneBlock(p []byte) []byte {
	out := []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff")
	var acc uint64
	var n uint
	put := func(code uint16, width uint) { // codes start with their highest bit
		acc |= uint64(bits.Reverse16(code)>>(16-width)) << n
		for n += width; n >= 8; n -= 8 {
			out = append(out, byte(acc))
			acc >>= 8
		}
	}
	put(0b110, 3) // the last block, in the fixed code
	for _, b := range p {
		if b < 144 {
			put(0x30+uint16(b), 8)
		} else {
			put(0x190+uint16(b-144), 9)
		}
	}
	put(0, 7) // the end of the block
	put(0, 7) // the rest of the last byte, if there is one
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(p))
	return binary.LittleEndian.AppendUint32(out, uint32(len(p)))
}

// Layer returns the identity of a layer.
func Layer(tar, blob []byte) format.Layer {
	return format.Layer{Blob: digest.FromBytes(blob), Size: int64(len(blob)), DiffID: digest.FromBytes(tar)}
}
