package hostile

import (
	"fmt"
	"strings"
)

// Large are layers that are small in a registry and large elsewhere. Their
// trees take too long to unpack.
func Large() []Case {
	return []Case{
		shown("a million empty files", func(t *Tar) {
			for i := range 1_000_000 {
				t.Raw(header{name: fmt.Sprintf("dir/%07d", i), kind: '0'}, nil)
			}
			t.End()
		}),
		shown("a million times one name", func(t *Tar) {
			for range 1_000_000 {
				t.Raw(header{name: "dir/same", kind: '0'}, nil)
			}
			t.End()
		}),
		shown("a million times one link", func(t *Tar) {
			t.Raw(header{name: "dir/same", kind: '0'}, nil)
			for range 500_000 {
				t.Raw(header{name: "link", kind: '2', link: "dir"}, nil)
				t.Raw(header{name: "link/same", kind: '0'}, nil)
			}
			t.End()
		}),
		shown("a GiB of PAX comments", func(t *Tar) {
			comment := strings.Repeat("x", 1<<20-100)
			for i := range 1024 {
				t.PAX("comment", comment, "path", fmt.Sprintf("dir/%d", i))
				t.File("x", "")
			}
			t.End()
		}),
		shown("a GiB of zeros", func(t *Tar) {
			t.Raw(header{name: "dir/zeros", kind: '0', size: octal(1 << 30)}, nil)
			t.Zeros(1 << 30)
			t.End()
		}),
		refused("gzip bomb", "times its compressed", "bomb", func(t *Tar) {
			t.Raw(header{name: "bomb", kind: '0', size: octal(7 << 30)}, nil)
			t.Zeros(1 << 30) // the rest need not be there
		}),
		zstdBomb("zstd bomb in a file", "times its compressed", "bomb", func(t *Tar) {
			t.Raw(header{name: "bomb", kind: '0', gnu: true, size: base256(100<<30, 12)}, nil)
		}),
		zstdBomb("zstd bomb behind the end", "times its compressed", "", func(t *Tar) {
			t.File("file", "x")
			t.End()
		}),
	}
}

// zstdBomb is a layer of one zstd frame: what fill writes, and then 8 GiB of
// zeros, in blocks of one repeated byte (RFC 8878, section 3.1.1.2).
func zstdBomb(name, says, entry string, fill func(*Tar)) Case {
	const most = 128 << 10 // bytes of a block
	const raw, repeated, last = 0 << 1, 1 << 1, 1
	return Case{Name: name, Refused: says, Entry: entry, Layers: []Maker{func(path string) (*Layer, error) {
		return encoded(path, fill, func(tar []byte) []byte {
			b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x58} // a window of 2 MiB
			block := func(n, kind int) {
				h := n<<3 | kind
				b = append(b, byte(h), byte(h>>8), byte(h>>16))
			}
			block(len(tar), raw)
			b = append(b, tar...)
			for range 8 << 30 / most {
				block(most, repeated)
				b = append(b, 0)
			}
			block(0, raw|last)
			return b
		})
	}}}
}
