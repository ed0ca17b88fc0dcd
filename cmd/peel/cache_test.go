package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/cmd/internal/daemon"
	"github.com/peelfs/peel/content"
)

// df returns what cache df lists, by digest.
func df(t *testing.T, root string) map[digest.Digest]cachedLayer {
	t.Helper()
	out, err := run(t, "--root", root, "cache", "df", "--json")
	var list []cachedLayer
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || list == nil {
		t.Fatal(out, err)
	}
	all := map[digest.Digest]cachedLayer{}
	for _, l := range list {
		all[l.Blob] = l
	}
	return all
}

// hold has a layer open, as the process of a mount on dir does.
func hold(t *testing.T, root, dir string, layer digest.Digest) (release func()) {
	t.Helper()
	store, err := content.Open(root, content.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	id, err := store.LayerID(layer)
	if err != nil {
		t.Fatal(err)
	}
	l, err := store.Layer(id, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := sessionFor(root, dir)
	lock, err := s.acquire()
	if err != nil {
		t.Fatal(err)
	}
	info := mountInfo{Dir: dir, PID: os.Getpid()}
	if err := s.write(info); err != nil {
		t.Fatal(err)
	}
	socket, err := s.listen()
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		daemon.Reply(w, mountStatus{mountInfo: info, State: "serving", Layers: []content.LayerStats{l.Stats()}}, nil)
	})}
	go srv.Serve(socket)
	return func() {
		if err := errors.Join(srv.Close(), s.remove(), lock.Close(), l.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	}
}

func TestCacheDf(t *testing.T) {
	s := newServer(t)
	a, b := s.host+"/a:1", s.host+"/b:1"
	shared := []member{file("shared", "1")}
	first := s.push(t, a, shared, []member{file("a", "1"), big("big")})
	s.push(t, b, shared, []member{file("b", "1")})
	root := t.TempDir()
	if all := df(t, root); len(all) != 0 {
		t.Errorf("an empty store: %+v", all)
	}
	for _, ref := range []string{a, b} {
		if out, err := run(t, "--root", root, "ls", ref); err != nil {
			t.Fatal(out, err)
		}
	}
	release := hold(t, root, "/mnt/a", first[1])
	all := df(t, root)
	if l := all[first[0]]; len(all) != 3 || len(l.Images) != 2 || l.Images[0] != a || l.InUse || len(l.Mounts) != 0 {
		t.Errorf("the shared layer: %+v", l)
	}
	if l := all[first[1]]; len(l.Images) != 1 || !l.InUse || len(l.Mounts) != 1 || l.Mounts[0] != "/mnt/a" || l.Present != 0 {
		t.Errorf("the mounted layer: %+v", l)
	}
	out, err := run(t, "--root", root, "cache", "df")
	for _, want := range []string{short(first[0]), a + ", " + b, "/mnt/a", "3 layers take"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s(%v)", want, out, err)
		}
	}
	release()
	if l := df(t, root)[first[1]]; l.InUse || len(l.Mounts) != 0 {
		t.Errorf("after the mount: %+v", l)
	}
}

func TestCacheVerify(t *testing.T) {
	s := newServer(t)
	ref := s.host + "/app:1"
	layers := s.push(t, ref, []member{file("first", "1")}, []member{big("big")})
	root := t.TempDir()
	cat := func() {
		t.Helper()
		if out, err := run(t, "--root", root, "cat", ref, "first", "big"); err != nil || out != "1"+big("").data {
			t.Fatalf("%.100q, %v", out, err)
		}
	}
	verify := func() (all map[digest.Digest]verdict, err error) {
		t.Helper()
		out, err := run(t, "--root", root, "cache", "verify", "--json")
		var list []verdict
		if uerr := json.Unmarshal([]byte(out), &list); uerr != nil {
			t.Fatal(out, err)
		}
		all = map[digest.Digest]verdict{}
		for _, v := range list {
			all[v.Digest] = v
		}
		return all, err
	}
	damage := func(name string) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(root, "layers", layers[1].Encoded(), name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("damage"), 100); err != nil {
			t.Fatal(err)
		}
	}
	cat()
	if all, err := verify(); err != nil || len(all) != 2 || all[layers[1]].Spans == 0 {
		t.Errorf("a good store: %+v, %v", all, err)
	}
	damage("flat")
	if all, err := verify(); !errors.Is(err, errDamaged) || all[layers[1]].Bad != 1 || all[layers[1]].Refetched != 1 || all[layers[0]].Bad != 0 {
		t.Errorf("a damaged flat blob: %+v, %v", all, err)
	}
	s.off.Store(true)
	cat()
	damage("flat")
	// A layer that had not been checked as a whole yet may be dropped as one.
	if all, err := verify(); !errors.Is(err, errDamaged) || all[layers[1]].Error == "" {
		t.Errorf("a damaged flat blob and no registry: %+v, %v", all, err)
	}
	s.off.Store(false)
	cat()
	damage("index")
	out, err := run(t, "--root", root, "cache", "verify")
	if !errors.Is(err, errDamaged) || !strings.Contains(out, "it was removed") || !strings.Contains(out, "1 spans verified") {
		t.Errorf("a damaged index: %s, %v", out, err)
	}
	cat()
	if all, err := verify(); err != nil || len(all) != 2 {
		t.Errorf("in the end: %+v, %v", all, err)
	}
}

