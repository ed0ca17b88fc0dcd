package snapshotter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/fs"
)

// lowers are the layers that are shown without being unpacked, each mounted
// once: all images, snapshots and containers that have a layer share its mount
// and, with it, what the kernel has cached. Only where the layers below make a
// layer look different, its metadata is another, and so is its mount.
type lowers struct {
	root   string // its folder
	log    *slog.Logger
	layers Layers
	blobs  *fs.Blobs // shows the flat blobs that are not complete
	freed  sync.WaitGroup

	mu   sync.Mutex // taken after that of a lower
	all  map[int]*lower
	of   map[string]*lower // by the ID of a snapshot
	open map[digest.Digest]*opened
	next int
}

// opened is a layer that lowers have open together.
type opened struct {
	*content.Layer
	uses int
}

// lower is one layer and its mount.
type lower struct {
	n    int
	info lowerInfo

	uses  int             // snapshots, and those that are being made; guarded by lowers.mu
	takes map[string]bool // IDs of the snapshots; guarded by lowers.mu

	mu    sync.Mutex // held while it is mounted or unmounted
	layer *opened    // nil while it is not mounted
}

// lowerInfo is a lower's file info.
type lowerInfo struct {
	Origin
	Meta  string `json:"meta"`  // SHA-256 of the EROFS image
	Index string `json:"index"` // SHA-256 of the index that it was made of
	How   string `json:"how"`   // how the layer came into the store, in words
}

func (i lowerInfo) same(o lowerInfo) bool { return i.Layer == o.Layer && i.Meta == o.Meta }

// target is what a snapshot's link says.
func (l *lower) target() string { return filepath.Join("..", "..", "lowers", strconv.Itoa(l.n), "fs") }

// openLowers finds the lowers on the disk, and which snapshots have them.
func openLowers(layers Layers, o Options) (*lowers, error) {
	t := &lowers{
		root: filepath.Join(o.Root, "lowers"), log: o.Log, layers: layers,
		all: map[int]*lower{}, of: map[string]*lower{}, open: map[digest.Digest]*opened{}, next: 1,
	}
	if err := t.load(); err != nil {
		return nil, err
	}
	if err := t.link(filepath.Join(o.Root, "snapshots")); err != nil {
		return nil, err
	}
	dir := filepath.Join(o.State, "blobs")
	if err := detach(dir); err != nil { // what a daemon has left
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	t.blobs, err = fs.MountBlobs(dir, fs.Options{Image: "peeld", Log: o.Log, ReadTimeout: o.ReadTimeout})
	if err != nil {
		return nil, err
	}
	for _, l := range t.all {
		if l.uses == 0 {
			t.free(l)
		}
	}
	return t, nil
}

// load reads what is on the disk. A lower that was never finished is removed,
// and one that is damaged set aside.
func (t *lowers) load() error {
	entries, err := os.ReadDir(t.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(t.root, e.Name())
		// What was mounted by a process that is gone may have lost its blobs.
		// Containers that use it keep it.
		if err := detach(filepath.Join(dir, "fs")); err != nil {
			return err
		}
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			continue
		}
		t.next = max(t.next, n+1)
		l := &lower{n: n, takes: map[string]bool{}}
		raw, err := os.ReadFile(filepath.Join(dir, "info"))
		if err == nil {
			err = json.Unmarshal(raw, &l.info)
		}
		if err != nil {
			t.log.Error("a layer's mount is set aside: its snapshots cannot be used", "folder", dir, "error", err)
			continue
		}
		t.all[n] = l
	}
	return nil
}

// link reads the snapshots' links.
func (t *lowers) link(dir string) error {
	ids, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, id := range ids {
		to, err := os.Readlink(filepath.Join(dir, id.Name(), "fs"))
		if err != nil {
			continue // a directory
		}
		n, err := strconv.Atoi(filepath.Base(filepath.Dir(to)))
		if l := t.all[n]; err == nil && l != nil {
			l.uses++
			l.takes[id.Name()], t.of[id.Name()] = true, l
		}
	}
	return nil
}

