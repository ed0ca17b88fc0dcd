// Package integration runs peel's command line against real parts: the CNCF
// registry, images of Debian's packages, and umoci to compare with.
package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/registry"
)

// rig is what all tests share: it takes long to make, and none changes it.
var rig struct {
	dir      string
	peel     string // the program
	registry *registry.Registry

	mu       sync.Mutex
	pushed   map[string]bool   // by repository
	unpacked map[string]string // root file system, by image
}

func TestMain(m *testing.M) {
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (status int, err error) {
	ctx := context.Background()
	dir, remove, err := mounts.TempDir()
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	rig.dir, rig.pushed, rig.unpacked = dir, map[string]bool{}, map[string]string{}
	if rig.peel, err = parts.Peel(ctx); err != nil {
		return 1, err
	}
	if rig.registry, err = registry.Start(ctx, dir, ""); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, rig.registry.Close()) }()
	return m.Run(), nil
}

// need ends a test that cannot run here: with a failure where everything that
// it needs must be there, or else by skipping it.
func need(t *testing.T) {
	t.Helper()
	missing := ""
	if os.Getuid() != 0 {
		missing = "root"
	} else if _, err := os.Stat("/dev/fuse"); err != nil {
		missing = "/dev/fuse"
	}
	switch {
	case missing == "":
	case os.Getenv("CI") == "true":
		t.Fatalf("this needs %s", missing)
	default:
		t.Skipf("this needs %s", missing)
	}
}

// made returns an image that a function of package images makes.
func made(t *testing.T, make func(context.Context) (*images.Image, error)) *images.Image {
	t.Helper()
	need(t)
	img, err := make(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// push makes sure that the registry has the image, and returns the repository.
// Of one image there is a repository with indices and one without.
func push(t *testing.T, img *images.Image, indexed bool) (repo string) {
	t.Helper()
	repo = img.Name
	if !indexed {
		repo += "-plain"
	}
	rig.mu.Lock()
	defer rig.mu.Unlock()
	if rig.pushed[repo] {
		return repo
	}
	if err := rig.registry.Push(t.Context(), img, repo); err != nil {
		t.Fatal(err)
	}
	if indexed {
		peel := cli.Peel{Program: rig.peel, Root: t.TempDir()}
		if _, err := peel.Run(t.Context(), "index", "--push", rig.registry.Addr()+"/"+repo+":latest"); err != nil {
			t.Fatal(err)
		}
	}
	rig.pushed[repo] = true
	return repo
}

// unpacked returns the root file system of the image as umoci unpacks it. It is
// shared: nothing must change it.
func unpacked(t *testing.T, img *images.Image) string {
	t.Helper()
	rig.mu.Lock()
	defer rig.mu.Unlock()
	if root := rig.unpacked[img.Name]; root != "" {
		return root
	}
	bundle := filepath.Join(rig.dir, "unpacked-"+img.Name)
	out, err := exec.CommandContext(t.Context(), "umoci", "unpack", "--image", img.Layout+":"+images.Tag, bundle).CombinedOutput()
	if err != nil {
		t.Fatalf("umoci unpack %s: %v\n%s", img.Layout, err, out)
	}
	rig.unpacked[img.Name] = filepath.Join(bundle, "rootfs")
	return rig.unpacked[img.Name]
}

// node is a machine with an empty cache and a link to the registry.
type node struct {
	cli.Peel
	link     *link.Link
	registry string // where the registry seems to be: the near end of the link
	mnt      string // where to mount
}

// newNode returns a node that leaves nothing behind, not even a mount.
func newNode(t *testing.T, opts link.Options) *node {
	t.Helper()
	l, err := link.New(rig.registry.Addr(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dir, remove, err := mounts.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := remove(); err != nil {
			t.Error(err)
		}
	})
	n := &node{cli.Peel{Program: rig.peel, Root: filepath.Join(dir, "peel")}, l, l.Addr(), filepath.Join(dir, "mnt")}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(n.Log())
		}
	})
	if err := os.Mkdir(n.mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	return n
}

// image returns the repository's image as this node sees it.
func (n *node) image(repo string) string { return n.registry + "/" + repo + ":latest" }

// mount mounts the repository's image until umount or the end of the test.
func (n *node) mount(t *testing.T, repo string, flags ...string) {
	t.Helper()
	if err := n.Mount(t.Context(), n.image(repo), n.mnt, flags...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := mounts.Below(n.mnt); err == nil && len(left) > 0 {
			n.umount(t)
		}
	})
}

func (n *node) umount(t *testing.T) {
	t.Helper()
	if err := n.Umount(t.Context(), n.mnt); err != nil {
		t.Error(err)
	}
	if left, err := mounts.Below(n.mnt); err != nil || len(left) > 0 {
		t.Errorf("mounted after umount: %q, %v", left, err)
	}
}
