package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// overlay makes a change on top of directories, the lowest first, and returns
// the directory that holds what has changed. It mounts below scratch, which it
// creates, and unmounts before it returns.
func overlay(ctx context.Context, scratch string, lowers []string, c change) (upper string, err error) {
	upper = filepath.Join(scratch, "upper")
	work, root := filepath.Join(scratch, "work"), filepath.Join(scratch, "root")
	for _, dir := range []string{upper, work, root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	// The root directory that one sees is the upper one.
	info, err := os.Stat(lowers[len(lowers)-1])
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.Chmod(upper, info.Mode()), os.Chtimes(upper, info.ModTime(), info.ModTime())); err != nil {
		return "", err
	}
	topmost := slices.Clone(lowers)
	slices.Reverse(topmost)
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(topmost, ":"), upper, work)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return "", fmt.Errorf("mount an overlay on %s (%s): %w", root, options, err)
	}
	err = c(ctx, root)
	if uerr := unix.Unmount(root, unix.MNT_DETACH); err == nil && uerr != nil {
		err = fmt.Errorf("unmount %s: %w", root, uerr)
	}
	return upper, err
}