// close waits for what is being removed, and takes all mounts out of sight.
// Containers keep what they have; data that is missing they do not get any more.
func (t *lowers) close() error {
	t.freed.Wait()
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.all))
	t.mu.Unlock()
	var errs []error
	for _, l := range all {
		errs = append(errs, t.unmount(l))
	}
	return errors.Join(append(errs, t.blobs.Detach())...)
}

// settle returns when all that was released is gone.
func (t *lowers) settle(ctx context.Context) error {
	done := make(chan struct{})
	go func() { t.freed.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// take returns the lower that shows a layer of the store above the directories
// below, and makes it if there is none. It is followed by untake.
func (t *lowers) take(o Origin, how string, below []string) (*lower, error) {
	tmp, err := os.MkdirTemp(t.root, madePrefix)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	layer, err := t.acquire(o)
	if err != nil {
		return nil, err
	}
	defer t.giveBack(layer)
	sum := sha256.New()
	if err := writeMeta(filepath.Join(tmp, "meta"), sum, layer.Layer, below); err != nil {
		return nil, err
	}
	of, err := indexSum(layer.Layer)
	if err != nil {
		return nil, err
	}
	info := lowerInfo{Origin: o, Meta: hex.EncodeToString(sum.Sum(nil)), Index: of, How: how}
	raw, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(tmp, "info"), raw, 0o600); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(tmp, "fs"), 0o755); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.all {
		if l.info.same(info) {
			l.uses++
			return l, nil
		}
	}
	l := &lower{n: t.next, info: info, uses: 1, takes: map[string]bool{}}
	if err := os.Rename(tmp, t.dir(l)); err != nil {
		return nil, err
	}
	t.next++
	t.all[l.n] = l
	return l, nil
}

func (t *lowers) dir(l *lower) string { return filepath.Join(t.root, strconv.Itoa(l.n)) }

// keep makes a lower that is taken the one of a snapshot.
func (t *lowers) keep(id string, l *lower) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l.uses++
	l.takes[id], t.of[id] = true, l
}

func (t *lowers) untake(l *lower) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(l)
}

// release takes note that a snapshot is gone.
func (t *lowers) release(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l, ok := t.of[id]; ok {
		delete(t.of, id)
		delete(l.takes, id)
		t.drop(l)
	}
}

func (t *lowers) drop(l *lower) {
	if l.uses--; l.uses == 0 {
		t.free(l)
	}
}

// free removes a lower that nothing uses. Unmounting waits for reads in
// flight, so it is done beside.
func (t *lowers) free(l *lower) {
	delete(t.all, l.n)
	t.freed.Go(func() {
		err := t.unmount(l)
		if err == nil {
			err = os.RemoveAll(t.dir(l))
		}
		if err != nil {
			t.log.Error("a layer's mount is left behind", "folder", t.dir(l), "layer", l.info.Layer, "error", err)
		}
		if !t.shows(l.info.Layer) {
			t.layers.Drop(l.info.Layer)
		}
	})
}

// shows says whether a layer has a lower.
func (t *lowers) shows(layer digest.Digest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.all {
		if l.info.Layer == layer {
			return true
		}
	}
	return false
}

// usage returns what the layer of a snapshot takes on the disk; ok is false if
// the snapshot is an ordinary one.
func (t *lowers) usage(id string) (u snapshots.Usage, ok bool, err error) {
	t.mu.Lock()
	l, ok := t.of[id]
	first := ok && id == slices.Min(slices.Collect(maps.Keys(l.takes)))
	t.mu.Unlock()
	if !first {
		return u, ok, nil
	}
	layer, err := t.acquire(l.info.Origin)
	if err != nil {
		return u, true, err
	}
	defer t.giveBack(layer)
	st, err := os.Stat(filepath.Join(t.dir(l), "meta"))
	if err != nil {
		return u, true, err
	}
	stats := layer.Stats()
	return snapshots.Usage{Size: stats.Present + stats.IndexBytes + st.Size(), Inodes: filesOfLayer}, true, nil
}

// filesOfLayer is how many files and folders a layer takes: four in the store
// and their folder, and those of its lower.
const filesOfLayer = 9
