package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/images"
)

// warm walks and reads trees of which everything is local and in memory.
func warm(ctx context.Context, b *bed) (round, func() error, error) {
	type tree struct{ image, system, dir string }
	var trees []tree
	peel := cli.Peel{Program: b.peel, Root: filepath.Join(b.dir, "warm")}
	var mounted []string
	closeAll := func() (err error) {
		for _, dir := range mounted {
			err = errors.Join(err, peel.Umount(ctx, dir))
		}
		return err
	}
	for _, make := range []func(context.Context) (*images.Image, error){images.Python, images.Files} {
		img, err := make(ctx)
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		dir, err := b.mount(ctx, peel, img)
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		mounted = append(mounted, dir)
		unpacked, err := b.unpack(ctx, img)
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		trees = append(trees, tree{img.Name, peelRow, dir}, tree{img.Name, diskRow, unpacked})
	}
	measure := func(ctx context.Context, s *samples) error {
		for _, tool := range []string{"find", "tar c"} {
			for _, tree := range trees {
				took, err := walk(ctx, tool, tree.dir)
				if err != nil {
					return err
				}
				s.add("warm "+tool+" of "+tree.image, tree.system, "s", took.Seconds())
			}
		}
		return nil
	}
	// The first time is not warm.
	if err := measure(ctx, &samples{}); err != nil {
		return nil, nil, errors.Join(err, closeAll())
	}
	return measure, closeAll, nil
}

// mount mounts an indexed image below the bed's folder.
func (b *bed) mount(ctx context.Context, peel cli.Peel, img *images.Image) (dir string, err error) {
	repo, err := b.push(ctx, img, true)
	if err != nil {
		return "", err
	}
	if dir, err = os.MkdirTemp(b.dir, "mnt"); err != nil {
		return "", err
	}
	return dir, peel.Mount(ctx, b.ref(repo), dir)
}

// walk runs find, with a stat of every file, or tar, and reads what it writes:
// GNU tar does not read files if it knows that nobody wants them.
func walk(ctx context.Context, tool, dir string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, "find", dir, "-size", "+1000G")
	if tool == "tar c" {
		cmd = exec.CommandContext(ctx, "tar", "-C", dir, "-c", ".")
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, out)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return 0, fmt.Errorf("%s: %w", cmd, err)
	}
	return time.Since(start), nil
}
