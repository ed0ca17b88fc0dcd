package containerd

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Ctr is ctr in one of containerd's namespaces, with containerd's snapshotter.
type Ctr struct {
	program     string
	address     string
	snapshotter string
	namespace   string
}

// In returns ctr in another namespace.
func (c Ctr) In(namespace string) Ctr {
	c.namespace = namespace
	return c
}

// Command returns a command line of ctr, not yet started.
func (c Ctr) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.program, append([]string{"--address", c.address, "--namespace", c.namespace}, args...)...)
}

// Output runs a command line of ctr to its end and returns what it prints. What
// it says on standard error is part of the error, if there is one.
func (c Ctr) Output(ctx context.Context, args ...string) (stdout string, err error) {
	return output(c.Command(ctx, args...))
}

func output(cmd *exec.Cmd) (stdout string, err error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w\n%s%s", cmd, err, out, &stderr)
	}
	return string(out), nil
}

// Pull pulls an image over plain HTTP, by containerd's transfer service, and
// makes it ready in the snapshotter. The flag "--local" has ctr do it without
// the service, which downloads all before the snapshotter is asked.
func (c Ctr) Pull(ctx context.Context, image string, flags ...string) error {
	args := append([]string{"images", "pull", "--plain-http", "--snapshotter", c.snapshotter}, flags...)
	_, err := c.Output(ctx, append(args, image)...)
	return err
}

// Remove removes an image, and returns when all is deleted that only it used.
func (c Ctr) Remove(ctx context.Context, image string) error {
	_, err := c.Output(ctx, "images", "remove", "--sync", image)
	return err
}

// Collect collects garbage in all namespaces, and returns when it is deleted.
func (c Ctr) Collect(ctx context.Context) error {
	id := newID()
	if _, err := c.Output(ctx, "leases", "create", "--id", id); err != nil {
		return err
	}
	_, err := c.Output(ctx, "leases", "delete", "--sync", id)
	return err
}

// Snapshots returns the keys of the snapshotter's snapshots and the parent of
// each, which is empty for a lowest layer.
func (c Ctr) Snapshots(ctx context.Context) (parents map[string]string, err error) {
	table, err := c.Output(ctx, "snapshots", "--snapshotter", c.snapshotter, "list")
	if err != nil {
		return nil, err
	}
	parents = map[string]string{}
	for line := range strings.Lines(table) {
		switch fields := strings.Fields(line); len(fields) { // KEY [PARENT] KIND
		case 2:
			parents[fields[0]] = ""
		case 3:
			if fields[0] != "KEY" {
				parents[fields[0]] = fields[1]
			}
		}
	}
	return parents, nil
}

// Container is what ctr runs.
type Container struct {
	Image    string
	Args     []string // instead of the image's own
	Flags    []string // of "ctr run"
	Unlinked bool     // has a network of its own, with nothing in it, instead of the machine's
}

// RunCommand returns the command line that runs a container until its program
// ends, with its standard streams. The container has an id that no other
// containerd on the machine uses, and is kept unless the flags say "--rm". The
// flags "--uidmap" and "--gidmap" take one that is unlinked.
func (c Ctr) RunCommand(ctx context.Context, run Container) (cmd *exec.Cmd, id string) {
	id = newID()
	args := append([]string{"run", "--snapshotter", c.snapshotter}, run.Flags...)
	if !run.Unlinked {
		args = append(args, "--net-host")
	}
	args = append(args, run.Image, id)
	return c.Command(ctx, append(args, run.Args...)...), id
}

// Run runs a program in a new container until it ends, removes the container,
// and returns what the program printed.
func (c Ctr) Run(ctx context.Context, image string, args ...string) (stdout string, err error) {
	cmd, _ := c.RunCommand(ctx, Container{Image: image, Args: args, Flags: []string{"--rm"}})
	return output(cmd)
}

// Change is Run, but keeps the container and returns its id.
func (c Ctr) Change(ctx context.Context, image string, args ...string) (id string, err error) {
	cmd, id := c.RunCommand(ctx, Container{Image: image, Args: args})
	_, err = output(cmd)
	return id, err
}

// Start starts a program in a new container, and returns its id.
func (c Ctr) Start(ctx context.Context, image string, args ...string) (id string, err error) {
	cmd, id := c.RunCommand(ctx, Container{Image: image, Args: args, Flags: []string{"--detach"}})
	_, err = output(cmd)
	return id, err
}

// Exec runs another program in a container that runs, and returns what it
// printed.
func (c Ctr) Exec(ctx context.Context, id string, args ...string) (stdout string, err error) {
	return c.Output(ctx, append([]string{"tasks", "exec", "--exec-id", newID(), id}, args...)...)
}

// Delete kills what runs in a container, and removes it with its snapshot.
func (c Ctr) Delete(ctx context.Context, id string) error {
	running, err := c.Output(ctx, "tasks", "list", "--quiet")
	if err != nil {
		return err
	}
	for task := range strings.Lines(running) {
		if strings.TrimSpace(task) == id {
			if _, err := c.Output(ctx, "tasks", "delete", "--force", id); err != nil {
				return err
			}
		}
	}
	_, err = c.Output(ctx, "containers", "delete", id)
	return err
}

// Commit returns the image that a container was made of with one more layer:
// all that the container has changed, as containerd's differ finds it.
func (c Ctr) Commit(ctx context.Context, id string, of v1.Image) (v1.Image, error) {
	blob, err := c.Output(ctx, "snapshots", "--snapshotter", c.snapshotter, "diff", id)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(blob)), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("the layer of container %s: %w", id, err)
	}
	return mutate.AppendLayers(of, layer)
}

// killAll kills all containers of all namespaces.
func (c Ctr) killAll(ctx context.Context) error {
	namespaces, err := c.Output(ctx, "namespaces", "list", "--quiet")
	if err != nil {
		return err
	}
	var all []error
	for namespace := range strings.Lines(namespaces) {
		c := c.In(strings.TrimSpace(namespace))
		tasks, err := c.Output(ctx, "tasks", "list", "--quiet")
		all = append(all, err)
		for task := range strings.Lines(tasks) {
			_, err := c.Output(ctx, "tasks", "delete", "--force", strings.TrimSpace(task))
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// newID returns an id of its own for a container, or for what else has one.
func newID() string { return "test-" + strings.ToLower(rand.Text()[:16]) }
