package content_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/content/internal/sample"
	"golang.org/x/sys/unix"
)

// named is a file of a layer.
type named struct {
	name string
	data []byte
}

func tarOf(t testing.TB, files []named) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(f.data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// release returns the files of a system: many small ones, and some that are
// longer than a span.
func release(seed uint64) (files []named) {
	r := rand.New(rand.NewPCG(seed, 5))
	for i := range 300 {
		files = append(files, named{fmt.Sprintf("usr/share/%03d", i), sample.Text(r, 1+r.IntN(9000))})
	}
	for i := range 3 {
		files = append(files, named{fmt.Sprintf("usr/lib/%d", i), sample.Text(r, 3<<20+i)})
	}
	return files
}

// updated returns the same files but one, under other names.
func updated(files []named) []named {
	out := make([]named, len(files))
	for i, f := range files {
		out[i] = named{"new/" + f.name, f.data}
	}
	out[7].data = sample.Text(rand.New(rand.NewPCG(9, 9)), 5000)
	return out
}

// pairs keeps what pair has made, by encoding.
var pairs sync.Map

// pair returns two layers that differ in one file.
func pair(t testing.TB, encoding string) (before, after *layer) {
	t.Helper()
	p, ok := pairs.Load(encoding)
	if !ok {
		files := release(1)
		p, _ = pairs.LoadOrStore(encoding, [2]*layer{
			layerOf(t, tarOf(t, files), encoding),
			layerOf(t, tarOf(t, updated(files)), encoding),
		})
	}
	both := p.([2]*layer)
	return both[0].fresh(), both[1].fresh()
}

// readFiles reads all files of a layer, one after the other, and compares them.
func (l *layer) readFiles(t testing.TB, from *content.Layer) {
	t.Helper()
	for i := range l.entries {
		if e := &l.entries[i]; e.Size > 0 {
			l.read(t, from, e.Off, e.Size)
		}
	}
}

// soonComplete waits until a layer is complete, all of whose data is here.
func (l *layer) soonComplete(t *testing.T, from *content.Layer) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !from.Stats().Complete; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("all data is here: %+v", from.Stats())
		}
	}
	l.complete(t, from)
}

func TestDedup(t *testing.T) {
	for _, encoding := range []string{"tar", "gzip", "twin"} {
		t.Run(encoding, func(t *testing.T) { dedup(t, encoding, t.TempDir()) })
	}
}

// dedup reads a layer when the store has another one with the same files but
// one: a span of it is fetched, and no more.
func dedup(t *testing.T, encoding, root string) {
	before, after := pair(t, encoding)
	s := openStore(t, root)
	old := before.open(t, s)
	before.readFiles(t, old)
	if err := old.Close(); err != nil { // nobody has to have it open
		t.Fatal(err)
	}
	l := after.open(t, s)
	defer l.Close()
	after.readFiles(t, l)
	after.soonComplete(t, l)
	var size int64
	for i := range after.entries {
		size += after.entries[i].Size
	}
	st := l.Stats()
	if n := after.src.requests.Load(); n != 1 || st.Fetched != 1 {
		t.Errorf("%d requests for %d spans, want one", n, st.Fetched)
	}
	if st.Deduped > size || st.Deduped < size-2*format.SpanSize || !st.Complete {
		t.Errorf("%d bytes of %d were taken from the other layer: %+v", st.Deduped, size, st)
	}
	if c := verifyPresent(t, l); c.Bad != 0 || c.Stray != 0 || c.Spans != len(after.spans) {
		t.Errorf("%+v", c)
	}
}

