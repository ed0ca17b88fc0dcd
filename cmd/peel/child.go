package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// childEnv tells a process that it serves a mount in the background, and that
// its third descriptor is a socket to the one that waits for it.
const childEnv = "PEEL_CHILD"

const childFD = 3

// message goes from the background process to the one that waits: progress,
// and in the end one that says either that it is mounted or what went wrong.
type message struct {
	Work    string        `json:"work,omitempty"`
	Blob    digest.Digest `json:"blob,omitempty"`
	Done    int64         `json:"done,omitempty"`
	Total   int64         `json:"total,omitempty"`
	Mounted bool          `json:"mounted,omitempty"`
	Error   string        `json:"error,omitempty"`
}

// inBackground starts a process of its own that serves the mount, and returns
// when it has mounted it. Interrupted before that, it takes the process along.
func (m *mounting) inBackground(c *cli.Context) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("start the mount's process: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "mount process"), os.NewFile(uintptr(pair[1]), "peel")
	defer ours.Close()
	logPath, err := m.start(theirs)
	if err != nil {
		return fmt.Errorf("start the mount's process: %w", err)
	}
	// The socket's other end is the process's only. When the context ends,
	// closing ours tells it to give up.
	conn, err := net.FileConn(ours)
	if err != nil {
		return err
	}
	defer conn.Close()
	go func() { <-c.Context.Done(); conn.Close() }()
	bar := newBar(os.Stderr)
	defer bar.end()
	for dec := json.NewDecoder(conn); ; {
		var msg message
		if err := dec.Decode(&msg); err != nil {
			if c.Context.Err() != nil {
				return c.Context.Err()
			}
			return fmt.Errorf("the mount's process ended before it had mounted %s; its log is %s", m.ref, logPath)
		}
		switch {
		case msg.Mounted:
			return nil
		case msg.Error != "":
			return errors.New(msg.Error)
		}
		bar.update(msg.Work, msg.Blob, msg.Done, msg.Total)
	}
}

// start starts this program once more, as the mount's process.
func (m *mounting) start(socket *os.File) (logPath string, err error) {
	defer socket.Close()
	if err := os.MkdirAll(m.root, 0o700); err != nil {
		return "", err
	}
	// The log is opened under a name that does not disturb a session that is
	// there already; the session takes it over.
	log, err := os.CreateTemp(m.root, "mount-*.log")
	if err != nil {
		return "", err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"="+log.Name())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return "", errors.Join(err, os.Remove(log.Name()))
	}
	return log.Name(), cmd.Process.Release()
}

// serveParent serves the mount, and tells the process that waits how it goes.
// It gives up if that one does, but not once it has mounted.
func (m *mounting) serveParent(c *cli.Context) error {
	log := os.Getenv(childEnv)
	defer os.Remove(log)
	conn, err := net.FileConn(os.NewFile(childFD, "peel"))
	if err != nil {
		return fmt.Errorf("%s is for peel itself: %w", childEnv, err)
	}
	defer conn.Close()
	unix.CloseOnExec(childFD)
	waiting, cancel := context.WithCancel(c.Context)
	defer cancel()
	go func() {
		_, _ = conn.Read(make([]byte, 1)) // nothing ever comes but the end
		cancel()
	}()
	var mu sync.Mutex
	enc := json.NewEncoder(conn)
	tell := func(msg message) {
		mu.Lock()
		defer mu.Unlock()
		_ = enc.Encode(msg) // if nobody waits, the context has ended
	}
	mounted := false
	err = m.serve(waiting, c, func(work string, blob digest.Digest, done, total int64) {
		tell(message{Work: work, Blob: blob, Done: done, Total: total})
	}, func() {
		mounted = true
		_ = os.Rename(log, m.session.path("log")) // if not, it stays where it is
		tell(message{Mounted: true})
	})
	if err != nil && !mounted {
		tell(message{Error: err.Error()})
	}
	return err
}
