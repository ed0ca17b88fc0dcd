package peeld_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/containerd"
	"github.com/peelfs/peel/integration/cri"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/peeld"
	"github.com/peelfs/peel/integration/registry"
)

// shared is what all tests share.
var shared struct {
	peel     string // the program
	registry *registry.Registry

	mu     sync.Mutex
	pushed map[string]bool // by repository
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
	shared.pushed = map[string]bool{}
	if shared.peel, err = parts.Peel(ctx); err != nil {
		return 1, err
	}
	if shared.registry, err = registry.Start(ctx, dir, ""); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, shared.registry.Close()) }()
	return m.Run(), nil
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("containers need root")
	}
	t.Skip("containers need root")
}

// made returns an image that a function of package images makes.
func made(t *testing.T, make func(context.Context) (*images.Image, error)) *images.Image {
	t.Helper()
	needRoot(t)
	img, err := make(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// push makes sure that the registry has the image, and its indices if they are
// asked for.
func push(t *testing.T, img v1.Image, repo string, indexed bool) {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.pushed[repo] {
		return
	}
	if err := shared.registry.Push(t.Context(), img, repo); err != nil {
		t.Fatal(err)
	}
	if indexed {
		peel := cli.Peel{Program: shared.peel, Root: t.TempDir()}
		if _, err := peel.Run(t.Context(), "index", "--push", shared.registry.Addr()+"/"+repo+":latest"); err != nil {
			t.Fatal(err)
		}
	}
	shared.pushed[repo] = true
}

// node is a machine with a containerd that has nothing yet, a peeld, and a link
// to the registry.
type node struct {
	*containerd.Containerd
	peeld *peeld.Daemon
	link  *link.Link
	dir   string
}

// newNode starts a node that must leave nothing behind, not even a mount. The
// configuration is peeld's.
func newNode(t *testing.T, over link.Options, config string) *node {
	t.Helper()
	needRoot(t)
	l, err := link.New(shared.registry.Addr(), over)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dir, remove, err := mounts.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // for containers whose root is another user
		t.Fatal(err)
	}
	n := &node{link: l, dir: dir}
	own := filepath.Join(dir, "peeld")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	if n.peeld, err = peeld.Start(t.Context(), own, config); err != nil {
		t.Fatal(errors.Join(err, remove()))
	}
	sn, err := n.peeld.Snapshotter()
	if err != nil {
		t.Fatal(errors.Join(err, n.peeld.Close(), remove()))
	}
	n.Containerd, err = containerd.Start(t.Context(), dir, containerd.Options{Snapshotter: sn, Pause: l.Addr() + "/pause:latest"})
	if err != nil {
		t.Fatal(errors.Join(err, remove()))
	}
	t.Cleanup(func() {
		err := n.Close()
		left, below := mounts.Below(dir)
		if err := errors.Join(err, below); err != nil || len(left) > 0 {
			t.Errorf("mounted after the end: %q, %v", left, err)
		}
		if t.Failed() {
			t.Log(n.Log(), n.peeld.Log())
		}
		if err := remove(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// image returns the repository's image as this node sees it.
func (n *node) image(repo string) string { return n.link.Addr() + "/" + repo + ":latest" }

// pull pulls the repository's image, and returns what containerd knows it by.
func (n *node) pull(t *testing.T, repo string, flags ...string) (image string) {
	t.Helper()
	if err := n.Pull(t.Context(), n.image(repo), flags...); err != nil {
		t.Fatal(err)
	}
	return n.image(repo)
}

// run runs a program in a container of the image, and returns what it prints.
func (n *node) run(t *testing.T, image string, args ...string) string {
	t.Helper()
	out, err := n.Run(t.Context(), image, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// noneLeft fails the test if a layer was left to containerd, which is what must
// not happen unnoticed.
func (n *node) noneLeft(t *testing.T) {
	t.Helper()
	if log := n.peeld.Log(); strings.Contains(log, "left to containerd") {
		t.Errorf("peeld has left layers to containerd:\n%s", log)
	}
}

// lowers returns how many layers the node has mounted.
func (n *node) lowers(t *testing.T) int {
	t.Helper()
	left, err := mounts.Below(n.peeld.Root + "/lowers")
	if err != nil {
		t.Fatal(err)
	}
	return len(left)
}

// dial connects to the node's CRI plugin as a kubelet does.
func (n *node) dial(t *testing.T) *cri.Client {
	t.Helper()
	pause, err := cri.Pause(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	push(t, pause, "pause", false)
	if err := n.PlainHTTP(n.link.Addr()); err != nil {
		t.Fatal(err)
	}
	c, err := cri.Dial(t.Context(), n.Socket(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
