package transfer

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// oldDockerArchive is what docker save wrote before version 25: a folder for
// each layer, named by neither of its digests, and a symbolic link for one that
// occurs again.
func oldDockerArchive(t testing.TB, tag string, tars ...[]byte) []byte {
	t.Helper()
	var links []tar.Header
	files, e := map[string][]byte{}, dockerEntry{RepoTags: []string{tag}}
	at := map[digest.Digest]string{}
	var cfg ocispec.Image
	for i, b := range tars {
		d := digest.FromBytes(b)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, d)
		name := fmt.Sprintf("%s/layer.tar", digest.FromString(fmt.Sprint(tag, i)).Encoded())
		if at[d] == "" {
			at[d], files[name] = name, b
		} else {
			links = append(links, tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: "../" + at[d]})
		}
		e.Layers = append(e.Layers, name)
	}
	config := marshal(t, cfg)
	e.Config = digest.FromBytes(config).Encoded() + ".json"
	files[e.Config], files["manifest.json"] = config, marshal(t, []dockerEntry{e})
	return tarOf(t, files, links...)
}

// newDockerFiles is what docker save has written since version 25: blobs by
// their digests, as docker keeps them, which may be compressed.
func newDockerFiles(t testing.TB, compress bool, tars ...[]byte) map[string][]byte {
	t.Helper()
	l := newLayout(t)
	e := dockerEntry{RepoTags: []string{"app:1"}}
	var cfg ocispec.Image
	for _, b := range tars {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(b))
		if compress {
			b = gzipped(t, b)
		}
		e.Layers = append(e.Layers, blobName(l.blob("", b).Digest))
	}
	e.Config = blobName(l.blob("", marshal(t, cfg)).Digest)
	l.files["manifest.json"] = marshal(t, []dockerEntry{e})
	return l.files
}

func TestDockerLayouts(t *testing.T) {
	lower, upper := testTars(t)[0], testTars(t)[1]
	tars := [][]byte{lower, upper, lower} // one occurs twice
	plain := newDockerFiles(t, false, tars...)
	var unnamed []dockerEntry
	if err := json.Unmarshal(newDockerFiles(t, true, tars...)["manifest.json"], &unnamed); err != nil {
		t.Fatal(err)
	}
	renamed := newDockerFiles(t, true, tars...)
	for i, name := range unnamed[0].Layers {
		renamed[fmt.Sprint(i)] = renamed[name]
		unnamed[0].Layers[i] = fmt.Sprint(i)
	}
	renamed["manifest.json"] = marshal(t, unnamed)
	digests := map[string]digest.Digest{}
	for name, tc := range map[string]struct {
		archive   []byte
		mediaType string
	}{
		"old":                       {oldDockerArchive(t, "app:1", tars...), ocispec.MediaTypeImageLayer},
		"new":                       {tarOf(t, plain), ocispec.MediaTypeImageLayer},
		"new, gzip":                 {gzipped(t, tarOf(t, plain)), ocispec.MediaTypeImageLayer},
		"compressed layers":         {tarOf(t, newDockerFiles(t, true, tars...)), ocispec.MediaTypeImageLayerGzip},
		"unnamed compressed layers": {tarOf(t, renamed), ocispec.MediaTypeImageLayerGzip},
		"no layers":                 {oldDockerArchive(t, "app:1"), ""},
	} {
		c := newClient(t, Options{})
		img := c.resolve(t, "docker-archive:"+fileOf(t, tc.archive))
		digests[name] = img.Digest
		if tc.mediaType == "" {
			if len(img.Layers) != 0 {
				t.Errorf("%s: %+v", name, img.Layers)
			}
			continue
		}
		if len(img.Layers) != 3 || img.Layers[0].Digest != img.Layers[2].Digest {
			t.Fatalf("%s: %+v", name, img.Layers)
		}
		for i, l := range img.Layers {
			if l.MediaType != tc.mediaType {
				t.Errorf("%s: %s", name, l.MediaType)
			}
			testBlob(t, c.Blob(img, l.Descriptor), tars[i], l)
		}
	}
	// The manifest depends on what is in the archive, not on how.
	if digests["old"] != digests["new"] || digests["new"] != digests["new, gzip"] || digests["compressed layers"] != digests["unnamed compressed layers"] || digests["new"] == digests["compressed layers"] {
		t.Errorf("digests %v", digests)
	}
}

