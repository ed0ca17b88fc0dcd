// Package coldstart measures how long a program in an image takes to its first
// output on a machine that has nothing of the image yet.
//
// It knows how to start it lazily, with peel or with containerd's stargz
// snapshotter, and after a full pull, with containerd. Each start has an empty store and a fresh link to the registry.
package coldstart

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/containerd"
	"github.com/peelfs/peel/integration/link"
	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/registry"
)

// Node is a machine that has nothing yet.
type Node struct {
	Peel     string // path of the program
	Registry *registry.Registry
	Link     link.Options // between the two
}

// Program is what is started, in the image's root file system.
type Program struct {
	Repo  string   // of the registry; the tag is latest
	Args  []string // the first is a path in the image
	Ready string   // how the line starts that ends the measurement
}

// Result is what a start took, until its first output.
type Result struct {
	Root     time.Duration // until the root file system was there
	Output   time.Duration // until the first output
	Received int64         // bytes over the link
	Requests int           // HTTP requests over the link
	Line     string        // the output
}

// Lazily mounts the image with peel and starts the program.
func (n Node) Lazily(ctx context.Context, p Program) (Result, error) {
	return n.measure(ctx, p, func(dir string) (rootFS, error) {
		root := filepath.Join(dir, "mnt")
		peel := cli.Peel{Program: n.Peel, Root: filepath.Join(dir, "peel")}
		return rootFS{
			provide: func(image string) (string, error) { return root, peel.Mount(ctx, image, root) },
			remove:  func() error { return peel.Umount(ctx, root) },
			log:     peel.Log,
		}, os.Mkdir(root, 0o755)
	})
}

// AfterPull pulls the image with containerd, mounts it and starts the program.
// Starting containerd is not part of the measurement.
func (n Node) AfterPull(ctx context.Context, p Program) (Result, error) {
	return n.pulled(ctx, p, containerd.Start)
}

// Stargz does the same with the stargz snapshotter, which pulls layers only if
// they are not in its format.
func (n Node) Stargz(ctx context.Context, p Program) (Result, error) {
	return n.pulled(ctx, p, containerd.StartStargz)
}

func (n Node) pulled(ctx context.Context, p Program, boot func(ctx context.Context, dir string) (*containerd.Containerd, error)) (Result, error) {
	return n.measure(ctx, p, func(dir string) (rootFS, error) {
		c, err := boot(ctx, dir)
		if err != nil {
			return rootFS{}, err
		}
		return rootFS{
			provide: func(image string) (string, error) {
				if err := c.Pull(ctx, image); err != nil {
					return "", err
				}
				return c.Mount(ctx, image)
			},
			remove: c.Close,
			log:    c.Log,
		}, nil
	})
}

// rootFS is one way to get at an image's root file system.
type rootFS struct {
	provide func(image string) (root string, err error)
	remove  func() error
	log     func() string // what explains a failure
}

func (n Node) measure(ctx context.Context, p Program, prepare func(dir string) (rootFS, error)) (r Result, err error) {
	dir, remove, err := mounts.TempDir()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	l, err := link.New(n.Registry.Addr(), n.Link)
	if err != nil {
		return r, err
	}
	defer l.Close()
	fs, err := prepare(dir)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, fs.remove()) }()

	unix.Sync() // what the run before wrote is not written on this one's time
	start := time.Now()
	root, err := fs.provide(l.Addr() + "/" + p.Repo + ":latest")
	if err != nil {
		return r, err
	}
	r.Root = time.Since(start)
	err = firstOutput(ctx, root, p, func(line string) {
		r.Output = time.Since(start)
		r.Received, r.Requests, r.Line = l.Received(), len(l.Requests()), line
	})
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, fs.log())
	}
	return r, err
}

// firstOutput runs the program in root to its end, and calls first with the
// line that says that it is ready, as soon as it is there.
func firstOutput(ctx context.Context, root string, p Program, first func(line string)) error {
	// By chroot(1) and not by SysProcAttr.Chroot: until a new process has
	// loaded its program, all of Go may have to wait for it, and the program
	// comes over a link that is in this process.
	cmd := exec.CommandContext(ctx, "chroot", append([]string{root}, p.Args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s in %s: %w", p.Args[0], root, err)
	}
	ready := false
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if !ready && strings.HasPrefix(lines.Text(), p.Ready) {
			ready = true
			first(lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(p.Args, " "), err, &stderr)
	}
	if !ready {
		return fmt.Errorf("%s ended without a line that starts with %q", strings.Join(p.Args, " "), p.Ready)
	}
	return nil
}
