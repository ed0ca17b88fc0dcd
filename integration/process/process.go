// Package process runs a server as a child process: it keeps a log of what the
// server says, waits until it is ready, and stops it.
package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"syscall"
	"time"
)

// Process is a running server.
type Process struct {
	cmd    *exec.Cmd
	logged chan struct{} // closed when the process has closed its stderr
}

const (
	startTimeout = 30 * time.Second // until a server is ready
	stopTimeout  = 10 * time.Second // until one that was asked to end is killed
)

// Start starts cmd, appends its standard error to the file log, and returns
// when a line of it matches ready, together with the parts that ready captures.
// An interrupt from the terminal reaches only this process, not the server.
func Start(ctx context.Context, cmd *exec.Cmd, log string, ready *regexp.Regexp) (*Process, []string, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, err
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // a killed test leaves no server
	p := &Process{cmd: cmd, logged: make(chan struct{})}
	if err := p.startOnOwnThread(); err != nil {
		file.Close()
		return nil, nil, err
	}
	said := make(chan []string, 1)
	go func() {
		defer close(p.logged)
		defer file.Close()
		follow(stderr, file, ready, said)
	}()
	match, err := p.await(ctx, said)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start %s (log: %s): %w", cmd.Path, log, err), p.Kill())
	}
	return p, match, nil
}

// startOnOwnThread starts the process from a thread that lives as long as the
// server does: the kernel takes the end of the thread for that of the parent.
func (p *Process) startOnOwnThread() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			<-p.logged
		}
	}()
	return <-started
}

// follow copies what the server says to its log, and sends the first match.
func follow(stderr io.Reader, log io.Writer, ready *regexp.Regexp, said chan<- []string) {
	lines := bufio.NewScanner(io.TeeReader(stderr, log))
	for lines.Scan() {
		if match := ready.FindStringSubmatch(lines.Text()); match != nil {
			said <- match
			break
		}
	}
	_, _ = io.Copy(log, stderr)
}

func (p *Process) await(ctx context.Context, said <-chan []string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case match := <-said:
		return match, nil
	case <-p.logged:
		return nil, errors.New("it ended before it was ready")
	case <-ctx.Done():
		return nil, fmt.Errorf("it is not ready: %w", ctx.Err())
	}
}

// PID returns the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop asks the server to end, and returns when it has. One that does not end
// in time is killed.
func (p *Process) Stop() error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.logged:
	case <-time.After(stopTimeout):
	}
	return p.Kill()
}

// Kill ends the server with no chance to clean up, and returns when it is gone.
func (p *Process) Kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.logged
	_ = p.cmd.Wait() // says that it was killed
	return nil
}

func (p *Process) signal(s os.Signal) error {
	err := p.cmd.Process.Signal(s)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s: %w", s, p.cmd.Path, err)
	}
	return nil
}
