package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/peelfs/peel/integration/images"
)

// task is what is done to each place, after the kernel's caches were dropped and
// while they are full.
type task struct {
	metric string
	unit   string  // of the figure
	scale  float64 // from seconds to the unit
	load   []string
	path   string   // in the image
	args   []string // after the path
	input  string

	cold, warm goal
}

// goal is what a task is to do with the caches in one state, and how well.
type goal struct {
	n      int // operations, if the load takes a number; the figure is for one
	limits limits
}

// limits are the ratios to native overlayfs that the systems may have at most.
type limits map[string]float64

// erofs is the limit of both EROFS systems.
func erofs(most float64) limits { return limits{fuseRow: most, localRow: most} }

// coldReads are the limits of reads with nothing in the page cache.
var coldReads = limits{fuseRow: 1.5, localRow: 1.1}

// phase is a state of the kernel's caches.
type phase struct {
	name  string
	flags []string
	goal  func(task) goal

	// How often a round takes each figure, first in vain and then for the
	// table: they are quick, and what else the machine does disturbs them.
	vain, times int
}

var (
	coldPhase = phase{"cold", []string{"-cold"}, func(t task) goal { return t.cold }, 0, 2}
	warmPhase = phase{"warm", nil, func(t task) goal { return t.warm }, 1, 5}
)

const python = "import argparse, asyncio, csv, decimal, email, http.client, json, logging, sqlite3, ssl, urllib.request, xml.dom, zipfile"

// start is a program that loads some hundred files.
var start = []task{{
	metric: "python3 starts", unit: "ms", scale: 1e3,
	load: []string{"start"}, args: []string{"/usr/bin/python3", "-c", python},
}}

// tree is many small files.
var tree = []task{
	{
		metric: "stat of 100,000 files", unit: "s", scale: 1,
		load: []string{"stat"}, cold: goal{limits: erofs(0.9)}, warm: goal{limits: erofs(1.1)},
	},
	{
		metric: "open and read 20,000 small files", unit: "s", scale: 1,
		load: []string{"files"}, input: smallFiles(20_000),
		cold: goal{limits: coldReads}, warm: goal{limits: erofs(1.05)},
	},
}

// smallFiles returns the names of files in the image of many, a line for each.
func smallFiles(n int) string {
	var names strings.Builder
	for i := range n {
		fmt.Fprintf(&names, "srv/dir%02d/file%03d.txt\n", i/1000, i%1000)
	}
	return names.String()
}

// file is one large file.
var file = []task{
	{
		metric: "sequential read of 512 MiB, 1 job", unit: "s", scale: 1,
		load: []string{"sequential"}, path: images.BigFile,
		cold: goal{limits: coldReads}, warm: goal{limits: erofs(1.1)},
	},
	{
		metric: "sequential read of 512 MiB, 4 jobs", unit: "s", scale: 1,
		load: []string{"-jobs", "4", "sequential"}, path: images.BigFile,
		cold: goal{limits: coldReads}, warm: goal{limits: erofs(1.1)},
	},
	{
		metric: "4 KiB random reads, 1 job", unit: "µs each", scale: 1e6,
		load: []string{"random"}, path: images.BigFile,
		cold: goal{4000, coldReads}, warm: goal{200_000, erofs(1.1)},
	},
	{
		metric: "4 KiB random reads, 4 jobs", unit: "µs each", scale: 1e6,
		load: []string{"-jobs", "4", "random"}, path: images.BigFile,
		cold: goal{8000, coldReads}, warm: goal{400_000, erofs(1.1)},
	},
	{
		metric: "pages of a mapped file touched", unit: "µs each", scale: 1e6,
		load: []string{"mapped"}, path: images.BigFile,
		cold: goal{4000, coldReads}, warm: goal{n: 100_000},
	},
}

// local does tasks to an image as every system shows it.
func local(image func(context.Context) (*images.Image, error), tasks []task) prepare {
	return func(ctx context.Context, b *bed) (round, func() error, error) {
		img, err := image(ctx)
		if err != nil {
			return nil, nil, err
		}
		places, closeAll, err := b.places(ctx, img)
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context, s *samples) error {
			for _, phase := range []phase{coldPhase, warmPhase} {
				for _, t := range tasks {
					if err := b.take(ctx, phase, t, places, s); err != nil {
						return err
					}
				}
			}
			// So that no system always comes after the same one.
			first := places[0]
			copy(places, places[1:])
			places[len(places)-1] = first
			return nil
		}, closeAll, nil
	}
}

// take takes a task's figures, of one place after the other. A place that fails
// does not keep it from the others.
func (b *bed) take(ctx context.Context, phase phase, t task, places []place, s *samples) error {
	metric, goal := t.metric+", "+phase.name, phase.goal(t)
	for i := range phase.vain + phase.times {
		for _, p := range places {
			value, err := 0.0, p.err
			if err == nil {
				value, err = b.run(ctx, t, p, goal.n, phase.flags...)
			}
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				s.missing(metric, p.system, err)
			case i >= phase.vain:
				s.add(metric, p.system, t.unit, value)
				s.limitRatio(metric, p.system, goal.limits[p.system])
			}
		}
	}
	return nil
}

// run does a task in a process of its own and returns the figure.
func (b *bed) run(ctx context.Context, t task, p place, n int, flags ...string) (float64, error) {
	args := flags
	scale := t.scale
	if n > 0 {
		args = append(args, "-n", strconv.Itoa(n))
		scale /= float64(n)
	}
	args = append(append(append(args, t.load...), p.root+"/"+t.path), t.args...)
	cmd := exec.CommandContext(ctx, b.load, args...)
	cmd.Stdin = strings.NewReader(t.input)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("%s, %s: %w\n%s", t.metric, p.system, err, &stderr)
	}
	seconds, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	return seconds * scale, err
}
