package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"testing"
	"time"
)

func TestDiff(t *testing.T) {
	s := newServer(t)
	a, b := s.host+"/a:1", s.host+"/b:1"
	s.push(t, a, []member{
		dir("d"), file("d/same", "1"), file("d/content", "1"), file("d/size", "1"), file("d/mode", "1"), file("d/owner", "1"), file("d/time", "1"),
		file("d/xattrs", "1"), link("d/target", "x"), file("d/type", "1"), dir("d/was"), file("d/was/x", "1"), dir("gone"), file("gone/x", ""),
		{tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}, ""}, file("shadowed", "1"), big("big"),
	})
	s.push(t, b, []member{
		dir("d"), file("d/same", "1"), file("d/content", "2"), file("d/size", "11"),
		file("d/mode", "1").with(func(h *tar.Header) { h.Mode = 0o600 }), file("d/owner", "1").with(func(h *tar.Header) { h.Gid = 5 }),
		file("d/time", "1").with(func(h *tar.Header) { h.ModTime = time.Unix(5, 0) }),
		file("d/xattrs", "1").with(func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b"} }),
		link("d/target", "y"), dir("d/type"), file("d/type/new", "1"), file("d/was", "1"), file("new", ""),
		{tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 5}, ""}, file("shadowed", "2"), big("big"),
	}, []member{file("shadowed", "1")})
	root := t.TempDir()
	const want = `M /d/content (content)
M /d/mode (mode)
M /d/owner (owner)
M /d/size (content)
M /d/target (target)
M /d/type (type, mode)
A /d/type/new
M /d/was (type, mode)
D /d/was/x
M /d/xattrs (xattrs)
D /gone
D /gone/x
A /new
M /null (device)
`
	before := s.blobs.Load()
	out, err := run(t, "--root", root, "diff", a, b)
	if !errors.Is(err, errDiffer) || out != want {
		t.Errorf("%s(%v)", out, err)
	}
	if got := s.blobs.Load() - before; got > 1<<20 { // indices
		t.Errorf("%d bytes of blobs were fetched", got)
	}
	out, err = run(t, "--root", root, "diff", "--json", "--times", a, b)
	var all []difference
	if !errors.Is(err, errDiffer) || json.Unmarshal([]byte(out), &all) != nil || len(all) != 15 {
		t.Errorf("%s(%v)", out, err)
	}
	out, err = run(t, "--root", root, "diff", "--json", "--times", a, a)
	if err != nil || out != "[]\n" {
		t.Errorf("an image and itself: %q, %v", out, err)
	}
}
