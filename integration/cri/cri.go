// Package cri does with containerd what Kubernetes' kubelet does, over the same
// interface: it pulls images, and runs pods with containers.
//
// Pods use the network of the machine, so that no network plugin is needed.
package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Client is a connection to containerd's CRI plugin. What it has no method for,
// the two services do.
type Client struct {
	Runtime runtime.RuntimeServiceClient
	Images  runtime.ImageServiceClient

	connection *grpc.ClientConn
	dir        string // for logs of containers
}

const (
	readyTimeout = 30 * time.Second
	readyPoll    = 20 * time.Millisecond
)

// Dial connects to a containerd's socket and returns when its CRI plugin is
// ready, which may be a moment after containerd is. The logs of containers are
// kept below dir, which must be there.
func Dial(ctx context.Context, socket, dir string) (*Client, error) {
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	c := &Client{runtime.NewRuntimeServiceClient(connection), runtime.NewImageServiceClient(connection), connection, dir}
	if err := c.ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("the CRI plugin at %s: %w", socket, err), connection.Close())
	}
	return c, nil
}

// ready asks until the plugin answers: it has no way to say so by itself.
func (c *Client) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	poll := time.NewTicker(readyPoll)
	defer poll.Stop()
	for {
		_, err := c.Runtime.Version(ctx, &runtime.VersionRequest{})
		if code := status.Code(err); code != codes.Unavailable && code != codes.Unknown {
			return err
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return err
		}
	}
}

// Close ends the connection.
func (c *Client) Close() error { return c.connection.Close() }

// Pull pulls an image and returns its id.
func (c *Client) Pull(ctx context.Context, image string) (id string, err error) {
	r, err := c.Images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: image}})
	if err != nil {
		return "", fmt.Errorf("pull %s over CRI: %w", image, err)
	}
	return r.ImageRef, nil
}

// Remove removes an image. Its layers may be there for a moment more.
func (c *Client) Remove(ctx context.Context, image string) error {
	_, err := c.Images.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: image}})
	return err
}

// Usage returns the bytes and inodes that images take on disk, as the kubelet
// is told, and the path that it looks at to see how full the disk is.
func (c *Client) Usage(ctx context.Context) (bytes, inodes uint64, path string, err error) {
	info, err := c.Images.ImageFsInfo(ctx, &runtime.ImageFsInfoRequest{})
	if err != nil {
		return 0, 0, "", err
	}
	if n := len(info.ImageFilesystems); n != 1 {
		return 0, 0, "", fmt.Errorf("images are in %d file systems, want one", n)
	}
	fs := info.ImageFilesystems[0]
	return fs.GetUsedBytes().GetValue(), fs.GetInodesUsed().GetValue(), fs.GetFsId().GetMountpoint(), nil
}

// RunPod starts a pod without containers. It pulls the image of its first
// process, if that is not there yet.
func (c *Client) RunPod(ctx context.Context, name string) (*Pod, error) {
	logs, err := os.MkdirTemp(c.dir, name+"-")
	if err != nil {
		return nil, err
	}
	config := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Uid: logs, Namespace: "default"},
		LogDirectory: logs,
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE},
		}},
	}
	r, err := c.Runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, fmt.Errorf("run pod %s: %w", name, err)
	}
	return &Pod{r.PodSandboxId, c, config}, nil
}
