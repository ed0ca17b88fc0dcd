// Package containerd runs containerd as a process of its own with an empty
// store, to compare with.
//
// It knows ctr's command line and containerd's defaults, which it leaves alone
// but for what would collide with another containerd on the machine.
package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/process"
)

// Containerd is a running containerd.
type Containerd struct {
	ctr         string
	dir         string
	address     string
	snapshotter string
	process     *process.Process
	stargz      *process.Process // nil if the snapshotter is containerd's own
}

const config = `version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
`

var booted = regexp.MustCompile("containerd successfully booted")

// Start starts containerd with everything it keeps, and a log, below dir. The
// folder must be on a file system that overlayfs can write to.
func Start(ctx context.Context, dir string) (*Containerd, error) {
	return start(ctx, dir, "overlayfs", "")
}

// start starts containerd with a snapshotter, and more configuration.
func start(ctx context.Context, dir, snapshotter, more string) (*Containerd, error) {
	programs, err := parts.Containerd(ctx)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf(config, filepath.Join(dir, "root"), filepath.Join(dir, "state")) + more
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	address := filepath.Join(dir, "socket")
	cmd := exec.Command(filepath.Join(programs, "containerd"), "--config", file, "--address", address)
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	p, _, err := process.Start(ctx, cmd, filepath.Join(dir, "log"), booted)
	if err != nil {
		return nil, err
	}
	return &Containerd{filepath.Join(programs, "ctr"), dir, address, snapshotter, p, nil}, nil
}

// Pull pulls an image over plain HTTP and unpacks it.
func (c *Containerd) Pull(ctx context.Context, image string) error {
	return c.run(ctx, "images", "pull", "--plain-http", "--snapshotter", c.snapshotter, image)
}

// Mount returns a directory with the unpacked file system of a pulled image,
// writable, which is there until Close.
func (c *Containerd) Mount(ctx context.Context, image string) (root string, err error) {
	root, err = os.MkdirTemp(c.dir, "mount")
	if err != nil {
		return "", err
	}
	return root, c.run(ctx, "images", "mount", "--rw", "--snapshotter", c.snapshotter, image, root)
}

// Close stops containerd and unmounts everything below its folder, which stays.
func (c *Containerd) Close() error {
	err := errors.Join(c.process.Stop(), mounts.Detach(c.dir))
	if c.stargz != nil {
		err = errors.Join(err, c.stargz.Stop())
	}
	return err
}

// Log returns what containerd, and its snapshotter, have had to say.
func (c *Containerd) Log() string {
	var all strings.Builder
	for _, name := range []string{"log", "stargz.log"} {
		if text, err := os.ReadFile(filepath.Join(c.dir, name)); err == nil {
			fmt.Fprintf(&all, "%s:\n%s", name, text)
		}
	}
	return all.String()
}

func (c *Containerd) run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, c.ctr, append([]string{"--address", c.address}, args...)...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ctr %s: %w\n%s", strings.Join(args, " "), err, &output)
	}
	return nil
}