func TestCacheRm(t *testing.T) {
	s := newServer(t)
	a, b := s.host+"/a:1", s.host+"/b:1"
	shared := []member{file("shared", "1")}
	inA := s.push(t, a, shared, []member{file("a", "1")})
	inB := s.push(t, b, shared, []member{file("b", "1")})
	root := t.TempDir()
	fill := func() {
		t.Helper()
		for _, ref := range []string{a, b} {
			if out, err := run(t, "--root", root, "ls", ref); err != nil {
				t.Fatal(out, err)
			}
		}
	}
	rm := func(args ...string) error {
		t.Helper()
		_, err := run(t, append([]string{"--root", root, "cache", "rm"}, args...)...)
		return err
	}
	left := func(what string, want ...digest.Digest) {
		t.Helper()
		all := df(t, root)
		for _, l := range want {
			if _, ok := all[l]; !ok {
				t.Errorf("%s: layer %s is gone", what, l)
			}
		}
		if len(all) != len(want) {
			t.Errorf("%s: %d layers are left, want %d", what, len(all), len(want))
		}
	}
	fill()
	release := hold(t, root, "/mnt/a", inA[1])
	for _, name := range []string{a, inA[1].String(), inA[1].Encoded()[:12]} {
		if err := rm(name); !errors.Is(err, content.ErrInUse) || !strings.Contains(err.Error(), "/mnt/a") {
			t.Errorf("rm %s of what is mounted: %v", name, err)
		}
	}
	left("what is mounted", inA[0], inA[1], inB[1])
	if err := rm(b); err != nil {
		t.Error(err)
	}
	left("one image", inA...)
	if err := rm("--all"); err != nil {
		t.Error(err)
	}
	left("all but what is mounted", inA[1])
	release()
	if err := rm(inA[1].String()); err != nil {
		t.Error(err)
	}
	left("a layer")
	fill()
	if err := rm(a, b); err != nil {
		t.Error(err)
	}
	left("both images")
	s.off.Store(true)
	if _, err := run(t, "--root", root, "ls", a); err == nil {
		t.Error("an image that was removed is there while its registry is gone")
	}
}

func TestCacheWrongArguments(t *testing.T) {
	root := t.TempDir()
	for name, tt := range map[string]struct {
		args []string
		says string
	}{
		"no such command": {[]string{"clean"}, "no command \"clean\""},
		"df of something": {[]string{"df", "x"}, "peel cache df"},
		"rm of nothing":   {[]string{"rm"}, "peel cache rm [flags] IMAGE|DIGEST..."},
		"rm of no image":  {[]string{"rm", "example.com/app:1"}, "peel cache df lists"},
		"rm short digest": {[]string{"rm", "abcd"}, "no such image or layer"},
		"rm all and one":  {[]string{"rm", "--all", "x"}, "exclude"},
		"unknown flag":    {[]string{"verify", "--fast"}, "--help says"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, append([]string{"--root", root, "cache"}, tt.args...)...)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, should say %q; printed %s", err, tt.says, out)
			}
		})
	}
	if out, err := run(t, "--root", root, "cache"); err != nil || !strings.Contains(out, "verify") {
		t.Errorf("%q, %v", out, err)
	}
}

// An image whose record is damaged is no reason not to look at the others.
func TestCacheOfUnreadableImage(t *testing.T) {
	root := t.TempDir()
	store, err := content.Open(root, content.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.PutImage(content.Image{Ref: "example.com/app:1", Manifest: []byte("{")}); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, "--root", root, "--log-level", "error", "cache", "df"); err != nil {
		t.Error(err)
	}
	if _, err := run(t, "--root", root, "--log-level", "error", "cache", "rm", "example.com/app:1"); err != nil {
		t.Error(err)
	}
	if all, err := store.Images(); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}
