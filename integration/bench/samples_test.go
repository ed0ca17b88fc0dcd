package main

import (
	"errors"
	"os"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	tests := []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{4, 2}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{9, 1, 2, 4}, 3},
	}
	for _, test := range tests {
		r := row{values: test.values}
		if got := r.median(); got != test.want {
			t.Errorf("median of %v is %v, want %v", test.values, got, test.want)
		}
	}
}

func TestVerdict(t *testing.T) {
	tests := []struct {
		name        string
		limit       func(s *samples)
		limitText   string
		held        string
		noReference bool
	}{
		{name: "no limit", limit: func(*samples) {}},
		{name: "at the limit", limit: func(s *samples) { s.limit("time", peelRow, 3) }, limitText: "3 s", held: "held"},
		{name: "beyond it", limit: func(s *samples) { s.limit("time", peelRow, 2.9) }, limitText: "2.9 s", held: "missed"},
		{name: "ratio held", limit: func(s *samples) { s.limitRatio("time", peelRow, 1.5) }, limitText: "ratio 1.5", held: "held"},
		{name: "ratio missed", limit: func(s *samples) { s.limitRatio("time", peelRow, 1.4) }, limitText: "ratio 1.4", held: "missed"},
		{name: "ratio to nothing", limit: func(s *samples) { s.limitRatio("time", peelRow, 1.4) }, noReference: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var s samples
			s.add("time", peelRow, "s", 3)
			if !test.noReference {
				s.add("time", nativeRow, "s", 2)
			}
			test.limit(&s)
			if limit, held := s.verdict(s.rows[0]); limit != test.limitText || held != test.held {
				t.Errorf("got %q, %q, want %q, %q", limit, held, test.limitText, test.held)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	var s samples
	s.add("time", peelRow, "s", 1)
	s.missing("time", stargzRow, errors.New("a peer may fail"))
	s.missing("time", containerdRow, errors.New("so may this one"))
	if got := s.failures(); len(got) > 0 {
		t.Errorf("failures of peers alone: %q", got)
	}
	s.missing("time", peelRow, errors.New("first line\nsecond line"))
	want := []string{"time, peel: first line"}
	if got := s.failures(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// figures are of three systems, one of which could not be measured, and of one
// that could be in one round of three.
func figures() *samples {
	var s samples
	for i, v := range []float64{1, 3, 2} {
		s.add("start", peelRow, "s", v)
		s.limitRatio("start", peelRow, 0.25)
		if i == 0 {
			s.add("start", stargzRow, "s", 4)
		} else {
			s.missing("start", stargzRow, errors.New("it fell over"))
		}
		s.add("memory", peelRow, "MB", 7)
		s.limit("memory", peelRow, 6)
		s.add("start", containerdRow, "s", 10*v)
	}
	s.missing("memory", stargzRow, errors.New("no such process\nand more"))
	return &s
}

func Example() {
	_ = figures().print(os.Stdout)
	// Output:
	// metric  system      median  unit  least  most  ratio  limit
	// start   peel        2       s     1      3     0.10   ratio 0.25  held
	//         stargz      4       s     4      4     0.20               (not always: it fell over)
	//         containerd  20      s     10     30    1.00
	// memory  peel        7       MB    7      7            6 MB        missed
	//         stargz      -                                             no such process
}

func Example_markdown() {
	_ = figures().markdown(os.Stdout)
	// Output:
	// | metric | system | median | unit | least | most | ratio | limit |  |
	// | --- | --- | --: | --- | --: | --: | --: | --- | --- |
	// | start | peel | 2 | s | 1 | 3 | 0.10 | ratio 0.25 | held |
	// |  | stargz | 4 | s | 4 | 4 | 0.20 |  | (not always: it fell over) |
	// |  | containerd | 20 | s | 10 | 30 | 1.00 |  |  |
	// | memory | peel | 7 | MB | 7 | 7 |  | 6 MB | missed |
	// |  | stargz | - |  |  |  |  |  | no such process |
}
