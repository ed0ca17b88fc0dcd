package hostile

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os/exec"
	"strings"
)

// gz compresses.
func gz(p []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(p) // a buffer takes all
	_ = z.Close()
	return b.Bytes()
}

// zst compresses with the zstd tool, whose flags are given.
func zst(p []byte, flags ...string) []byte {
	cmd := exec.Command("zstd", append(flags, "-q", "-c")...)
	cmd.Stdin = bytes.NewReader(p)
	out, err := cmd.Output()
	if err != nil {
		panic("zstd: " + err.Error()) // setup.sh installs it
	}
	return out
}

// skippable is a skippable frame (RFC 8878, section 3.1.2).
func skippable(p string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x184d2a53)
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(p))), p...)
}

// halves encodes a tar in two parts, and puts glue between them and around.
func halves(p []byte, encode func([]byte) []byte, glue []byte) []byte {
	cut := len(p) / 2
	return bytes.Join([][]byte{nil, encode(p[:cut]), encode(p[cut:]), nil}, glue)
}

// Streams are blobs whose compression is odd.
func Streams() []Case {
	tar := func(t *Tar) {
		t.File("file", strings.Repeat("data ", 20_000))
		t.End()
	}
	one := func(name, refused string, encode func([]byte) []byte) Case {
		return Case{Name: name, Refused: refused, Plain: []Maker{tarred(tar)}, Layers: []Maker{func(path string) (*Layer, error) {
			return encoded(path, tar, encode)
		}}}
	}
	zstd := func(p []byte) []byte { return zst(p) }
	empty := gz(nil)
	return []Case{
		one("gzip members", "", func(p []byte) []byte { return halves(p, gz, nil) }),
		one("empty gzip members", "", func(p []byte) []byte { return halves(p, gz, bytes.Repeat(empty, 1000)) }),
		one("gzip with all its header's fields", "", func(p []byte) []byte {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			z.Name, z.Comment, z.Extra = strings.Repeat("n", 1000), "comment", make([]byte, 60_000)
			_, _ = z.Write(p)
			_ = z.Close()
			return b.Bytes()
		}),
		one("garbage after gzip", "gzip header", func(p []byte) []byte { return append(gz(p), "garbage"...) }),
		one("zeros after gzip", "gzip header", func(p []byte) []byte { return append(gz(p), make([]byte, 512)...) }),
		one("zstd after gzip", "gzip header", func(p []byte) []byte { return append(gz(p), skippable("x")...) }),
		one("gzip cut", "unexpected EOF", func(p []byte) []byte { b := gz(p); return b[:len(b)/2] }),
		one("gzip cut in its trailer", "unexpected EOF", func(p []byte) []byte { b := gz(p); return b[:len(b)-3] }),
		one("gzip header alone", "unexpected EOF", func(p []byte) []byte { return gz(p)[:10] }),
		one("part of a gzip header", "unexpected EOF", func(p []byte) []byte { return gz(p)[:5] }),
		one("wrong gzip checksum", "checksum", func(p []byte) []byte { b := gz(p); b[len(b)-6] ^= 1; return b }),
		one("gzip name without end", "more than 65536 bytes", func(p []byte) []byte {
			return append([]byte("\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\x00"), bytes.Repeat([]byte("n"), 100_000)...)
		}),
		one("zstd frames with skippable ones", "", func(p []byte) []byte { return halves(p, zstd, skippable("skip me")) }),
		one("zstd with a window of 128 MiB", "", func(p []byte) []byte { return zst(p, "--ultra", "-22", "--long=27", "--no-content-size") }),
		one("zstd with a window of 2 GiB", "window of 2147483648 bytes", func([]byte) []byte {
			return []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0}
		}),
		one("zstd with a dictionary", "dictionary 7", func([]byte) []byte {
			return []byte{0x28, 0xb5, 0x2f, 0xfd, 1, 0x58, 7, 1, 0, 0}
		}),
		one("garbage after zstd", "zstd frame", func(p []byte) []byte { return append(zst(p), "garbage"...) }),
		one("zstd cut", "unexpected EOF", func(p []byte) []byte { b := zst(p); return b[:len(b)/2] }),
		one("skippable frame cut", "unexpected EOF", func(p []byte) []byte { return append(zst(p), skippable("skip me")[:10]...) }),
		one("xz", "unsupported layer format", func([]byte) []byte { return []byte("\xfd7zXZ\x00\x00\x04") }),
	}
}
