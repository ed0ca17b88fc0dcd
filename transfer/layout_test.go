package transfer

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// inBoth runs a test on a layout in a folder and in an archive.
func (l *testLayout) inBoth(test func(kind, ref string)) {
	l.t.Helper()
	test("folder", "oci:"+folderOf(l.t, l.files))
	test("archive", "oci-archive:"+fileOf(l.t, tarOf(l.t, l.files)))
}

func TestLayoutTags(t *testing.T) {
	l := newLayout(t)
	one, two, three := l.image([]byte("1")), l.image([]byte("2")), l.image([]byte("3"))
	full := tagged(three, "3")
	full.Annotations[containerdName] = "docker.io/library/app:3"
	l.list(tagged(one, "1"), tagged(one, "one"), tagged(two, "docker.io/library/app:2"), full)
	l.inBoth(func(kind, ref string) {
		c := newClient(t, Options{})
		for tag, want := range map[string]digest.Digest{
			":1":                       one.Digest,
			":one":                     one.Digest,
			":docker.io/library/app:2": two.Digest,
			":3":                       three.Digest,
			":docker.io/library/app:3": three.Digest,
			"@" + two.Digest.String():  two.Digest,
		} {
			if img := c.resolve(t, ref+tag); img.Digest != want || img.Reference != ref+tag || img.IndexDigest != "" {
				t.Errorf("%s %s: %+v, want %s", kind, tag, img, want)
			}
		}
		const choices = "there is :1, :docker.io/library/app:2, :docker.io/library/app:3"
		for tag, want := range map[string]string{
			"":                                    "several images, and the reference must say which; " + choices,
			":":                                   "several images",
			":4":                                  `no image has the tag "4"; ` + choices,
			"@" + one.Digest.String() + "0":       "digest",
			"@" + digest.FromString("x").String(): "no such file",
		} {
			_, err := c.Resolve(t.Context(), ref+tag)
			if kind == "archive" {
				want = strings.Replace(want, "no such file", "file does not exist", 1)
			}
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "resolve "+ref+tag) {
				t.Errorf("%s %q: %v, want %q", kind, tag, err, want)
			}
			if notFound := tag == ":4" || strings.HasPrefix(want, "no such") || strings.HasPrefix(want, "file does"); errors.Is(err, ErrNotFound) != notFound {
				t.Errorf("%s %q: not found: %v", kind, tag, err)
			}
		}
	})
}

func onPlatform(d ocispec.Descriptor, s string) ocispec.Descriptor {
	p, err := parsePlatform(s)
	if err != nil {
		panic(err)
	}
	d.Platform = &ocispec.Platform{OS: p.os, Architecture: p.arch, Variant: p.variant}
	return d
}

func TestLayoutPlatforms(t *testing.T) {
	l := newLayout(t)
	amd, arm := onPlatform(l.image([]byte("amd")), "linux/amd64"), onPlatform(l.image([]byte("arm")), "linux/arm64")
	index := l.blob(ocispec.MediaTypeImageIndex, marshal(t, ocispec.Index{Versioned: l.index.Versioned, Manifests: []ocispec.Descriptor{amd, arm}}))
	nested := l.blob(ocispec.MediaTypeImageIndex, marshal(t, ocispec.Index{Versioned: l.index.Versioned, Manifests: []ocispec.Descriptor{index}}))
	for name, tc := range map[string]struct {
		entries []ocispec.Descriptor
		tag     string
	}{
		"an index":                {[]ocispec.Descriptor{index}, ""},
		"a tagged index":          {[]ocispec.Descriptor{tagged(index, "1"), tagged(amd, "2")}, ":1"},
		"an index in an index":    {[]ocispec.Descriptor{nested}, ""},
		"images":                  {[]ocispec.Descriptor{amd, arm}, ""},
		"images with one tag":     {[]ocispec.Descriptor{tagged(amd, "1"), tagged(arm, "1"), tagged(index, "2")}, ":1"},
		"images, and what refers": {[]ocispec.Descriptor{amd, arm, l.referrer(amd, indexType, "")}, ""},
	} {
		l.index.Manifests = nil
		l.list(tc.entries...)
		l.inBoth(func(kind, ref string) {
			for platform, want := range map[string]digest.Digest{"linux/amd64": amd.Digest, "linux/arm64/v8": arm.Digest} {
				img, err := newClient(t, Options{Platform: platform}).Resolve(t.Context(), ref+tc.tag)
				if err != nil || img.Digest != want || img.IndexDigest == "" {
					t.Errorf("%s in a %s: %s is %+v, %v", name, kind, platform, img, err)
				}
			}
			_, err := newClient(t, Options{Platform: "linux/riscv64"}).Resolve(t.Context(), ref+tc.tag)
			if err == nil || !strings.Contains(err.Error(), "there is one for linux/amd64, linux/arm64") {
				t.Errorf("%s in a %s: %v", name, kind, err)
			}
		})
	}
}

