// Package mounts asks the kernel what is mounted, waits for mounts, and removes
// them.
package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const mountinfo = "/proc/self/mountinfo" // its fields: proc_pid_mountinfo(5)

// Below returns the mount points at dir and below it, in the order of mounting.
func Below(dir string) ([]string, error) {
	table, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, err
	}
	return below(string(table), dir), nil
}

func below(table, dir string) []string {
	dir = filepath.Clean(dir)
	var points []string
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		if point == dir || strings.HasPrefix(point, strings.TrimSuffix(dir, "/")+"/") {
			points = append(points, point)
		}
	}
	return points
}

// unescape undoes the octal escapes of blanks and backslashes.
func unescape(field string) string {
	var out strings.Builder
	for {
		before, after, found := strings.Cut(field, `\`)
		out.WriteString(before)
		if !found {
			return out.String()
		}
		if len(after) >= 3 {
			if c, err := strconv.ParseUint(after[:3], 8, 8); err == nil {
				out.WriteByte(byte(c))
				field = after[3:]
				continue
			}
		}
		out.WriteByte('\\')
		field = after
	}
}

// Wait returns when something is mounted on dir.
func Wait(ctx context.Context, dir string) error {
	changes, err := os.Open(mountinfo)
	if err != nil {
		return err
	}
	defer changes.Close()
	for {
		points, err := Below(dir)
		if err != nil {
			return err
		}
		if slices.Contains(points, filepath.Clean(dir)) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("nothing is mounted on %s: %w", dir, err)
		}
		// The kernel reports a change of the table as an error condition. The
		// timeout is for the context only.
		poll := []unix.PollFd{{Fd: int32(changes.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, 100); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll %s: %w", mountinfo, err)
		}
	}
}

// Detach unmounts everything at dir and below, even if it is in use.
func Detach(dir string) error {
	points, err := Below(dir)
	if err != nil {
		return err
	}
	var all []error
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			all = append(all, &os.PathError{Op: "unmount", Path: point, Err: err})
		}
	}
	return errors.Join(all...)
}

// TempDir makes a temporary folder, and returns with it what removes it
// together with everything mounted below.
func TempDir() (dir string, remove func() error, err error) {
	dir, err = os.MkdirTemp("", "peel-")
	if err != nil {
		return "", nil, err
	}
	// The root of a user namespace is nobody here, and may have to get through.
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", nil, err
	}
	return dir, func() error {
		// Never delete through a mount that would not go.
		if err := Detach(dir); err != nil {
			return err
		}
		return os.RemoveAll(dir)
	}, nil
}
