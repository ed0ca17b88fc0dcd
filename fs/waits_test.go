package fs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// late is what a machine with other things to do may add to a time.
const late = time.Second

// A read fails when its time is up, however often the kernel asks and however
// each request ends, and works again as soon as the data can be had.
func TestReadTimeout(t *testing.T) {
	const timeout = 3 * time.Second
	for _, tt := range []struct {
		name string
		each time.Duration // after which a request fails
		size int
	}{
		{"hangs", time.Hour, 1 << 20},
		{"hangs, a page", time.Hour, 1},
		{"fails", timeout * 2 / 5, 1 << 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir, blob, _ := mountLayers(t, Options{ReadTimeout: timeout, Log: slog.New(slog.DiscardHandler)},
				[]index.Entry{file("a", 0, 4<<20)})
			var back atomic.Bool
			blob.onFetch(func(ctx context.Context) error {
				if back.Load() {
					return nil
				}
				select {
				case <-time.After(tt.each):
					return errors.New("connection refused")
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			start := time.Now()
			_, err := readAt(dir+"/a", 1<<20, tt.size)
			took := time.Since(start)
			if !errors.Is(err, unix.EIO) || took < min(tt.each, timeout) || took > timeout+timeout/10+late {
				t.Errorf("got error %v after %v", err, took)
			}
			back.Store(true)
			for start := time.Now(); ; time.Sleep(time.Millisecond) {
				if _, err = readAt(dir+"/a", 1<<20, tt.size); err == nil {
					break
				}
				if time.Since(start) > askedAgain+late {
					t.Fatalf("%v after the data can be had: %v", time.Since(start), err)
				}
			}
		})
	}
}

// While one place has failed, others have all their time.
func TestTimeoutIsOfAPlace(t *testing.T) {
	const away = 8 << 20
	dir, blob, _ := mountLayers(t, Options{ReadTimeout: time.Second, Log: slog.New(slog.DiscardHandler)},
		[]index.Entry{file("stuck", 0, away), file("slow", away, away)})
	all := func(int64) bool { return true }
	blob.missing.Store(&all)
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	slow := func(ctx context.Context) error {
		select {
		case <-time.After(100 * time.Millisecond):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	blob.fetch.Store(&hang)
	if _, err := readAt(dir+"/stuck", 0, 4096); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	blob.fetch.Store(&slow)
	if got, err := readAt(dir+"/slow", 4<<20, 4096); err != nil || !bytes.Equal(got, pattern(away+4<<20, 4096)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// Who tries again and again, and fails at once each time, still gets all of the
// time now and then.
func TestWaitsDoNotRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWaits(10 * time.Second)
		blob, pause := zeroBlob{}, time.Millisecond
		var spent, fresh time.Time // since when there is no time left; when there was all
		for range 100_000 {
			try := w.begin(blob, 0, 4096)
			switch left := time.Until(w.deadline(try)); {
			case left == w.limit:
				fresh, spent = time.Now(), time.Time{}
			case left <= 0 && spent.IsZero():
				spent = time.Now()
			case left <= 0 && time.Since(spent) > askedAgain+2*pause:
				t.Fatalf("no time is left for %v", time.Since(spent))
			}
			time.Sleep(pause)
			w.failed(try)
		}
		if time.Since(fresh) > w.limit+2*askedAgain {
			t.Errorf("the last try with all of the time was %v ago", time.Since(fresh))
		}
		time.Sleep(2 * askedAgain)
		w.begin(blob, 0, 4096)
		if len(w.tried) > 0 {
			t.Errorf("%d failures are remembered", len(w.tried))
		}
	})
}

func TestWaitsOfOneRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWaits(10 * time.Second)
		one, two := &testBlob{}, &testBlob{}
		first := w.begin(one, 8<<20, 128<<10)
		time.Sleep(time.Second)
		w.failed(first)
		time.Sleep(askedAgain / 2)
		for _, tt := range []struct {
			blob Blob
			off  int64
			same bool
		}{
			{one, 8 << 20, true}, {one, 9 << 20, true}, {one, 7<<20 + 1, true},
			{one, 0, false}, {one, 16 << 20, false}, {two, 8 << 20, false},
		} {
			if got := w.begin(tt.blob, tt.off, 4096).began.Equal(first.began); got != tt.same {
				t.Errorf("%d is taken for the same read: %t", tt.off, got)
			}
		}
		time.Sleep(askedAgain)
		if w.begin(one, 8<<20, 4096).began.Equal(first.began) {
			t.Error("a read that comes much later is taken for the same")
		}
	})
}

// Data that is here is read at once, however many reads wait for data that is
// not. (A loop device takes 128 requests and lets others wait.)
func TestPresentBesideMissing(t *testing.T) {
	const readers = 100
	const half = readers << 20
	before := runtime.NumGoroutine()
	dir, blob, s := mountLayers(t, Options{ReadTimeout: time.Minute},
		[]index.Entry{file("missing", 0, half), file("present", half, 8<<20)})
	began, release := stuck(blob)
	first := func(off int64) bool { return off < half }
	blob.missing.Store(&first)
	var all sync.WaitGroup
	for i := range int64(readers) {
		all.Go(func() {
			got, err := readAt(dir+"/missing", i<<20, 4096)
			if err != nil || !bytes.Equal(got, pattern(i<<20, 4096)) {
				t.Errorf("reader %d: %v", i, err)
			}
		})
	}
	for range readers {
		<-began
	}
	read := make(chan error, 1)
	all.Go(func() {
		got, err := os.ReadFile(dir + "/present")
		if err == nil && !bytes.Equal(got, pattern(half, 8<<20)) {
			err = errors.New("wrong bytes")
		}
		read <- err
	})
	select {
	case err := <-read:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * late):
		t.Error("data that is here waits for data that is not")
	}
	if st := s.Stats(); st.Fetched+st.Failed > 0 {
		t.Errorf("the reads of missing data had ended before: %+v", st)
	}
	release()
	all.Wait()
	if err := s.Unmount(); err != nil {
		t.Error(err)
	}
	goroutinesEnd(t, before)
}

// goroutinesEnd holds that soon there are no more goroutines than before.
func goroutinesEnd(t *testing.T, before int) {
	t.Helper()
	var now int
	for start := time.Now(); time.Since(start) < 10*late; time.Sleep(time.Millisecond) {
		if now = runtime.NumGoroutine(); now <= before {
			return
		}
	}
	stacks := make([]byte, 1<<20)
	t.Errorf("%d goroutines, and %d before:\n%s", now, before, stacks[:runtime.Stack(stacks, true)])
}

// readAt reads n bytes of a file.
func readAt(path string, off int64, n int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, n)
	_, err = f.ReadAt(buf, off)
	return buf, err
}
