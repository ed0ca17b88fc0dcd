package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
)

// emptyRow is peel with nothing in its store.
const emptyRow = "peel, empty store"

// update reads all of a Debian system, where the same one was before without
// its latest updates, and where nothing was.
func update(ctx context.Context, b *bed) (round, func() error, error) {
	before, after, err := images.Updates(ctx)
	if err != nil {
		return nil, nil, err
	}
	old, err := b.push(ctx, before, true)
	if err != nil {
		return nil, nil, err
	}
	repo, err := b.push(ctx, after, true)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, s *samples) error {
		return errors.Join(b.updateFrom(ctx, s, old, repo, peelRow), b.updateFrom(ctx, s, "", repo, emptyRow))
	}, nothing, nil
}

// updateFrom adds what it takes to read repo when a node has read old, if that
// is not empty.
func (b *bed) updateFrom(ctx context.Context, s *samples, old, repo, system string) (err error) {
	peel, dir, root, err := b.node("update")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if old != "" {
		if _, err := readMounted(ctx, peel, b.ref(old), root); err != nil {
			return err
		}
	}
	l, err := link.New(b.registry.Addr(), slow)
	if err != nil {
		return err
	}
	defer l.Close()
	took, err := readMounted(ctx, peel, l.Addr()+"/"+repo+":latest", root)
	if err != nil {
		return err
	}
	s.add("update: mounted and all read", system, "s", took.Seconds())
	s.add("update: over the link", system, "MB", float64(l.Received())/1e6)
	return nil
}

// readMounted mounts an image and reads all of its files.
func readMounted(ctx context.Context, peel cli.Peel, image, root string) (took time.Duration, err error) {
	start := time.Now()
	if err := peel.Mount(ctx, image, root); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, peel.Umount(ctx, root)) }()
	tar := exec.CommandContext(ctx, "tar", "-C", root, "-cf", "-", ".")
	tar.Stdout = io.Discard // by a pipe: of what goes to /dev/null tar reads nothing
	if err := tar.Run(); err != nil {
		return 0, fmt.Errorf("read %s: %w", image, err)
	}
	return time.Since(start), nil
}
