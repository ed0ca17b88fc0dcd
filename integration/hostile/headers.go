package hostile

import (
	"strconv"
	"strings"
)

// Headers are layers whose headers say what cannot be, or in odd ways.
func Headers() []Case { return append(append(shownHeaders(), sparse()...), refusedHeaders()...) }

func shownHeaders() []Case {
	odd := func(t *Tar) {
		t.PAX("mtime", "-1.5", "VENDOR.unknown", strings.Repeat("x", 10_000), "comment", "")
		t.File("before-1970", "1")
		t.PAX("mtime", "1600000000.123456789123", "uid", "4000000000", "gid", "70000")
		t.File("fraction", "1")
		t.PAX("SCHILY.xattr.user.x", "a\x00b")
		t.File("attributes", "1")
		t.Raw(header{name: "base-256", kind: '0', gnu: true, size: base256(4, 12), mtime: base256(-86_400, 12), uid: base256(70_000, 8)}, []byte("data"))
		t.Raw(header{name: "mode-with-type", kind: '0', mode: "0100755\x00"}, []byte("x"))
		t.Raw(header{name: "v7-directory/", kind: 0}, nil)
		t.Raw(header{name: "directory-with-a-size", kind: '5', size: octal(512)}, nil)
		t.End()
		t.Zeros(1 << 20)
	}
	return []Case{
		instead(shown("odd headers", func(t *Tar) {
			t.pax('g', []string{"comment", "umoci does not know global headers"})
			t.Raw(header{name: "contiguous", kind: '7'}, []byte("nor contiguous files"))
			odd(t)
		}), func(t *Tar) {
			t.File("contiguous", "nor contiguous files")
			odd(t)
		}),
		shown("extended header of nothing", func(t *Tar) { t.File("file", "x"); t.PAX("path", "x") }),
		shown("no end", func(t *Tar) { t.File("file", "and nothing after it") }),
		shown("garbage behind the end", func(t *Tar) { t.File("file", "x"); t.End(); t.File("hidden", "y") }),
	}
}

// island is the data of a sparse file's extent.
var island = strings.Repeat("i", blockSize)

// sparse1 writes a sparse file in PAX format 1.0, whose map stands before its
// data; sparse01 one in format 0.1, which has it in a record.
func (t *Tar) sparse1(name string, realSize int64, table, data string) {
	t.PAX("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", name, "GNU.sparse.realsize", strconv.FormatInt(realSize, 10))
	table += strings.Repeat("\x00", -len(table)&(blockSize-1))
	t.Raw(header{name: "GNUSparseFile.0/" + name, kind: '0'}, []byte(table+data))
}

func (t *Tar) sparse01(name, realSize, table, data string) {
	t.PAX("GNU.sparse.size", realSize, "GNU.sparse.numblocks", "2", "GNU.sparse.map", table, "GNU.sparse.name", name)
	t.Raw(header{name: "GNUSparseFile.0/" + name, kind: '0'}, []byte(data))
}

