package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// madePrefix starts the names of folders of snapshots that are being made.
const madePrefix = "new-"

// create makes an active snapshot or a view, with a directory of its own.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	parents, err := s.parentDirs(ctx, parent)
	if err != nil {
		return nil, err
	}
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	folder, err := s.newFolder(kind, parents, info.Labels)
	if err != nil {
		return nil, err
	}
	var snap storage.Snapshot
	if err := s.settleFolder(ctx, folder, func(ctx context.Context) (string, error) {
		snap, err = storage.CreateSnapshot(ctx, kind, key, parent, opts...)
		return snap.ID, err
	}); err != nil {
		return nil, err
	}
	return s.mounts(snap, parents, info.Labels), nil
}

// parentDirs returns the directories of a committed snapshot and of all below
// it, topmost first, and mounts those that have to be.
func (s *Snapshotter) parentDirs(ctx context.Context, parent string) ([]string, error) {
	if parent == "" {
		return nil, nil
	}
	ids, err := s.chain(ctx, parent)
	if err != nil {
		return nil, err
	}
	return s.dirs(ctx, ids)
}

// chain returns the identifiers of a snapshot and of its ancestors.
func (s *Snapshotter) chain(ctx context.Context, key string) (ids []string, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		for key != "" {
			id, info, _, err := storage.GetInfo(ctx, key)
			if err != nil {
				return err
			}
			ids, key = append(ids, id), info.Parent
		}
		return nil
	})
	return ids, err
}

// newFolder makes the folder of a snapshot, which has no identifier yet. The
// top directory of an overlay shows as its root, so it looks as the one below.
func (s *Snapshotter) newFolder(kind snapshots.Kind, parents []string, labels map[string]string) (_ string, err error) {
	folder, err := os.MkdirTemp(filepath.Join(s.root, "snapshots"), madePrefix)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}()
	dir := filepath.Join(folder, "fs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if kind == snapshots.KindActive {
		if err := os.Mkdir(filepath.Join(folder, "work"), 0o711); err != nil {
			return "", err
		}
	}
	if len(parents) > 0 {
		if err := copyOwner(parents[0], dir); err != nil {
			return "", err
		}
	}
	return folder, chownMapped(dir, labels)
}

// copyOwner gives a directory the owner and mode of another one.
func copyOwner(from, to string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	sys := st.Sys().(*syscall.Stat_t)
	if err := os.Lchown(to, int(sys.Uid), int(sys.Gid)); err != nil {
		return err
	}
	return os.Chmod(to, st.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky))
}

// chownMapped gives a directory to whom the labels' mappings make root.
func chownMapped(dir string, labels map[string]string) error {
	uids, gids := labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]
	if uids == "" && gids == "" {
		return nil
	}
	uid, err := rootOf(uids)
	if err != nil {
		return fmt.Errorf("label %s: %w", snapshots.LabelSnapshotUIDMapping, err)
	}
	gid, err := rootOf(gids)
	if err != nil {
		return fmt.Errorf("label %s: %w", snapshots.LabelSnapshotGIDMapping, err)
	}
	return os.Lchown(dir, uid, gid)
}

// rootOf returns what ID outside stands for 0 inside of a user namespace, by a
// mapping such as "0:100000:65536,65536:1000:1": inside, outside, count.
func rootOf(mapping string) (int, error) {
	for part := range strings.SplitSeq(mapping, ",") {
		var inside, outside, n uint32
		if _, err := fmt.Sscanf(part, "%d:%d:%d", &inside, &outside, &n); err != nil {
			return 0, fmt.Errorf("mapping %q: want INSIDE:OUTSIDE:COUNT", part)
		}
		if inside == 0 && n > 0 {
			return int(outside), nil
		}
	}
	return 0, fmt.Errorf("mapping %q has none for 0", mapping)
}

// settleFolder gives the folder to the snapshot that record makes in the
// database, in one transaction. It removes the folder if that fails.
func (s *Snapshotter) settleFolder(ctx context.Context, folder string, record func(context.Context) (id string, err error)) error {
	at := folder
	err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		id, err := record(ctx)
		if err != nil {
			return err
		}
		final := filepath.Join(s.root, "snapshots", id)
		if err := os.Rename(folder, final); err != nil {
			return err
		}
		at = final
		return nil
	})
	if err != nil {
		err = errors.Join(err, os.RemoveAll(at))
	}
	return err
}

// removeUnfinished removes the folders that a process has left which was killed
// while it made snapshots.
func (s *Snapshotter) removeUnfinished() error {
	left, err := filepath.Glob(filepath.Join(s.root, "snapshots", madePrefix+"*"))
	errs := []error{err}
	for _, folder := range left {
		top := filepath.Join(folder, "top")
		if err := mount.UnmountAll(top, unix.MNT_DETACH); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.RemoveAll(folder))
	}
	return errors.Join(errs...)
}

// sweep removes the folders that no snapshot has.
func (s *Snapshotter) sweep(ctx context.Context) error {
	var stray []string
	// Within a write transaction no folder can be on its way to its snapshot.
	if err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if err != nil && !errdefs.IsNotFound(err) { // which says that there has never been a snapshot
			return err
		}
		entries, err := os.ReadDir(filepath.Join(s.root, "snapshots"))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if _, ok := ids[e.Name()]; !ok && !strings.HasPrefix(e.Name(), madePrefix) {
				stray = append(stray, e.Name())
			}
		}
		return nil
	}); err != nil {
		return err
	}
	var errs []error
	for _, id := range stray {
		s.lowers.release(id)
		errs = append(errs, os.RemoveAll(filepath.Join(s.root, "snapshots", id)))
	}
	return errors.Join(errs...)
}
