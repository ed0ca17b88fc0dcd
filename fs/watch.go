package fs

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// watchUnmount returns a channel that is closed when what is mounted on dir
// now is not mounted any more.
func watchUnmount(dir string) (chan struct{}, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &st); err != nil {
		return nil, fmt.Errorf("watch the mount on %s: %w", dir, err)
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("watch the mount on %s: %w", dir, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		for mounted(st.Mnt_id) {
			// The file is always readable; it has an error when it changes.
			fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
				return
			}
		}
	}()
	return done, nil
}

// mounted reports whether there is a mount with the ID.
func mounted(id uint64) bool {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	want := strconv.FormatUint(id, 10) + " "
	for line := range strings.Lines(string(raw)) {
		if strings.HasPrefix(line, want) {
			return true
		}
	}
	return false
}
