package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/containerd"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/mounts"
)

// The systems that show an image whose data is all on this machine. All have
// the same kind of writable overlay on top, as a container's root has.
const (
	nativeRow = "overlayfs on unpacked layers" // as containerd's snapshotter makes it
	fuseRow   = "peel erofs, FUSE blob"        // mounted lazily, and then all data was read
	localRow  = "peel erofs, local blob"       // mounted when all was there
	loopRow   = "peel loop"                    // so too
	treeRow   = "peel tree"                    // so too
)

// place is a root file system, as one system shows it.
type place struct {
	system, root string
	err          error // why it is not there
}

// places mounts an image by every system, and returns what unmounts it. They
// come in the order of the table, the one that the others are compared with
// first.
func (b *bed) places(ctx context.Context, img *images.Image) (all []place, closeAll func() error, err error) {
	var closers []func() error
	closeAll = func() (err error) {
		for _, c := range slices.Backward(closers) {
			err = errors.Join(err, c())
		}
		return err
	}
	dir, err := os.MkdirTemp(b.dir, "places")
	if err != nil {
		return nil, nil, err
	}
	lazy, err := b.push(ctx, img, true)
	if err != nil {
		return nil, nil, err
	}
	// An image without an index is read whole before it is mounted.
	whole, err := b.push(ctx, img, false)
	if err != nil {
		return nil, nil, err
	}
	root, closeNative, err := b.native(ctx, dir, whole)
	if closeNative != nil {
		closers = append(closers, closeNative)
	}
	all = append(all, place{nativeRow, root, err})
	for _, p := range []struct{ system, repo, driver string }{
		{fuseRow, lazy, "erofs"}, {localRow, whole, "erofs"}, {loopRow, whole, "loop"}, {treeRow, whole, "tree"},
	} {
		if err := ctx.Err(); err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		peel := cli.Peel{Program: b.peel, Root: filepath.Join(dir, p.repo)}
		mnt, err := os.MkdirTemp(dir, "image")
		if err == nil {
			err = peel.Mount(ctx, b.ref(p.repo), mnt, "--driver", p.driver)
		}
		root := ""
		if err == nil {
			closers = append(closers, func() error { return peel.Umount(ctx, mnt) })
			root, err = overlay(dir, mnt)
		}
		if err == nil {
			closers = append(closers, func() error { return mounts.Detach(root) })
		}
		if err == nil && p.system == fuseRow {
			err = readWhole(ctx, root)
		}
		all = append(all, place{p.system, root, err})
	}
	return all, closeAll, nil
}

// native pulls an image with containerd, which unpacks it, and mounts it. The
// function stops containerd; it is nil if there is none.
func (b *bed) native(ctx context.Context, dir, repo string) (root string, stop func() error, err error) {
	own := filepath.Join(dir, "containerd")
	if err := os.Mkdir(own, 0o755); err != nil {
		return "", nil, err
	}
	c, err := containerd.Start(ctx, own, containerd.Options{})
	if err != nil {
		return "", nil, err
	}
	if err := c.Pull(ctx, b.ref(repo)); err != nil {
		return "", c.Close, err
	}
	root, err = c.Mount(ctx, b.ref(repo))
	return root, c.Close, err
}

// overlay mounts a writable overlay over a root file system, below dir.
func overlay(dir, lower string) (root string, err error) {
	if dir, err = os.MkdirTemp(dir, "overlay"); err != nil {
		return "", err
	}
	upper, work, root := filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "root")
	for _, d := range []string{upper, work, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return "", fmt.Errorf("mount an overlay over %s: %w", lower, err)
	}
	return root, nil
}

// readWhole reads all data below a folder. GNU tar does not read files if it
// knows that nobody wants them, so somebody does.
func readWhole(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "tar", "-C", dir, "-c", ".")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, out)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return fmt.Errorf("%s: %w", cmd, err)
	}
	return nil
}
