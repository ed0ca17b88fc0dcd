package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestResolve(t *testing.T) {
	reg := newRegistry(t, nil)
	one, two := []byte("lower"), []byte("upper")
	d := reg.putImage("1", one, two)
	c := newClient(t, Options{})
	for _, ref := range []string{reg.host + "/app:1", reg.host + "/app@" + d.String()} {
		before := c.Stats().Requests
		img := c.resolve(t, ref)
		if n := c.Stats().Requests - before; n != 2 {
			t.Errorf("%s took %d requests, want 2: manifest and config", ref, n)
		}
		if img.Reference != ref || img.Digest != d || img.IndexDigest != "" || img.MediaType != ocispec.MediaTypeImageManifest {
			t.Errorf("Resolve(%s) = %+v", ref, img)
		}
		if len(img.Layers) != 2 || img.Layers[0].Digest != digest.FromBytes(one) || img.Layers[1].DiffID != digest.FromBytes(two) || img.Layers[1].Size != 5 {
			t.Errorf("layers of %s: %+v", ref, img.Layers)
		}
		again, err := ParseImage(img.Reference, img.Manifest, img.Config)
		if err != nil || !reflect.DeepEqual(again, img) {
			t.Errorf("ParseImage(%s) = %+v, %v; want %+v", ref, again, err, img)
		}
	}
}

func TestResolveDefaultTag(t *testing.T) {
	reg := newRegistry(t, nil)
	reg.putImage("latest", []byte("x"))
	if img := newClient(t, Options{}).resolve(t, reg.host+"/app"); img.Reference != reg.host+"/app:latest" {
		t.Errorf("reference %s", img.Reference)
	}
}

func TestParseImageReference(t *testing.T) {
	manifest, config := makeImage(t)
	for ref, want := range map[string]string{
		"debian":                 "docker.io/library/debian:latest",
		"debian:12":              "docker.io/library/debian:12",
		"docker.io/a/b:1":        "docker.io/a/b:1",
		"localhost:5000/a":       "localhost:5000/a:latest",
		"r.test/index.docker.io": "r.test/index.docker.io:latest",
	} {
		img, err := ParseImage(ref, manifest, config)
		if err != nil || img.Reference != want {
			t.Errorf("ParseImage(%q): %v, %v; want %s", ref, img, err, want)
		}
	}
	if _, err := ParseImage("UPPER", manifest, config); err == nil {
		t.Error("an invalid reference was accepted")
	}
}

