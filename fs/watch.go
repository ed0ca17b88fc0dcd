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
	mount := mountOf(st.Mnt_id)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		for mount != "" && mountOf(st.Mnt_id) == mount {
			// The file is always readable; it has an error when it changes. A
			// change may be told a moment before it can be seen, so look anew.
			fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
			if _, err := unix.Poll(fds, 1000); err != nil && err != unix.EINTR {
				return
			}
		}
	}()
	return done, nil
}

// mountOf says what is mounted with an ID, and where; "" if nothing is. The
// kernel gives an ID to the next mount as soon as it is free, so the ID alone
// does not tell one mount from another.
func mountOf(id uint64) string {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	want := strconv.FormatUint(id, 10)
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 4 && f[0] == want {
			return strings.Join(f[2:5], " ") // device, root, mount point
		}
	}
	return ""
}
