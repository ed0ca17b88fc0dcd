package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/cmd/internal/daemon"
	"golang.org/x/sys/unix"
)

// run runs the command in this process.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	app := newApp()
	var out bytes.Buffer
	app.Writer, app.ErrWriter = &out, &out
	err := app.RunContext(context.Background(), append([]string{"peel"}, args...))
	return out.String(), err
}

func TestWrongArguments(t *testing.T) {
	root, file := t.TempDir(), filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args []string
		says string
	}{
		"unknown command":     {[]string{"mnt"}, "no command"},
		"unknown flag":        {[]string{"mount", "--fast", "a", "b"}, "not defined"},
		"no arguments":        {[]string{"mount"}, "IMAGE DIR"},
		"one argument":        {[]string{"mount", "debian"}, "IMAGE DIR"},
		"flag at the end":     {[]string{"mount", "debian", "/mnt", "--rw"}, "flags come first"},
		"no folder":           {[]string{"mount", "debian", filepath.Join(root, "none")}, "make the folder"},
		"a file":              {[]string{"mount", "debian", file}, "not a folder"},
		"bad reference":       {[]string{"mount", "-f", "UPPER CASE", root}, "UPPER"},
		"bad level":           {[]string{"--log-level", "loud", "index", "debian"}, "loud"},
		"push and show":       {[]string{"index", "--push", "--show", "debian"}, "exclude"},
		"nothing there":       {[]string{"umount", root}, "no image is mounted"},
		"no such folder":      {[]string{"umount", filepath.Join(root, "a", "b")}, "no such file"},
		"missing certificate": {[]string{"--ca-file", filepath.Join(root, "none"), "index", "debian"}, "none"},
		"status of something": {[]string{"status", "x"}, "1 arguments"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, append([]string{"--root", root}, tt.args...)...)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, should say %q; printed %s", err, tt.says, out)
			}
		})
	}
}

func TestStatusOfNothing(t *testing.T) {
	out, err := run(t, "--root", t.TempDir(), "status", "--json")
	var all allStatus
	if err != nil || json.Unmarshal([]byte(out), &all) != nil || all.Mounts == nil || len(all.Mounts) != 0 {
		t.Errorf("%q, %v", out, err)
	}
}

func TestDoctor(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	skewed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusNotFound)
	}))
	defer skewed.Close()
	for name, tt := range map[string]struct {
		args []string
		says []string
	}{
		"machine": {nil, []string{"kernel", "/dev/fuse", "store", "driver erofs", "driver tree"}},
		"gone":    {[]string{strings.TrimPrefix(gone.URL, "http://") + "/app:1"}, []string{"registry", "check the name"}},
		"skewed":  {[]string{strings.TrimPrefix(skewed.URL, "http://") + "/app:1"}, []string{"answers", "set the clock", "1h0m0s behind"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, append([]string{"--root", t.TempDir(), "doctor"}, tt.args...)...)
			if err != nil && !errors.Is(err, errIll) {
				t.Fatal(err)
			}
			for _, want := range tt.says {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
		})
	}
	if _, err := run(t, "--root", t.TempDir(), "doctor", "NOT A REFERENCE"); err == nil {
		t.Error("a bad reference is fine")
	}
}

// A session whose process was killed is told as such, and can be removed.
func TestDeadSession(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	s := sessionFor(root, dir)
	lock, err := s.acquire()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.write(mountInfo{Image: "example.com/app:1", Dir: dir, PID: 1}); err != nil {
		t.Fatal(err)
	}
	if !s.alive() {
		t.Error("a locked session is not alive")
	}
	if _, err := s.acquire(); !errors.Is(err, errAlive) {
		t.Errorf("acquired twice: %v", err)
	}
	lock.Close()
	if s.alive() {
		t.Error("an unlocked session is alive")
	}
	out, err := run(t, "--root", root, "status")
	if err != nil || !strings.Contains(out, "dead") || !strings.Contains(out, "example.com/app:1") {
		t.Errorf("%q, %v", out, err)
	}
	if os.Geteuid() != 0 {
		t.Skip("unmounting needs root")
	}
	if _, err := run(t, "--root", root, "umount", dir); err != nil {
		t.Error(err)
	}
	if _, err := s.info(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the session is still there: %v", err)
	}
}

// A place whose mount is gone is waited for, until its process has ended.
func TestAcquireAfter(t *testing.T) {
	dir := t.TempDir()
	s := sessionFor(t.TempDir(), dir)
	before, err := s.acquire()
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		lock *os.File
		err  error
	}
	got := make(chan result)
	go func() {
		lock, err := s.acquireAfter(t.Context(), dir)
		got <- result{lock, err}
	}()
	if err := s.remove(); err != nil { // as a process does when it ends
		t.Fatal(err)
	}
	before.Close()
	r := <-got
	if r.err != nil || !s.alive() {
		t.Fatalf("%v, alive: %v", r.err, s.alive())
	}
	defer r.lock.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.acquireAfter(ctx, dir); !errors.Is(err, errAlive) {
		t.Errorf("of one that lives: %v", err)
	}
}

// A root with a long name has a socket all the same.
func TestSocketOfLongRoot(t *testing.T) {
	root := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	s := sessionFor(root, "/mnt")
	lock, err := s.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	l, err := s.listen()
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			daemon.Reply(w, nil, unix.EBUSY)
			return
		}
		daemon.Reply(w, mountInfo{Image: "x"}, nil)
	})}
	go srv.Serve(l)
	defer srv.Close()
	var got mountInfo
	if err := s.call(context.Background(), http.MethodGet, "/", &got); err != nil || got.Image != "x" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := s.call(context.Background(), http.MethodGet, "/bad", &got); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("error %v", err)
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 1_500_000: "1.5 MB", 999_949_999: "999.9 MB", 999_950_000: "1.0 GB", 1<<63 - 1: "9.2 EB",
	} {
		if got := bytesText(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestBar(t *testing.T) {
	for _, terminal := range []bool{true, false} {
		var out bytes.Buffer
		b := &bar{out: &out, terminal: terminal, work: map[string]map[digest.Digest]part{}}
		b.update("fetch", "sha256:a", 0, 100)
		b.began, b.shown = b.began.Add(-time.Hour), b.shown.Add(-time.Hour)
		b.update("fetch", "sha256:b", 50_000, 100_000)
		b.end()
		if got := out.String(); !strings.Contains(got, "fetch 2 layers: 50.0 kB of 100.1 kB") || strings.Contains(got, "\r") != terminal {
			t.Errorf("terminal %v: %q", terminal, got)
		}
	}
}
