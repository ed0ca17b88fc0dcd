// Package cli runs peel's command line as a user would.
package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/peelfs/peel/integration/mounts"
)

// Peel is the peel program with a cache of its own.
type Peel struct {
	Program string
	Root    string // the cache: --root
}

// Command returns a command line of peel, not yet started.
func (p Peel) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.Program, append([]string{"--root", p.Root}, args...)...)
	// A background process that holds on to our pipe would be waited for.
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Run runs a command line to its end and returns what it prints. What it says
// on standard error is part of the error, if there is one.
func (p Peel) Run(ctx context.Context, args ...string) (stdout string, err error) {
	cmd := p.Command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("peel %s: %w\n%s", strings.Join(args, " "), err, &stderr)
	}
	return string(out), nil
}

// Mount mounts an image on dir, with flags if there are any.
func (p Peel) Mount(ctx context.Context, image, dir string, flags ...string) error {
	_, err := p.Run(ctx, append(append([]string{"mount"}, flags...), image, dir)...)
	return err
}

// Umount unmounts dir. It does so even if ctx has ended.
func (p Peel) Umount(ctx context.Context, dir string) error {
	_, err := p.Run(context.WithoutCancel(ctx), "umount", dir)
	return err
}

// Foreground is a mount by a process of its own, which can be killed.
type Foreground struct {
	cmd    *exec.Cmd
	dir    string
	stderr bytes.Buffer
}

// Foreground mounts as Mount does, but by "mount -f", and returns when the
// image is mounted.
func (p Peel) Foreground(ctx context.Context, image, dir string, flags ...string) (*Foreground, error) {
	args := append(append([]string{"mount", "-f"}, flags...), image, dir)
	f := &Foreground{cmd: p.Command(context.WithoutCancel(ctx), args...), dir: dir}
	f.cmd.Stderr = &f.stderr
	if err := f.cmd.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not mounted within a minute"))
	defer cancel()
	if err := mounts.Wait(ctx, dir); err != nil {
		_ = f.Kill()
		return nil, fmt.Errorf("peel mount -f %s: %w (%v)\n%s", image, err, context.Cause(ctx), &f.stderr)
	}
	return f, nil
}

// PID returns the process's id.
func (f *Foreground) PID() int { return f.cmd.Process.Pid }

// Kill ends the process as kill -9 does, and removes the dead mount.
func (f *Foreground) Kill() error {
	err := f.cmd.Process.Kill()
	_ = f.cmd.Wait() // says that it was killed
	return errors.Join(err, mounts.Detach(f.dir))
}

// Log returns what the background processes of all mounts have had to say.
func (p Peel) Log() string {
	logs, _ := filepath.Glob(filepath.Join(p.Root, "mounts", "*", "log"))
	var all strings.Builder
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			text = []byte(err.Error())
		}
		fmt.Fprintf(&all, "%s:\n%s", path, text)
	}
	return all.String()
}
