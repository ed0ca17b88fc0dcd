package snapshotter

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	peelfs "github.com/peelfs/peel/fs"
)

// Shown is a committed snapshot of an image's layer that this package, and not
// containerd, has made.
type Shown struct {
	Origin
	Snapshot string // its name
	Lazy     bool   // and not unpacked
	How      string // how the layer came, or why it is unpacked
	Mount    string // the directory where it is mounted; "" if it is not
	Users    int    // active snapshots and views above it
	Size     int64  // bytes on the disk, of one that is unpacked
}

// whyFile is the file of a snapshot that says why it is unpacked.
const whyFile = "why"

// Shown lists the layers, in no order.
func (s *Snapshotter) Shown(ctx context.Context) ([]Shown, error) {
	type snapshot struct {
		snapshots.Info
		id   string
		size int64
	}
	all := map[string]snapshot{}
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		err := storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			id, _, usage, err := storage.GetInfo(ctx, info.Name)
			all[info.Name] = snapshot{info, id, usage.Size}
			return err
		})
		if errdefs.IsNotFound(err) { // there is no snapshot yet
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	users := map[string]int{}
	for _, at := range all {
		if at.Kind == snapshots.KindCommitted {
			continue
		}
		for parent := at.Parent; parent != ""; parent = all[parent].Parent {
			users[parent]++
		}
	}
	var shown []Shown
	for name, at := range all {
		o, ok := origin(at.Labels)
		if !ok || at.Kind != snapshots.KindCommitted {
			continue
		}
		x := Shown{Origin: o, Snapshot: name, Users: users[name]}
		if x.How, x.Mount, x.Lazy = s.lowers.how(at.id); !x.Lazy {
			why, err := os.ReadFile(filepath.Join(s.root, "snapshots", at.id, whyFile))
			if errors.Is(err, fs.ErrNotExist) {
				continue // containerd has unpacked it, or it is gone
			}
			if err != nil {
				return nil, err
			}
			x.How, x.Size = string(why), at.size
		}
		shown = append(shown, x)
	}
	return shown, nil
}

// how says how the layer of a snapshot came, and where it is mounted.
func (t *lowers) how(id string) (how, dir string, ok bool) {
	t.mu.Lock()
	l, ok := t.of[id]
	t.mu.Unlock()
	if !ok {
		return "", "", false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.layer != nil {
		dir = filepath.Join(t.dir(l), "fs")
	}
	return l.info.How, dir, true
}

// Chain returns the layers that a snapshot stands on, topmost first, of those
// that are lazy.
func (s *Snapshotter) Chain(ctx context.Context, key string) ([]Origin, error) {
	ids, err := s.chain(ctx, key)
	if err != nil {
		return nil, err
	}
	t := s.lowers
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Origin
	for _, id := range ids {
		if l, ok := t.of[id]; ok {
			all = append(all, l.info.Origin)
		}
	}
	return all, nil
}

// Reads returns the counts of the kernel's reads from layers that are not
// complete, and how long each has waited that waits for data now.
func (s *Snapshotter) Reads() (peelfs.Stats, []time.Duration) {
	return s.lowers.blobs.Stats(), s.lowers.blobs.Waiting()
}
