package content

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Locks between processes are open-file-description locks: they go with the
// process, however it ends. Waiting is by asking again, since a blocked call
// could not be cancelled.
const (
	pollLeast = 2 * time.Millisecond
	pollMost  = 50 * time.Millisecond
)

// mapLock is the byte of a layer's map that stands for the map as a whole; the
// bytes before it stand for spans.
const mapLock = 1 << 40

// tryLock locks n bytes at off; it reports false if another process has them.
func tryLock(f *os.File, off, n int64) (bool, error) {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: off, Len: n}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return true, nil
}

func unlock(f *os.File, off, n int64) {
	lk := unix.Flock_t{Type: unix.F_UNLCK, Start: off, Len: n}
	_ = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk) // fails only for a bad argument
}

// lockRange waits until it has locked n bytes at off.
func lockRange(ctx context.Context, f *os.File, off, n int64) (func(), error) {
	for wait := pollLeast; ; wait = min(2*wait, pollMost) {
		ok, err := tryLock(f, off, n)
		if err != nil {
			return nil, err
		}
		if ok {
			return func() { unlock(f, off, n) }, nil
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, fmt.Errorf("wait for another process to release %s: %w", f.Name(), err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
