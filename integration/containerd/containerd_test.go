package containerd

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/registry"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("containerd takes root")
	}
	t.Skip("containerd takes root")
}

// image returns an image with one file.
func image(t *testing.T) v1.Image {
	t.Helper()
	layer, err := crane.Layer(map[string][]byte{"greeting": []byte("hello\n")})
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.ConfigFile(img, configured(t, img)); err != nil {
		t.Fatal(err)
	}
	return img
}

// configured gives the image a platform, without which containerd skips it.
func configured(t *testing.T, img v1.Image) *v1.ConfigFile {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	return config
}

// push pushes an image to a new registry, and returns its name.
func push(t *testing.T, img v1.Image, repo string) (r *registry.Registry, name string) {
	t.Helper()
	r, err := registry.Start(t.Context(), t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if err := r.Push(t.Context(), img, repo); err != nil {
		t.Fatal(err)
	}
	return r, r.Addr() + "/" + repo + ":latest"
}

// start starts a containerd that must leave nothing mounted.
func start(t *testing.T) *Containerd {
	t.Helper()
	dir, remove, err := mounts.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(errors.Join(err, remove()))
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if left, err := mounts.Below(dir); err != nil || len(left) > 0 {
			t.Errorf("mounted after Close: %q, %v", left, err)
		}
		if t.Failed() {
			t.Log(c.Log())
		}
		if err := remove(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestConfig has containerd say how it understands the configuration.
func TestConfig(t *testing.T) {
	programs, err := parts.Containerd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name        string
		snapshotter Snapshotter
		want        []string
		not         string
	}{
		{"its own", Snapshotter{}, []string{"snapshotter = 'overlayfs'", "sandbox = 'example.test/pause'", "restrict_oom_score_adj = true"}, "proxy_plugins.peel"},
		{"a proxy", Snapshotter{Name: "peel", Address: "/run/p.sock", Root: "/srv/p", Capabilities: []string{"remap-ids", "other"}},
			[]string{"snapshotter = 'peel'", "[proxy_plugins.peel]", "address = '/run/p.sock'", "root = '/srv/p'", "capabilities = ['remap-ids', 'other']",
				"enable_remote_snapshot_annotations = 'true'", "disable_snapshot_annotations = false", "use_local_image_pull = true"}, "snapshotter = 'overlayfs'"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			file, err := writeConfig(t.TempDir(), Options{test.snapshotter, "example.test/pause"})
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), filepath.Join(programs, "containerd"), "--config", file, "config", "dump").CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range test.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("there is no %q in\n%s", want, out)
				}
			}
			if strings.Contains(string(out), test.not) || strings.Contains(string(out), "Ignoring unknown key") {
				t.Errorf("there is %q, or an unknown key, in\n%s", test.not, out)
			}
		})
	}
}

func TestPullAndMount(t *testing.T) {
	needRoot(t)
	r, name := push(t, image(t), "greeting")
	for _, flag := range []string{"", "--local"} {
		c := start(t)
		flags := strings.Fields(flag)
		if err := c.Pull(t.Context(), name, flags...); err != nil {
			t.Fatal(err)
		}
		root, err := c.Mount(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(root, "greeting")); err != nil || string(got) != "hello\n" {
			t.Errorf("read %q, %v", got, err)
		}
		if err := c.Pull(t.Context(), r.Addr()+"/missing:latest", flags...); err == nil || !strings.Contains(err.Error(), "not found") {
			t.Errorf("a missing image gives error %v", err)
		}
	}
}

