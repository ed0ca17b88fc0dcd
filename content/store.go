// Package content is the local store of layers: for each one its index, and
// its files' data in a flat blob that fills as it is read.
//
// A byte comes in through a Blob, which is a layer as the registry has it, and
// goes out through Layer.ReadAtContext. What is present is never fetched
// again, over restarts too, and by several processes at once on one store; nor
// is a file that another layer of the store has.
// The package does not know registries, or how files are shown.
//
//	ROOT/peel.db                 what is known of layers and images (bbolt)
//	ROOT/layers/HEX/index        the serialised index
//	ROOT/layers/HEX/runs         where the files' data is, of the tar in the flat blob
//	ROOT/layers/HEX/files        the files by digest, for other layers to find
//	ROOT/layers/HEX/flat         the flat blob, sparse
//	ROOT/layers/HEX/map          what of it is present
//	ROOT/locks/HEX               locked while the layer is made, open or removed
//	ROOT/tmp/HEX                 a layer that is being made
package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/format"
)

// ErrNoIndex says that a layer has no index in the store.
var ErrNoIndex = errors.New("layer is not indexed here")

// Blob is a layer, or its twin, as its source has it.
type Blob interface {
	// Open returns the n bytes at off. A source that cannot serve ranges
	// returns the blob from its first to its last byte, and whole = true.
	Open(ctx context.Context, off, n int64) (body io.ReadCloser, whole bool, err error)
}

// Source gives the blobs of the repository that a layer is from: the layer's
// own, or the twin that its index names. size is in bytes.
type Source func(blob digest.Digest, size int64) Blob

// Options of a store; the zero value works.
type Options struct {
	Log *slog.Logger // default: slog.Default()

	// SyncInterval is how often what has arrived is made to survive a power
	// loss. Default 5 s. A killed process loses nothing in any case.
	SyncInterval time.Duration

	// Observe, if not nil, is told of every fetch when it has ended. It is
	// called by several goroutines at once, and must not wait.
	Observe func(Fetch)
}

// Store is a directory of layers. Several processes may have one open.
type Store struct {
	root string
	log  *slog.Logger
	meta *meta

	ctx    context.Context // of everything that runs in the background
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	layers map[digest.Digest]*Layer // open ones

	observe     func(Fetch)
	tars, flats buffers // memory for one span each
	demand      gauge   // reads that wait for a fetch
	donors      donors
	noClone     atomic.Bool // the file system cannot make files share blocks
	full        fullness
	spare       spare // what the disk has no room for
}

// Open opens the store in root, and makes it if there is none.
func Open(root string, o Options) (*Store, error) {
	for _, dir := range []string{"layers", "locks", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	s := &Store{root: root, log: o.Log, observe: o.Observe, layers: map[digest.Digest]*Layer{}, tars: newBuffers(), flats: newBuffers()}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.donors.dir = filepath.Join(root, "layers")
	s.full.log, s.full.root = s.log, root
	if o.SyncInterval == 0 {
		o.SyncInterval = 5 * time.Second
	}
	var err error
	if s.meta, err = openMeta(filepath.Join(root, "peel.db")); err != nil {
		return nil, fmt.Errorf("open store %s: %w", root, asFull(err))
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", root, err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(func() { s.syncEvery(o.SyncInterval) })
	return s, nil
}

// Close ends all fetches and closes all layers that are still open.
func (s *Store) Close() error {
	s.cancel()
	s.wg.Wait()
	s.mu.Lock()
	open := s.layers
	s.layers = map[digest.Digest]*Layer{}
	s.mu.Unlock()
	var errs []error
	for _, l := range open {
		errs = append(errs, l.close())
	}
	return errors.Join(append(errs, s.donors.close())...)
}

// sweep removes what killed processes have left of layers that they were
// making.
func (s *Store) sweep() error {
	left, err := os.ReadDir(filepath.Join(s.root, "tmp"))
	if err != nil {
		return err
	}
	for _, e := range left {
		if !e.IsDir() {
			continue // a temporary file, which has its name only for a moment
		}
		unlock, ok, err := s.tryLockLayer(e.Name())
		if err != nil {
			return err
		}
		if !ok {
			continue // it is being made
		}
		err = os.RemoveAll(filepath.Join(s.root, "tmp", e.Name()))
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) layerDir(id digest.Digest) string {
	return filepath.Join(s.root, "layers", id.Encoded())
}

// TempFile returns a new file without a name, on the disk of the store. It is
// gone when it is closed.
func (s *Store) TempFile() (*os.File, error) {
	f, err := os.CreateTemp(filepath.Join(s.root, "tmp"), "")
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w", asFull(err))
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Layer opens a layer that has an index in the store. What is missing of its
// data will come from src, which may be nil. The error wraps ErrNoIndex if
// AddIndex or Ingest has to come first. The caller closes the layer.
func (s *Store) Layer(id format.Layer, src Source) (*Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[id.Blob]; l != nil {
		if l.id != id {
			return nil, fmt.Errorf("layer %s: another image says that it has %d bytes and the tar %s", id.Blob, l.id.Size, l.id.DiffID)
		}
		l.refs++
		l.setSource(src)
		return l, nil
	}
	l, err := s.openLayer(id)
	if err != nil {
		return nil, err
	}
	l.setSource(src)
	s.layers[id.Blob] = l
	return l, nil
}

// release closes the layer with the last of its users.
func (s *Store) release(l *Layer) error {
	s.mu.Lock()
	l.refs--
	last := l.refs == 0 && s.layers[l.id.Blob] == l
	if last {
		delete(s.layers, l.id.Blob)
	}
	s.mu.Unlock()
	if !last {
		return nil
	}
	return l.close()
}

// syncEvery makes what has arrived survive a power loss, from time to time.
func (s *Store) syncEvery(interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		s.mu.Lock()
		open := make([]*Layer, 0, len(s.layers))
		for _, l := range s.layers {
			l.refs++ // so that it stays open
			open = append(open, l)
		}
		s.mu.Unlock()
		for _, l := range open {
			if err := errors.Join(l.sync(), s.release(l)); err != nil {
				s.log.Error("cannot make a layer's data durable", "layer", l.id.Blob, "error", err)
			}
		}
		s.full.tick()
		s.spare.clear()
	}
}