// The made manifest is an OCI one that other tools read.
func TestDockerManifest(t *testing.T) {
	tars := testTars(t)
	c := newClient(t, Options{})
	img := c.resolve(t, "docker-archive:"+fileOf(t, oldDockerArchive(t, "app:1", tars...)))
	want, _ := makeImage(t, tars...)
	var m ocispec.Manifest
	if err := json.Unmarshal(want, &m); err != nil {
		t.Fatal(err)
	}
	m.Config = descriptor(ocispec.MediaTypeImageConfig, img.Config)
	if !bytes.Equal(img.Manifest, marshal(t, m)) {
		t.Errorf("got %s, want %s", img.Manifest, marshal(t, m))
	}
	l := newLayout(t)
	l.list(tagged(l.blob(img.MediaType, img.Manifest), "1"))
	l.blob("", img.Config)
	for _, b := range tars {
		l.blob("", b)
	}
	out := t.TempDir() + "/again.tar"
	run(t, "skopeo", "copy", "oci:"+folderOf(t, l.files)+":1", "docker-archive:"+out+":app:1")
	if again := c.resolve(t, "docker-archive:"+out); again.Layers[0].Digest != img.Layers[0].Digest {
		t.Errorf("%+v after skopeo", again.Layers)
	}
}

func TestDockerTags(t *testing.T) {
	files := newDockerFiles(t, false, []byte("1"))
	other := newDockerFiles(t, false, []byte("2"))
	var one, two []dockerEntry
	if err := errors.Join(json.Unmarshal(files["manifest.json"], &one), json.Unmarshal(other["manifest.json"], &two)); err != nil {
		t.Fatal(err)
	}
	for name, b := range other {
		files[name] = b
	}
	one[0].RepoTags = []string{"app:1", "r.test/app"}
	two[0].RepoTags = []string{"docker.io/library/app:2"}
	unnamed := two[0]
	unnamed.RepoTags = nil
	files["manifest.json"] = marshal(t, []dockerEntry{one[0], two[0], one[0], unnamed})
	ref := "docker-archive:" + fileOf(t, tarOf(t, files))
	c := newClient(t, Options{})
	for tag, want := range map[string]digest.Digest{
		":app:1":                   digest.FromString("1"),
		":docker.io/library/app:1": digest.FromString("1"),
		":r.test/app:latest":       digest.FromString("1"),
		":r.test/app":              digest.FromString("1"),
		":app:2":                   digest.FromString("2"),
	} {
		img := c.resolve(t, ref+tag)
		if img.Layers[0].DiffID != want {
			t.Errorf("%s: %s, want %s", tag, img.Layers[0].DiffID, want)
		}
		if again := newClient(t, Options{}).resolve(t, ref+"@"+img.Digest.String()); again.Digest != img.Digest {
			t.Errorf("%s by digest: %s, want %s", tag, again.Digest, img.Digest)
		}
	}
	for tag, want := range map[string]string{
		"":                                    "several images, and the reference must say which; there is :app:1, :r.test/app, :docker.io/library/app:2",
		":app:3":                              `no image was saved as "app:3"; there is :app:1`,
		":1":                                  `no image was saved as "1"`,
		":UPPER":                              `no image was saved as "UPPER"`,
		"@" + digest.FromString("x").String(): "no image of the archive has it",
	} {
		_, err := c.Resolve(t.Context(), ref+tag)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, ErrNotFound) != (tag != "") {
			t.Errorf("%q: %v, want %q", tag, err, want)
		}
	}
}

