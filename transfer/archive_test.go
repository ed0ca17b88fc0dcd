package transfer

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
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// anArchive is an OCI archive with one image of two layers.
func anArchive(t testing.TB) []byte {
	l := newLayout(t)
	l.list(l.image(tarOf(t, map[string][]byte{"a": []byte("lower")}), tarOf(t, map[string][]byte{"a": randomBytes(3000)})))
	return tarOf(t, l.files)
}

// readImage resolves an image and reads all its layers, verified.
func readImage(ctx context.Context, c *testClient, ref string) error {
	img, err := c.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	for _, l := range img.Layers {
		err = errors.Join(err, c.FetchBlob(ctx, img, l.Descriptor, io.Discard))
	}
	return err
}

// An archive that was cut anywhere is refused, or has all that is asked for.
func TestArchiveTruncated(t *testing.T) {
	whole := anArchive(t)
	path := fileOf(t, whole)
	c := newClient(t, Options{})
	if err := readImage(t.Context(), c, "oci-archive:"+path); err != nil {
		t.Fatal(err)
	}
	const trailer = 1024
	// The last member is oci-layout, whose block is not full of data.
	complete := bytes.LastIndexByte(whole, '}') + 1
	for size := len(whole) - trailer - 1; size > 0; size -= 171 { // 3 times 171 is a block and a byte
		if err := os.Truncate(path, int64(size)); err != nil {
			t.Fatal(err)
		}
		err := readImage(t.Context(), c, "oci-archive:"+path)
		if size >= complete && err != nil || size < complete && (!errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "the archive is truncated")) {
			t.Errorf("cut to %d bytes of %d: %v", size, len(whole), err)
		}
	}
}

// Bits that were flipped anywhere are an error, or nowhere where it matters.
func TestArchiveFlipped(t *testing.T) {
	whole := anArchive(t)
	path := fileOf(t, whole)
	rng := rand.New(rand.NewPCG(1, 2))
	damaged := 0
	for range 500 {
		b := bytes.Clone(whole)
		b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		writeFile(t, path, b)
		if readImage(t.Context(), newClient(t, Options{}), "oci-archive:"+path) != nil {
			damaged++
		}
	}
	if damaged < 100 || damaged == 500 {
		t.Errorf("%d of 500 were damaged", damaged)
	}
}

