package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is a pod that runs.
type Pod struct {
	ID     string
	client *Client
	config *runtime.PodSandboxConfig
}

// Remove ends everything in the pod, and removes it with its containers.
func (p *Pod) Remove(ctx context.Context) error {
	_, err := p.client.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.ID})
	if err != nil {
		return fmt.Errorf("stop pod %s: %w", p.ID, err)
	}
	_, err = p.client.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// Container is a container of a pod.
type Container struct {
	ID     string
	client *Client
	log    string
}

// Start starts a container of a pulled image in the pod. Its name must be its
// own there. The command is the image's if there are no arguments.
func (p *Pod) Start(ctx context.Context, name, image string, args ...string) (*Container, error) {
	r, err := p.client.Runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: p.ID,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: name},
			Image:    &runtime.ImageSpec{Image: image},
			Command:  args,
			LogPath:  name + ".log",
			Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
			}},
		},
		SandboxConfig: p.config,
	})
	if err != nil {
		return nil, fmt.Errorf("create container %s of %s: %w", name, image, err)
	}
	c := &Container{r.ContainerId, p.client, filepath.Join(p.config.LogDirectory, name+".log")}
	if _, err := p.client.Runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.ID}); err != nil {
		return nil, errors.Join(fmt.Errorf("start container %s of %s: %w", name, image, err), c.Remove(ctx))
	}
	return c, nil
}

// Wait returns when the container has ended, and how.
func (c *Container) Wait(ctx context.Context) (exitCode int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// In this order nothing is missed: an end is either there or yet to come.
	events, err := c.client.Runtime.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		return 0, err
	}
	for {
		r, err := c.client.Runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: c.ID})
		if err != nil {
			return 0, err
		}
		if r.Status.State == runtime.ContainerState_CONTAINER_EXITED {
			return int(r.Status.ExitCode), nil
		}
		if _, err := events.Recv(); err != nil {
			return 0, fmt.Errorf("wait for container %s: %w", c.ID, err)
		}
	}
}

// Output returns what the container has printed, without the time and the
// stream's name that stand before each line of its log.
func (c *Container) Output() (string, error) {
	log, err := os.ReadFile(c.log)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for line := range strings.Lines(string(log)) {
		fields := strings.SplitN(line, " ", 4) // time, stream, whether the line is whole, text
		if len(fields) < 4 {
			return "", fmt.Errorf("%s has the line %q", c.log, line)
		}
		if fields[2] == "P" {
			fields[3] = strings.TrimSuffix(fields[3], "\n")
		}
		out.WriteString(fields[3])
	}
	return out.String(), nil
}

// Exec runs another program in the container, and returns what it printed.
func (c *Container) Exec(ctx context.Context, args ...string) (stdout string, err error) {
	r, err := c.client.Runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.ID, Cmd: args})
	if err != nil {
		return "", fmt.Errorf("exec %s in container %s: %w", args[0], c.ID, err)
	}
	if r.ExitCode != 0 {
		return string(r.Stdout), fmt.Errorf("%s in container %s: exit code %d\n%s", args[0], c.ID, r.ExitCode, r.Stderr)
	}
	return string(r.Stdout), nil
}

// Remove kills what runs in the container, and removes it.
func (c *Container) Remove(ctx context.Context) error {
	_, err := c.client.Runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: c.ID})
	return err
}
