package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/peelfs/peel/integration/images"
)

// reader reads random ranges of a mounted image's files and compares them with
// those that umoci unpacked.
type reader struct {
	mnt, unpacked string
	files         []string      // the regular ones that are not empty, relative to both
	slowest       time.Duration // that a read may take before it counts as hung
	down          atomic.Bool   // the mount's process is gone: errors of any kind are right
}

func newReader(t *testing.T, img *images.Image, mnt string, slowest time.Duration) *reader {
	t.Helper()
	r := &reader{mnt: mnt, unpacked: unpacked(t, img), slowest: slowest}
	err := filepath.WalkDir(r.unpacked, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() == 0 {
			return err
		}
		rel, err := filepath.Rel(r.unpacked, path)
		r.files = append(r.files, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// tally counts reads.
type tally struct {
	right, failed atomic.Int64
	slowest       atomic.Int64 // nanoseconds
}

func (t *tally) String() string {
	return fmt.Sprintf("%d reads were right and %d failed, the slowest took %v",
		t.right.Load(), t.failed.Load(), time.Duration(t.slowest.Load()).Round(time.Millisecond))
}

const readers = 8 // goroutines

// run reads until ctx ends or there have been so many reads. It fails with the
// first read that gives wrong bytes, an error other than EIO, or no answer in
// time; it does not wait for the latter.
func (r *reader) run(ctx context.Context, seed uint64, most int64, t *tally) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bad := make(chan error, 1)
	report := func(err error) {
		select {
		case bad <- err:
		default: // the first one is enough
		}
		cancel()
	}
	ended := make(chan struct{})
	var all sync.WaitGroup
	for i := range uint64(readers) {
		random := rand.New(rand.NewPCG(seed, i))
		all.Go(func() {
			for ctx.Err() == nil && t.right.Load()+t.failed.Load() < most {
				r.timed(random, t, report)
			}
		})
	}
	go func() { all.Wait(); close(ended) }()
	select {
	case err := <-bad:
		return err
	case <-ended:
	}
	select {
	case err := <-bad:
		return err
	default:
		return nil
	}
}

// timed makes and counts one read, and reports one that is not as it must be.
func (r *reader) timed(random *rand.Rand, t *tally, report func(error)) {
	name := r.files[random.IntN(len(r.files))]
	start := time.Now()
	hung := time.AfterFunc(r.slowest, func() { report(fmt.Errorf("a read of %s hangs for %v", name, r.slowest)) })
	err := r.read(name, random)
	hung.Stop()
	took := int64(time.Since(start))
	for old := t.slowest.Load(); took > old && !t.slowest.CompareAndSwap(old, took); old = t.slowest.Load() {
	}
	switch {
	case err == nil:
		t.right.Add(1)
	case !errors.Is(err, errWrong) && (errors.Is(err, syscall.EIO) || r.down.Load()):
		t.failed.Add(1)
	default:
		report(fmt.Errorf("read %s: %w", name, err))
	}
}

// errWrong says that a read did not fail, and should have.
var errWrong = errors.New("wrong bytes")

// read reads up to 64 KiB somewhere in a file, once.
func (r *reader) read(name string, random *rand.Rand) error {
	original, err := os.Open(filepath.Join(r.unpacked, name))
	if err != nil {
		return err
	}
	defer original.Close()
	info, err := original.Stat()
	if err != nil {
		return err
	}
	off := random.Int64N(info.Size())
	want := make([]byte, min(1+random.Int64N(64<<10), info.Size()-off))
	if _, err := original.ReadAt(want, off); err != nil && err != io.EOF {
		return err
	}
	mounted, err := os.Open(filepath.Join(r.mnt, name))
	if err != nil {
		return err
	}
	defer mounted.Close()
	got := make([]byte, len(want))
	if _, err := mounted.Seek(off, io.SeekStart); err != nil {
		return err
	}
	n, err := mounted.Read(got) // one read(2), which may end before data that is not to be had
	if !bytes.Equal(got[:n], want[:n]) || err == io.EOF {
		return fmt.Errorf("%w: %d bytes at %d, %v", errWrong, n, off, err)
	}
	return err
}