func TestResolveIndex(t *testing.T) {
	reg := newRegistry(t, nil)
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	images := map[string]digest.Digest{}
	add := func(to *ocispec.Index, d digest.Digest, mediaType string, p *ocispec.Platform) {
		to.Manifests = append(to.Manifests, ocispec.Descriptor{MediaType: mediaType, Digest: d, Platform: p})
	}
	for _, p := range []string{"linux/386", "linux/amd64", "linux/amd64/v3", "linux/arm/v6", "linux/arm64", "windows/amd64"} {
		part := append(strings.Split(p, "/"), "")
		images[p] = reg.putImage("", []byte(p))
		add(&index, images[p], ocispec.MediaTypeImageManifest, &ocispec.Platform{OS: part[0], Architecture: part[1], Variant: part[2]})
	}
	// What BuildKit adds, and what nobody but its reader should mind.
	add(&index, reg.putImage("", []byte("attestation")), ocispec.MediaTypeImageManifest, &ocispec.Platform{OS: "unknown", Architecture: "unknown"})
	add(&index, digest.SHA512.FromString("x"), "application/vnd.example", &ocispec.Platform{OS: "plan9", Architecture: "mips"})
	d := reg.putManifest("multi", ocispec.MediaTypeImageIndex, marshal(t, index))
	nested := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	add(&nested, d, ocispec.MediaTypeImageIndex, nil)
	reg.putManifest("nested", ocispec.MediaTypeImageIndex, marshal(t, nested))

	for _, tc := range []struct{ tag, platform, want string }{
		{"multi", "linux/amd64", "linux/amd64"},
		{"multi", "Linux/x86_64", "linux/amd64"},
		{"multi", "linux/amd64/v3", "linux/amd64/v3"},
		{"multi", "linux/amd64/v2", "linux/amd64"},
		{"multi", "linux/amd64/v4", "linux/amd64/v3"},
		{"multi", "linux/arm64/v8", "linux/arm64"},
		{"multi", "linux/arm64/v8.2", "linux/arm64"},
		{"multi", "linux/arm64/v9", "linux/arm64"},
		{"multi", "linux/arm", "linux/arm/v6"},
		{"multi", "linux/arm/v5", ""},
		{"multi", "linux/riscv64", ""},
		{"nested", "linux/arm64", "linux/arm64"},
	} {
		c := newClient(t, Options{Platform: tc.platform})
		img, err := c.Resolve(t.Context(), reg.host+"/app:"+tc.tag)
		if tc.want == "" {
			if err == nil || !strings.Contains(err.Error(), "linux/amd64/v3, linux/arm/v6, linux/arm64") || strings.Contains(err.Error(), "unknown") {
				t.Errorf("%s of %s: %v, want an error that lists the platforms", tc.platform, tc.tag, err)
			}
			continue
		}
		if err != nil || img.Digest != images[tc.want] {
			t.Errorf("%s of %s: %v, %v; want %s", tc.platform, tc.tag, img, err, tc.want)
		} else if tc.tag == "multi" && img.IndexDigest != d {
			t.Errorf("%s: index digest %s, want %s", tc.platform, img.IndexDigest, d)
		}
	}
}

func TestAcceptablePlatforms(t *testing.T) {
	for in, want := range map[string]string{
		"linux/s390x":         "linux/s390x",
		"linux/aarch64/8":     "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
		"linux/arm64/v9.1":    "linux/arm64/v9.1 linux/arm64/v9 linux/arm64/v8.6 linux/arm64/v8.5 linux/arm64/v8.4 linux/arm64/v8.3 linux/arm64/v8.2 linux/arm64/v8.1 linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
		"linux/armhf":         "linux/arm/v7 linux/arm/v6 linux/arm/v5",
		"linux/amd64/v2":      "linux/amd64/v2 linux/amd64 linux/386",
		"linux/amd64/v1":      "linux/amd64 linux/386",
		"linux/i386":          "linux/386",
		"linux/armel":         "linux/arm/v6 linux/arm/v5",
		"linux/amd64/unusual": "linux/amd64/unusual linux/386",
	} {
		p, err := parsePlatform(in)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range p.acceptable() {
			got = append(got, a.String())
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s accepts %s; want %s", in, s, want)
		}
	}
}

