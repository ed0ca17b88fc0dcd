package content

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFullness(t *testing.T) {
	for _, cause := range []error{unix.ENOSPC, unix.EDQUOT} {
		var text bytes.Buffer
		f := fullness{log: slog.New(slog.NewTextHandler(&text, nil)), root: "store"}
		full := fmt.Errorf("write: %w", cause)
		said := func(when string, want int) {
			t.Helper()
			if got := strings.Count(text.String(), "\n"); got != want || f.now.Load() != (want%2 == 1) {
				t.Errorf("%v, %s: said %d times, want %d; full: %t", cause, when, got, want, f.now.Load())
			}
		}
		if f.noted(nil) || f.noted(errors.New("other")) {
			t.Error("a disk is full without reason")
		}
		f.tick()
		said("before", 0)
		for range 3 {
			if !f.noted(full) {
				t.Errorf("%v is no reason", cause)
			}
		}
		f.noted(nil) // something small
		f.tick()
		said("full", 1)
		f.tick() // nobody has tried
		said("full, and nothing is written", 1)
		f.noted(nil)
		f.tick()
		said("over", 2)
		f.noted(full)
		said("again", 3)
		if err := asFull(full); !errors.Is(err, ErrFull) || !errors.Is(err, cause) || asFull(err) != err {
			t.Errorf("error %v", err)
		}
	}
}
