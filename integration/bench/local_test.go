package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeLoad returns a bed whose load program notes its arguments in a file. It
// takes half a second, it says, but fails in a folder named broken.
func fakeLoad(t *testing.T) (b *bed, calls func() []string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	b = &bed{load: filepath.Join(dir, "load")}
	script := "#!/bin/sh\necho \"$*\" >> " + log + "\ncase \"$*\" in */broken/*) echo it is broken >&2; exit 1;; esac\necho 0.5\n"
	if err := os.WriteFile(b.load, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return b, func() []string {
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(text)), "\n")
	}
}

// TestTake has the places take turns, each with the same work.
func TestTake(t *testing.T) {
	b, calls := fakeLoad(t)
	task := task{
		metric: "reads", unit: "ms each", scale: 1e3, load: []string{"random"}, path: "file",
		cold: goal{n: 10, limits: limits{fuseRow: 1.5}}, warm: goal{n: 100},
	}
	places := []place{{system: nativeRow, root: "/a"}, {system: fuseRow, root: "/b"}}
	var s samples
	for _, p := range []phase{coldPhase, warmPhase} {
		if err := b.take(t.Context(), p, task, places, &s); err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	for range coldPhase.vain + coldPhase.times {
		want = append(want, "-cold -n 10 random /a/file", "-cold -n 10 random /b/file")
	}
	for range warmPhase.vain + warmPhase.times {
		want = append(want, "-n 100 random /a/file", "-n 100 random /b/file")
	}
	if got := calls(); !slices.Equal(got, want) {
		t.Errorf("the load was run as %q, want %q", got, want)
	}
	for _, r := range s.rows {
		value, times := 50.0, coldPhase.times // half a second for ten
		if r.metric == "reads, warm" {
			value, times = 5, warmPhase.times
		}
		if len(r.values) != times || r.median() != value {
			t.Errorf("%s, %s: %v, want %d times %v", r.metric, r.system, r.values, times, value)
		}
	}
	if limit, held := s.verdict(s.row("reads, cold", fuseRow)); limit != "ratio 1.5" || held != "held" {
		t.Errorf("the limit is %q, %q", limit, held)
	}
}

func TestTakeGoesOnWhereOneFails(t *testing.T) {
	b, _ := fakeLoad(t)
	places := []place{
		{system: treeRow, err: errors.New("not mounted")},
		{system: loopRow, root: "/broken"},
		{system: fuseRow, root: "/fine"},
	}
	var s samples
	if err := b.take(t.Context(), coldPhase, task{metric: "reads", scale: 1, load: []string{"stat"}}, places, &s); err != nil {
		t.Fatal(err)
	}
	for system, part := range map[string]string{treeRow: "not mounted", loopRow: "exit status 1", fuseRow: ""} {
		if r := s.row("reads, cold", system); (r.failed == "") != (part == "") || !strings.Contains(r.failed, part) {
			t.Errorf("%s failed with %q, want %q", system, r.failed, part)
		}
	}
	if n := len(s.row("reads, cold", fuseRow).values); n != coldPhase.times {
		t.Errorf("%d values of the one that works, want %d", n, coldPhase.times)
	}
}

func TestTakeStopsWhenInterrupted(t *testing.T) {
	b, _ := fakeLoad(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var s samples
	err := b.take(ctx, coldPhase, task{metric: "reads", load: []string{"stat"}}, []place{{system: fuseRow, root: "/"}}, &s)
	if !errors.Is(err, context.Canceled) || len(s.rows) > 0 {
		t.Errorf("got %v and %d rows", err, len(s.rows))
	}
}
