package content

import "testing"

func TestStreams(t *testing.T) {
	type read struct{ lo, hi, ahead int }
	for name, reads := range map[string][]read{
		"in order":               {{0, 1, 0}, {1, 2, 0}, {2, 3, 1}, {4, 5, 2}, {7, 8, 4}, {12, 13, 8}, {21, 22, 16}, {38, 39, 16}},
		"jumps":                  {{5, 6, 0}, {50, 51, 0}, {2, 3, 0}, {30, 31, 0}, {90, 91, 0}},
		"backwards":              {{9, 10, 0}, {8, 9, 0}, {7, 8, 0}},
		"one span many times":    {{3, 4, 0}, {3, 4, 0}, {3, 4, 0}, {4, 5, 0}, {4, 5, 0}, {5, 6, 1}},
		"two at once":            {{0, 1, 0}, {100, 101, 0}, {1, 2, 0}, {101, 102, 0}, {2, 3, 1}, {102, 103, 1}},
		"what was fetched ahead": {{0, 1, 0}, {1, 2, 0}, {2, 3, 1}, {3, 4, 2}, {4, 5, 4}},
		"a block of two spans":   {{0, 2, 0}, {1, 3, 0}, {2, 4, 1}, {4, 6, 2}},
		"a jump far ahead":       {{0, 1, 0}, {1, 2, 0}, {2, 3, 1}, {5, 6, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			var s streams
			for i, r := range reads {
				if got := s.ahead(r.lo, r.hi); got != r.ahead {
					t.Fatalf("read %d of [%d, %d): %d ahead, want %d", i, r.lo, r.hi, got, r.ahead)
				}
			}
		})
	}
}

func TestGauge(t *testing.T) {
	var g gauge
	closed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	if !closed(g.idle()) {
		t.Error("not idle at first")
	}
	g.begin()
	g.begin()
	one, two := g.idle(), g.idle()
	g.end()
	if closed(one) {
		t.Error("idle too early")
	}
	g.end()
	if !closed(one) || !closed(two) || !closed(g.idle()) {
		t.Error("not idle at the end")
	}
	g.begin()
	if closed(g.idle()) {
		t.Error("idle again too early")
	}
}
