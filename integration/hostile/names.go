package hostile

import (
	"archive/tar"
	"fmt"
	"strings"
)

// Names are layers whose names, links and types are odd.
func Names() []Case { return append(shownNames(), refusedNames()...) }

func shownNames() []Case {
	return []Case{
		shown("odd names", func(t *Tar) {
			long := strings.Repeat("n", 255)
			for _, name := range []string{"/absolute", "//a//./b/", "./dot", "...", "..a", "-rf", " ", "\n", "\x1b[31m", "\xff\xfe\x80", "größe", long, "dir/" + long, "%s%d"} {
				t.PAX("path", strings.TrimSuffix(name, "/"))
				t.File("short", name)
			}
			t.Raw(header{name: "\xe9t\xe9-latin1", kind: '0'}, []byte("latin1"))
			t.Raw(header{name: "././@LongLink", kind: 'L', gnu: true}, []byte(strings.Repeat("gnu/", 500)+"name\x00"))
			t.Raw(header{name: "short", kind: '0', gnu: true}, []byte("a long name of GNU tar"))
			t.Raw(header{name: "././@LongLink", kind: 'K', gnu: true}, []byte(strings.Repeat("x/", 900)+"\x00"))
			t.Raw(header{name: "longlink", kind: '2', gnu: true}, nil)
			t.End()
		}),
		shown("duplicates", func(t *Tar) {
			t.Dir("dir")
			t.File("dir/kept", "1")
			t.Dir("dir")
			t.File("file", "1")
			t.File("file", "the second counts")
			t.File("was-dir/x", "gone")
			t.File("was-dir", "a file now")
			t.File("was-file", "1")
			t.Dir("was-file")
			t.File("was-file/x", "1")
			t.Symlink("was-link", "file")
			t.File("was-link", "not through the link")
			t.Link("linked", "file")
			t.File("file", "the third, and linked has the second")
			t.End()
		}),
		shown("through symlinks", func(t *Tar) {
			t.Dir("usr/lib")
			t.Symlink("lib", "usr/lib")
			t.File("lib/relative", "in usr/lib")
			t.Symlink("abs", "/usr")
			t.File("abs/absolute", "in usr")
			t.Symlink("usr/up", "../../../../../usr/lib")
			t.File("usr/up/climbing", "in usr/lib")
			t.Symlink("etc", "/proc/self/root/etc")
			t.File("etc/peel-was-here", "in the image's own proc")
			t.End()
		}, func(t *Tar) {
			t.File("lib/upper", "in usr/lib")
			t.File("usr/up/.wh.relative", "")
			t.End()
		}),
		shown("hard links", func(t *Tar) {
			t.File("a", "linked")
			last := "a"
			for i := range 3000 {
				name := fmt.Sprintf("chain%d", i)
				t.Link(name, last)
				last = name
			}
			t.Symlink("sym", "a")
			t.Link("to-the-symlink", "sym")
			t.Link("/absolute", "/a")
			t.End()
		}, func(t *Tar) {
			t.Link("from-above", "chain7")
			t.End()
		}),
		shown("1,000 deep", func(t *Tar) {
			t.PAX("path", deep(1000)+"file")
			t.File("short", "deep")
			t.End()
		}),
		shown("devices", func(t *Tar) {
			t.Header(tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3})
			t.Header(tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Mode: 0o660, Devmajor: 8, Devminor: 300})
			t.Header(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600})
			t.Header(tar.Header{Typeflag: tar.TypeReg, Name: "file", Mode: 0o644, Devmajor: 1, Devminor: 3})
			t.End()
		}),
		shown("whiteouts of odd names", func(t *Tar) {
			t.File("a", "1")
			t.File("...", "1")
			t.File("dir/x", "1")
			t.End()
		}, func(t *Tar) {
			t.File(".wh.....", "")
			t.File(".wh.never-there", "")
			t.File("not/there/.wh.x", "")
			t.File(".wh.dir", "")
			t.End()
		}),
	}
}

func refusedNames() []Case {
	return []Case{
		refused("name that climbs", `".."`, "a/../../etc/passwd", func(t *Tar) { t.File("a/../../etc/passwd", "x"); t.End() }),
		refused("name that is a parent", `".."`, `entry ".."`, func(t *Tar) { t.Raw(header{name: "..", kind: '5'}, nil); t.End() }),
		refused("hard link that climbs", `".."`, "innocent", func(t *Tar) { t.Link("innocent", "../../../../../etc/shadow"); t.End() }),
		refused("no name", "empty", `entry ""`, func(t *Tar) { t.Raw(header{kind: '0'}, nil); t.End() }),
		refused("root that is a file", "root", "/", func(t *Tar) { t.Raw(header{name: "/", kind: '2', link: "x"}, nil); t.End() }),
		refused("component of 256 bytes", "256 bytes", "nnnn", func(t *Tar) { t.PAX("path", strings.Repeat("n", 256)); t.File("x", ""); t.End() }),
		refused("10,000 deep", "20004 bytes", "d/d/d", func(t *Tar) { t.PAX("path", deep(10_000)+"file"); t.File("x", ""); t.End() }),
		mounting("2,000 deep", "1024 path components", "d/d/d", func(t *Tar) { t.PAX("path", deep(2000)+"file"); t.File("x", ""); t.End() }),
		refused("name with a NUL", "invalid tar header", "PaxHeaders", func(t *Tar) { t.PAX("path", "a\x00b"); t.File("x", ""); t.End() }),
		refused("symlink of 5,000 bytes", "symlink to", "long-target", func(t *Tar) {
			t.PAX("linkpath", strings.Repeat("t", 5000))
			t.Symlink("long-target", "x")
			t.End()
		}),
		refused("symlink to nothing", "symlink to", "nowhere", func(t *Tar) { t.Raw(header{name: "nowhere", kind: '2'}, nil); t.End() }),
		mounting("hard link to itself", "not there", "self", func(t *Tar) { t.Link("self", "self"); t.End() }),
		mounting("hard links in a circle", "not there", "one", func(t *Tar) { t.Link("one", "two"); t.Link("two", "one"); t.End() }),
		mounting("hard link to a directory", "is a directory", "link", func(t *Tar) { t.Dir("dir"); t.Link("link", "dir"); t.End() }),
		mounting("symlinks in a circle", "40 symlinks", "a/file", func(t *Tar) {
			t.Symlink("a", "b")
			t.Symlink("b", "a")
			t.File("a/file", "x")
			t.End()
		}),
		mounting("device that Linux has not", "does not exist on Linux", "dev", func(t *Tar) {
			t.Raw(header{name: "dev", kind: '3', major: "7777777\x00", minor: "7777777\x00"}, nil)
			t.End()
		}),
		mounting("whiteout of nothing", "whiteout of no name", "dir/.wh.", func(t *Tar) { t.Raw(header{name: "dir/.wh.", kind: '0'}, nil); t.End() }),
	}
}
