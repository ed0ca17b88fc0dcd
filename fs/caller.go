package fs

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// caller is the process (in fact the thread) that a request is for.
//
// The kernel sends an INTERRUPT for any signal, yet to give up a read is right
// only if the process is being killed: programs do not expect EINTR of a file,
// and a page fault that gets it ends in SIGBUS. The request does not tell, so
// after an INTERRUPT caller watches the thread's state in /proc.
type caller struct {
	interrupted <-chan struct{} // closed by an INTERRUPT, and when the mount is torn down
	tid         uint32          // 0 if it is not in our pid namespace
}

// watchEvery is how often an interrupted thread is looked at.
const watchEvery = 20 * time.Millisecond

// context returns a context that ends at the deadline, or when the caller no
// longer waits for the answer. stop must be called.
func (c caller) context(deadline time.Time) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-c.interrupted:
			c.watch(ctx)
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		cancel()
		watch.Wait()
	}
}

// watch returns when the caller no longer waits, or ctx ends. A thread that
// waits sleeps uninterruptibly (state D); since it may not yet have gone to
// sleep after the signal, it must be seen awake twice.
func (c caller) watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for awake := 0; awake < 2; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if c.tid == 0 {
			continue
		}
		killed, sleeps := threadState(c.tid)
		if killed {
			return
		}
		if awake++; sleeps {
			awake = 0
		}
	}
}

// threadState reports whether a thread is being killed or gone, and whether it
// sleeps uninterruptibly. A signal that ends a process is in the kernel a
// pending SIGKILL of each thread.
func threadState(tid uint32) (killed, sleeps bool) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return true, false
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "State":
			sleeps = strings.HasPrefix(value, "D")
			killed = killed || strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X")
		case "SigPnd", "ShdPnd":
			mask, _ := strconv.ParseUint(value, 16, 64)
			killed = killed || mask&(1<<(unix.SIGKILL-1)) != 0
		}
	}
	return killed, sleeps
}
