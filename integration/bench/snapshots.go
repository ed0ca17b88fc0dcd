package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/peelfs/peel/integration/containerd"
	"github.com/peelfs/peel/integration/mounts"
)

// The layers that are written, as in containerd's benchsuite, which knows no
// snapshotter behind a socket.
const (
	chainLength   = 16
	filesPerLayer = 10
	fileSize      = 1 << 20
)

// chains writes layers on top of each other as an image build does, in both
// snapshotters of one containerd.
func chains(ctx context.Context, b *bed) (round, func() error, error) {
	dir, remove, err := mounts.TempDir()
	if err != nil {
		return nil, nil, err
	}
	c, to, err := both(ctx, dir)
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return func(ctx context.Context, s *samples) (err error) {
		ctx, done, err := to.WithLease(namespaces.WithNamespace(ctx, "default"))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, done(ctx)) }()
		for _, sn := range []struct{ system, name string }{{peelRow, "peel"}, {containerdRow, "overlayfs"}} {
			if err := chain(ctx, s, sn.system, to.SnapshotService(sn.name)); err != nil {
				return fmt.Errorf("%s: %w", sn.name, err)
			}
		}
		return nil
	}, func() error { return errors.Join(to.Close(), c.Close(), remove()) }, nil
}

// both starts a containerd that has both snapshotters, and connects to it.
func both(ctx context.Context, dir string) (*containerd.Containerd, *client.Client, error) {
	sn, err := new(lazy).start(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	c, err := containerd.Start(ctx, dir, containerd.Options{Snapshotter: sn})
	if err != nil {
		return nil, nil, err
	}
	to, err := client.New(c.Socket())
	if err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	return c, to, nil
}

// chain writes one chain of layers.
func chain(ctx context.Context, s *samples, system string, sn snapshots.Snapshotter) error {
	what := fmt.Sprintf("a snapshot, in a chain of %d: ", chainLength)
	add := func(phase string, start time.Time) {
		s.add(what+phase, system, "ms", float64(time.Since(start).Microseconds())/1e3)
	}
	parent, id := "", rand.Text()
	for i := range chainLength {
		active, committed := fmt.Sprint(id, "-active-", i), fmt.Sprint(id, "-", i)
		start := time.Now()
		on, err := sn.Prepare(ctx, active, parent)
		if err != nil {
			return err
		}
		add("prepared", start)
		start = time.Now()
		if err := mount.WithTempMount(ctx, on, func(root string) error { return writeLayer(root, i) }); err != nil {
			return err
		}
		add("mounted, written and unmounted", start)
		start = time.Now()
		if err := sn.Commit(ctx, committed, active); err != nil {
			return err
		}
		add("committed", start)
		parent = committed
	}
	return nil
}

// writeLayer makes the i-th layer's changes: files that are new, some of them
// in the place of others, one changed in its middle, and one removed.
func writeLayer(root string, i int) error {
	data := make([]byte, fileSize)
	for n := range filesPerLayer {
		name := filepath.Join(root, fmt.Sprint(n))
		_, err := os.Lstat(name)
		switch there := err == nil; {
		case there && n == i%filesPerLayer:
			err = os.Remove(name)
		case there && (n+i)%3 == 0:
			err = change(name)
		default:
			_, _ = rand.Read(data) // which never fails
			err = os.WriteFile(name, data, 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// change writes a few bytes in the middle of a file.
func change(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("changed"), fileSize/2)
	return errors.Join(err, f.Close())
}
