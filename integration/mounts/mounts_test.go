package mounts

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBelow(t *testing.T) {
	const table = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:21 / /mnt/a rw shared:7 - tmpfs none rw
24 23 0:22 / /mnt/a/with\040blank\134x rw - tmpfs none rw
25 22 0:23 / /mnt/ab rw - tmpfs none rw
26 23 0:24 / /mnt/a rw - tmpfs none rw
short line
`
	tests := []struct {
		dir  string
		want []string
	}{
		{"/mnt/a", []string{"/mnt/a", `/mnt/a/with blank\x`, "/mnt/a"}},
		{"/mnt/a/", []string{"/mnt/a", `/mnt/a/with blank\x`, "/mnt/a"}},
		{"/mnt/ab", []string{"/mnt/ab"}},
		{"/", []string{"/", "/mnt/a", `/mnt/a/with blank\x`, "/mnt/ab", "/mnt/a"}},
		{"/mnt/b", nil},
	}
	for _, test := range tests {
		if got := below(table, test.dir); !slices.Equal(got, test.want) {
			t.Errorf("below %s: got %q, want %q", test.dir, got, test.want)
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		`plain`: "plain", `a\040b`: "a b", `\134\011`: "\\\t", `\`: `\`, `\9zz`: `\9zz`, `\777`: `\777`, `a\04`: `a\04`,
	} {
		if got := unescape(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("mounting takes root")
	}
	t.Skip("mounting takes root")
}

func TestWaitAndDetach(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	t.Cleanup(func() { Detach(dir) })
	waited := make(chan error, 1)
	go func() { waited <- Wait(t.Context(), dir) }()
	mount := func(dir string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(dir, 0o755), unix.Mount("none", dir, "tmpfs", 0, "size=64k")); err != nil {
			t.Fatal(err)
		}
	}
	mount(dir)
	if err := <-waited; err != nil {
		t.Error(err)
	}
	mount(filepath.Join(dir, "below"))
	inUse, err := os.Create(filepath.Join(dir, "below", "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer inUse.Close()
	if err := Detach(dir); err != nil {
		t.Error(err)
	}
	if left, err := Below(dir); err != nil || len(left) > 0 {
		t.Errorf("still mounted: %q, %v", left, err)
	}
}

func TestWaitGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Wait(ctx, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
}
