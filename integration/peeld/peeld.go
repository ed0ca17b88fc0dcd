// Package peeld runs peel's daemon as a process of its own.
package peeld

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/peelfs/peel/integration/containerd"
	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/process"
)

// Daemon is a running peeld.
type Daemon struct {
	Program string // peeld
	Dir     string // what it keeps, and its log, is below
	Root    string
	State   string
	Address string // of the socket that containerd knows it by
	process *process.Process
}

var ready = regexp.MustCompile("peeld is ready")

// Start starts a daemon with everything it keeps below dir, which must be on a
// file system that overlayfs can write to. config is its configuration file's
// text.
func Start(ctx context.Context, dir, config string) (*Daemon, error) {
	peel, err := parts.Peel(ctx)
	if err != nil {
		return nil, err
	}
	d := &Daemon{
		Program: filepath.Join(filepath.Dir(peel), "peeld"),
		Dir:     dir, Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"),
	}
	d.Address = filepath.Join(d.State, "peeld.sock")
	if err := os.WriteFile(d.configFile(), []byte(config), 0o644); err != nil {
		return nil, err
	}
	return d, d.Restart(ctx)
}

// Restart starts the daemon again, with the same command line. Its process must
// have ended.
func (d *Daemon) Restart(ctx context.Context) (err error) {
	d.process, _, err = process.Start(ctx, d.command(), filepath.Join(d.Dir, "peeld.log"), ready)
	return err
}

func (d *Daemon) configFile() string { return filepath.Join(d.Dir, "peeld.toml") }

func (d *Daemon) command(more ...string) *exec.Cmd {
	return exec.Command(d.Program, append([]string{"--config", d.configFile(), "--root", d.Root, "--state", d.State}, more...)...)
}

// ContainerdConfig is what peeld says belongs into containerd's configuration.
func (d *Daemon) ContainerdConfig() (string, error) {
	out, err := d.command("config", "containerd").Output()
	return string(out), err
}

// Snapshotter is the daemon as containerd uses it, with the configuration that
// peeld itself prints. It ends with containerd.
func (d *Daemon) Snapshotter() (containerd.Snapshotter, error) {
	text, err := d.ContainerdConfig()
	return containerd.Snapshotter{Name: "peel", Text: text, Stop: d.Close}, err
}

// PID returns the daemon's process id.
func (d *Daemon) PID() int { return d.process.PID() }

// Kill ends the daemon with no chance to clean up.
func (d *Daemon) Kill() error { return d.process.Kill() }

// Stop asks the daemon to end, and waits until it has.
func (d *Daemon) Stop() error { return d.process.Stop() }

// Close stops the daemon and unmounts everything below its folder, which stays.
func (d *Daemon) Close() error { return errors.Join(d.process.Stop(), mounts.Detach(d.Dir)) }

// logTimeout is how long a daemon may take to say what it is expected to.
const logTimeout = time.Minute

// WaitForLog returns when the daemon's log has the text. It looks again and
// again, since a log cannot be waited for.
func (d *Daemon) WaitForLog(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for !strings.Contains(d.Log(), text) {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not say %q: %w", text, ctx.Err())
		}
	}
	return nil
}

// Log returns what the daemon has had to say.
func (d *Daemon) Log() string {
	text, err := os.ReadFile(filepath.Join(d.Dir, "peeld.log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}