func TestNamespacesLeasesAndGarbage(t *testing.T) {
	needRoot(t)
	_, name := push(t, image(t), "greeting")
	c := start(t)
	other := c.In("other")
	for _, ctr := range []Ctr{c.Ctr, other} {
		if err := ctr.Pull(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	want := func(ctr Ctr, n int, why string) {
		t.Helper()
		if got, err := ctr.Snapshots(t.Context()); err != nil || len(got) != n {
			t.Errorf("%s: namespace %s has snapshots %v, %v, want %d", why, ctr.namespace, got, err, n)
		}
	}
	want(c.Ctr, 1, "pulled")
	want(other, 1, "pulled")
	if err := c.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	want(c.Ctr, 0, "removed")
	want(other, 1, "removed elsewhere")

	snapshots, err := other.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key := slices.Collect(maps.Keys(snapshots))[0]
	mustPrint(t, other, "", "snapshots", "label", key, "containerd.io/gc.root=now")
	if err := other.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	want(other, 1, "a root of the garbage collection")
	mustPrint(t, other, "", "snapshots", "label", key, "containerd.io/gc.root=")
	if err := c.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(other, 0, "garbage")
}

// mustPrint runs ctr and checks that its output has a part.
func mustPrint(t *testing.T, c Ctr, want string, args ...string) {
	t.Helper()
	if got, err := c.Output(t.Context(), args...); err != nil || !strings.Contains(got, want) {
		t.Errorf("ctr %s printed %q, %v, want %q", strings.Join(args, " "), got, err, want)
	}
}

func TestContainers(t *testing.T) {
	needRoot(t)
	img, err := images.Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, name := push(t, img, "debian")
	c := start(t)
	if err := c.Pull(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	t.Run("run", func(t *testing.T) {
		if out, err := c.Run(t.Context(), name, "cat", "/etc/debian_version"); err != nil || !strings.HasPrefix(out, "1") {
			t.Errorf("got %q, %v", out, err)
		}
		if _, err := c.Run(t.Context(), name, "sh", "-c", "echo oh no >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "oh no") {
			t.Errorf("a program that fails gives error %v", err)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		var all sync.WaitGroup
		for i := range 5 {
			all.Go(func() {
				want := fmt.Sprintf("container %d\n", i)
				if out, err := c.Run(t.Context(), name, "echo", "container", fmt.Sprint(i)); err != nil || out != want {
					t.Errorf("got %q, %v, want %q", out, err, want)
				}
			})
		}
		all.Wait()
	})
	t.Run("user namespace", func(t *testing.T) {
		cmd, _ := c.RunCommand(t.Context(), Container{
			Image: name,
			Args:  []string{"sh", "-c", "cat /proc/self/uid_map; stat -c %u:%g /etc; touch /file && stat -c %u /file"},
			// Without the labels, ctr changes the owners of all files by itself.
			Flags:    []string{"--rm", "--remap-labels", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"},
			Unlinked: true,
		})
		out, err := output(cmd)
		if got, want := strings.Join(strings.Fields(out), " "), "0 100000 65536 0:0 0"; err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	})
	t.Run("started", func(t *testing.T) {
		id, err := c.Start(t.Context(), name, "sleep", "infinity")
		if err != nil {
			t.Fatal(err)
		}
		if out, err := c.Exec(t.Context(), id, "sh", "-c", "echo changed >/file; cat /file"); err != nil || out != "changed\n" {
			t.Errorf("got %q, %v", out, err)
		}
		if err := c.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
		if info, err := c.Output(t.Context(), "containers", "info", id); err == nil {
			t.Errorf("after Delete the container is still there: %s", info)
		}
	})
	t.Run("commit", func(t *testing.T) {
		id, err := c.Change(t.Context(), name, "sh", "-c", "echo changed >/etc/motd; rm -r /usr/share/doc")
		if err != nil {
			t.Fatal(err)
		}
		committed, err := c.Commit(t.Context(), id, img)
		if err := errors.Join(err, c.Delete(t.Context(), id)); err != nil {
			t.Fatal(err)
		}
		if err := r.Push(t.Context(), committed, "committed"); err != nil {
			t.Fatal(err)
		}
		elsewhere, name := start(t), r.Addr()+"/committed:latest"
		if err := elsewhere.Pull(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		out, err := elsewhere.Run(t.Context(), name, "sh", "-c", "cat /etc/motd; test -e /usr/share/doc || echo gone")
		if want := "changed\ngone\n"; err != nil || out != want {
			t.Errorf("got %q, %v, want %q", out, err, want)
		}
	})
}

func TestCloseKillsContainers(t *testing.T) {
	needRoot(t)
	img, err := images.Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, name := push(t, img, "debian")
	dir := t.TempDir()
	c, err := Start(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Pull(t.Context(), name); err != nil {
		t.Error(err)
	}
	if _, err := c.In("other").Run(t.Context(), name, "true"); err == nil {
		t.Error("a namespace has another's image")
	}
	if _, err := c.Start(t.Context(), name, "sleep", "infinity"); err != nil {
		t.Error(err)
	}
	if len(shims(t, dir)) == 0 {
		t.Error("no shim runs, so this test shows nothing")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if left, err := mounts.Below(dir); err != nil || len(left) > 0 {
		t.Errorf("mounted after Close: %q, %v", left, err)
	}
	if left := shims(t, dir); len(left) > 0 {
		t.Errorf("after Close these run: %q", left)
	}
}

// shims returns the command lines of what still serves a containerd.
func shims(t *testing.T, dir string) (found []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		line, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(line), dir) { // one that has ended has none
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
