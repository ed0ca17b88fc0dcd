package fs

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// scan makes a layer of a directory of this machine, and its flat blob.
func scan(b *testing.B, root string) ([]index.Entry, *testBlob) {
	b.Helper()
	blob := newBlob(b, 0)
	var entries []index.Entry
	var off int64
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		st := stat(b, path)
		e := index.Entry{Name: name, Mode: st.Mode &^ unix.S_IFMT, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec}
		switch d.Type() {
		case fs.ModeDir:
			e.Type = index.Dir
		case fs.ModeSymlink:
			e.Type = index.Symlink
			if e.Link, err = os.Readlink(path); err != nil {
				return err
			}
		default:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			e.Off, e.Size = off, int64(len(data))
			if _, err := blob.file.WriteAt(data, off); err != nil {
				return err
			}
			off += index.Align(e.Size)
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return entries, blob
}

// BenchmarkMount compares a mount with the file system that the same files
// are on: the Go toolchain's, some 15,000 files in 250 MB. Warm means that the
// command has run before, cold that the kernel's caches were dropped.
func BenchmarkMount(b *testing.B) {
	needFUSE(b)
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	native := strings.TrimSpace(string(goroot))
	entries, blob := scan(b, native)
	tree, err := Merge([][]index.Entry{entries})
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	s, err := Mount(dir, tree, []Blob{blob}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	cleanMount(b, dir, s)
	for _, cmd := range []struct{ name, script string }{
		{"find", "find . >/dev/null"},
		{"stat", "find . -printf %s%m >/dev/null"},
		{"ls", "ls -lR . >/dev/null"},
		{"tar", "tar c . | cat >/dev/null"},
		{"cat", "find . -type f -print0 | xargs -0 cat >/dev/null"},
	} {
		for _, cold := range []bool{false, true} {
			for _, on := range []struct{ name, dir string }{{"native", native}, {"tree", dir}} {
				name := cmd.name + "/warm/" + on.name
				if cold {
					name = cmd.name + "/cold/" + on.name
				}
				b.Run(name, func(b *testing.B) {
					run := func() {
						c := exec.Command("sh", "-c", "cd \"$0\" && "+cmd.script, on.dir)
						if out, err := c.CombinedOutput(); err != nil {
							b.Fatal(err, string(out))
						}
					}
					run()
					for b.Loop() {
						if cold {
							b.StopTimer()
							if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
								b.Fatal(err)
							}
							b.StartTimer()
						}
						run()
					}
				})
			}
		}
	}
}
