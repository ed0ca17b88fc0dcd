package main

import (
	"fmt"
	"slices"
	"strings"
)

// row is what was measured of one metric for one system.
type row struct {
	metric string
	system string
	unit   string
	values []float64
	failed string // why there is no value, or too few

	most  float64 // that the median may be; 0 if there is no limit
	ratio bool    // most is of the ratio to the reference
}

// samples are rows, those of one metric next to each other.
type samples struct{ rows []*row }

// isReference reports whether the others of a metric are compared with this one.
func isReference(system string) bool {
	return system == nativeRow || system == containerdRow || system == emptyRow
}

func (s *samples) row(metric, system string) *row {
	at := len(s.rows)
	for i, r := range s.rows {
		if r.metric != metric {
			continue
		}
		if r.system == system {
			return r
		}
		at = i + 1
	}
	r := &row{metric: metric, system: system}
	s.rows = slices.Insert(s.rows, at, r)
	return r
}

// add adds a value, which makes the row if it is the first.
func (s *samples) add(metric, system, unit string, value float64) {
	r := s.row(metric, system)
	r.unit = unit
	r.values = append(r.values, value)
}

// missing says why there is no value, in a row that stays.
func (s *samples) missing(metric, system string, why error) {
	first, _, _ := strings.Cut(why.Error(), "\n")
	s.row(metric, system).failed = first
}

// failures lists what could not be measured, but for that of the peers.
func (s *samples) failures() []string {
	var all []string
	for _, r := range s.rows {
		if r.failed != "" && !isReference(r.system) && r.system != stargzRow {
			all = append(all, fmt.Sprintf("%s, %s: %s", r.metric, r.system, r.failed))
		}
	}
	return all
}

// limit adds what a row's median may be at most.
func (s *samples) limit(metric, system string, most float64) { s.row(metric, system).most = most }

// limitRatio adds what a row's median may be at most, the reference's being 1.
func (s *samples) limitRatio(metric, system string, most float64) {
	r := s.row(metric, system)
	r.most, r.ratio = most, true
}

// reference returns the row that a metric's others are compared with, or nil.
func (s *samples) reference(metric string) *row {
	for _, r := range s.rows {
		if r.metric == metric && isReference(r.system) && len(r.values) > 0 {
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

// cells are a row of the table, without the metric.
func (s *samples) cells(r *row) []string {
	if len(r.values) == 0 {
		return []string{r.system, "-", "", "", "", "", "", r.failed}
	}
	ratio := ""
	if ref := s.reference(r.metric); ref != nil {
		ratio = fmt.Sprintf("%.2f", r.median()/ref.median())
	}
	limit, held := s.verdict(r)
	if r.failed != "" {
		held = strings.TrimSpace(held + " (not always: " + r.failed + ")")
	}
	return []string{
		r.system, number(r.median()), r.unit, number(slices.Min(r.values)), number(slices.Max(r.values)), ratio, limit, held,
	}
}

// verdict returns a row's limit, and whether its median holds it.
func (s *samples) verdict(r *row) (limit, held string) {
	value, ref := r.median(), s.reference(r.metric)
	if r.most == 0 || r.ratio && ref == nil {
		return "", ""
	}
	limit = number(r.most) + " " + r.unit
	if r.ratio {
		limit = "ratio " + number(r.most)
		value /= ref.median()
	}
	if value > r.most {
		return limit, "missed"
	}
	return limit, "held"
}

func number(v float64) string { return fmt.Sprintf("%.4g", v) }
