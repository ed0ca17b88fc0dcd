package containerd

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/registry"
)

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

func TestPullAndMount(t *testing.T) {
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
	defer r.Close()
	if err := r.Push(t.Context(), image(t), "greeting"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c, err := Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	name := r.Addr() + "/greeting:latest"
	if err := c.Pull(t.Context(), name); err != nil {
		t.Error(err)
	} else if root, err := c.Mount(t.Context(), name); err != nil {
		t.Error(err)
	} else if got, err := os.ReadFile(filepath.Join(root, "greeting")); err != nil || string(got) != "hello\n" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := c.Pull(t.Context(), r.Addr()+"/missing:latest"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a missing image gives error %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if left, err := mounts.Below(dir); err != nil || len(left) > 0 {
		t.Errorf("mounted after Close: %q, %v", left, err)
	}
}
