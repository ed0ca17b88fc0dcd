package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// sampleLayers are two layers, of which the second hides a file of the first.
func sampleLayers() [][]member {
	return [][]member{{
		link("bin", "usr/bin"), link("abs", "/etc"), link("up", "../../etc/a"), link("loop", "loop"), dir("usr"), dir("usr/bin"),
		file("usr/bin/tool", "#!tool").with(func(h *tar.Header) {
			h.Mode, h.Uid, h.PAXRecords = 0o4755, 7, map[string]string{"SCHILY.xattr.user.a": "b"}
		}),
		dir("etc"), file("etc/a", "one\n"), file("etc/gone", "x"), file("etc/empty", ""), big("etc/big"),
		{tar.Header{Typeflag: tar.TypeLink, Name: "etc/hard", Linkname: "etc/a"}, ""},
		{tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3, Mode: 0o666}, ""},
		dir("tmp").with(func(h *tar.Header) { h.Mode = 0o1777 }),
		file("tmp/esc\x1b[1m", "y"),
	}, {
		file("etc/.wh.gone", ""), file("etc/b", "two\n"),
	}}
}

func TestLook(t *testing.T) {
	s := newServer(t)
	ref := s.host + "/app:1"
	s.push(t, ref, sampleLayers()...)
	root := t.TempDir()
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"ls root":         {[]string{"ls", ref}, "abs\nbin\netc\nloop\nnull\ntmp\nup\nusr\n"},
		"ls whiteout":     {[]string{"ls", ref, "/etc"}, "a\nb\nbig\nempty\nhard\n"},
		"ls symlink":      {[]string{"ls", ref, "bin"}, "tool\n"},
		"ls absolute":     {[]string{"ls", ref, "bin/../../abs/"}, "a\nb\nbig\nempty\nhard\n"},
		"ls file":         {[]string{"ls", ref, "/etc/a"}, "a\n"},
		"ls escape":       {[]string{"ls", ref, "/tmp"}, "\"esc\\x1b[1m\"\n"},
		"ls -l file":      {[]string{"ls", "-l", ref, "/bin/tool"}, "-rwsr-xr-x 1 7 0 6 2001-09-09 01:46 tool\n"},
		"ls -l symlink":   {[]string{"ls", "-l", ref, "/bin"}, "lrwxrwxrwx 1 0 0 7 2001-09-09 01:46 bin -> usr/bin\n"},
		"ls -l device":    {[]string{"ls", "-l", ref, "null"}, "crw-rw-rw- 1 0 0 1:3 1970-01-01 00:00 null\n"},
		"ls -R":           {[]string{"ls", "-R", ref, "/usr"}, "/usr:\nbin\n\n/usr/bin:\ntool\n"},
		"cat":             {[]string{"cat", ref, "etc/a", "/etc/b", "etc/hard", "etc/empty"}, "one\ntwo\none\n"},
		"cat symlink":     {[]string{"cat", ref, "up"}, "one\n"},
		"cat from below":  {[]string{"cat", ref, "usr/../../../etc/b"}, "two\n"},
		"cat large":       {[]string{"cat", ref, "/etc/big"}, big("").data},
		"cat via symlink": {[]string{"cat", ref, "/bin/tool"}, "#!tool"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, append([]string{"--root", root}, tt.args...)...)
			if err != nil || out != tt.want {
				t.Errorf("%.500q, %v; want %.500q", out, err, tt.want)
			}
		})
	}
}

