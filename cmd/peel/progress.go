package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/term"
)

// bar shows the progress of long work: one line that is drawn over on a
// terminal, a plain line now and then elsewhere. It shows nothing of work that
// is done at once. Its methods may be called by several goroutines.
type bar struct {
	out      io.Writer
	terminal bool
	json     bool // lines of JSON, also of what is done at once

	mu    sync.Mutex
	work  map[string]map[digest.Digest]part
	began time.Time
	shown time.Time
	drawn bool
}

// part is how far the work on one blob is. What was there when it began does not
// count for its speed.
type part struct{ start, done, total int64 }

const (
	drawEvery  = 100 * time.Millisecond // on a terminal
	plainEvery = 2 * time.Second        // elsewhere
)

func newBar(out *os.File) *bar {
	return &bar{out: out, terminal: term.IsTerminal(int(out.Fd())), work: map[string]map[digest.Digest]part{}}
}

func newJSONBar(out io.Writer) *bar {
	return &bar{out: out, json: true, work: map[string]map[digest.Digest]part{}}
}

// event tells of what has happened, where a program reads.
func (b *bar) event(msg message) {
	if b.json {
		b.mu.Lock()
		defer b.mu.Unlock()
		_ = json.NewEncoder(b.out).Encode(msg) // who reads may have gone
	}
}

// update notes that done of total bytes of a blob's work are done.
func (b *bar) update(work string, blob digest.Digest, done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.began.IsZero() {
		b.began, b.shown = now, now
	}
	if b.work[work] == nil {
		b.work[work] = map[digest.Digest]part{}
	}
	p, seen := b.work[work][blob]
	if !seen {
		p.start = done
	}
	p.done, p.total = done, total
	b.work[work][blob] = p
	every := plainEvery
	if b.terminal {
		every = drawEvery
	}
	if now.Sub(b.shown) >= every {
		b.shown = now
		b.draw(now)
	}
}

func (b *bar) draw(now time.Time) {
	var texts []string
	for _, work := range slices.Sorted(maps.Keys(b.work)) {
		var sum part
		for _, p := range b.work[work] {
			sum.start, sum.done, sum.total = sum.start+p.start, sum.done+p.done, sum.total+p.total
		}
		if b.json {
			_ = json.NewEncoder(b.out).Encode(message{Work: work, Done: sum.done, Total: sum.total})
			continue
		}
		rate := float64(sum.done-sum.start) / max(0.001, now.Sub(b.began).Seconds())
		text := fmt.Sprintf("%s %d layers: %s of %s, %s/s", work, len(b.work[work]), bytesText(sum.done), bytesText(sum.total), bytesText(int64(rate)))
		if b.terminal {
			const width = 24
			full := int(width * sum.done / max(1, sum.total))
			text = "[" + strings.Repeat("=", full) + strings.Repeat(" ", width-full) + "] " + text
		}
		texts = append(texts, text)
	}
	if b.json {
		return
	}
	line := strings.Join(texts, "; ")
	if b.terminal {
		line = "\r\x1b[K" + line
		b.drawn = true
	} else {
		line += "\n"
	}
	fmt.Fprint(b.out, line)
}

// end takes the line away.
func (b *bar) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drawn {
		fmt.Fprint(b.out, "\r\x1b[K")
		b.drawn = false
	}
}

// bytesText is a number of bytes as a person reads it, in powers of 1000.
func bytesText(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1000, 0
	for v >= 999.95 && u < len(units)-1 {
		v, u = v/1000, u+1
	}
	return fmt.Sprintf("%.1f %cB", v, units[u])
}
