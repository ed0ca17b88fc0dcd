package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/fs"
)

// addUnpacked commits the snapshot of a layer that is unpacked into a directory
// above its parents, as containerd would do it.
func (s *Snapshotter) addUnpacked(ctx context.Context, o Origin, target, key, parent string, labels map[string]string, parents []string, why string) error {
	s.log.Info("the layer is unpacked", "image", o.Image, "layer", o.Layer, "why", why)
	folder, err := s.newFolder(snapshots.KindActive, parents, nil)
	if err != nil {
		return err
	}
	if err := s.unpack(ctx, o, folder, parents); err != nil {
		return errors.Join(err, os.RemoveAll(folder))
	}
	if err := os.WriteFile(filepath.Join(folder, whyFile), []byte(why), 0o600); err != nil {
		return errors.Join(err, os.RemoveAll(folder))
	}
	usage, err := fs.DiskUsage(ctx, filepath.Join(folder, "fs"))
	if err != nil {
		return errors.Join(err, os.RemoveAll(folder))
	}
	_, err = s.commitNew(ctx, folder, target, key, parent, labels, snapshots.Usage(usage))
	return err
}

// unpack unpacks a layer into the folder of a snapshot.
func (s *Snapshotter) unpack(ctx context.Context, o Origin, folder string, parents []string) (err error) {
	tar, err := s.layers.Tar(ctx, o)
	if err != nil {
		return err
	}
	defer tar.Close()
	top := filepath.Join(folder, "top")
	if err := os.Mkdir(top, 0o700); err != nil {
		return err
	}
	snap := storage.Snapshot{Kind: snapshots.KindActive, ID: filepath.Base(folder)}
	mounts := s.mounts(snap, parents, nil)
	if err := mount.All(mounts, top); err != nil {
		return fmt.Errorf("mount the layers below: %w", err)
	}
	defer func() {
		err = errors.Join(err, mount.UnmountAll(top, 0), os.Remove(top))
	}()
	if _, err := archive.Apply(ctx, top, tar); err != nil {
		return fmt.Errorf("unpack layer %s of %s: %w", o.Layer, o.Image, err)
	}
	// The tar's end comes before that of the stream, which has been checked
	// only when all of it has been read.
	if _, err := io.Copy(io.Discard, tar); err != nil {
		return fmt.Errorf("unpack layer %s of %s: %w", o.Layer, o.Image, err)
	}
	return nil
}
