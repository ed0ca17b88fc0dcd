package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// row is what was measured of one metric for one system.
type row struct {
	metric string
	system string
	unit   string
	values []float64 // one for each round
}

// samples are rows, those of one metric next to each other. The last of a
// metric is what its others are compared with.
type samples struct{ rows []*row }

func (s *samples) add(metric, system, unit string, value float64) {
	at := len(s.rows)
	for i, r := range s.rows {
		if r.metric != metric {
			continue
		}
		if r.system == system {
			r.values = append(r.values, value)
			return
		}
		at = i + 1
	}
	s.rows = slices.Insert(s.rows, at, &row{metric, system, unit, []float64{value}})
}

// reference returns the last row of the metric.
func (s *samples) reference(metric string) *row {
	for _, r := range slices.Backward(s.rows) {
		if r.metric == metric {
			return r
		}
	}
	return nil
}

func (r *row) median() float64 {
	sorted := slices.Sorted(slices.Values(r.values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func (s *samples) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "metric\tsystem\tmedian\tunit\tleast\tmost\tratio")
	metric := ""
	for _, r := range s.rows {
		name := r.metric
		if name == metric {
			name = ""
		}
		metric = r.metric
		ratio := ""
		if ref := s.reference(r.metric); ref != r || name == "" {
			ratio = fmt.Sprintf("%.2f", r.median()/ref.median())
		}
		fmt.Fprintf(t, "%s\t%s\t%.4g\t%s\t%.4g\t%.4g\t%s\n",
			name, r.system, r.median(), r.unit, slices.Min(r.values), slices.Max(r.values), ratio)
	}
	return t.Flush()
}