func TestDockerDamage(t *testing.T) {
	good := newDockerFiles(t, false, []byte("one"), []byte("two"))
	entries, err := parseDockerManifest(good["manifest.json"])
	if err != nil {
		t.Fatal(err)
	}
	config, layer := entries[0].Config, entries[0].Layers[1]
	change := func(old, new string) func(map[string][]byte) {
		return func(f map[string][]byte) {
			f["manifest.json"] = bytes.ReplaceAll(f["manifest.json"], []byte(old), []byte(new))
		}
	}
	for name, tc := range map[string]struct {
		damage func(map[string][]byte)
		want   string
	}{
		"no manifest.json":   {func(f map[string][]byte) { delete(f, "manifest.json"); delete(f, "oci-layout") }, "not a docker-archive, which has a file manifest.json"},
		"layout":             {func(f map[string][]byte) { delete(f, "manifest.json") }, "written oci-archive:PATH"},
		"not JSON":           {func(f map[string][]byte) { f["manifest.json"] = []byte("<html>") }, "read manifest.json: invalid character"},
		"OCI manifest":       {func(f map[string][]byte) { f["manifest.json"] = []byte("{}") }, "read manifest.json: json: cannot unmarshal object"},
		"no images":          {func(f map[string][]byte) { f["manifest.json"] = []byte("[]") }, "lists no image"},
		"null":               {func(f map[string][]byte) { f["manifest.json"] = []byte("[null]") }, "read the image's config"},
		"no config":          {func(f map[string][]byte) { delete(f, config) }, "read the image's config"},
		"another config":     {func(f map[string][]byte) { f[config] = []byte("{}") }, "what is there has digest"},
		"huge config":        {func(f map[string][]byte) { f[config] = make([]byte, maxConfig+1) }, "more than 8388608"},
		"config is no JSON":  {func(f map[string][]byte) { f["c"] = []byte("x"); change(config, "c")(f) }, "read the image's config c: invalid"},
		"config has bad ids": {func(f map[string][]byte) { f["c"] = []byte(`{"rootfs":{"diff_ids":["x"]}}`); change(config, "c")(f) }, "layer 0: digest"},
		"fewer layers":       {change(`,"`+layer+`"`, ""), "manifest.json lists 1 layers, but the config " + config + " has 2"},
		"no layer":           {func(f map[string][]byte) { delete(f, layer) }, "layer 1, " + layer + ": open"},
		"layers in disorder": {change(entries[0].Layers[0], layer), "layer 0, " + layer + ": its name has another digest"},
		"config leads away":  {change(config, "../../etc/passwd"), "read the image's config"},
		"config is absolute": {change(config, "/etc/passwd"), "read the image's config"},
		"layer leads away":   {change(layer, "../x"), "layer 1, ../x"},
		"layer is xz":        {func(f map[string][]byte) { f[layer] = []byte("\xfd7zXZ\x00") }, "compressed with xz"},
	} {
		files := map[string][]byte{}
		for name, b := range good {
			files[name] = b
		}
		tc.damage(files)
		img, err := newClient(t, Options{}).Resolve(t.Context(), "docker-archive:"+fileOf(t, tarOf(t, files)))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %+v, %v; want %q", name, img, err, tc.want)
		}
	}
}

// A damaged image does not hide the others.
func TestDockerOtherDamage(t *testing.T) {
	files := newDockerFiles(t, false, []byte("1"))
	entries, err := parseDockerManifest(files["manifest.json"])
	if err != nil {
		t.Fatal(err)
	}
	files["manifest.json"] = marshal(t, []dockerEntry{{Config: "gone", RepoTags: []string{"gone:1"}}, entries[0]})
	ref := "docker-archive:" + fileOf(t, tarOf(t, files))
	img := newClient(t, Options{}).resolve(t, ref+":app:1")
	c := newClient(t, Options{})
	c.resolve(t, ref+"@"+img.Digest.String())
	if got, _, err := read(t.Context(), c.Blob(img, img.Layers[0].Descriptor), 0, 1); err != nil || string(got) != "1" {
		t.Errorf("%q, %v", got, err)
	}
	_, _, err = c.Blob(img, descriptor("", []byte("nothing"))).Open(t.Context(), 0, 1)
	if err == nil || !strings.Contains(err.Error(), "open gone") {
		t.Errorf("what may have been in the damaged one: %v", err)
	}
}

func FuzzDockerManifest(f *testing.F) {
	good := newDockerFiles(f, true, []byte("1"), []byte("2"))
	entries, err := parseDockerManifest(good["manifest.json"])
	if err != nil {
		f.Fatal(err)
	}
	config := entries[0].Config
	f.Add(good["manifest.json"], good[config], "")
	f.Add([]byte(`[{"Config":"x.json","RepoTags":["app:1",null],"Layers":["a","../b"]},null]`), []byte(`{"rootfs":{"diff_ids":[]}}`), "app")
	f.Fuzz(func(t *testing.T, manifest, cfg []byte, tag string) {
		files := mapFS(good)
		files["manifest.json"].Data, files["x.json"] = manifest, &fstest.MapFile{Data: cfg}
		s := newDockerImages()
		img, err := s.tagged(t.Context(), files, tag)
		if err != nil {
			return
		}
		again, err := newDockerImages().first(t.Context(), files, func(i *dockerImage) bool { return bytes.Equal(i.raw, img.raw) })
		if err != nil || again == nil {
			t.Errorf("not found again: %v", err)
		}
		for _, d := range append(img.doc.Layers, *img.doc.Config) {
			if f, err := openFile(files, img.files[d.Digest]); err != nil || f.size != d.Size || checkDigest(d.Digest) != nil {
				t.Errorf("%+v: %v", d, err)
			}
		}
	})
}
