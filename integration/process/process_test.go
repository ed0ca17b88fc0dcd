package process

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

var port = regexp.MustCompile(`listening on (\d+)`)

func start(t *testing.T, script string) (p *Process, match []string, log string, err error) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "log")
	p, match, err = Start(t.Context(), exec.Command("sh", "-c", script), log, port)
	if err == nil {
		t.Cleanup(func() { p.Kill() })
	}
	return p, match, log, err
}

func alive(p *Process) bool { return syscall.Kill(p.PID(), 0) == nil }

func TestReady(t *testing.T) {
	p, match, log, err := start(t, `echo first >&2; echo "listening on 42." >&2; exec sleep 1000`)
	if err != nil {
		t.Fatal(err)
	}
	if len(match) != 2 || match[1] != "42" {
		t.Errorf("got %q, want the captured port", match)
	}
	if !alive(p) {
		t.Error("it is not running")
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if alive(p) {
		t.Error("it runs after Stop")
	}
	if got, err := os.ReadFile(log); err != nil || string(got) != "first\nlistening on 42.\n" {
		t.Errorf("the log holds %q, %v, want all that was said", got, err)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("to kill what has ended gives %v", err)
	}
}

func TestStopLetsItCleanUp(t *testing.T) {
	p, _, log, err := start(t, `trap 'echo cleaned up >&2; kill $!; exit' TERM; sleep 1000 2>/dev/null & echo listening on 1 >&2; wait`)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(log); err != nil || !strings.Contains(string(got), "cleaned up") {
		t.Errorf("the log holds %q, %v", got, err)
	}
}

func TestEndsBeforeItIsReady(t *testing.T) {
	_, _, log, err := start(t, "echo no such luck >&2")
	if err == nil || !strings.Contains(err.Error(), log) {
		t.Errorf("got error %v, want one that names the log", err)
	}
}

func TestNotThere(t *testing.T) {
	_, _, err := Start(t.Context(), exec.Command("/no/such/program"), filepath.Join(t.TempDir(), "log"), port)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got error %v", err)
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := Start(ctx, exec.Command("sleep", "1000"), filepath.Join(t.TempDir(), "log"), port)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
}
