package cri

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/peelfs/peel/integration/containerd"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/registry"
)

// dial starts a registry with a Debian image, and a containerd that must leave
// nothing mounted, and connects to it.
func dial(t *testing.T) (c *Client, image string) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("containerd takes root")
		}
		t.Skip("containerd takes root")
	}
	r, err := registry.Start(t.Context(), t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	pause, err := Pause(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Push(t.Context(), pause, "pause"); err != nil {
		t.Fatal(err)
	}
	img, err := images.Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Push(t.Context(), img, "debian"); err != nil {
		t.Fatal(err)
	}
	dir, remove, err := mounts.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	d, err := containerd.Start(t.Context(), dir, containerd.Options{Pause: r.Addr() + "/pause:latest"})
	if err != nil {
		t.Fatal(errors.Join(err, remove()))
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if left, err := mounts.Below(dir); err != nil || len(left) > 0 {
			t.Errorf("mounted after Close: %q, %v", left, err)
		}
		if t.Failed() {
			t.Log(d.Log())
		}
		if err := remove(); err != nil {
			t.Error(err)
		}
	})
	if err := d.PlainHTTP(r.Addr()); err != nil {
		t.Fatal(err)
	}
	if c, err = Dial(t.Context(), d.Socket(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, r.Addr() + "/debian:latest"
}

func TestPod(t *testing.T) {
	c, image := dial(t)
	pod, err := c.RunPod(t.Context(), "pod")
	if err != nil {
		t.Fatal(err)
	}
	if id, err := c.Pull(t.Context(), image); err != nil || !strings.HasPrefix(id, "sha256:") {
		t.Fatalf("pulled %q, %v", id, err)
	}
	t.Run("to its end", func(t *testing.T) {
		long := strings.Repeat("long ", 10_000) // more than containerd puts in a line of the log
		ended, err := pod.Start(t.Context(), "ended", image, "sh", "-c", "echo "+long+"; echo; cat /etc/debian_version; exit 3")
		if err != nil {
			t.Fatal(err)
		}
		if code, err := ended.Wait(t.Context()); err != nil || code != 3 {
			t.Errorf("it ended with %d, %v, want 3", code, err)
		}
		out, err := ended.Output()
		if want := strings.TrimSpace(long) + "\n\n1"; err != nil || !strings.HasPrefix(out, want) {
			t.Errorf("it printed %.100q and more, %v", out, err)
		}
		if err := ended.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("exec", func(t *testing.T) {
		runs, err := pod.Start(t.Context(), "runs", image, "sleep", "infinity")
		if err != nil {
			t.Fatal(err)
		}
		if out, err := runs.Exec(t.Context(), "sh", "-c", "echo changed >/file; cat /file"); err != nil || out != "changed\n" {
			t.Errorf("got %q, %v", out, err)
		}
		if _, err := runs.Exec(t.Context(), "sh", "-c", "echo oh no >&2; exit 1"); err == nil || !strings.Contains(err.Error(), "oh no") {
			t.Errorf("a program that fails gives error %v", err)
		}
	})
	t.Run("not in the image", func(t *testing.T) {
		if _, err := pod.Start(t.Context(), "missing", image, "/no/such/program"); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("got error %v", err)
		}
	})
	if err := pod.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Remove(t.Context(), image); err != nil {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	c, _ := dial(t)
	_, _, path, err := c.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || !info.IsDir() || !strings.Contains(filepath.Base(path), "overlayfs") {
		t.Errorf("images are in %q, %v", path, err)
	}
}

func TestErrorsNameTheImage(t *testing.T) {
	c, image := dial(t)
	missing := strings.Replace(image, "debian", "missing", 1)
	if _, err := c.Pull(t.Context(), missing); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("got error %v, want one that names the image", err)
	}
}