func sparse() []Case {
	const mib = 1 << 20
	return []Case{
		instead(shown("sparse files", func(t *Tar) {
			t.Raw(header{name: "old", kind: 'S', gnu: true, sparse: oldMap(mib, 0, 512, 524_288, 512)}, []byte(island+island))
			t.PAX("GNU.sparse.size", "1048576", "GNU.sparse.numblocks", "2", "GNU.sparse.offset", "0", "GNU.sparse.numbytes", "512", "GNU.sparse.offset", "524288", "GNU.sparse.numbytes", "512")
			t.Raw(header{name: "pax-0.0", kind: '0'}, []byte(island+island))
			t.sparse01("pax-0.1", "1048576", "0,512,524288,512", island+island)
			t.sparse1("pax-1.0", mib, "2\n0\n512\n524288\n512\n", island+island)
			t.sparse1("only-a-hole", mib, "1\n1048576\n0\n", "")
			t.sparse1("nothing", 0, "0\n", "")
			t.PAX("GNU.sparse.major", "9", "GNU.sparse.minor", "0")
			t.File("of-an-unknown-version", "plain")
			// A PAX header whose data looks like a header of the old format, and
			// padding that looks like a map: neither is one.
			t.PAX("comment", strings.Repeat("S", 10_000)+"ustar  ")
			t.sparse1("decoys", mib, "1\n4096\n512\n"+strings.Repeat("\x00", 100)+"1\n0\n512\n", island)
			t.End()
		}), func(t *Tar) {
			hole := func(n int) string { return strings.Repeat("\x00", n) }
			islands := island + hole(524_288-512) + island + hole(524_288-512)
			for _, name := range []string{"old", "pax-0.0", "pax-0.1", "pax-1.0"} {
				t.File(name, islands)
			}
			t.File("only-a-hole", hole(mib))
			t.File("nothing", "")
			t.File("of-an-unknown-version", "plain")
			t.File("decoys", hole(4096)+island+hole(mib-4096-512))
			t.End()
		}),
		refused("sparse bomb", "more than the 1099511627776", "bomb", func(t *Tar) {
			t.sparse1("bomb", 8<<40, "1\n0\n512\n", island)
			t.End()
		}),
		refused("sparse bomb of the old format", "times its compressed", "bomb", func(t *Tar) {
			t.Raw(header{name: "bomb", kind: 'S', gnu: true, sparse: oldMap(8<<30-1, 0, 512)}, []byte(island))
			t.End()
		}),
		refused("extents that overlap", "invalid tar header", "file", func(t *Tar) { t.sparse1("file", mib, "2\n0\n512\n100\n512\n", island+island); t.End() }),
		refused("extent behind the end", "invalid tar header", "file", func(t *Tar) { t.sparse01("file", "1000", "0,512,900,512", island+island); t.End() }),
		refused("extent of a negative length", "invalid tar header", "file", func(t *Tar) { t.sparse1("file", mib, "1\n0\n-512\n", island); t.End() }),
		refused("more extents than lines", "sparse map too long", "file", func(t *Tar) {
			t.sparse1("file", mib, "400000\n"+strings.Repeat("1\n0\n", 350_000), "")
			t.End()
		}),
		refused("half a pair", "invalid tar header", "file", func(t *Tar) { t.sparse01("file", "1000", "0,512,900", island); t.End() }),
		refused("data that no extent has", "unreferenced", "file", func(t *Tar) { t.sparse1("file", mib, "1\n0\n512\n", island+island); t.End() }),
		refused("data that an empty file has", "not empty", "file", func(t *Tar) { t.sparse1("file", 0, "0\n", island); t.End() }),
		refused("extent without data", "missing", "file", func(t *Tar) { t.sparse1("file", mib, "1\n0\n1024\n", island); t.End() }),
	}
}

func refusedHeaders() []Case {
	return []Case{
		refused("negative size", "invalid tar header", "negative", func(t *Tar) {
			t.Raw(header{name: "negative", kind: '0', gnu: true, size: base256(-1, 12)}, nil)
			t.End()
		}),
		refused("negative size in PAX", "invalid tar header", "negative", func(t *Tar) {
			t.PAX("size", "-5")
			t.Raw(header{name: "negative", kind: '0'}, nil)
			t.End()
		}),
		refused("enormous size", "more than the 1099511627776", "enormous", func(t *Tar) {
			t.Raw(header{name: "enormous", kind: '0', gnu: true, size: base256(1<<63-1, 12)}, nil)
			t.End()
		}),
		refused("size beyond the end", "are missing", "short", func(t *Tar) { t.Raw(header{name: "short", kind: '0', size: octal(1 << 30)}, []byte("x")) }),
		refused("wrong checksum", "invalid tar header", "broken", func(t *Tar) {
			t.File("good", "x")
			t.Raw(header{name: "broken", kind: '0', wrongSum: true}, nil)
			t.End()
		}),
		refused("unknown type", "unknown type 'V'", "volume", func(t *Tar) { t.Raw(header{name: "volume", kind: 'V'}, nil); t.End() }),
		refused("user beyond 32 bits", "user", "file", func(t *Tar) { t.PAX("uid", "99999999999"); t.File("file", ""); t.End() }),
		refused("time that is none", "invalid tar header", "file", func(t *Tar) { t.PAX("mtime", "tomorrow"); t.File("file", ""); t.End() }),
		refused("PAX record of another length", "invalid tar header", "PaxHeaders", func(t *Tar) {
			t.Raw(header{name: "PaxHeaders.0/x", kind: 'x'}, []byte("999 path=x\n"))
			t.File("file", "")
			t.End()
		}),
		refused("PAX header of 2 MiB", "too long", "PaxHeaders", func(t *Tar) { t.PAX("comment", strings.Repeat("x", 2<<20)); t.File("file", ""); t.End() }),
		refused("PAX headers without end", "bytes of headers", "PaxHeaders", func(t *Tar) {
			for range 10 {
				t.PAX("comment", strings.Repeat("x", 1<<20-100))
			}
			t.File("file", "")
			t.End()
		}),
		refused("attribute of 100 KiB", "extended attribute", "file", func(t *Tar) {
			t.PAX("SCHILY.xattr.user.big", strings.Repeat("v", 100<<10))
			t.File("file", "")
			t.End()
		}),
		refused("attribute without a name", "extended attribute", "file", func(t *Tar) { t.PAX("SCHILY.xattr.", "v"); t.File("file", ""); t.End() }),
		refused("no tar", "invalid tar header", "no tar", func(t *Tar) { t.put([]byte(strings.Repeat("no tar ", 1000))) }),
	}
}