// What hangs on an image does not make the image ambiguous.
func TestLayoutOnlyImage(t *testing.T) {
	l := newLayout(t)
	d := l.image([]byte("1"))
	typed := l.referrer(d, "application/x", "")
	typed.ArtifactType = "application/x"
	fallback := l.blob(ocispec.MediaTypeImageIndex, marshal(t, ocispec.Index{Versioned: l.index.Versioned, Manifests: []ocispec.Descriptor{typed}}))
	unsaid := l.referrer(d, "application/y", "")
	unsaid.ArtifactType = ocispec.MediaTypeImageConfig
	d.ArtifactType = ocispec.MediaTypeImageConfig // as some tools write it
	l.list(typed, unsaid, l.referrer(d, "application/z", ""), tagged(fallback, fallbackTag(d.Digest)),
		ocispec.Descriptor{MediaType: "application/xml", Digest: digest.SHA512.FromString("x")}, d)
	l.inBoth(func(kind, ref string) {
		if img := newClient(t, Options{}).resolve(t, ref); img.Digest != d.Digest {
			t.Errorf("%s: %+v", kind, img)
		}
	})
}

// Every kind of damage is an error that says what it is.
func TestLayoutDamage(t *testing.T) {
	l := newLayout(t)
	d := l.image([]byte("layer"))
	manifest := blobName(d.Digest)
	doc, err := parseDocument(l.files[manifest])
	if err != nil {
		t.Fatal(err)
	}
	config := blobName(doc.Config.Digest)
	l.list(tagged(d, "1"))
	good := l.files
	larger := d
	larger.Size++
	for name, tc := range map[string]struct {
		damage func(map[string][]byte)
		want   string
		is     error
	}{
		"no oci-layout":      {func(f map[string][]byte) { delete(f, "oci-layout") }, "not an OCI image layout, which has a file oci-layout", nil},
		"docker archive":     {func(f map[string][]byte) { delete(f, "oci-layout"); f["manifest.json"] = nil }, "written docker-archive:PATH", nil},
		"oci-layout is HTML": {func(f map[string][]byte) { f["oci-layout"] = []byte("<html>") }, "read oci-layout: invalid character", nil},
		"layout version":     {func(f map[string][]byte) { f["oci-layout"] = []byte(`{"imageLayoutVersion":"2.0.0"}`) }, `imageLayoutVersion "2.0.0"`, nil},
		"no index":           {func(f map[string][]byte) { delete(f, "index.json") }, "index.json: ", ErrNotFound},
		"cut index":          {func(f map[string][]byte) { f["index.json"] = f["index.json"][:20] }, "read index.json: unexpected end", nil},
		"index version":      {func(f map[string][]byte) { f["index.json"] = []byte("{}") }, "schemaVersion is 0", nil},
		"index is manifest":  {func(f map[string][]byte) { f["index.json"] = f[manifest] }, "a manifest, not an index", nil},
		"huge index":         {func(f map[string][]byte) { f["index.json"] = bytes.Repeat([]byte(" "), maxManifest+1) }, "more than 4194304", nil},
		"no image":           {func(f map[string][]byte) { f["index.json"] = []byte(`{"schemaVersion":2,"manifests":null}`) }, "there is no image", ErrNotFound},
		"no manifest":        {func(f map[string][]byte) { delete(f, manifest) }, "read manifest " + d.Digest.String(), ErrNotFound},
		"flipped manifest":   {func(f map[string][]byte) { f[manifest] = append(f[manifest][:d.Size-1], ' ') }, "what is there has digest", nil},
		"cut manifest":       {func(f map[string][]byte) { f[manifest] = f[manifest][1:] }, "its descriptor says", nil},
		"another size": {func(f map[string][]byte) {
			f["index.json"] = marshal(t, ocispec.Index{Versioned: l.index.Versioned, Manifests: []ocispec.Descriptor{tagged(larger, "1")}})
		}, "its descriptor says", nil},
		"no config":      {func(f map[string][]byte) { delete(f, config) }, "read blob " + doc.Config.Digest.String(), ErrNotFound},
		"flipped config": {func(f map[string][]byte) { f[config] = append([]byte(" "), f[config][1:]...) }, "what came has digest", nil},
		"cut config":     {func(f map[string][]byte) { f[config] = f[config][1:] }, "but its descriptor says", nil},
		"hostile digest": {func(f map[string][]byte) {
			f["index.json"] = []byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","annotations":{"org.opencontainers.image.ref.name":"1"}}]}`)
		}, "digest", nil},
		"hostile tags": {func(f map[string][]byte) {
			f["index.json"] = bytes.ReplaceAll(f["index.json"], []byte(`"1"`), []byte(`"\u001b[31m"`))
		}, `there is ":\x1b[31m"`, ErrNotFound},
	} {
		l.files = map[string][]byte{}
		for name, b := range good {
			l.files[name] = bytes.Clone(b)
		}
		tc.damage(l.files)
		l.inBoth(func(kind, ref string) {
			img, err := newClient(t, Options{}).Resolve(t.Context(), ref+":1")
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("%s of a %s: %+v, %v; want %q", name, kind, img, err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) || tc.is == nil && (errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnavailable)) {
				t.Errorf("%s of a %s: %v is not %v", name, kind, err, tc.is)
			}
		})
	}
}

