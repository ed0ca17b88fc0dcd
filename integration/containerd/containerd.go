// Package containerd runs containerd as a process of its own with an empty
// store, and with the snapshotter that is to be tested or compared with.
//
// It knows containerd's configuration and ctr's command line. Its defaults it
// leaves alone but for what would collide with another containerd on the
// machine. Kubernetes' interface is there too, for the package cri to use.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/process"
)

// Containerd is a running containerd, and ctr in its default namespace.
type Containerd struct {
	Ctr
	dir     string
	process *process.Process
	stop    func() error // what the snapshotter needs to end; may be nil
}

// Options is how a containerd is set up. The zero value is containerd as it
// comes, with overlayfs.
type Options struct {
	Snapshotter Snapshotter
	Pause       string // the image of Kubernetes' pods; see cri.Pause
}

var booted = regexp.MustCompile("containerd successfully booted")

const closeTimeout = 30 * time.Second // for containers to be killed

// Start starts containerd with everything it keeps, and a log, below dir. The
// folder must be on a file system that overlayfs can write to, its path short
// enough for a socket's, and open to others for containers in user namespaces:
// mounts.TempDir makes such a one. An error has stopped the snapshotter too.
func Start(ctx context.Context, dir string, opts Options) (c *Containerd, err error) {
	defer func() {
		if err != nil && opts.Snapshotter.Stop != nil {
			err = errors.Join(err, opts.Snapshotter.Stop())
		}
	}()
	programs, err := parts.Containerd(ctx)
	if err != nil {
		return nil, err
	}
	file, err := writeConfig(dir, opts)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(programs, "containerd"), "--config", file)
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	p, _, err := process.Start(ctx, cmd, filepath.Join(dir, "containerd.log"), booted)
	if err != nil {
		return nil, err
	}
	ctr := Ctr{filepath.Join(programs, "ctr"), filepath.Join(dir, "socket"), opts.Snapshotter.name(), "default"}
	return &Containerd{ctr, dir, p, opts.Snapshotter.Stop}, nil
}

// Socket returns the path of the socket at which containerd, and its CRI
// plugin, listen.
func (c *Containerd) Socket() string { return c.address }

// PID returns containerd's process id.
func (c *Containerd) PID() int { return c.process.PID() }

// Mount returns a directory with the unpacked file system of a pulled image,
// writable, which is there until Close.
func (c *Containerd) Mount(ctx context.Context, image string) (root string, err error) {
	root, err = os.MkdirTemp(c.dir, "mount")
	if err != nil {
		return "", err
	}
	_, err = c.Output(ctx, "images", "mount", "--rw", "--snapshotter", c.snapshotter, image, root)
	return root, err
}

// Close stops containerd and unmounts everything below its folder, which stays.
// Containers that run are killed.
func (c *Containerd) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := errors.Join(c.killAll(ctx), c.process.Stop(), mounts.Detach(c.dir))
	if c.stop != nil {
		err = errors.Join(err, c.stop())
	}
	return err
}

// Log returns all logs in containerd's folder: its own, and its snapshotter's.
func (c *Containerd) Log() string {
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*.log"))
	var all strings.Builder
	for _, log := range logs {
		text, err := os.ReadFile(log)
		if err != nil {
			text = []byte(err.Error())
		}
		fmt.Fprintf(&all, "%s:\n%s", log, text)
	}
	return all.String()
}