func TestLookFails(t *testing.T) {
	s := newServer(t)
	ref := s.host + "/app:1"
	s.push(t, ref, sampleLayers()...)
	root := t.TempDir()
	for name, tt := range map[string]struct {
		args []string
		says string
	}{
		"no image":        {[]string{"ls", s.host + "/none:1"}, "none"},
		"no path":         {[]string{"cat", ref}, "IMAGE PATH..."},
		"too many":        {[]string{"ls", ref, "a", "b"}, "peel ls [flags] IMAGE [PATH]"},
		"flag at the end": {[]string{"cat", ref, "etc/a", "-l"}, "flags come first"},
		"hidden":          {[]string{"cat", ref, "etc/gone"}, "not exist"},
		"a directory":     {[]string{"cat", ref, "etc"}, "directory, not a file"},
		"through a file":  {[]string{"stat", ref, "etc/a/b"}, "no directory"},
		"loop":            {[]string{"ls", ref, "loop/x"}, "40 symlinks"},
		"negative depth":  {[]string{"du", "--depth", "-1", ref}, "--depth -1"},
		"one image":       {[]string{"diff", ref}, "IMAGE IMAGE"},
	} {
		t.Run(name, func(t *testing.T) {
			if out, err := run(t, append([]string{"--root", root}, tt.args...)...); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, should say %q; printed %s", err, tt.says, out)
			}
		})
	}
	if _, err := run(t, "--root", root, "ls", ref, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// Only what a file needs is fetched, and nothing to look at names.
func TestCatFetchesOnlyItsSpans(t *testing.T) {
	s := newServer(t)
	ref := s.host + "/app:1"
	s.push(t, ref, []member{big("a"), file("small", "here"), big("b")})
	root := t.TempDir()
	if out, err := run(t, "--root", root, "ls", ref); err != nil {
		t.Fatal(out, err)
	}
	before := s.blobs.Load() // the config and the index
	if out, err := run(t, "--root", root, "cat", ref, "small"); err != nil || out != "here" {
		t.Fatal(out, err)
	}
	if got := s.blobs.Load() - before; got == 0 || got > 2<<20 {
		t.Errorf("%d bytes were fetched for 4", got)
	}
	s.off.Store(true)
	if out, err := run(t, "--root", root, "cat", ref, "small"); err != nil || out != "here" {
		t.Errorf("what is here is not read while the registry is gone: %q, %v", out, err)
	}
}

func TestStat(t *testing.T) {
	s := newServer(t)
	ref := s.host + "/app:1"
	layers := s.push(t, ref, sampleLayers()...)
	root := t.TempDir()
	stat := func(path string) (e entry) {
		t.Helper()
		out, err := run(t, "--root", root, "stat", "--json", ref, path)
		if err != nil || json.Unmarshal([]byte(out), &e) != nil {
			t.Fatal(out, err)
		}
		return e
	}
	e := stat("bin/tool")
	if e.Type != "file" || e.Mode != "4755" || e.UID != 7 || e.Size != 6 || e.Layer != layers[0] || e.Present != 0 ||
		e.SHA256 != digest.FromString("#!tool").Encoded() || string(e.Xattrs["user.a"]) != "b" || e.Modified != "2001-09-09T01:46:40Z" {
		t.Errorf("%+v", e)
	}
	if e := stat("etc/b"); e.Layer != layers[1] {
		t.Errorf("%+v", e)
	}
	if e := stat("bin"); e.Type != "symlink" || e.Target != "usr/bin" {
		t.Errorf("%+v", e)
	}
	if e := stat("bin/"); e.Type != "directory" {
		t.Errorf("%+v", e)
	}
	if _, err := run(t, "--root", root, "cat", ref, "bin/tool"); err != nil {
		t.Fatal(err)
	}
	if e := stat("bin/tool"); e.Present != 6 {
		t.Errorf("after it was read: %+v", e)
	}
	out, err := run(t, "--root", root, "stat", ref, "bin/tool")
	for _, want := range []string{"4755 (-rwsr-xr-x)", "7:0", "user.a=\"b\"", "6 of 6 bytes (100%)", ", 1 of 2", "2001-09-09"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s(%v)", want, out, err)
		}
	}
	out, err = run(t, "--root", root, "stat", ref, "null")
	if err != nil || !strings.Contains(out, "1:3") || !strings.Contains(out, "character device") {
		t.Errorf("%s, %v", out, err)
	}
}

func TestDu(t *testing.T) {
	s := newServer(t)
	ref := s.host + "/app:1"
	layers := s.push(t, ref, sampleLayers()...)
	root := t.TempDir()
	du := func(args ...string) (dirs map[string]usage, all []layerUsage) {
		t.Helper()
		out, err := run(t, append(append([]string{"--root", root, "du", "--json"}, args...), ref)...)
		var got struct {
			Layers      []layerUsage
			Directories []dirUsage
		}
		if err != nil || json.Unmarshal([]byte(out), &got) != nil {
			t.Fatal(out, err)
		}
		dirs = map[string]usage{}
		for _, d := range got.Directories {
			dirs[d.Path] = d.usage
		}
		return dirs, got.Layers
	}
	const etc = 6<<20 + 4 + 4 // the hard link counts once
	dirs, all := du()
	if len(dirs) != 4 || dirs["/etc"] != (usage{etc, 0}) || dirs["/"] != (usage{etc + 6 + 1, 0}) {
		t.Errorf("%v", dirs)
	}
	if len(all) != 2 || all[0].Digest != layers[0] || all[0].Present != 0 || all[1].Bytes != 4096 {
		t.Errorf("%+v", all)
	}
	if out, err := run(t, "--root", root, "cat", ref, "etc/b"); err != nil {
		t.Fatal(out, err)
	}
	dirs, all = du("--depth", "0")
	if len(dirs) != 1 || dirs["/"].Present != 4 || all[1].Present != 4096 {
		t.Errorf("%v, %+v", dirs, all)
	}
	if dirs, _ = du("--depth", "2"); len(dirs) != 5 || dirs["/usr/bin"].Bytes != 6 {
		t.Errorf("%v", dirs)
	}
	out, err := run(t, "--root", root, "du", ref)
	if err != nil || !strings.Contains(out, "4.1 kB  4.1 kB  100%   "+short(layers[1])) || !strings.Contains(out, "6.3 MB  0%     /etc") {
		t.Errorf("%s, %v", out, err)
	}
}
