package main

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/snapshotter"
)

func TestStarts(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	synctest.Test(t, func(t *testing.T) {
		got := make(chan time.Duration, 10)
		var waiting atomic.Bool
		s := newStarts(func(d time.Duration) { got <- d })
		s.waiting = waiting.Load
		s.prepared("c", time.Now(), []snapshotter.Origin{{Layer: a}})
		s.prepared("removed", time.Now(), []snapshotter.Origin{{Layer: a}})
		s.mounted("removed")
		time.Sleep(time.Second)
		s.mounted("c")
		s.forget("removed")
		time.Sleep(quietTime - time.Second)
		s.fetched(a) // after quietTime
		waiting.Store(true)
		time.Sleep(quietTime + time.Second)
		s.fetched(b) // of another image
		waiting.Store(false)
		synctest.Wait()
		if len(got) > 0 {
			t.Fatalf("%v, while a read waits", <-got)
		}
		if d := <-got; d != quietTime {
			t.Errorf("%v, want %v", d, quietTime)
		}
		time.Sleep(2 * quietTime)
		synctest.Wait()
		if len(got) > 0 {
			t.Errorf("one more, %v", <-got)
		}
	})
}