func TestArchiveRefused(t *testing.T) {
	good := anArchive(t)
	member := func(name string) []byte { return tarOf(t, map[string][]byte{name: []byte("x")}) }
	for name, tc := range map[string]struct {
		archive []byte
		want    string
	}{
		"empty":          {nil, "the archive is truncated"},
		"text":           {[]byte(strings.Repeat("text ", 1000)), "not a tar file"},
		"short text":     {[]byte("text"), "truncated, after 0 members"},
		"damaged header": {append(bytes.Clone(good[:1024]), bytes.Repeat([]byte("x"), 2048)...), "after 1 members"},
		"zstd":           {append([]byte("\x28\xb5\x2f\xfd"), good...), "compressed with zstd, of which no part can be read alone: unpack it first, as \"zstd -d /"},
		"xz":             {append([]byte("\xfd7zXZ\x00"), good...), "compressed with xz"},
		"bzip2":          {append([]byte("BZh91AY&SY"), good...), "compressed with bzip2"},
		"lz4":            {append([]byte("\x04\x22\x4d\x18"), good...), "compressed with lz4"},
		"cut gzip":       {gzipped(t, good)[:100], "which TMPDIR can change: it is truncated"},
		"very cut gzip":  {gzipped(t, good)[:5], "unpack the archive to a temporary file in "},
		"damaged gzip":   {append(gzipped(t, good)[:10], "garbage garbage garbage"...), "unpack the archive to a temporary file in "},
		"gzip of text":   {gzipped(t, []byte(strings.Repeat("text ", 1000))), "not a tar file"},
		"bomb":           {gzipped(t, make([]byte, 4<<20)), "more than 1048576 bytes"},
		"absolute name":  {member("/etc/passwd"), `member "/etc/passwd": its name leads outside`},
		"..":             {member(".."), "leads outside"},
		"../x":           {member("../x"), "leads outside"},
		"a/../../x":      {member("a/../../x"), "leads outside"},
		"a/..":           {member("a/.."), "leads outside"},
		"docker archive": {oldDockerArchive(t, "app:1", nil), "written docker-archive:PATH"},
	} {
		err := readImage(t.Context(), newClient(t, Options{}), "oci-archive:"+fileOf(t, tc.archive))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	for want, make := range map[string]func(path string) error{
		"is a folder; an image layout is written oci:PATH": func(path string) error { return os.Mkdir(path, 0o755) },
		"is not a regular file":                            func(path string) error { return unix.Mkfifo(path, 0o644) },
		"too many levels of symbolic links":                func(path string) error { return os.Symlink(path, path) },
	} {
		path := t.TempDir() + "/archive"
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if err := readImage(t.Context(), newClient(t, Options{}), "oci-archive:"+path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestArchiveMembers(t *testing.T) {
	b := tarOf(t, map[string][]byte{"x/file": []byte("file"), "./dot": []byte("dot"), "odd//name": []byte("odd")},
		tar.Header{Typeflag: tar.TypeDir, Name: "x/"},
		tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "y/link", Linkname: "../x/file"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "y/link2", Linkname: "link"},
		tar.Header{Typeflag: tar.TypeLink, Name: "y/hard", Linkname: "./x/file"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "loop", Linkname: "loop"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "dangling", Linkname: "nowhere"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "to-folder", Linkname: "x"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "../dot"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "absolute", Linkname: "/dot"},
		tar.Header{Typeflag: tar.TypeLink, Name: "hard-out", Linkname: "../dot"},
	)
	m := &members{}
	if err := m.read(t.Context(), bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
	tree := &archiveTree{members: m, f: open(t, fileOf(t, b))}
	for name, want := range map[string]string{
		"x/file": "file", "dot": "dot", "odd/name": "odd", "y/link": "file", "y/link2": "file", "y/hard": "file",
	} {
		if got, err := readFile(tree, name, 10); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{
		"x": "not a regular file", "pipe": "not a regular file", "to-folder": "not a regular file",
		"loop": "more than 8 links", "dangling": "file does not exist", "nothing": "file does not exist", "": "file does not exist",
		"out": "leads outside", "absolute": "leads outside", "hard-out": "leads outside", "..": "outside",
	} {
		if got, err := readFile(tree, name, 10); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	if got, err := readFile(tree, "x/file", 3); err == nil {
		t.Errorf("read more than allowed: %q", got)
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// The data of a sparse file is in pieces, and no file to read.
func TestArchiveSparse(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/file", append(make([]byte, 1<<20), "data"...))
	if err := os.Truncate(dir+"/file", 2<<20); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "posix"} {
		run(t, "tar", "-C", dir, "--hole-detection=raw", "--sparse", "--format="+format, "-cf", dir+"/a.tar", "file")
		b := readAll(t, dir+"/a.tar")
		m := &members{}
		if err := m.read(t.Context(), bytes.NewReader(b), int64(len(b))); err != nil || len(b) > 1<<20 {
			t.Errorf("%s: %d bytes, %v", format, len(b), err)
		}
		if one, err := m.lookup("file"); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: found %+v, %v", format, one, err)
		}
	}
}

// An archive's headers are read once, until it is replaced. What was in the old
// one and is not in the new one is not found.
func TestArchiveReplaced(t *testing.T) {
	one, two := newLayout(t), newLayout(t)
	one.list(tagged(one.image([]byte("1")), "a"))
	two.list(tagged(two.image([]byte("2")), "a"))
	for _, pack := range []func(testing.TB, []byte) []byte{func(_ testing.TB, b []byte) []byte { return b }, gzipped} {
		path := fileOf(t, pack(t, tarOf(t, one.files)))
		ref := "oci-archive:" + path
		c := newClient(t, Options{})
		before := c.resolve(t, ref)
		known := c.archives[path].now
		body, _, err := c.Blob(before, before.Layers[0].Descriptor).Open(t.Context(), 0, before.Layers[0].Size)
		if err != nil {
			t.Fatal(err)
		}
		c.resolve(t, ref)
		if c.archives[path].now != known {
			t.Error("the headers were read again")
		}
		if err := os.Rename(fileOf(t, pack(t, tarOf(t, two.files))), path); err != nil {
			t.Fatal(err)
		}
		if after := c.resolve(t, ref+":a"); after.Digest == before.Digest {
			t.Error("still the old image")
		}
		if _, _, err := c.Blob(before, before.Layers[0].Descriptor).Open(t.Context(), 0, 1); !errors.Is(err, ErrNotFound) {
			t.Errorf("the old layer: %v", err)
		}
		if got, err := io.ReadAll(body); err != nil || digest.FromBytes(got) != before.Layers[0].Digest {
			t.Errorf("a body that was open: %d bytes, %v", len(got), err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// However many read at once, the archive is unpacked once, and nothing is left
// open.
func TestArchiveConcurrently(t *testing.T) {
	path := fileOf(t, gzipped(t, anArchive(t)))
	before := openFiles(t)
	c := newClient(t, Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := readImage(t.Context(), c, "oci-archive:"+path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := openFiles(t); n != before+1 {
		t.Errorf("%d files are open, before there were %d", n, before)
	}
	c.Close()
	if n := openFiles(t); n != before {
		t.Errorf("%d files are open after Close, before there were %d", n, before)
	}
	if err := readImage(t.Context(), c, "oci-archive:"+path); err != nil {
		t.Errorf("after Close: %v", err)
	}
}

func TestArchiveCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, b := range [][]byte{anArchive(t), gzipped(t, anArchive(t))} {
		path := fileOf(t, b)
		c := newClient(t, Options{})
		if err := readImage(ctx, c, "oci-archive:"+path); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if err := readImage(t.Context(), c, "oci-archive:"+path); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
}

func TestArchiveTooManyMembers(t *testing.T) {
	one := tarOf(t, map[string][]byte{"x": nil})[:512]
	b := bytes.Repeat(one, maxMembers+1)
	m := &members{}
	if err := m.read(t.Context(), bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), "more than 100000 members") {
		t.Errorf("got %v", err)
	}
	b = b[512:]
	if err := m.read(t.Context(), bytes.NewReader(b), int64(len(b))); err != nil || len(m.byName) != 1 {
		t.Errorf("%d members, %v", len(m.byName), err)
	}
}

// What the index of an archive says is what archive/tar reads.
func FuzzArchiveMembers(f *testing.F) {
	f.Add(tarOf(f, map[string][]byte{"./x": bytes.Repeat([]byte("x"), 600), "y": nil}, tar.Header{Typeflag: tar.TypeSymlink, Name: "z/y", Linkname: "../y"}))
	f.Add(tarOf(f, map[string][]byte{"x": []byte("x")}, tar.Header{Typeflag: tar.TypeLink, Name: "y", Linkname: "x"},
		tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("long/", 60) + "name", PAXRecords: map[string]string{"VENDOR.x": "y"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		all := &members{}
		if all.read(t.Context(), bytes.NewReader(b), int64(len(b))) != nil {
			return
		}
		read := map[int64][]byte{} // contents by offset
		at := bytes.NewReader(b)
		for r := tar.NewReader(at); ; {
			h, err := r.Next()
			if err != nil {
				break
			}
			off := at.Size() - int64(at.Len())
			if h.Typeflag == tar.TypeReg {
				read[off], _ = io.ReadAll(r)
			}
		}
		for name, m := range all.byName {
			if !fs.ValidPath(strings.ToValidUTF8(name, "x")) || m.size > int64(len(b))-m.off {
				t.Errorf("%q: %+v of %d bytes", name, m, len(b))
			} else if m.size >= 0 && m.link == "" && !bytes.Equal(read[m.off], b[m.off:m.off+m.size]) {
				t.Errorf("%q: %q, want %q", name, b[m.off:m.off+m.size], read[m.off])
			}
			if _, err := all.lookup(name); err == nil && m.size < 0 && m.link == "" {
				t.Errorf("%q: %+v was found", name, m)
			}
		}
	})
}

func BenchmarkArchiveBlob(b *testing.B) {
	l := newLayout(b)
	l.list(l.image(tarOf(b, map[string][]byte{"x": randomBytes(8 << 20)})))
	for name, ref := range map[string]string{"layout": "oci:" + folderOf(b, l.files), "archive": "oci-archive:" + fileOf(b, tarOf(b, l.files))} {
		c := newClient(b, Options{})
		img := c.resolve(b, ref)
		blob := c.Blob(img, img.Layers[0].Descriptor)
		for _, n := range []int64{64 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", name, n>>10), func(b *testing.B) {
				b.SetBytes(n)
				buf := make([]byte, n)
				for b.Loop() {
					body, _, err := blob.Open(b.Context(), 4096, n)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(body, buf); err != nil {
						b.Fatal(err)
					}
					_ = body.Close()
				}
			})
		}
	}
}