func TestParseImageRefuses(t *testing.T) {
	manifest, config := makeImage(t, []byte("a"), []byte("b"))
	edit := func(old, new string) []byte {
		if !bytes.Contains(manifest, []byte(old)) {
			t.Fatalf("%q is not in the manifest", old)
		}
		return bytes.Replace(manifest, []byte(old), []byte(new), 1)
	}
	layerless := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, Config: descriptor("application/vnd.cncf.helm.config.v1+json", []byte("{}"))}
	layerless.Layers = []ocispec.Descriptor{descriptor("application/tar", []byte("chart"))}
	for name, tc := range map[string]struct {
		manifest, config []byte
		want             string
	}{
		"not JSON":        {[]byte("<html>"), config, "invalid character"},
		"schema 1":        {[]byte(`{"schemaVersion":1,"fsLayers":[]}`), config, "schema 1"},
		"no version":      {edit(`"schemaVersion":2`, `"schemaVersion":0`), config, "schemaVersion"},
		"index":           {[]byte(`{"schemaVersion":2,"manifests":[]}`), config, "index"},
		"both":            {edit(`"layers":`, `"manifests":[],"layers":`), config, "both"},
		"layers alone":    {[]byte(`{"schemaVersion":2,"layers":[]}`), config, "no config"},
		"wrong type":      {edit(ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex), config, "media type"},
		"negative size":   {edit(`"size":1`, `"size":-1`), config, "size"},
		"huge size":       {edit(`"size":1`, `"size":9223372036854775808`), config, "cannot unmarshal"},
		"bad digest":      {edit(digest.FromString("a").String(), "sha256:xyz"), config, "digest"},
		"sha512":          {edit(digest.FromString("a").String(), digest.SHA512.FromString("a").String()), config, "only sha256"},
		"other config":    {manifest, append([]byte(" "), config...), "config's digest"},
		"fewer layers":    {edit(string(marshal(t, descriptor(ocispec.MediaTypeImageLayer, []byte("a"))))+",", ""), config, "1 layers"},
		"not an image":    {marshal(t, layerless), []byte("{}"), "not a container image"},
		"config no JSON":  {edit(digest.FromBytes(config).String(), digest.FromString("x").String()), []byte("x"), "read config"},
		"diff_id invalid": {edit(digest.FromBytes(config).String(), digest.FromString(badConfig).String()), []byte(badConfig), "layer 1"},
	} {
		img, err := ParseImage("r.test/app:1", tc.manifest, tc.config)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "r.test/app:1") {
			t.Errorf("%s: %v, %v; want an error with %q", name, img, err, tc.want)
		}
	}
}

const badConfig = `{"rootfs":{"diff_ids":["sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb","nothing"]}}`

func TestParseImageDocker(t *testing.T) {
	manifest, config := makeImage(t, []byte("a"))
	for _, mediaType := range []string{dockerManifest, ""} {
		m := bytes.Replace(manifest, []byte(ocispec.MediaTypeImageManifest), []byte(mediaType), 1)
		img, err := ParseImage("r.test/app", m, config)
		if err != nil || len(img.Layers) != 1 || img.MediaType == "" {
			t.Errorf("media type %q: %v, %v", mediaType, img, err)
		}
	}
}

func TestResolveRefuses(t *testing.T) {
	answer := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
	}
	manifest, config := makeImage(t, []byte("a"))
	_, other := makeImage(t, []byte("b"))
	huge := bytes.Replace(manifest, marshal(t, descriptor(ocispec.MediaTypeImageConfig, config)),
		[]byte(`{"digest":"`+digest.FromBytes(config).String()+`","size":8388609}`), 1)
	asked := digest.FromBytes(manifest).String()
	for name, tc := range map[string]struct {
		id       string
		manifest http.HandlerFunc
		blob     http.HandlerFunc
		want     string
		is       error
	}{
		"wrong manifest":     {"@" + asked, answer(config), nil, "the manifest is damaged: it was asked for by", ErrUnavailable},
		"too large manifest": {":1", answer(bytes.Repeat([]byte(" "), maxManifest+1)), nil, "larger than", nil},
		"HTML":               {":1", answer([]byte("<html>")), nil, "read manifest 1", nil},
		"too large config":   {":1", answer(huge), nil, "8388609 bytes, more than", nil},
		"wrong config":       {":1", answer(manifest), answer(other[:len(config)]), "what came has digest", nil},
		"short config":       {":1", answer(manifest), answer(config[1:]), "length", ErrUnavailable},
		"no config":          {":1", answer(manifest), http.NotFound, "404", ErrNotFound},
		"no manifest":        {":1", http.NotFound, nil, "404 Not Found; check the image's name and tag", ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, _ http.Handler) {
				if strings.Contains(req.URL.Path, "/blobs/") {
					tc.blob(w, req)
				} else {
					tc.manifest(w, req)
				}
			})
			_, err := newClient(t, Options{}).Resolve(t.Context(), reg.host+"/app"+tc.id)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "resolve "+reg.host+"/app"+tc.id) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
		})
	}
}

