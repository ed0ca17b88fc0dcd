package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A session is one mount's folder in the store, ROOT/mounts/ID:
//
//	mount.json  what is mounted where, and by which process
//	lock        locked as long as that process lives
//	sock        where it answers, in HTTP
//	log         what it has to say once nobody waits for it
//	scratch     what was written, with --rw
//
// ID follows from the mount point, so one place has one session.
type session struct{ dir string }

// mountInfo is what mount.json says.
type mountInfo struct {
	Image   string    `json:"image"`
	Digest  string    `json:"digest"`
	Dir     string    `json:"dir"`
	PID     int       `json:"pid"`
	RW      bool      `json:"rw"`
	Started time.Time `json:"started"`
}

func sessionFor(root, mountpoint string) session {
	sum := sha256.Sum256([]byte(mountpoint))
	return session{filepath.Join(root, "mounts", hex.EncodeToString(sum[:6]))}
}

// sessions lists all there are.
func sessions(root string) ([]session, error) {
	entries, err := os.ReadDir(filepath.Join(root, "mounts"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []session
	for _, e := range entries {
		if !strings.Contains(e.Name(), ".") { // or it is being removed
			all = append(all, session{filepath.Join(root, "mounts", e.Name())})
		}
	}
	return all, nil
}

func (s session) path(name string) string { return filepath.Join(s.dir, name) }

// acquire makes the session this process's. It fails if another one's lives.
// The lock goes with the process.
func (s session) acquire() (*os.File, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errAlive // it was removed this moment
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errAlive
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	// One that has just ended may have removed the file meanwhile.
	ours, err := f.Stat()
	if now, err2 := os.Stat(f.Name()); err != nil || err2 != nil || !os.SameFile(ours, now) {
		f.Close()
		return nil, errAlive
	}
	return f, nil
}

// acquireAfter is acquire, but waits for a process whose mount on dir is gone:
// it ends a moment later than umount(8) does.
func (s session) acquireAfter(ctx context.Context, dir string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	for {
		f, err := s.acquire()
		if !errors.Is(err, errAlive) || isMountPoint(dir) {
			return f, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// endTime is how long a mount's process may take to end.
const endTime = 5 * time.Second

// isMountPoint reports whether anything is mounted on a folder.
func isMountPoint(dir string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, 0, &st)
	return err != nil || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 // an error: one that nobody serves
}

var errAlive = errors.New("another peel process serves this place")

// alive reports whether the session's process lives. It makes nothing: the
// process may be removing the session at this moment.
func (s session) alive() bool {
	f, err := os.OpenFile(s.path("lock"), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

func (s session) info() (mountInfo, error) {
	var i mountInfo
	raw, err := os.ReadFile(s.path("mount.json"))
	if err != nil {
		return i, err
	}
	return i, json.Unmarshal(raw, &i)
}

func (s session) write(i mountInfo) error {
	raw, err := json.Marshal(i)
	if err != nil {
		return err
	}
	tmp := s.path("mount.json.tmp")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.path("mount.json"))
}

// remove removes the session's folder, which is at once another's to make.
func (s session) remove() error {
	gone := fmt.Sprintf("%s.%d", s.dir, os.Getpid())
	if err := os.Rename(s.dir, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(gone)
}

// socket returns a path to the session's socket that is short enough for an
// address, whatever the length of the root, and a file to close after use.
func (s session) socket() (string, *os.File, error) {
	d, err := os.Open(s.dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/sock", d.Fd()), d, nil
}

// listen opens the session's socket.
func (s session) listen() (net.Listener, error) {
	if err := os.Remove(s.path("sock")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	path, d, err := s.socket()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // the folder goes as a whole
	return l, nil
}

// call asks the session's process and decodes its answer into v.
func (s session) call(ctx context.Context, method, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			path, d, err := s.socket()
			if err != nil {
				return nil, err
			}
			defer d.Close()
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://peel"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the process that serves %s: %w", s.dir, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var msg struct{ Error string }
		if err := json.NewDecoder(resp.Body).Decode(&msg); err != nil || msg.Error == "" {
			return fmt.Errorf("the process that serves the mount answers %s", resp.Status)
		}
		return errors.New(strings.TrimSpace(msg.Error))
	}
	return json.NewDecoder(resp.Body).Decode(v)
}

// callTimeout is how long a mount's process may take to answer. Unmounting
// waits for reads in flight, which wait for the registry.
const callTimeout = 45 * time.Second