// Without a registry, what other layers have can be read.
func TestDedupWithoutSource(t *testing.T) {
	before, after := pair(t, "gzip")
	s := openStore(t, t.TempDir())
	old := before.open(t, s)
	defer old.Close()
	before.readFiles(t, old)
	if err := s.AddIndex(context.Background(), after.id, after.raw, "test"); err != nil {
		t.Fatal(err)
	}
	l, err := s.Layer(after.id, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range after.entries {
		e := &after.entries[i]
		_, err := l.ReadAtContext(context.Background(), make([]byte, e.Size), e.Off)
		if changed := i == 7; changed != (err != nil) {
			t.Errorf("%s: %v", e.Name, err)
		}
	}
}

// A file is taken alone, before its span has come; that is no stray data.
func TestVerifyKeepsTakenFiles(t *testing.T) {
	before, after := pair(t, "gzip")
	root := t.TempDir()
	s := openStore(t, root)
	old := before.open(t, s)
	defer old.Close()
	before.readFiles(t, old)
	l := after.open(t, s)
	defer l.Close()
	e := &after.entries[3]
	after.read(t, l, e.Off, e.Size)
	if c := verifyPresent(t, l); c.Stray != 0 {
		t.Errorf("%+v", c)
	}
	if _, ok := l.Local(e.Off, e.Size); !ok {
		t.Error("the file was dropped")
	}
	flip(t, after.file(root, "flat"), e.Off)
	if c := verifyPresent(t, l); c.Stray == 0 {
		t.Errorf("%+v", c)
	}
	after.read(t, l, e.Off, e.Size)
	if n := after.src.requests.Load(); n != 0 {
		t.Errorf("%d requests for a file that another layer has", n)
	}
}

// A process may be killed when it has taken the last file of a span, and not yet
// marked the span.
func TestBlocksWithoutSpans(t *testing.T) {
	before, after := pair(t, "gzip")
	root := t.TempDir()
	s, log := openLogged(t, root)
	old := before.open(t, s)
	defer old.Close()
	before.readFiles(t, old)
	log.await(t, "complete and verified")
	for name, missing := range map[string]bool{"all data is here": false, "the last comes": true} {
		t.Run(name, func(t *testing.T) {
			after := after.fresh()
			if err := s.Remove(after.id.Blob); err != nil {
				t.Fatal(err)
			}
			l := after.open(t, s)
			for i := range after.entries {
				if e := &after.entries[i]; e.Size > 0 && !(missing && i == 7) {
					after.read(t, l, e.Off, e.Size)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(after.file(root, "map"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(make([]byte, after.blockBits()-64), 64); err != nil {
				t.Fatal(err)
			}
			l = after.open(t, openStore(t, root))
			defer l.Close()
			if missing {
				after.read(t, l, after.entries[7].Off, 1)
			}
			after.soonComplete(t, l)
			if n := after.src.requests.Load(); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// What another layer is said to have, and has not, is fetched.
func TestDedupTrustsNothing(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, before *layer, root string){
		"data": func(t *testing.T, before *layer, root string) {
			for i := range before.entries {
				for off := int64(0); off < before.entries[i].Size; off += 1 << 20 {
					flip(t, before.file(root, "flat"), before.entries[i].Off+off)
				}
			}
		},
		"end of the data": func(t *testing.T, before *layer, root string) {
			for i := range before.entries {
				e := &before.entries[i]
				flip(t, before.file(root, "flat"), e.Off+e.Size-1)
			}
		},
		"no data": func(t *testing.T, before *layer, root string) {
			if err := os.Truncate(before.file(root, "flat"), 0); err != nil {
				t.Fatal(err)
			}
		},
		"table": func(t *testing.T, before *layer, root string) {
			f, err := os.OpenFile(before.file(root, "files"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for i := range int64(len(before.entries)) { // places that are none
				if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 8), i*48+32); err != nil {
					t.Fatal(err)
				}
			}
		},
		"map": func(t *testing.T, before *layer, root string) {
			if err := os.WriteFile(before.file(root, "map"), bytes.Repeat([]byte{0xff}, 100), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"everything": func(t *testing.T, before *layer, root string) {
			if err := os.RemoveAll(filepath.Dir(before.file(root, "map"))); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			before, after := pair(t, "gzip")
			root := t.TempDir()
			s := openStore(t, root)
			old := before.open(t, s)
			before.readFiles(t, old)
			if err := old.Close(); err != nil {
				t.Fatal(err)
			}
			damage(t, before, root)
			l := after.open(t, s)
			defer l.Close()
			after.readFiles(t, l)
			after.soonComplete(t, l)
			if st := l.Stats(); st.Deduped != 0 || st.Fetched != int64(len(after.spans)) {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Several processes read two layers that share files, at once.
func TestDedupAtOnce(t *testing.T) {
	before, after := pair(t, "gzip")
	root := t.TempDir()
	var all sync.WaitGroup
	for range 3 {
		s := openStore(t, root)
		for n, l := range []*layer{before, after} {
			from := l.open(t, s)
			t.Cleanup(func() { from.Close() })
			for i := range 2 {
				r := rand.New(rand.NewPCG(uint64(n), uint64(i)))
				all.Go(func() {
					for range 400 {
						off := r.Int64N(int64(len(l.flat)))
						p := make([]byte, r.Int64N(100_000)+1)
						got, err := from.ReadAtContext(context.Background(), p, off)
						if err != nil && err != io.EOF || !bytes.Equal(p[:got], l.flat[off:off+int64(got)]) {
							t.Errorf("wrong bytes at %d: %v", off, err)
							return
						}
					}
				})
			}
		}
	}
	all.Wait()
	s := openStore(t, root)
	for _, l := range []*layer{before, after} {
		from := l.open(t, s)
		defer from.Close()
		l.read(t, from, 0, int64(len(l.flat)))
		l.soonComplete(t, from)
		if c := verifyPresent(t, from); c.Bad != 0 || c.Stray != 0 {
			t.Errorf("%+v", c)
		}
	}
}

// Nothing follows from the order of times: the clock may be set while a store is
// in use.
func TestClockJumps(t *testing.T) {
	root := t.TempDir()
	set := func(to time.Time) {
		t.Helper()
		if err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Chtimes(path, to, to))
		}); err != nil {
			t.Fatal(err)
		}
	}
	before, after := pair(t, "gzip")
	s := openStore(t, root)
	future, past := time.Now().AddDate(50, 0, 0), time.Unix(1, 0)
	old := before.open(t, s)
	set(future)
	before.readFiles(t, old)
	before.soonComplete(t, old)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	l := after.open(t, s)
	defer l.Close()
	set(past)
	after.readFiles(t, l)
	after.soonComplete(t, l)
	if n := after.src.requests.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
	set(future)
	other := openStore(t, root) // sweeps
	again := before.open(t, other)
	defer again.Close()
	before.readFiles(t, again)
	before.onceFetched(t)
	if err := other.Remove(after.id.Blob); !errors.Is(err, content.ErrInUse) {
		t.Errorf("error %v", err)
	}
}

// Where the file system can, a file that is taken shares its blocks.
func TestDedupShares(t *testing.T) {
	mnt := diskImage(t, "mkfs.xfs", "-q", "-m", "reflink=1")
	used := func() int64 {
		var st unix.Statfs_t
		if err := errors.Join(unix.Statfs(mnt, &st)); err != nil {
			t.Fatal(err)
		}
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}
	before, after := pair(t, "gzip")
	s := openStore(t, filepath.Join(mnt, "store"))
	old := before.open(t, s)
	defer old.Close()
	before.readFiles(t, old)
	unix.Sync()
	start := used()
	l := after.open(t, s)
	defer l.Close()
	long := after.entries[300:]
	for i := range long {
		after.read(t, l, long[i].Off, long[i].Size)
	}
	unix.Sync()
	if grown := used() - start; grown > long[0].Size {
		t.Errorf("%d bytes of disk for files that share their blocks", grown)
	}
	if n := after.src.requests.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
	flip(t, before.file(filepath.Join(mnt, "store"), "flat"), before.entries[301].Off) // which the other does not see
	if c := verifyPresent(t, l); c.Bad != 0 || c.Stray != 0 {
		t.Errorf("%+v", c)
	}
	for i := range long {
		after.read(t, l, long[i].Off, long[i].Size)
	}
}

// diskImage makes a file system in a file and mounts it.
func diskImage(t *testing.T, mkfs string, args ...string) (mnt string) {
	t.Helper()
	needMount(t)
	if _, err := exec.LookPath(mkfs); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	if err := errors.Join(os.WriteFile(img, nil, 0o600), os.Truncate(img, 512<<20), os.Mkdir(mnt, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{append(append([]string{mkfs}, args...), img), {"mount", "-o", "loop", img, mnt}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	t.Cleanup(func() { unmount(t, mnt) })
	return mnt
}

func unmount(t *testing.T, mnt string) {
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Errorf("unmount %s: %v", mnt, err)
	}
}

// needMount ends a test that cannot mount here.
func needMount(t *testing.T) {
	t.Helper()
	switch {
	case os.Getuid() == 0:
	case os.Getenv("CI") == "true":
		t.Fatal("mounting takes root")
	default:
		t.Skip("mounting takes root")
	}
}

func BenchmarkDedup(b *testing.B) {
	for _, size := range []int{1000, 10_000, 100_000, 1 << 20, 8 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, uint64(size)))
			var files []named
			for i := range max(1, min(500, 32<<20/size)) {
				files = append(files, named{fmt.Sprint(i), sample.Text(r, size)})
			}
			before := layerOf(b, tarOf(b, files), "gzip")
			files = append([]named{{"new", []byte("new")}}, files...)
			after := layerOf(b, tarOf(b, files), "gzip")
			s := openStore(b, b.TempDir())
			old := before.open(b, s)
			defer old.Close()
			before.readFiles(b, old)
			b.SetBytes(int64(len(after.flat)))
			for b.Loop() {
				b.StopTimer()
				if err := s.Remove(after.id.Blob); err != nil {
					b.Fatal(err)
				}
				l := after.open(b, s)
				b.StartTimer()
				for i := range after.entries {
					p := make([]byte, index.Align(after.entries[i].Size))
					if _, err := l.ReadAtContext(context.Background(), p, after.entries[i].Off); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				l.Close()
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(files)), "µs/file")
		})
	}
}
