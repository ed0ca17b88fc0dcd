// Package snapshotter gives containerd the layers of images as snapshots, and
// runs containers on them before they have arrived.
//
// A remote snapshot is a layer that nobody has downloaded: an EROFS image of
// its metadata, mounted over its flat blob, which fills as it is read. It is
// there as soon as the layer's index is, so containerd is told that it exists
// already and fetches nothing. Any other snapshot is a directory on the disk,
// as with containerd's overlayfs snapshotter. Above either stands a plain
// overlay.
//
// The package knows what containerd asks for and how layers are mounted for
// it. It does not know registries: Layers brings what it needs.
//
//	ROOT/metadata.db        the snapshots, as containerd's own snapshotters keep them (bbolt)
//	ROOT/snapshots/ID/why   why a layer that was asked for remotely is unpacked (text)
//	ROOT/snapshots/ID/fs    the directory of an ordinary snapshot, or a link to
//	ROOT/lowers/N/fs        where the layer of a remote one is mounted
//	ROOT/lowers/N/meta      the layer's metadata as an EROFS image
//	ROOT/lowers/N/info      which layer it is, of which image, and why it is as it is (JSON)
package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
)

// Options of a Snapshotter.
type Options struct {
	Root  string // folder that survives a reboot
	State string // folder that need not

	Log         *slog.Logger  // default: slog.Default()
	ReadTimeout time.Duration // longest wait of a read for data; default: that of package fs
}

// Snapshotter is a snapshots.Snapshotter of containerd. It is safe for
// concurrent use.
type Snapshotter struct {
	root    string
	log     *slog.Logger
	meta    *storage.MetaStore
	options []string // of every overlay
	layers  Layers
	lowers  *lowers
	refs    *refs
	closing sync.Once
}

var _ snapshots.Snapshotter = (*Snapshotter)(nil)

// New opens the snapshotter in o.Root, and makes it if there is none. It needs
// root.
func New(layers Layers, o Options) (_ *Snapshotter, err error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	for _, dir := range []string{"snapshots", "lowers"} {
		if err := os.MkdirAll(filepath.Join(o.Root, dir), 0o700); err != nil {
			return nil, err
		}
	}
	if ok, err := fs.SupportsDType(o.Root); err != nil {
		return nil, err
	} else if !ok {
		return nil, fmt.Errorf("the file system of %s does not tell file types in directories (d_type), so no overlay can stand on it; put the root on another", o.Root)
	}
	s := &Snapshotter{root: o.Root, log: o.Log, layers: layers}
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		s.options = []string{"index=off"} // or an upper directory could not be mounted over other lower ones
	}
	if s.meta, err = storage.NewMetaStore(filepath.Join(o.Root, "metadata.db")); err != nil {
		return nil, err
	}
	if s.refs, err = openRefs(s.meta); err != nil {
		return nil, errors.Join(err, s.meta.Close())
	}
	if s.lowers, err = openLowers(layers, o); err != nil {
		return nil, errors.Join(err, s.meta.Close())
	}
	if err := errors.Join(s.removeUnfinished(), s.sweep(context.Background())); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close ends the snapshotter and unmounts all layers. Containers that run keep
// what they have of them.
func (s *Snapshotter) Close() (err error) {
	s.closing.Do(func() { err = errors.Join(s.lowers.close(), s.meta.Close()) })
	return err
}

// Prepare makes an active snapshot. If the labels name a layer of an image
// that can be had remotely, the snapshot that they ask for is there instead,
// committed, and the error wraps errdefs.ErrAlreadyExists.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var want snapshots.Info
	for _, opt := range opts {
		if err := opt(&want); err != nil {
			return nil, err
		}
	}
	if target := want.Labels[snapshots.LabelSnapshotRef]; target != "" {
		there, err := s.remote(ctx, target, key, parent, want.Labels)
		if err != nil {
			return nil, err
		}
		if there {
			return nil, fmt.Errorf("snapshot %s of %q: %w", target, parent, errdefs.ErrAlreadyExists)
		}
	}
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View makes a snapshot that is read only.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

// Mounts returns the mounts of an active snapshot or a view.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var snap storage.Snapshot
	var info snapshots.Info
	if err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if snap, err = storage.GetSnapshot(ctx, key); err != nil {
			return err
		}
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	}); err != nil {
		return nil, err
	}
	parents, err := s.dirs(ctx, snap.ParentIDs)
	if err != nil {
		return nil, err
	}
	return s.mounts(snap, parents, info.Labels), nil
}

