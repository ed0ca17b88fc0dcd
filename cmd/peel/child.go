package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
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
// then one that says either that it is mounted or what went wrong, and with
// --wait, after more progress, one that says how fetching the rest has ended.
type message struct {
	Work     string        `json:"work,omitempty"`
	Blob     digest.Digest `json:"blob,omitempty"`
	Done     int64         `json:"done,omitempty"`
	Total    int64         `json:"total,omitempty"`
	Mounted  bool          `json:"mounted,omitempty"`
	Complete bool          `json:"complete,omitempty"`
	Error    string        `json:"error,omitempty"`
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
	bar := m.bar(c)
	defer bar.end()
	mounted := false
	for dec := json.NewDecoder(conn); ; {
		var msg message
		if err := dec.Decode(&msg); err != nil {
			return m.broken(c.Context, mounted, logPath)
		}
		switch {
		case msg.Error != "":
			return errors.New(msg.Error)
		case msg.Complete, msg.Mounted:
			bar.event(msg)
			mounted = true
			if msg.Complete || !c.Bool("wait") {
				return nil
			}
		default:
			bar.update(msg.Work, msg.Blob, msg.Done, msg.Total)
		}
	}
}

// interrupted is the end of the context where that is not all there is to say.
type interrupted struct{ rest string }

func (e *interrupted) Error() string { return "interrupted; " + e.rest }
func (e *interrupted) Unwrap() error { return context.Canceled }

// broken says why nothing more comes from the mount's process.
func (m *mounting) broken(ctx context.Context, mounted bool, logPath string) error {
	switch {
	case ctx.Err() != nil && mounted:
		return &interrupted{fmt.Sprintf("%s stays mounted on %s, and what is missing comes when it is read", m.ref, m.dir)}
	case ctx.Err() != nil:
		return ctx.Err()
	case mounted:
		return fmt.Errorf("the process that serves %s has ended, and not all of %s is here; its log was %s", m.dir, m.ref, m.session.path("log"))
	}
	return fmt.Errorf("the mount's process ended before it had mounted %s; its log is %s", m.ref, logPath)
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
	// Room for the message that there is none any more. If not, status has it.
	_ = unix.Fallocate(int(log.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 16<<10)
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = "peel" // also where the file is called mount.peel
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
	}, func(msg message) {
		if msg.Mounted {
			mounted = true
			_ = os.Rename(log, m.session.path("log")) // if not, it stays where it is
		}
		tell(msg)
		if msg.Mounted == !c.Bool("wait") {
			conn.Close() // nobody waits any more
		}
	})
	if err != nil && !mounted {
		tell(message{Error: err.Error() + fusermountSaid(log)})
	}
	return err
}

// fusermountSaid returns what fusermount3 has had to say: it writes to our
// standard error, which is the log, and returns no more than a status.
func fusermountSaid(log string) string {
	raw, _ := os.ReadFile(log) // only words
	for line := range strings.Lines(string(raw)) {
		if i := strings.Index(line, "fusermount3: "); i >= 0 {
			return "; " + strings.TrimSpace(line[i:])
		}
	}
	return ""
}
