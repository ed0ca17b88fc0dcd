package content

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrFull is wrapped by errors of writing that a store's disk, or its user's
// quota, has no room for.
var ErrFull = errors.New("the disk of the store is full")

// asFull makes an error wrap ErrFull, and say what next, if it is about want of
// room.
func asFull(err error) error {
	if isFull(err) && !errors.Is(err, ErrFull) {
		return fmt.Errorf("%w: make room there, then try again (peel cache df shows what peel has there, peel cache rm removes it): %w", ErrFull, err)
	}
	return err
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// Full reports whether the store's disk is full: what is fetched can be read,
// and is not kept.
func (s *Store) Full() bool { return s.full.now.Load() }

// fullness says in the log, once each, that a store's disk is full and that it
// is not any more. Small things may still find room on a full disk, so that is
// over only when for some time nothing has failed.
type fullness struct {
	log  *slog.Logger
	root string

	now            atomic.Bool // it is full
	failed, worked atomic.Bool // since the last tick
}

// noted takes the outcome of a write, and reports whether it failed for want of
// room.
func (f *fullness) noted(err error) bool {
	if err == nil {
		f.worked.Store(true)
	}
	if !isFull(err) {
		return false
	}
	f.failed.Store(true)
	if !f.now.Swap(true) {
		f.log.Error("no room on the disk of the store: what is fetched can be read, and is not kept", "store", f.root, "error", err)
	}
	return true
}

// tick ends the episode if writes have worked since the last tick, and none
// has failed.
func (f *fullness) tick() {
	failed, worked := f.failed.Swap(false), f.worked.Swap(false)
	if worked && !failed && f.now.Swap(false) {
		f.log.Info("there is room on the disk of the store again", "store", f.root)
	}
}

// spare keeps the tar of a few spans that the disk had no room for, since a
// span is read in several pieces. It keeps them for a short time: who reads
// them later tries the disk again. The zero value is ready.
type spare struct {
	mu    sync.Mutex
	all   []spareSpan // the oldest first
	bytes int64
}

type spareSpan struct {
	layer *Layer
	span  int
	tar   []byte
}

// spareMost is how many bytes of spans are kept; the last one is in any case.
const spareMost = 8 << 20

func (s *spare) put(l *Layer, span int, tar []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, spareSpan{l, span, tar})
	s.bytes += int64(len(tar))
	for s.bytes > spareMost && len(s.all) > 1 {
		s.bytes -= int64(len(s.all[0].tar))
		s.all[0] = spareSpan{}
		s.all = s.all[1:]
	}
}

// get returns the tar of a span, or nil.
func (s *spare) get(l *Layer, span int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.all {
		if x := &s.all[i]; x.layer == l && x.span == span {
			return x.tar
		}
	}
	return nil
}

func (s *spare) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all, s.bytes = nil, 0
}
