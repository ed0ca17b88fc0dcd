package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	peelfs "github.com/peelfs/peel/fs"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func umountCommand() *cli.Command {
	return &cli.Command{
		Name:      "umount",
		Aliases:   []string{"unmount"},
		Usage:     "unmount an image; what was fetched of it stays",
		ArgsUsage: "DIR",
		Action: func(c *cli.Context) error {
			a, err := args(c, "DIR")
			if err != nil {
				return err
			}
			return umount(c, a[0])
		},
	}
}

func umount(c *cli.Context, dir string) error {
	rootDir, err := root(c)
	if err != nil {
		return err
	}
	abs, err := mountPoint(dir)
	if err != nil {
		return err
	}
	s := sessionFor(rootDir, abs)
	if _, err := s.info(); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmount %s: no image is mounted there from %s; peel status lists what is (--root chooses another store)", dir, rootDir)
	} else if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if !s.alive() {
		return s.clean(abs)
	}
	// Not by the process that serves it: should that be killed meanwhile, the
	// kernel would wait for it, and it for the kernel.
	if err := peelfs.Unmount(abs); err != nil {
		return err
	}
	return s.gone(c.Context)
}

// mountPoint returns the name that the mount has, also where the process that
// served it is gone and the place itself cannot be looked at.
func mountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", fmt.Errorf("unmount %s: %w", dir, err)
	}
	abs = filepath.Join(parent, filepath.Base(abs))
	if whole, err := filepath.EvalSymlinks(abs); err == nil {
		return whole, nil
	}
	return abs, nil
}

// clean removes what a killed process has left: the mount that nobody serves,
// and the session.
func (s session) clean(dir string) error {
	lock, err := s.acquire()
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	defer lock.Close()
	if os.Geteuid() == 0 {
		err = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	} else if out, err2 := exec.Command("fusermount3", "-u", "-z", dir).CombinedOutput(); err2 != nil {
		err = fmt.Errorf("fusermount3: %w: %s", err2, out)
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: not mounted any more
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return s.remove()
}

// gone waits until the session's process has ended.
func (s session) gone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for s.dirExists() && s.alive() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("unmounted, but its process has not ended yet: %w", ctx.Err())
		}
	}
	return nil
}

func (s session) dirExists() bool {
	_, err := os.Stat(s.dir)
	return err == nil
}

// shutdownContext bounds the end of the socket.
func shutdownContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 5*time.Second)
}
