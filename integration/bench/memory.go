package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/peelfs/peel/integration/images"
)

// memory mounts 100,000 files, reads them all, and looks at the process.
func memory(ctx context.Context, b *bed) (round, func() error, error) {
	img, err := images.Files(ctx)
	if err != nil {
		return nil, nil, err
	}
	repo, err := b.push(ctx, img, true)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, s *samples) (err error) {
		peel, root, mnt, err := b.node("memory")
		if err != nil {
			return err
		}
		process, err := peel.Foreground(ctx, b.ref(repo), mnt)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, process.Kill(), os.RemoveAll(root)) }()
		steps := []struct {
			done string
			do   func() error
		}{
			{"listed", func() error { return exec.CommandContext(ctx, "find", mnt, "-size", "+1000G").Run() }},
			{"read", func() error { return readWhole(ctx, mnt) }},
		}
		for _, step := range steps {
			if err := step.do(); err != nil {
				return err
			}
			now, peak, err := resident(process.PID())
			if err != nil {
				return err
			}
			s.add("memory, 100,000 files "+step.done+": now", peelRow, "MB", now)
			s.add("memory, 100,000 files "+step.done+": peak", peelRow, "MB", peak)
		}
		return nil
	}, nothing, nil
}

// resident returns the resident memory of a process now and at its peak, in MB.
func resident(pid int) (now, peak float64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kb, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		switch name {
		case "VmRSS":
			now = kb * 1024 / 1e6
		case "VmHWM":
			peak = kb * 1024 / 1e6
		}
	}
	return now, peak, nil
}
