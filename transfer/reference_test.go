package transfer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestFullReference(t *testing.T) {
	t.Chdir(t.TempDir())
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	d := "@" + digest.FromString("x").String()
	for ref, want := range map[string]string{
		"debian":                      "docker.io/library/debian:latest",
		"127.0.0.1:5000/a:1":          "127.0.0.1:5000/a:1",
		"docker.io/library/oci:1":     "docker.io/library/oci:1",
		"oci:/a":                      "oci:/a",
		"oci:/a:1":                    "oci:/a:1",
		"oci:/a" + d:                  "oci:/a" + d,
		"oci:/a:1" + d:                "oci:/a:1" + d,
		"oci:a:1":                     "oci:" + wd + "/a:1",
		"oci:../a":                    "oci:" + wd + "/../a",
		"oci-archive:./a.tar":         "oci-archive:" + wd + "/./a.tar",
		"docker-archive:/a.tar:app:1": "docker-archive:/a.tar:app:1",
	} {
		got, err := FullReference(ref)
		if err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", ref, got, err, want)
		}
		if again, err := FullReference(got); err != nil || again != got {
			t.Errorf("%s: %s the second time, %v", got, again, err)
		}
	}
	for ref, want := range map[string]string{
		"oci:":             "want oci:PATH",
		"oci::1":           "want oci:PATH",
		"oci:/a@sha256:xy": "digest",
		"docker-archive:":  "want docker-archive:PATH or docker-archive:PATH:TAG",
		"UPPER":            "UPPER",
	} {
		if got, err := FullReference(ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %s, %v; want an error with %q", ref, got, err, want)
		}
	}
}

func TestSplit(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "a:b", "a:b:c.tar", "d:e"} {
		writeFile(t, filepath.Join(dir, name), nil)
	}
	for rest, want := range map[string][2]string{
		"a":                         {"a", ""},
		"a:":                        {"a", ""},
		"a:1":                       {"a", "1"},
		"a:b":                       {"a:b", ""},
		"a:b:1":                     {"a:b", "1"},
		"a:b:c.tar":                 {"a:b:c.tar", ""},
		"a:b:c.tar:app:1":           {"a:b:c.tar", "app:1"},
		"a:docker.io/library/app:1": {"a", "docker.io/library/app:1"},
		"d:e:f":                     {"d:e", "f"},
		"d:f":                       {"d", "f"}, // neither is there
		"none:app:1":                {"none", "app:1"},
	} {
		path, tag := localRef{scheme: schemeLayout, rest: dir + "/" + rest}.split()
		if path != dir+"/"+want[0] || tag != want[1] {
			t.Errorf("%s: %s and %q, want %q", rest, path, tag, want)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"debian:12", "oci:/a:1", "oci:b@sha256:" + digest.FromString("").Encoded(), "docker-archive:/a.tar:app:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseReference(s)
		if err != nil || r.remote != nil {
			return
		}
		again, err := parseReference(r.String())
		if err != nil || again.String() != r.String() || again.local != r.local {
			t.Errorf("%q became %q, and that %q, %v", s, r, again, err)
		}
	})
}