// A manifest is read again, from its start, when the connection breaks.
func TestResolveCut(t *testing.T) {
	var asked atomic.Int64
	reg := newRegistry(t, func(w http.ResponseWriter, req *http.Request, honest http.Handler) {
		if asked.Add(1) <= 2 {
			w = &cutter{w, 100}
		}
		honest.ServeHTTP(w, req)
	})
	reg.putImage("1", []byte("a"))
	newClient(t, Options{}).resolve(t, reg.host+"/app:1")
	asked.Store(0)
	_, err := newClient(t, Options{Attempts: 2}).Resolve(t.Context(), reg.host+"/app:1")
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "broke off after 100 bytes") {
		t.Errorf("got %v", err)
	}
}

func TestResolveUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	_ = l.Close() // now nobody listens there
	c := newClient(t, Options{})
	_, err = c.Resolve(t.Context(), host+"/app:1")
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "check that "+host+" is up") || len(c.pauses) != 5 {
		t.Errorf("got %v after %d pauses", err, len(c.pauses))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = c.Resolve(ctx, host+"/app:1"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) || len(c.pauses) != 5 {
		t.Errorf("canceled: %v after %d pauses", err, len(c.pauses))
	}
}

func TestResolveIndexLoop(t *testing.T) {
	reg := newRegistry(t, nil)
	index := []byte(`{"schemaVersion":2,"manifests":[]}`)
	for range maxIndexDepth + 1 {
		d := reg.putManifest("deep", ocispec.MediaTypeImageIndex, index)
		index = []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"` + ocispec.MediaTypeImageIndex + `","size":` + strconv.Itoa(len(index)) + `,"digest":"` + d.String() + `"}]}`)
	}
	if _, err := newClient(t, Options{}).Resolve(t.Context(), reg.host+"/app:deep"); err == nil || !strings.Contains(err.Error(), "within each other") {
		t.Errorf("got %v", err)
	}
}

func TestResolveEmbeddedConfig(t *testing.T) {
	reg := newRegistry(t, nil)
	manifest, config := makeImage(t)
	d := descriptor(ocispec.MediaTypeImageConfig, config)
	plain := marshal(t, d)
	reg.putBlob(config)
	for _, tc := range []struct {
		data     []byte
		requests int64
	}{{config, 1}, {bytes.Repeat([]byte(" "), len(config)), 2}} {
		d.Data = tc.data
		reg.putManifest("1", ocispec.MediaTypeImageManifest, bytes.Replace(manifest, plain, marshal(t, d), 1))
		c := newClient(t, Options{})
		if img := c.resolve(t, reg.host+"/app:1"); !bytes.Equal(img.Config, config) || c.Stats().Requests != tc.requests {
			t.Errorf("config %q after %d requests, want %d", img.Config, c.Stats().Requests, tc.requests)
		}
	}
}

func FuzzParseImage(f *testing.F) {
	manifest, config := makeImage(f, []byte("a"), []byte("b"))
	f.Add(manifest, config)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"x"}]}`), []byte("{}"))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		img, err := ParseImage("r.test/app:1", manifest, config)
		if err != nil {
			return
		}
		if img.Digest != digest.FromBytes(manifest) || img.MediaType == "" {
			t.Errorf("digest %s, media type %q", img.Digest, img.MediaType)
		}
		for _, l := range img.Layers {
			if checkDigest(l.Digest) != nil || checkDigest(l.DiffID) != nil || l.Size < 0 {
				t.Errorf("layer %+v", l)
			}
		}
	})
}

// The bytes of an index decide which requests are made next.
func FuzzChoose(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"x","platform":{"os":"linux","architecture":"arm","variant":"9"}},{"mediaType":"` + dockerManifest + `"}]}`))
	f.Fuzz(func(t *testing.T, index []byte) {
		doc, err := parseDocument(index)
		if err != nil || !doc.isIndex() {
			return
		}
		want := platform{"linux", "amd64", ""}
		d, err := choose(doc.Manifests, want.acceptable())
		if err == nil && d.Platform != nil && !strings.EqualFold(d.Platform.OS, "linux") {
			t.Errorf("chose %+v", d.Platform)
		}
	})
}
