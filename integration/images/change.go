package images

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// change changes the root file system below root.
type change func(ctx context.Context, root string) error

// together returns the change that several make in one layer.
func together(changes ...change) change {
	return func(ctx context.Context, root string) error {
		for _, c := range changes {
			if err := c(ctx, root); err != nil {
				return err
			}
		}
		return nil
	}
}

// file returns the change that writing a file makes.
func file(name, text string) change {
	return func(_ context.Context, root string) error {
		return os.WriteFile(filepath.Join(root, name), []byte(text), 0o644)
	}
}

// inside returns the change that a command of the image makes.
func inside(args ...string) change {
	return func(ctx context.Context, root string) error {
		return withProc(root, func() error {
			return run(ctx, nil, nil, "chroot", append([]string{root}, args...)...)
		})
	}
}

// install returns the change that installing packages makes. It uses the apt of
// this machine, so it needs nothing in the image, and leaves no lists there.
func install(packages ...string) change {
	return func(ctx context.Context, root string) error {
		// Services that come with packages would start, on this machine.
		policy := filepath.Join(root, "usr/sbin/policy-rc.d")
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return err
		}
		args := []string{"-o", "Dir=" + root, "-o", "DPkg::Chroot-Directory=" + root,
			"-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "--yes"}
		apt := func(more ...string) error {
			env := []string{"DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"}
			return run(ctx, nil, env, "apt-get", append(args[:len(args):len(args)], more...)...)
		}
		if err := apt("update"); err != nil {
			return err
		}
		err := withProc(root, func() error {
			return apt(append([]string{"install", "--no-install-recommends"}, packages...)...)
		})
		if err != nil {
			return err
		}
		return remove(root, "usr/sbin/policy-rc.d", "var/lib/apt/lists/*", "var/cache/apt/*", "var/log/apt", "var/log/*.log")
	}
}

// remove removes what matches patterns below root.
func remove(root string, patterns ...string) error {
	for _, pattern := range patterns {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		for _, p := range paths {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// withProc does something while proc is mounted below root, as Java needs it.
func withProc(root string, do func() error) error {
	proc := filepath.Join(root, "proc")
	if err := unix.Mount("proc", proc, "proc", 0, ""); err != nil {
		return &os.PathError{Op: "mount proc", Path: proc, Err: err}
	}
	err := do()
	if uerr := unix.Unmount(proc, unix.MNT_DETACH); uerr != nil {
		err = errors.Join(err, &os.PathError{Op: "unmount", Path: proc, Err: uerr})
	}
	return err
}
