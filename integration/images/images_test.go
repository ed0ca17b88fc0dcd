package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("making images takes root")
	}
	t.Skip("making images takes root")
}

// list returns the names in a tar, each with its type and what it links to.
func list(t *testing.T, r io.Reader) []string {
	t.Helper()
	var names []string
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.TrimSpace(fmt.Sprintf("%c %s %s", h.Typeflag, h.Name, h.Linkname)))
	}
}

func TestPythonImage(t *testing.T) {
	needRoot(t)
	img, err := Python(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 4 {
		t.Fatalf("got %d layers, %v, want 4", len(layers), err)
	}
	want := []string{ // of each layer, some names
		"5 ./|2 ./bin usr/bin|0 ./usr/bin/env",
		"0 usr/bin/python3.11|5 usr/lib/python3.11/json/",
		"5 usr/lib/python3/dist-packages/django/",
		"0 app/main.py|0 usr/share/.wh.doc|0 etc/skel/.wh..wh..opq|1 opt/odd/link app/link|4 opt/odd/block|6 opt/odd/fifo",
	}
	for i, l := range layers {
		contents, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		got := list(t, contents)
		contents.Close()
		for name := range strings.SplitSeq(want[i], "|") {
			if !slices.Contains(got, name) {
				t.Errorf("layer %d of %d names has no %q", i+1, len(got), name)
			}
		}
	}
	again, err := Python(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, _ := img.Digest()
	if second, err := again.Digest(); first != second {
		t.Errorf("the cache gave %v and then %v, %v", first, second, err)
	}
}

// TestImagesShareTheirBase makes the smallest of the other images of programs.
func TestImagesShareTheirBase(t *testing.T) {
	needRoot(t)
	base, err := Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want, err := base.Layers()
	if err != nil || len(want) != 1 {
		t.Fatalf("the base has %d layers, %v, want 1", len(want), err)
	}
	digest, _ := want[0].Digest()
	for _, make := range []func(context.Context) (*Image, error){Python, Nginx} {
		img, err := make(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := img.Manifest()
		if err != nil || manifest.Layers[0].Digest != digest {
			t.Errorf("%s has not the layers of the base, %v", img.Name, err)
		}
	}
}

func TestNginxImage(t *testing.T) {
	needRoot(t)
	img, err := Nginx(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 3 {
		t.Fatalf("got %d layers, %v, want 3", len(layers), err)
	}
	contents, err := layers[1].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer contents.Close()
	got := list(t, contents)
	if want := "0 usr/sbin/nginx"; !slices.Contains(got, want) {
		t.Errorf("there is no %q", want)
	}
	for _, name := range got {
		if strings.Contains(name, "policy-rc.d") || strings.Contains(name, " proc/") {
			t.Errorf("installing left %q", name)
		}
	}
}

func TestChanges(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	all := together(app("gcc"), file("note", "text"), func(_ context.Context, root string) error {
		return remove(root, "app/*.c")
	})
	if err := all(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(root, "app/main.sh")); err != nil || info.Mode() != 0o755 {
		t.Errorf("the program is %v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(root, "app/main.c")); !os.IsNotExist(err) {
		t.Errorf("what was removed is there (%v)", err)
	}
	failed := together(app("no such program"), file("late", ""))
	if err := failed(t.Context(), root); err == nil || !strings.Contains(err.Error(), "no such program") {
		t.Errorf("got error %v, want one that names the program", err)
	}
	if _, err := os.Stat(filepath.Join(root, "late")); !os.IsNotExist(err) {
		t.Errorf("a change was made after one that failed (%v)", err)
	}
}

func TestOverlayDiff(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	lower := filepath.Join(dir, "lower")
	for _, name := range []string{"gone", "kept", "emptied/old", "dir/below"} {
		if err := os.MkdirAll(filepath.Join(lower, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	upper, err := overlay(t.Context(), filepath.Join(dir, "scratch"), []string{lower}, func(_ context.Context, root string) error {
		at := func(name string) string { return filepath.Join(root, name) }
		for _, err := range []error{
			os.Remove(at("gone")),
			os.RemoveAll(at("emptied")),
			os.Mkdir(at("emptied"), 0o700),
			os.WriteFile(at("emptied/new"), []byte("new"), 0o640),
			os.Link(at("emptied/new"), at("hard")),
			os.Symlink("emptied", at("soft")),
			unix.Lsetxattr(at("hard"), "user.x", []byte("\x00="), 0),
		} {
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var diff bytes.Buffer
	if err := writeDiff(&diff, upper); err != nil {
		t.Fatal(err)
	}
	got := list(t, bytes.NewReader(diff.Bytes()))
	want := []string{
		"5 ./", "5 emptied/", "0 emptied/.wh..wh..opq", "0 emptied/new",
		"0 .wh.gone", "1 hard emptied/new", "2 soft emptied",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if !bytes.Contains(diff.Bytes(), []byte("SCHILY.xattr.user.x=\x00=\n")) {
		t.Error("the extended attribute is not in the tar")
	}
	if bytes.Contains(diff.Bytes(), []byte(overlayXattrs)) {
		t.Error("overlayfs's own attributes are in the tar")
	}
}

func TestOverlayUnmountsAfterAFailure(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	lower := filepath.Join(dir, "lower")
	if err := os.Mkdir(lower, 0o755); err != nil {
		t.Fatal(err)
	}
	var mounted string
	_, err := overlay(t.Context(), filepath.Join(dir, "scratch"), []string{lower}, func(_ context.Context, root string) error {
		mounted = root
		return os.ErrInvalid
	})
	if err != os.ErrInvalid {
		t.Errorf("got error %v, want the change's own", err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), mounted) {
		t.Errorf("%s is still mounted (%v)", mounted, err)
	}
}

func TestEncodings(t *testing.T) {
	text := make([]byte, 5*memberSize/2)
	rand.NewChaCha8([32]byte{}).Read(text)
	for _, test := range []struct {
		encoding Encoding
		members  int
	}{{Gzip, 1}, {Members, 3}, {Tar, 0}} {
		t.Run(string(test.encoding), func(t *testing.T) {
			l, err := writeLayer(filepath.Join(t.TempDir(), "layer"), test.encoding, func(w io.Writer) error {
				for chunk := range slices.Chunk(text, 1000) {
					if _, err := w.Write(chunk); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			blob, err := os.ReadFile(l.path)
			if err != nil {
				t.Fatal(err)
			}
			if got := members(t, blob); got != test.members {
				t.Errorf("got %d gzip members, want %d", got, test.members)
			}
			out, err := l.Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			if got, err := io.ReadAll(out); err != nil || !bytes.Equal(got, text) {
				t.Errorf("got %d bytes back, %v, not the %d that were written", len(got), err, len(text))
			}
			checkHash(t, "digest", l.digest, blob)
			checkHash(t, "diffID", l.diffID, text)
			if l.size != int64(len(blob)) {
				t.Errorf("got size %d, want %d", l.size, len(blob))
			}
		})
	}
}

func checkHash(t *testing.T, what string, got v1.Hash, of []byte) {
	t.Helper()
	if want, _, err := v1.SHA256(bytes.NewReader(of)); got != want {
		t.Errorf("%s is %v, want %v (%v)", what, got, want, err)
	}
}

// members counts the members of a gzip file; 0 if it is none.
func members(t *testing.T, blob []byte) int {
	t.Helper()
	in := bytes.NewReader(blob)
	z, err := gzip.NewReader(in)
	if err == gzip.ErrHeader {
		return 0
	}
	for n := 1; ; n++ {
		if err != nil {
			t.Fatal(err)
		}
		z.Multistream(false)
		if _, err := io.Copy(io.Discard, z); err != nil {
			t.Fatal(err)
		}
		if err = z.Reset(in); err == io.EOF {
			return n
		}
	}
}

func TestFilesAreTheSameEverywhere(t *testing.T) {
	var first, second bytes.Buffer
	for _, w := range []*bytes.Buffer{&first, &second} {
		if err := writeFiles(t.Context(), w, 2, 50); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two runs wrote different bytes")
	}
	names := list(t, &first)
	if want := 2 + 2 + 2*50; len(names) != want {
		t.Errorf("got %d names, want %d", len(names), want)
	}
}

func TestDebianSources(t *testing.T) {
	const deb822 = `Types: deb
# a comment: with a colon
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
`
	tests := []struct {
		name, file, text string
		want             string // substrings of what is taken, joined by "|"; empty for an error
	}{
		{"deb822", "sources.list.d/debian.sources", deb822, "Suites: bookworm bookworm-updates|debian-security"},
		{"one line", "sources.list", "deb http://mirror.example/debian/ bookworm main\n", "bookworm main"},
		{"with options", "sources.list.d/a.list", "deb [ arch=amd64 signed-by=/k ] http://m.example/debian bookworm-updates main", "signed-by"},
		{"sources only", "sources.list", "deb-src http://mirror.example/debian bookworm main\n", ""},
		{"commented", "sources.list", "# deb http://mirror.example/debian bookworm main\n", ""},
		{"another release", "sources.list", "deb http://mirror.example/debian trixie main\n", ""},
		{"backports", "sources.list", "deb http://mirror.example/debian bookworm-backports main\n", ""},
		{"another vendor, same suite", "sources.list", "deb http://vendor.example/linux bookworm main\n", ""},
		{"another vendor, own component", "sources.list", "deb http://vendor.example/linux/debian bookworm stable\n", ""},
		{"disabled", "sources.list.d/debian.sources", "Enabled: no\n" + strings.Split(deb822, "\n\n")[0], ""},
		{"not a sources file", "sources.list.d/debian.sources.disabled", deb822, ""},
		{"nothing", "sources.list", "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			etc := t.TempDir()
			if err := os.Mkdir(filepath.Join(etc, "sources.list.d"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(etc, test.file), []byte(test.text), 0o644); err != nil {
				t.Fatal(err)
			}
			files, err := debianSources(etc, "bookworm")
			if (err == nil) != (test.want != "") {
				t.Fatalf("got %v, error %v", files, err)
			}
			got := files["debian.list"] + files["debian.sources"]
			for want := range strings.SplitSeq(test.want, "|") {
				if !strings.Contains(got, want) {
					t.Errorf("got %q, want it to hold %q", got, want)
				}
			}
		})
	}
}

func TestCodename(t *testing.T) {
	for text, want := range map[string]string{
		"ID=debian\nVERSION_CODENAME=bookworm\n": "bookworm",
		"VERSION_CODENAME=\"trixie\"":            "trixie",
		"ID=debian\nNAME=sid\n":                  "",
	} {
		if got, err := codename(text); got != want || (err == nil) != (want != "") {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}
