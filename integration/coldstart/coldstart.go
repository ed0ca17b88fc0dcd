// Package coldstart measures how long a program in an image takes to its first
// output on a machine that has nothing of the image yet.
//
// It knows how to start it in a mount of peel's, in a mount that containerd has
// made after a pull, and in a container that containerd runs, with any of its
// snapshotters. Each start has an empty store and a fresh link to the registry.
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
	Args  []string // the first is a path in the image; in a container, none is the image's own
	Ready string   // how the line starts that ends the measurement
}

// Result is what a start took, until its first output.
type Result struct {
	Root     time.Duration // until the root file system was there, or the image was pulled
	Output   time.Duration // until the first output
	Received int64         // bytes over the link
	Requests int           // HTTP requests over the link
	Line     string        // the output
}

// Lazily mounts the image with peel and starts the program.
func (n Node) Lazily(ctx context.Context, p Program) (Result, error) {
	return n.measure(ctx, p, func(dir string) (system, error) {
		root := filepath.Join(dir, "mnt")
		peel := cli.Peel{Program: n.Peel, Root: filepath.Join(dir, "peel")}
		return system{
			provide: func(image string) (*exec.Cmd, error) {
				return chroot(ctx, root, p), peel.Mount(ctx, image, root)
			},
			remove: func() error { return peel.Umount(ctx, root) },
			log:    peel.Log,
		}, os.Mkdir(root, 0o755)
	})
}

// Snapshotter starts a snapshotter that has nothing yet, and keeps everything
// below dir. Its Stop ends it.
type Snapshotter func(ctx context.Context, dir string) (containerd.Snapshotter, error)

// Overlayfs is containerd's own snapshotter.
func Overlayfs(context.Context, string) (containerd.Snapshotter, error) {
	return containerd.Snapshotter{}, nil
}

// AfterPull pulls the image with containerd, mounts it and starts the program.
// Starting containerd is not part of the measurement.
func (n Node) AfterPull(ctx context.Context, p Program) (Result, error) {
	return n.mounted(ctx, p, Overlayfs)
}

// Stargz does the same with the stargz snapshotter, which pulls layers only if
// they are not in its format.
func (n Node) Stargz(ctx context.Context, p Program) (Result, error) {
	return n.mounted(ctx, p, containerd.Stargz)
}

func (n Node) mounted(ctx context.Context, p Program, with Snapshotter) (Result, error) {
	return n.pulled(ctx, p, with, func(c *containerd.Containerd, image string) (*exec.Cmd, error) {
		root, err := c.Mount(ctx, image)
		return chroot(ctx, root, p), err
	})
}

// Container pulls the image and runs the program in a container, both with ctr
// and a snapshotter. Starting containerd is not part of the measurement.
func (n Node) Container(ctx context.Context, p Program, with Snapshotter) (Result, error) {
	return n.pulled(ctx, p, with, func(c *containerd.Containerd, image string) (*exec.Cmd, error) {
		cmd, _ := c.RunCommand(ctx, containerd.Container{Image: image, Args: p.Args, Flags: []string{"--rm"}})
		return cmd, nil
	})
}

func (n Node) pulled(ctx context.Context, p Program, with Snapshotter, start func(*containerd.Containerd, string) (*exec.Cmd, error)) (Result, error) {
	return n.measure(ctx, p, func(dir string) (system, error) {
		snapshotter, err := with(ctx, dir)
		if err != nil {
			return system{}, err
		}
		c, err := containerd.Start(ctx, dir, containerd.Options{Snapshotter: snapshotter})
		if err != nil {
			return system{}, err
		}
		return system{
			provide: func(image string) (*exec.Cmd, error) {
				if err := c.Pull(ctx, image); err != nil {
					return nil, err
				}
				return start(c, image)
			},
			remove: c.Close,
			log:    c.Log,
		}, nil
	})
}

// system is one way to start the program of an image.
type system struct {
	provide func(image string) (program *exec.Cmd, err error) // not yet started
	remove  func() error
	log     func() string // what explains a failure
}

func (n Node) measure(ctx context.Context, p Program, prepare func(dir string) (system, error)) (r Result, err error) {
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
	s, err := prepare(dir)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.remove()) }()

	unix.Sync() // what the run before wrote is not written on this one's time
	start := time.Now()
	program, err := s.provide(l.Addr() + "/" + p.Repo + ":latest")
	if err != nil {
		return r, err
	}
	r.Root = time.Since(start)
	err = firstOutput(program, p.Ready, func(line string) {
		r.Output = time.Since(start)
		r.Received, r.Requests, r.Line = l.Received(), len(l.Requests()), line
	})
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, s.log())
	}
	return r, err
}

// chroot returns the command that runs the program in root.
func chroot(ctx context.Context, root string, p Program) *exec.Cmd {
	// By chroot(1) and not by SysProcAttr.Chroot: until a new process has
	// loaded its program, all of Go may have to wait for it, and the program
	// comes over a link that is in this process.
	cmd := exec.CommandContext(ctx, "chroot", append([]string{root}, p.Args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return cmd
}

// firstOutput runs the program to its end, and calls first with the line that
// says that it is ready, as soon as it is there.
func firstOutput(program *exec.Cmd, ready string, first func(line string)) error {
	var stderr bytes.Buffer
	program.Stderr = &stderr
	stdout, err := program.StdoutPipe()
	if err != nil {
		return err
	}
	if err := program.Start(); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	said := false
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if !said && strings.HasPrefix(lines.Text(), ready) {
			said = true
			first(lines.Text())
		}
	}
	if err := program.Wait(); err != nil {
		return fmt.Errorf("%s: %w\n%s", program, err, &stderr)
	}
	if !said {
		return fmt.Errorf("%s ended without a line that starts with %q", program, ready)
	}
	return nil
}
