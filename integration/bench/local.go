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

	coldN, warmN int // operations, if the load takes a number; scale is for one

	coldLimits, warmLimits limits
}

// limits are the ratios to native overlayfs that the systems may have at most.
type limits map[string]float64

// erofs is the limit of both EROFS systems.
func erofs(most float64) limits { return limits{fuseRow: most, localRow: most} }

// coldReads are the limits of reads with nothing in the page cache.
var coldReads = limits{fuseRow: 1.5, localRow: 1.1}

// How often a round takes each figure: they are quick, and what else the
// machine does disturbs them.
const (
	coldTimes = 2
	warmTimes = 5
)

const python = "import argparse, asyncio, csv, decimal, email, http.client, json, logging, sqlite3, ssl, urllib.request, xml.dom, zipfile"

// start is a program that loads some hundred files.
var start = []task{{
	metric: "python3 starts", unit: "ms", scale: 1e3,
	load: []string{"start"}, args: []string{"/usr/bin/python3", "-c", python},
}}

// tree is many small files.
var tree = []task{
	{metric: "stat of 100,000 files", unit: "s", scale: 1, load: []string{"stat"}, coldLimits: erofs(0.9), warmLimits: erofs(1.1)},
	{metric: "open and read 20,000 small files", unit: "s", scale: 1, load: []string{"files"}, input: smallFiles(20_000), coldLimits: coldReads, warmLimits: erofs(1.05)},
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
	{metric: "sequential read of 512 MiB, 1 job", unit: "s", scale: 1, load: []string{"sequential"}, path: images.BigFile, coldLimits: coldReads, warmLimits: erofs(1.1)},
	{metric: "sequential read of 512 MiB, 4 jobs", unit: "s", scale: 1, load: []string{"-jobs", "4", "sequential"}, path: images.BigFile, coldLimits: coldReads, warmLimits: erofs(1.1)},
	{metric: "4 KiB random reads, 1 job", unit: "µs each", scale: 1e6, load: []string{"random"}, path: images.BigFile, coldN: 4000, warmN: 200_000, coldLimits: coldReads, warmLimits: erofs(1.1)},
	{metric: "4 KiB random reads, 4 jobs", unit: "µs each", scale: 1e6, load: []string{"-jobs", "4", "random"}, path: images.BigFile, coldN: 8000, warmN: 400_000, coldLimits: coldReads, warmLimits: erofs(1.1)},
	{metric: "pages of a mapped file touched", unit: "µs each", scale: 1e6, load: []string{"mapped"}, path: images.BigFile, coldN: 4000, warmN: 100_000, coldLimits: coldReads},
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
			for _, t := range tasks {
				if err := b.cold(ctx, places, t, s); err != nil {
					return err
				}
			}
			for _, t := range tasks {
				if err := b.warm(ctx, places, t, s); err != nil {
					return err
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

// cold takes each figure with all caches dropped just before.
func (b *bed) cold(ctx context.Context, places []place, t task, s *samples) error {
	for range coldTimes {
		for _, p := range places {
			value, err := b.run(ctx, t, p, t.coldN, "-cold")
			if err != nil {
				return err
			}
			s.add(t.metric+", cold", p.system, t.unit, value)
			s.limitRatio(t.metric+", cold", p.system, t.coldLimits[p.system])
		}
	}
	return nil
}

// warm takes each figure once in vain, and then some times more.
func (b *bed) warm(ctx context.Context, places []place, t task, s *samples) error {
	for i := range 1 + warmTimes {
		for _, p := range places {
			value, err := b.run(ctx, t, p, t.warmN)
			if err != nil {
				return err
			}
			if i > 0 {
				s.add(t.metric+", warm", p.system, t.unit, value)
				s.limitRatio(t.metric+", warm", p.system, t.warmLimits[p.system])
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