// Nothing outside of the layout's folder is read.
func TestLayoutFolderEscapes(t *testing.T) {
	l := newLayout(t)
	d := l.image([]byte("layer"))
	l.list(d)
	manifest := blobName(d.Digest)
	for name, tc := range map[string]struct {
		damage func(dir string) error
		want   string
	}{
		"absolute link": {func(dir string) error { return os.Symlink(filepath.Dir(dir)+"/outside", dir+"/"+manifest) }, "escapes"},
		"relative link": {func(dir string) error { return os.Symlink("../../../outside", dir+"/"+manifest) }, "escapes"},
		"link to blobs": {func(dir string) error {
			return errors.Join(os.Rename(dir+"/blobs", filepath.Dir(dir)+"/blobs"), os.Symlink("../blobs", dir+"/blobs"))
		}, "escapes"},
		"link within": {func(dir string) error {
			return errors.Join(os.Rename(dir+"/../outside", dir+"/in"), os.Symlink("../../in", dir+"/"+manifest))
		}, ""},
		"link to itself": {func(dir string) error { return os.Symlink(filepath.Base(manifest), dir+"/"+manifest) }, "symbolic link"},
		"a folder":       {func(dir string) error { return os.Mkdir(dir+"/"+manifest, 0o755) }, "not a regular file"},
		"a pipe":         {func(dir string) error { return unix.Mkfifo(dir+"/"+manifest, 0o644) }, "not a regular file"},
		"index.json a pipe": {func(dir string) error {
			return errors.Join(os.Remove(dir+"/index.json"), unix.Mkfifo(dir+"/index.json", 0o644))
		}, "not a regular file"},
	} {
		dir := folderOf(t, l.files)
		err := os.Rename(dir+"/"+manifest, dir+"/../outside")
		if err = errors.Join(err, tc.damage(dir)); err != nil {
			t.Fatal(err)
		}
		img, err := newClient(t, Options{}).Resolve(t.Context(), "oci:"+dir)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %+v, %v; want %q", name, img, err, tc.want)
		}
	}
}

func TestLayoutIsNoFolder(t *testing.T) {
	pipe := t.TempDir() + "/pipe"
	if err := unix.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fileOf(t, nil), pipe} {
		if _, err := newClient(t, Options{}).Resolve(t.Context(), "oci:"+path); err == nil || !strings.Contains(err.Error(), "a tar file is written oci-archive:PATH") {
			t.Errorf("got %v", err)
		}
	}
}

func TestLayoutReferrers(t *testing.T) {
	l := newLayout(t)
	d, other := l.image([]byte("1")), l.image([]byte("2"))
	direct := l.referrer(d, indexType, "direct") // listed as a tool does that looks at the config alone
	direct.ArtifactType = ocispec.MediaTypeEmptyJSON
	typed := l.referrer(d, "application/other", "typed")
	typed.ArtifactType = "application/other"
	nested := l.referrer(d, indexType, "nested")
	fallback := l.blob(ocispec.MediaTypeImageIndex, marshal(t, ocispec.Index{Versioned: l.index.Versioned, Manifests: []ocispec.Descriptor{nested, direct}}))
	gone := descriptor(ocispec.MediaTypeImageManifest, []byte("gone"))
	bad := l.blob(ocispec.MediaTypeImageManifest, []byte("bad"))
	l.list(tagged(d, "1"), tagged(other, "2"), gone, bad, direct, typed, l.referrer(other, indexType, "of another"), tagged(fallback, fallbackTag(d.Digest)))
	l.inBoth(func(kind, ref string) {
		for _, ahead := range []bool{false, true} {
			c := newClient(t, Options{ReferrersAhead: ahead})
			for artifactType, want := range map[string]string{"": "direct typed nested", indexType: "direct nested", "application/none": ""} {
				img := c.resolve(t, ref+":1")
				list, err := c.Referrers(t.Context(), img, artifactType)
				var got []string
				for _, d := range list {
					got = append(got, d.Annotations["note"])
					if a, err := c.Artifact(t.Context(), img, d); err != nil || a.ArtifactType != d.ArtifactType || a.ArtifactType == "" || a.Annotations["note"] != d.Annotations["note"] {
						t.Errorf("%s: artifact %+v, %v", kind, a, err)
					}
				}
				if s := strings.Join(got, " "); err != nil || s != want {
					t.Errorf("%s: type %q: %s, %v; want %s", kind, artifactType, s, err, want)
				}
			}
		}
	})
}

