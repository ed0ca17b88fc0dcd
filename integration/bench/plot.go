package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// The measures of the plot, in pixels.
const (
	plotWidth  = 760
	labelWidth = 290 // of the metrics' names
	barHeight  = 7
	barGap     = 9 // between two metrics
	panelHead  = 58
	panelFoot  = 26
)

// bar is one system's ratio to the reference, and what it may be at most; 0 if
// there is no limit.
type bar struct {
	system      string
	ratio, most float64
}

// group is the bars of one metric.
type group struct {
	metric string
	bars   []bar
}

// plot writes the times of all metrics that have a reference as an SVG, a
// panel for each reference: bars to the left of the line are faster than it, and
// a bar is to end left of the mark across it, which is its limit.
func (s *samples) plot(w io.Writer) error {
	var body strings.Builder
	y := 0
	for _, reference := range []string{containerdRow, nativeRow} {
		if groups := s.groups(reference); len(groups) > 0 {
			y = panel(&body, y, reference, groups)
		}
	}
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="system-ui, sans-serif" font-size="11" fill="#24292f">
<rect width="100%%" height="100%%" rx="6" fill="#fff"/>
%s</svg>
`, plotWidth, y, plotWidth, y, &body)
	return err
}

// groups returns the ratios of all times that are compared with the reference.
func (s *samples) groups(reference string) []group {
	var all []group
	for _, r := range s.rows {
		ref := s.reference(r.metric)
		isTime := slices.Contains([]string{"s", "ms", "µs each"}, r.unit)
		if ref == nil || ref.system != reference || r == ref || !isTime || len(r.values) == 0 {
			continue
		}
		if n := len(all); n == 0 || all[n-1].metric != r.metric {
			all = append(all, group{metric: r.metric})
		}
		last := &all[len(all)-1]
		b := bar{system: r.system, ratio: r.median() / ref.median()}
		if r.ratio {
			b.most = r.most
		}
		last.bars = append(last.bars, b)
	}
	return all
}

// panel draws groups below y, and returns where it ends.
func panel(w *strings.Builder, y int, reference string, groups []group) int {
	x, ticks := axis(groups)
	fmt.Fprintf(w, `<text x="12" y="%d" font-size="13" font-weight="600">Time, as a ratio to %s: left is faster</text>`+"\n", y+22, escape(reference))
	systems := systems(groups)
	legend(w, y+panelHead-25, systems, hasLimits(groups))
	top, bottom := y+panelHead, y+panelHead
	for _, g := range groups {
		bottom += len(g.bars)*barHeight + barGap
	}
	for _, t := range ticks {
		stroke := "#d0d7de"
		if t == 1 {
			stroke = "#24292f"
		}
		fmt.Fprintf(w, `<path d="M%.1f %dV%d" stroke="%s"/><text x="%.1f" y="%d" text-anchor="middle" fill="#57606a">%g</text>`+"\n",
			x(t), top-4, bottom, stroke, x(t), bottom+13, t)
	}
	at := top
	for _, g := range groups {
		middle := at + len(g.bars)*barHeight/2 + 4
		fmt.Fprintf(w, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-8, middle, escape(g.metric))
		for _, b := range g.bars {
			from, to := min(x(b.ratio), x(1)), max(x(b.ratio), x(1))
			fmt.Fprintf(w, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"><title>%s: %.2f</title></rect>`+"\n",
				from, at, max(to-from, 1), barHeight-1, color(systems, b.system), escape(b.system), b.ratio)
			if b.most > 0 {
				fmt.Fprintf(w, `<path d="M%.1f %dv%d" stroke="%s" stroke-width="2"/>`+"\n", x(b.most), at-1, barHeight+1, limitColor)
			}
			at += barHeight
		}
		at += barGap
	}
	return bottom + panelFoot
}

// legend names the colors, in a line at y.
func legend(w *strings.Builder, y int, systems []string, limits bool) {
	at := 12
	for _, system := range systems {
		fmt.Fprintf(w, `<rect x="%d" y="%d" width="10" height="10" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			at, y, color(systems, system), at+14, y+9, escape(system))
		at += 34 + 6*len(system)
	}
	if limits {
		fmt.Fprintf(w, `<path d="M%d %dv10" stroke="%s" stroke-width="2"/><text x="%d" y="%d">limit</text>`+"\n",
			at+5, y, limitColor, at+14, y+9)
	}
}

// axis returns where a ratio stands, on a logarithmic axis that has room for
// all, and the powers of two on it.
func axis(groups []group) (x func(ratio float64) float64, ticks []float64) {
	low, high := -1.0, 1.0 // powers of two
	for _, g := range groups {
		for _, b := range g.bars {
			low, high = min(low, math.Floor(math.Log2(b.ratio))), max(high, math.Ceil(math.Log2(max(b.ratio, b.most))))
		}
	}
	for power := low; power <= high; power++ {
		ticks = append(ticks, math.Exp2(power))
	}
	return func(ratio float64) float64 {
		return labelWidth + (math.Log2(ratio)-low)/(high-low)*(plotWidth-labelWidth-24)
	}, ticks
}

// systems returns those that have bars, in the order of the table.
func systems(groups []group) []string {
	var all []string
	longest := slices.MaxFunc(groups, func(a, b group) int { return cmp.Compare(len(a.bars), len(b.bars)) })
	for _, b := range longest.bars {
		all = append(all, b.system)
	}
	for _, g := range groups {
		for _, b := range g.bars {
			if !slices.Contains(all, b.system) {
				all = append(all, b.system)
			}
		}
	}
	return all
}

func hasLimits(groups []group) bool {
	return slices.ContainsFunc(groups, func(g group) bool {
		return slices.ContainsFunc(g.bars, func(b bar) bool { return b.most > 0 })
	})
}

// limitColor is none of the systems'.
const limitColor = "#d1242f"

// color returns a system's, of a palette that is good for the color-blind too.
func color(systems []string, system string) string {
	palette := [...]string{"#0072b2", "#56b4e9", "#e69f00", "#999999", "#cc79a7", "#009e73"}
	return palette[slices.Index(systems, system)%len(palette)]
}

func escape(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}
