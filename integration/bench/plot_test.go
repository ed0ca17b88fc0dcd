package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
)

// element is a part of the drawing.
type element struct {
	name, text string
	attr       map[string]string
}

func (e element) number(t *testing.T, attr string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(e.attr[attr], 64)
	if err != nil {
		t.Fatalf("%s of %v: %v", attr, e, err)
	}
	return v
}

// draw returns the plot's parts, in order. It must be XML.
func draw(t *testing.T, s *samples) []element {
	t.Helper()
	var svg bytes.Buffer
	if err := s.plot(&svg); err != nil {
		t.Fatal(err)
	}
	var all []element
	var open []int
	for dec := xml.NewDecoder(&svg); ; {
		token, err := dec.Token()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatalf("not XML: %v", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := element{name: token.Name.Local, attr: map[string]string{}}
			for _, a := range token.Attr {
				e.attr[a.Name.Local] = a.Value
			}
			open = append(open, len(all))
			all = append(all, e)
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) > 0 {
				all[open[len(open)-1]].text += strings.TrimSpace(string(token))
			}
		}
	}
}

// bars returns the bars of a drawing: what has a title.
func bars(all []element) (bars []element) {
	for i, e := range all {
		if e.name == "title" {
			bar := all[i-1]
			bar.text = e.text
			bars = append(bars, bar)
		}
	}
	return bars
}

func TestPlotBars(t *testing.T) {
	var s samples
	s.add("read & write", nativeRow, "s", 2)
	s.add("read & write", fuseRow, "s", 4)
	s.add("read & write", treeRow, "s", 0.5)
	s.add("memory", nativeRow, "MB", 1) // no time: no bar
	s.add("memory", fuseRow, "MB", 1)
	s.add("mount", peelRow, "s", 1) // compared with nothing: no bar
	all := draw(t, &s)
	got := bars(all)
	if len(got) != 2 {
		t.Fatalf("%d bars, want 2", len(got))
	}
	slow, quick := got[0], got[1]
	if slow.text != fuseRow+": 2.00" || quick.text != treeRow+": 0.25" {
		t.Errorf("the bars say %q and %q", slow.text, quick.text)
	}
	// On a logarithmic axis a quarter is twice as far from 1 as twice is, and
	// on the other side.
	one := slow.number(t, "x")
	if end := quick.number(t, "x") + quick.number(t, "width"); math.Abs(end-one) > 0.2 {
		t.Errorf("the bars start at %v and %v", one, end)
	}
	if w, v := quick.number(t, "width"), slow.number(t, "width"); math.Abs(w-2*v) > 0.2 {
		t.Errorf("the bars are %v and %v wide", w, v)
	}
	var labels []string
	for _, e := range all {
		labels = append(labels, e.text)
	}
	if text := strings.Join(labels, "\n"); !strings.Contains(text, "read & write") || strings.Contains(text, "memory") {
		t.Errorf("the drawing says\n%s", text)
	}
}

// TestPlotLimits has a mark where the limit is, here as far as the bar is long.
func TestPlotLimits(t *testing.T) {
	var s samples
	for metric, ratio := range map[string]float64{"with": 2, "without": 3} {
		s.add(metric, nativeRow, "s", 1)
		s.add(metric, fuseRow, "s", ratio)
	}
	s.limitRatio("with", fuseRow, 2)
	s.limit("without", fuseRow, 1) // in seconds, which the plot does not show
	all := draw(t, &s)
	var end float64
	for _, b := range bars(all) {
		if b.text == fuseRow+": 2.00" {
			end = b.number(t, "x") + b.number(t, "width")
		}
	}
	var marks []string
	for _, e := range all {
		if e.attr["stroke"] == limitColor {
			marks = append(marks, e.attr["d"])
		}
	}
	if len(marks) != 2 { // one is in the legend
		t.Fatalf("%d marks: %q", len(marks), marks)
	}
	var x, y float64
	if _, err := fmt.Sscanf(marks[1], "M%f %fv", &x, &y); err != nil || math.Abs(x-end) > 0.2 {
		t.Errorf("the mark %q is not at %v (%v)", marks[1], end, err)
	}
}

// TestPlotFits has every system's bars and names within the picture.
func TestPlotFits(t *testing.T) {
	var s samples
	for i, system := range []string{nativeRow, fuseRow, localRow, loopRow, treeRow} {
		s.add("sequential read of 512 MiB, 4 jobs, cold", system, "s", math.Pow(7, float64(i)))
		s.add("4 KiB random reads, 1 job, cold", system, "µs each", math.Pow(0.3, float64(i)))
	}
	for i, system := range []string{peelRow, stargzRow, containerdRow} {
		s.add("indexed: first output", system, "s", float64(i+1))
	}
	all := draw(t, &s)
	width, height := all[0].number(t, "width"), all[0].number(t, "height")
	for _, e := range all {
		if e.attr["x"] == "" || e.attr["y"] == "" {
			continue
		}
		x, y := e.number(t, "x"), e.number(t, "y")
		if e.name == "rect" {
			x += e.number(t, "width")
			y += e.number(t, "height")
		}
		if x < 0 || x > width || y < 0 || y > height {
			t.Errorf("%v ends at %v, %v, beyond %v, %v", e, x, y, width, height)
		}
	}
	if got := len(bars(all)); got != 4+4+2 {
		t.Errorf("%d bars, want 10", got)
	}
}

func TestPlotOfNothing(t *testing.T) {
	var s samples
	s.add("mount", peelRow, "s", 1)
	if got := bars(draw(t, &s)); len(got) > 0 {
		t.Errorf("%d bars", len(got))
	}
}
