package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/fs/erofs"
)

// Origin says where a layer is from, as containerd tells it.
type Origin struct {
	Image    string        `json:"image"`    // the reference that was pulled
	Manifest digest.Digest `json:"manifest"` // of the image's platform
	Layer    digest.Digest `json:"layer"`    // as the registry has it
}

// Layers brings layers into the content store.
type Layers interface {
	// Bring returns when the layer can be opened, and says in words how it
	// came. The error wraps ErrUnpack if the layer is to be unpacked instead.
	// Its image's other layers come on the way.
	Bring(ctx context.Context, o Origin) (how string, err error)

	// Open opens a layer that was brought, without asking anybody. Who opens
	// it closes it. The error wraps content.ErrNoIndex if the layer is gone.
	Open(o Origin) (*content.Layer, error)

	// Tar returns the layer's tar. Its end is an error if the layer is not
	// what the image says.
	Tar(ctx context.Context, o Origin) (io.ReadCloser, error)

	// Drop is told that no snapshot has the layer any more.
	Drop(layer digest.Digest)
}

// ErrUnpack is wrapped by the error of Layers.Bring for a layer that is not
// shown lazily, but unpacked into a directory.
var ErrUnpack = errors.New("the layer is unpacked")

// origin takes an Origin from the labels that containerd's client, its transfer
// service and its CRI plugin give to an unpacking snapshot.
func origin(labels map[string]string) (Origin, bool) {
	o := Origin{Image: labels[snapshotters.TargetRefLabel]}
	var err1, err2 error
	o.Manifest, err1 = digest.Parse(labels[snapshotters.TargetManifestDigestLabel])
	o.Layer, err2 = digest.Parse(labels[snapshotters.TargetLayerDigestLabel])
	return o, o.Image != "" && err1 == nil && err2 == nil
}

// remote makes the committed snapshot that containerd asks for, target, of a
// layer that it has not downloaded. If that cannot be, containerd goes the
// ordinary way; the log says why.
func (s *Snapshotter) remote(ctx context.Context, target, key, parent string, labels map[string]string) (there bool, err error) {
	if there, err = s.has(ctx, target, parent); there || err != nil {
		return there, err
	}
	o, ok := origin(labels)
	if !ok {
		s.log.Info("the layer is left to containerd, which does not say what image it is of", "snapshot", target)
		return false, nil
	}
	err = s.addRemote(ctx, o, target, key, parent, labels)
	switch {
	case err == nil || errdefs.IsAlreadyExists(err):
		return s.has(ctx, target, parent)
	case ctx.Err() != nil:
		return false, fmt.Errorf("layer %s of %s: %w", o.Layer, o.Image, err)
	}
	s.log.Warn("the layer, and all above it, are left to containerd, which will download them", "image", o.Image, "layer", o.Layer, "error", err)
	return false, nil
}

// has says whether there is a committed snapshot with that label and parent.
func (s *Snapshotter) has(ctx context.Context, target, parent string) (bool, error) {
	there := false
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		for _, name := range s.refs.named(target) {
			_, info, _, err := storage.GetInfo(ctx, name)
			if err != nil && !errdefs.IsNotFound(err) {
				return err
			}
			there = there || err == nil && info.Kind == snapshots.KindCommitted && info.Parent == parent
		}
		return nil
	})
	return there, err
}

// addRemote brings the layer and commits its snapshot.
func (s *Snapshotter) addRemote(ctx context.Context, o Origin, target, key, parent string, labels map[string]string) error {
	parents, err := s.parentDirs(ctx, parent)
	if err != nil {
		return err
	}
	l, err := s.bring(ctx, o, parents)
	if errors.Is(err, ErrUnpack) {
		return s.addUnpacked(ctx, o, target, key, parent, labels, parents, err.Error())
	}
	if unfit := (*erofs.StandaloneError)(nil); errors.As(err, &unfit) {
		return s.addUnpacked(ctx, o, target, key, parent, labels, parents, unfit.Error())
	}
	if err != nil {
		return err
	}
	defer s.lowers.untake(l)
	folder, err := os.MkdirTemp(filepath.Join(s.root, "snapshots"), madePrefix)
	if err != nil {
		return err
	}
	if err := os.Symlink(l.target(), filepath.Join(folder, "fs")); err != nil {
		return errors.Join(err, os.RemoveAll(folder))
	}
	id, err := s.commitNew(ctx, folder, target, key, parent, labels, snapshots.Usage{})
	if err != nil {
		return err
	}
	s.lowers.keep(id, l)
	return nil
}

// bring brings a layer and takes the lower that shows it. With an image that is
// removed at this moment the layer may go between the one and the other.
func (s *Snapshotter) bring(ctx context.Context, o Origin, parents []string) (*lower, error) {
	for try := 1; ; try++ {
		how, err := s.layers.Bring(ctx, o)
		if err != nil {
			return nil, err
		}
		l, err := s.lowers.take(o, how, parents)
		if !errors.Is(err, content.ErrNoIndex) || try == bringTries {
			return l, err
		}
	}
}

const bringTries = 5

// commitNew makes a committed snapshot in one transaction. Its name is that
// which containerd will know it by, unless a snapshot of another parent has it.
func (s *Snapshotter) commitNew(ctx context.Context, folder, target, key, parent string, labels map[string]string, usage snapshots.Usage) (id string, err error) {
	var info snapshots.Info
	err = s.settleFolder(ctx, folder, func(ctx context.Context) (string, error) {
		name := target
		if _, other, _, err := storage.GetInfo(ctx, target); err == nil {
			if other.Kind == snapshots.KindCommitted && other.Parent == parent {
				return "", fmt.Errorf("snapshot %s: %w", target, errdefs.ErrAlreadyExists)
			}
			name = target + "/" + key
		}
		opt := snapshots.WithLabels(labels)
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, opt); err != nil {
			return "", err
		}
		if id, err = storage.CommitActive(ctx, key, name, usage, opt); err != nil {
			return "", err
		}
		_, info, _, err = storage.GetInfo(ctx, name)
		return id, err
	})
	if err != nil {
		return "", err
	}
	s.refs.set(info)
	return id, nil
}
