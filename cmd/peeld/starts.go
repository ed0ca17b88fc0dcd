package main

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/snapshotter"
)

// starts measures how long containers take to start. Their first output cannot
// be seen from here; the nearest thing that can is the last data of their
// layers that somebody waited for, before nobody did for quietTime. It is
// earlier than the output of a program that computes for long, and later where
// a program goes on to read. Layers are shared, so among containers that start
// at once each is charged with the fetches of all.
type starts struct {
	observe func(time.Duration)
	waiting func() bool // whether a read waits for data now

	mu  sync.Mutex
	all map[string]*start // by the snapshot's name
}

type start struct {
	began  time.Time // Prepare
	last   time.Time // that it was mounted, or waited for data
	layers map[digest.Digest]bool
	quiet  *time.Timer // from when it is first mounted
}

const (
	quietTime    = 3 * time.Second
	longestStart = 5 * time.Minute // who waits for data after that does not start any more
)

func newStarts(observe func(time.Duration)) *starts {
	return &starts{observe: observe, waiting: func() bool { return false }, all: map[string]*start{}}
}

// prepared takes note of a container's snapshot.
func (s *starts) prepared(key string, began time.Time, layers []snapshotter.Origin) {
	x := &start{began: began, layers: map[digest.Digest]bool{}}
	for _, l := range layers {
		x.layers[l.Layer] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[key] = x
}

// mounted takes note that the snapshot's mounts were asked for: the container
// is about to run.
func (s *starts) mounted(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.all[key]; x != nil && x.quiet == nil {
		x.last = time.Now()
		x.quiet = time.AfterFunc(quietTime, func() { s.settle(key, x) })
	}
}

// fetched takes note that data of a layer has come that a read waited for.
func (s *starts) fetched(layer digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if x.quiet != nil && x.layers[layer] && time.Since(x.began) < longestStart {
			x.last = time.Now()
			x.quiet.Reset(quietTime)
		}
	}
}

// settle ends the measurement if nothing has come for quietTime because nothing
// is waited for.
func (s *starts) settle(key string, x *start) {
	waiting := s.waiting()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.all[key] != x:
		return
	case time.Since(x.last) < quietTime || waiting && time.Since(x.began) < longestStart:
		x.quiet.Reset(quietTime)
		return
	}
	delete(s.all, key)
	s.observe(x.last.Sub(x.began))
}

// forget ends the measurement without a result.
func (s *starts) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.all[key]; x != nil {
		delete(s.all, key)
		if x.quiet != nil {
			x.quiet.Stop()
		}
	}
}

// watched is a snapshotter that tells starts of its containers.
type watched struct {
	*snapshotter.Snapshotter
	starts *starts
}

// Prepare is that of snapshots.Snapshotter.
func (w watched) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	began := time.Now()
	mounts, err := w.Snapshotter.Prepare(ctx, key, parent, opts...)
	if err != nil || parent == "" {
		return mounts, err
	}
	if info, err := w.Stat(ctx, key); err != nil || info.Labels[snapshots.LabelSnapshotRef] != "" {
		return mounts, nil // a layer that containerd is about to unpack
	}
	if layers, err := w.Chain(ctx, parent); err == nil && len(layers) > 0 {
		w.starts.prepared(key, began, layers)
	}
	return mounts, nil
}

// Mounts is that of snapshots.Snapshotter.
func (w watched) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := w.Snapshotter.Mounts(ctx, key)
	if err == nil {
		w.starts.mounted(key)
	}
	return mounts, err
}

// Commit is that of snapshots.Snapshotter.
func (w watched) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	w.starts.forget(key)
	return w.Snapshotter.Commit(ctx, name, key, opts...)
}

// Remove is that of snapshots.Snapshotter.
func (w watched) Remove(ctx context.Context, key string) error {
	w.starts.forget(key)
	return w.Snapshotter.Remove(ctx, key)
}