func TestLayoutIndexLoop(t *testing.T) {
	l := newLayout(t)
	d := l.image([]byte("1"))
	for range maxIndexDepth + 1 {
		d = l.blob(ocispec.MediaTypeImageIndex, marshal(t, ocispec.Index{Versioned: l.index.Versioned, Manifests: []ocispec.Descriptor{d}}))
	}
	l.list(d)
	if _, err := newClient(t, Options{}).Resolve(t.Context(), "oci:"+folderOf(t, l.files)); err == nil || !strings.Contains(err.Error(), "within each other") {
		t.Errorf("got %v", err)
	}
}

// Layouts that umoci wrote, and reads again after an artifact was attached.
func TestUmoci(t *testing.T) {
	dir, tree := t.TempDir()+"/layout", t.TempDir()
	writeFile(t, tree+"/file", randomBytes(100_000))
	c := newClient(t, Options{})
	run(t, "umoci", "init", "--layout", dir)
	if _, err := c.Resolve(t.Context(), "oci:"+dir); err == nil || !strings.Contains(err.Error(), "lists no image") {
		t.Errorf("an empty layout: %v", err)
	}
	run(t, "umoci", "new", "--image", dir+":base")
	run(t, "umoci", "insert", "--rootless", "--image", dir+":base", "--tag", "app", tree, "/app")
	if _, err := c.Resolve(t.Context(), "oci:"+dir); err == nil || !strings.Contains(err.Error(), ":base") || !strings.Contains(err.Error(), ":app") {
		t.Errorf("two images: %v", err)
	}
	if img := c.resolve(t, "oci:"+dir+":base"); len(img.Layers) != 0 {
		t.Errorf("an empty image: %+v", img.Layers)
	}
	img := c.resolve(t, "oci:"+dir+":app")
	d := push(t, c, img, indexType, BytesBlob("application/x", nil, []byte("data")))
	run(t, "umoci", "gc", "--layout", dir)
	if out := run(t, "umoci", "ls", "--layout", dir); !strings.Contains(out, "app") || !strings.Contains(out, "base") {
		t.Errorf("umoci lists %s", out)
	}
	run(t, "umoci", "unpack", "--rootless", "--image", dir+":app", t.TempDir()+"/bundle")
	run(t, "skopeo", "copy", "oci:"+dir+":app", "oci-archive:"+t.TempDir()+"/a.tar:app")
	list, err := c.Referrers(t.Context(), img, indexType)
	if err != nil || len(list) != 1 || list[0].Digest != d {
		t.Fatalf("after umoci: %+v, %v", list, err)
	}
	if err := c.FetchBlob(t.Context(), img, descriptor("", []byte("data")), io.Discard); err != nil {
		t.Error(err)
	}
}

func FuzzLayoutIndex(f *testing.F) {
	l := newLayout(f)
	d := l.image([]byte("1"))
	l.list(tagged(d, "1"), l.referrer(d, indexType, ""), onPlatform(d, "linux/arm64"))
	f.Add(l.files["index.json"], "1")
	f.Add([]byte(`{"schemaVersion":2,"manifests":null}`), "")
	f.Fuzz(func(t *testing.T, index []byte, tag string) {
		l.files["index.json"] = index
		files := mapFS(l.files)
		raw, doc, err := findImage(files, tag)
		if err == nil && (doc == nil || !bytes.Equal(raw, index) && l.files[blobName(digest.FromBytes(raw))] == nil) {
			t.Errorf("found %q", raw)
		}
		s := subjectSearch{t: files, subject: d.Digest, seen: map[digest.Digest]bool{}}
		_, entries, err := readIndex(files)
		if err != nil {
			return
		}
		if err := s.search(t.Context(), entries, 0); err != nil || len(s.found) > 1 {
			t.Errorf("found %+v, %v", s.found, err)
		}
		added, err := addEntry(index, d)
		if err != nil {
			return // what it lists is no list of descriptors
		}
		again, err := parseIndex(added)
		if err != nil || len(again) != len(entries)+1 || again[len(entries)].Digest != d.Digest {
			t.Errorf("%d entries and one more are %d, %v", len(entries), len(again), err)
		}
	})
}
