package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// heading names the columns: what cells gives, behind the metric.
func heading() []string {
	return []string{"metric", "system", "median", "unit", "least", "most", "ratio", "limit", ""}
}

// table returns all rows, a metric's name only in its first.
func (s *samples) table() [][]string {
	var all [][]string
	metric := ""
	for _, r := range s.rows {
		name := r.metric
		if name == metric {
			name = ""
		}
		metric = r.metric
		all = append(all, append([]string{name}, s.cells(r)...))
	}
	return all
}

// print writes the table for a terminal.
func (s *samples) print(w io.Writer) error {
	var text strings.Builder
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, line := range append([][]string{heading()}, s.table()...) {
		fmt.Fprintln(t, strings.Join(line, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(text.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// markdown writes the table for a README.
func (s *samples) markdown(w io.Writer) error {
	lines := append([][]string{heading(), strings.Split("---,---,--:,---,--:,--:,--:,---,---", ",")}, s.table()...)
	for _, line := range lines {
		if _, err := fmt.Fprintf(w, "| %s |\n", strings.Join(line, " | ")); err != nil {
			return err
		}
	}
	return nil
}
