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
	fuseRow   = "peel erofs, FUSE blob"        // mounted lazily, and then all data was read
	localRow  = "peel erofs, local blob"       // mounted when all was there
	loopRow   = "peel loop"                    // so too
	treeRow   = "peel tree"                    // so too
	nativeRow = "overlayfs on unpacked layers" // as containerd's snapshotter makes it
)

// place is a root file system, as one system shows it.
type place struct{ system, root string }

// places mounts an image by every system, and returns what unmounts it.
func (b *bed) places(ctx context.Context, img *images.Image) (all []place, closeAll func() error, err error) {
	var closers []func() error
	closeAll = func() (err error) {
		for _, c := range slices.Backward(closers) {
			err = errors.Join(err, c())
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()
	dir, err := os.MkdirTemp(b.dir, "places")
	if err != nil {
		return nil, nil, err
	}
	add := func(peel cli.Peel, repo, system, driver string) error {
		image, err := os.MkdirTemp(dir, "image")
		if err != nil {
			return err
		}
		if err := peel.Mount(ctx, b.ref(repo), image, "--driver", driver); err != nil {
			return err
		}
		closers = append(closers, func() error { return peel.Umount(ctx, image) })
		root, err := overlay(dir, image)
		if err != nil {
			return err
		}
		closers = append(closers, func() error { return mounts.Detach(root) })
		all = append(all, place{system, root})
		return nil
	}
	lazy := cli.Peel{Program: b.peel, Root: filepath.Join(dir, "lazy")}
	repo, err := b.push(ctx, img, true)
	if err != nil {
		return nil, nil, err
	}
	if err := add(lazy, repo, fuseRow, "erofs"); err != nil {
		return nil, nil, err
	}
	if err := readWhole(ctx, all[0].root); err != nil {
		return nil, nil, err
	}
	// An image without an index is read whole before it is mounted.
	whole := cli.Peel{Program: b.peel, Root: filepath.Join(dir, "whole")}
	if repo, err = b.push(ctx, img, false); err != nil {
		return nil, nil, err
	}
	for _, p := range []struct{ system, driver string }{{localRow, "erofs"}, {loopRow, "loop"}, {treeRow, "tree"}} {
		if err := add(whole, repo, p.system, p.driver); err != nil {
			return nil, nil, err
		}
	}
	own := filepath.Join(dir, "containerd")
	if err := os.Mkdir(own, 0o755); err != nil {
		return nil, nil, err
	}
	c, err := containerd.Start(ctx, own, containerd.Options{})
	if err != nil {
		return nil, nil, err
	}
	closers = append(closers, c.Close)
	if err := c.Pull(ctx, b.ref(repo)); err != nil {
		return nil, nil, err
	}
	root, err := c.Mount(ctx, b.ref(repo))
	if err != nil {
		return nil, nil, err
	}
	return append(all, place{nativeRow, root}), closeAll, nil
}

// overlay mounts a writable overlay over a root file system, below dir.
func overlay(dir, lower string) (root string, err error) {
	if os.Getenv("NOOVER") != "" {
		return lower, nil
	}
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
