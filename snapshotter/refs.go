package snapshotter

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// refs knows the snapshots by their label containerd.io/snapshot.ref, by which
// containerd looks for them at every layer that exists already.
type refs struct {
	mu    sync.Mutex
	names map[string][]string // by label
	label map[string]string   // by name
}

func openRefs(meta *storage.MetaStore) (*refs, error) {
	r := &refs{names: map[string][]string{}, label: map[string]string{}}
	all, err := walk(context.Background(), meta, nil)
	for _, info := range all {
		r.set(info)
	}
	return r, err
}

// set takes note of a snapshot's label.
func (r *refs) set(info snapshots.Info) {
	r.forget(info.Name)
	ref := info.Labels[snapshots.LabelSnapshotRef]
	if ref == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[ref] = append(r.names[ref], info.Name)
	r.label[info.Name] = ref
}

// forget takes note that a snapshot is gone.
func (r *refs) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ref, ok := r.label[name]
	if !ok {
		return
	}
	delete(r.label, name)
	r.names[ref] = slices.DeleteFunc(r.names[ref], func(n string) bool { return n == name })
	if len(r.names[ref]) == 0 {
		delete(r.names, ref)
	}
}

// named returns the names of the snapshots with a label.
func (r *refs) named(ref string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.names[ref])
}

// walk returns the snapshots that one of the filters matches. Where the only
// filter asks for a label, no other snapshots are looked at.
func (r *refs) walk(ctx context.Context, meta *storage.MetaStore, filters []string) ([]snapshots.Info, error) {
	if len(filters) != 1 {
		return walk(ctx, meta, filters)
	}
	ref, parent, ok := byRef(filters[0])
	if !ok {
		return walk(ctx, meta, filters)
	}
	var found []snapshots.Info
	err := meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		for _, name := range r.named(ref) {
			_, info, _, err := storage.GetInfo(ctx, name)
			if errdefs.IsNotFound(err) {
				continue
			}
			if err != nil {
				return err
			}
			if info.Parent == parent {
				found = append(found, info)
			}
		}
		return nil
	})
	return found, err
}

// byRef takes apart the one filter that containerd uses:
//
//	labels."containerd.io/snapshot.ref"==REF,parent=="PARENT"
func byRef(filter string) (ref, parent string, ok bool) {
	rest, ok := strings.CutPrefix(filter, "labels."+strconv.Quote(snapshots.LabelSnapshotRef)+"==")
	if !ok {
		return "", "", false
	}
	ref, rest, ok = strings.Cut(rest, ",parent==")
	if !ok || strings.ContainsAny(ref, `",`) {
		return "", "", false
	}
	parent, err := strconv.Unquote(rest)
	return ref, parent, err == nil
}

// walk looks at all snapshots.
func walk(ctx context.Context, meta *storage.MetaStore, filters []string) (all []snapshots.Info, err error) {
	err = meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all = append(all, info)
			return nil
		}, filters...)
		if errdefs.IsNotFound(err) { // there is no snapshot yet
			return nil
		}
		return err
	})
	return all, err
}
