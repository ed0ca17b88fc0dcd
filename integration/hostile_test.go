package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/peelfs/peel/integration/compare"
	"github.com/peelfs/peel/integration/hostile"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
	"github.com/peelfs/peel/integration/mounts"
)

var everyDriver = []string{"erofs", "loop", "tree"}

// Memory that one process may take at its peak, in bytes.
const (
	maxMemory      = 256 << 20 // for any layer
	maxMemoryLarge = 1 << 30   // for one with a million entries
)

// TestHostile shows hostile images with every driver as umoci unpacks them, or
// has them refused with the entry named; either with bounded memory.
func TestHostile(t *testing.T) {
	for _, c := range append(append(hostile.Names(), hostile.Headers()...), hostile.Streams()...) {
		t.Run(c.Name, func(t *testing.T) {
			start := time.Now()
			n, repo, plain := hostileNode(t, &c)
			switch {
			case c.Refused != "" && !c.Mounting:
				refuses(t, n, &c, "index", n.image(repo))
				refuses(t, n, &c, "mount", n.image(repo), n.mnt)
			case c.Refused != "":
				accepts(t, n, maxMemory, "index", n.image(repo))
				for _, driver := range everyDriver {
					refuses(t, n, &c, "mount", "--driver", driver, n.image(repo), n.mnt)
				}
			default:
				accepts(t, n, maxMemory, "index", n.image(repo))
				for _, driver := range everyDriver {
					n.mount(t, repo, "--driver", driver)
					sameFiles(t, n, plain, start)
					n.umount(t)
				}
			}
			if left, err := mounts.Below(n.mnt); err != nil || len(left) > 0 {
				t.Errorf("mounted: %q, %v", left, err)
			}
		})
	}
}

// TestHostileLarge has layers that are small in a registry only. They are shown
// or refused in bounded memory, and in time that grows with their size alone.
func TestHostileLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	for _, c := range hostile.Large() {
		t.Run(c.Name, func(t *testing.T) {
			n, repo, _ := hostileNode(t, &c)
			if c.Refused != "" {
				refuses(t, n, &c, "index", n.image(repo))
				refuses(t, n, &c, "mount", n.image(repo), n.mnt)
				return
			}
			accepts(t, n, maxMemoryLarge, "index", n.image(repo))
			for _, driver := range everyDriver {
				start := time.Now()
				f, err := n.Foreground(t.Context(), n.image(repo), n.mnt, "--driver", driver)
				if err != nil {
					t.Fatal(err)
				}
				took := time.Since(start)
				files, err := countFiles(n.mnt)
				peak := peakOf(t, f.PID())
				t.Logf("%s: mounted in %v, %d files, %d MiB at most", driver, took.Round(time.Millisecond), files, peak>>20)
				if err != nil || files == 0 || peak > maxMemoryLarge {
					t.Errorf("%s: %d files (%v), %d bytes of memory", driver, files, err, peak)
				}
				if err := f.Kill(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestHostileDevices mounts device nodes as an ordinary user, who sees them and
// cannot open them.
func TestHostileDevices(t *testing.T) {
	cases := hostile.Names()
	c := &cases[slices.IndexFunc(cases, func(c hostile.Case) bool { return c.Name == "devices" })]
	n, repo, _ := hostileNode(t, c)
	dir := filepath.Dir(n.mnt)
	const script = `set -e; cd "$0"
		chmod 755 . mnt; chown 65534 mnt; mkdir dev root; chown 65534 root
		cp "$1" program; chmod 755 program
		mount -t tmpfs tmpfs dev
		mknod -m 666 dev/fuse c 10 229
		mount --bind dev/fuse /dev/fuse
		exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '
			set -e
			./program --root root mount "$1" mnt
			trap "./program --root root umount mnt" EXIT
			stat -c "%n %F %t,%T" mnt/null mnt/sda mnt/fifo
			cat mnt/null 2>&1 || echo cannot open
		' sh "$2"`
	out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", script, dir, rig.peel, n.image(repo)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"null character special file 1,3", "sda block special file 8,12c", "fifo fifo", "Permission denied", "cannot open"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s\ndoes not say %q", out, want)
		}
	}
}

// sameFiles compares what is mounted with what umoci unpacks, but for times at
// which umoci ran: it has them for directories that the layers do not name, and
// for those that it reaches through a symlink.
func sameFiles(t *testing.T, n *node, img *images.Image, unpacking time.Time) {
	t.Helper()
	diffs, err := compare.Trees(unpacked(t, img), n.mnt)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range diffs {
		if d.What != "modified" || d.A < unpacking.UTC().Format(time.DateOnly) {
			t.Errorf("%.300s", d)
		}
	}
}

// hostileNode pushes a case's image for a node with an empty cache. It returns
// the repository, and the image that umoci unpacks.
func hostileNode(t *testing.T, c *hostile.Case) (n *node, repo string, plain *images.Image) {
	t.Helper()
	need(t)
	name := "hostile-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(c.Name))
	img, plain, err := c.Image(strings.Trim(name, "-"), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return newNode(t, link.Options{}), push(t, img, false), plain
}

// accepts runs a command line in bounded memory.
func accepts(t *testing.T, n *node, memory int64, args ...string) {
	t.Helper()
	if out, err := bounded(t, n, memory, args...); err != nil {
		t.Fatalf("peel %s: %v\n%s", args[0], err, out)
	}
}

// refuses runs a command line that fails as the case says.
func refuses(t *testing.T, n *node, c *hostile.Case, args ...string) {
	t.Helper()
	out, err := bounded(t, n, maxMemory, args...)
	var exit *exec.ExitError
	switch {
	case !errors.As(err, &exit) || exit.ExitCode() != 1:
		t.Errorf("peel %s: %v\n%s", strings.Join(args, " "), err, out)
	case !strings.Contains(out, c.Refused) || !strings.Contains(out, c.Entry):
		t.Errorf("peel %s: should name %q and say %q:\n%s", args[0], c.Entry, c.Refused, out)
	case len(out) > 2000:
		t.Errorf("peel %s says %d bytes: %.300q", args[0], len(out), out)
	}
}

// bounded runs a command line, in the foreground, and returns what it says.
func bounded(t *testing.T, n *node, memory int64, args ...string) (out string, err error) {
	t.Helper()
	if args[0] == "mount" {
		args = append([]string{"mount", "-f"}, args[1:]...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := n.Command(ctx, args...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	err = cmd.Run()
	if cmd.ProcessState == nil {
		return b.String(), err
	}
	// What this process had at its peak counts as the child's, too: it is the
	// child's until it executes the program.
	peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	t.Logf("%s: %d MiB at most, %v of CPU", args[0], peak>>20, cmd.ProcessState.UserTime().Round(time.Millisecond))
	if peak > max(memory, peakOf(t, os.Getpid())) {
		t.Errorf("peel %s took %d MiB of memory, more than %d", args[0], peak>>20, memory>>20)
	}
	return b.String(), err
}

// peakOf returns the most memory that a process has had, in bytes.
func peakOf(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// countFiles walks a tree and counts what is no directory.
func countFiles(root string) (n int, err error) {
	err = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	})
	return n, err
}