// Commit makes an active snapshot a committed one.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	id, err := s.id(ctx, key)
	if err != nil {
		return err
	}
	usage, err := fs.DiskUsage(ctx, s.dir(id))
	if err != nil {
		return err
	}
	var info snapshots.Info
	if err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		if _, err = storage.CommitActive(ctx, key, name, snapshots.Usage(usage), opts...); err != nil {
			return err
		}
		_, info, _, err = storage.GetInfo(ctx, name)
		return err
	}); err != nil {
		return err
	}
	s.refs.set(info)
	return nil
}

// Remove removes a snapshot that has no children. What it had on the disk, and
// what the store has of a layer that no other snapshot shows, is gone when
// Cleanup has returned.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var id string
	if err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		id, _, err = storage.Remove(ctx, key)
		return err
	}); err != nil {
		return err
	}
	s.refs.forget(key)
	s.lowers.release(id)
	if err := os.RemoveAll(filepath.Join(s.root, "snapshots", id)); err != nil {
		s.log.Warn("the folder of a removed snapshot is left, for the next cleanup", "snapshot", key, "error", err)
	}
	return nil
}

// Cleanup removes what is left of removed snapshots.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	return errors.Join(s.sweep(ctx), s.lowers.settle(ctx))
}

// Stat returns what is known of a snapshot.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update changes a snapshot's labels.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fields ...string) (now snapshots.Info, err error) {
	if err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		now, err = storage.UpdateInfo(ctx, info, fields...)
		return err
	}); err != nil {
		return now, err
	}
	s.refs.set(now)
	return now, nil
}

// Usage returns what a snapshot takes on the disk, without its parents. Of a
// remote one that is what has arrived so far; a layer that several snapshots
// show counts for one of them.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	var id string
	var info snapshots.Info
	var usage snapshots.Usage
	if err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	}); err != nil {
		return usage, err
	}
	if now, ok, err := s.lowers.usage(id); ok || err != nil {
		return now, err
	}
	if info.Kind != snapshots.KindActive {
		return usage, nil
	}
	now, err := fs.DiskUsage(ctx, s.dir(id))
	return snapshots.Usage(now), err
}

// Walk calls fn for all snapshots that one of the filters matches.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	all, err := s.refs.walk(ctx, s.meta, filters)
	if err != nil {
		return err
	}
	for _, info := range all { // no transaction is open: fn may take its time
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// id returns the identifier of a snapshot.
func (s *Snapshotter) id(ctx context.Context, key string) (id string, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, _, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return id, err
}

// dir is the directory of an ordinary snapshot, and its link to that of a
// remote one.
func (s *Snapshotter) dir(id string) string { return filepath.Join(s.root, "snapshots", id, "fs") }

// dirs returns the directories of committed snapshots, topmost first, and
// mounts those that have to be.
func (s *Snapshotter) dirs(ctx context.Context, ids []string) ([]string, error) {
	dirs := make([]string, len(ids))
	for i, id := range ids {
		dir, remote, err := s.lowers.mounted(ctx, id)
		if err != nil {
			return nil, err
		}
		if !remote {
			dir = s.dir(id)
		}
		dirs[i] = dir
	}
	return dirs, nil
}

// mounts returns the mounts of a snapshot above its parents' directories.
func (s *Snapshotter) mounts(snap storage.Snapshot, parents []string, labels map[string]string) []mount.Mount {
	var options []string
	if v := labels[snapshots.LabelSnapshotUIDMapping]; v != "" {
		options = append(options, "uidmap="+v)
	}
	if v := labels[snapshots.LabelSnapshotGIDMapping]; v != "" {
		options = append(options, "gidmap="+v)
	}
	bind := func(dir, mode string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: dir, Options: append(options, mode, "rbind")}}
	}
	switch {
	case len(parents) == 0 && snap.Kind == snapshots.KindView:
		return bind(s.dir(snap.ID), "ro")
	case len(parents) == 0:
		return bind(s.dir(snap.ID), "rw")
	case len(parents) == 1 && snap.Kind == snapshots.KindView:
		return bind(parents[0], "ro")
	}
	if snap.Kind == snapshots.KindActive {
		upper := s.dir(snap.ID)
		options = append(options, "workdir="+filepath.Join(filepath.Dir(upper), "work"), "upperdir="+upper)
	}
	options = append(options, "lowerdir="+strings.Join(parents, ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options, s.options...)}}
}
