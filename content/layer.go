package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
)

// Layer is a layer in the store: an index, and a flat blob that fills as it is
// read. It is safe for use by several goroutines.
type Layer struct {
	store *Store
	id    format.Layer
	dir   string

	index   *index.File
	file    *os.File // the serialised index
	spans   []index.Span
	runs    runs
	files   fileTable
	flat    *os.File
	present *presence
	locks   *os.File // its bytes stand for spans, to lock them between processes
	use     *os.File // keeps the layer from being removed
	refs    int      // under Store.mu

	ctx    context.Context // of the fetches
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	src     Blob              // that the spans are of
	flying  map[int]*flight   // spans that are being fetched
	taking  map[int64]*taking // files that are on their way from other layers, by place
	streams streams
	bad     error // set once the layer has proved to be another than promised

	verifying sync.Mutex
	verified  bool // under verifying

	syncing sync.Mutex
	dirty   atomic.Bool
	stats   layerStats
}

// LayerStats says what a layer has and what it cost.
type LayerStats struct {
	Blob       digest.Digest
	Format     string
	Bytes      int64 // of the flat blob
	Present    int64 // bytes of it that are here
	Spans      int   // 0 if the layer can only be fetched whole
	SpansHere  int
	Fetched    int64 // spans fetched by this process
	Refetched  int64 // of these, spans whose first bytes were not what the index says
	Complete   bool
	Deduped    int64 // bytes of files that this process took from other layers
	BlobBytes  int64 // as the registry has it
	IndexBytes int64
}

type layerStats struct{ fetched, refetched, deduped atomic.Int64 }

// spanCount is the number of spans that the map knows: a layer that can only
// be fetched whole counts as one.
func spanCount(spans []index.Span) int { return max(1, len(spans)) }

// openLayer opens what is on disk. Store.mu is held.
func (s *Store) openLayer(id format.Layer) (l *Layer, err error) {
	use, err := s.useLayer(id.Blob)
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", id.Blob, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, use.Close())
		}
	}()
	l = &Layer{store: s, id: id, dir: s.layerDir(id.Blob), use: use, refs: 1, flying: map[int]*flight{}, taking: map[int64]*taking{}}
	var rec layerRecord
	if found, err := s.meta.get(bucketLayers, id.Blob.String(), &rec); err != nil {
		return nil, err
	} else if !found {
		return nil, fmt.Errorf("layer %s: %w", id.Blob, ErrNoIndex)
	}
	if err := l.openFiles(rec.Index); err != nil {
		err = errors.Join(err, l.closeFiles())
		if !errors.Is(err, errDamaged) {
			return nil, fmt.Errorf("open layer %s: %w", id.Blob, err)
		}
		s.log.Warn("a layer in the store is damaged; it will be fetched anew", "layer", id.Blob, "error", err)
		return nil, errors.Join(fmt.Errorf("layer %s: %w", id.Blob, ErrNoIndex), s.meta.forgetLayer(id.Blob))
	}
	l.ctx, l.cancel = context.WithCancel(s.ctx)
	if err := l.restore(); err != nil {
		l.cancel()
		return nil, fmt.Errorf("open layer %s: %w", id.Blob, errors.Join(err, l.closeFiles()))
	}
	l.verified = rec.Verified
	if !l.verified && l.complete() {
		l.completed() // a process ended before it was done
	}
	l.finishAll()
	return l, nil
}

// errDamaged is wrapped by errors about files of the store that are not what
// was written: after a power loss, or by another's hand.
var errDamaged = errors.New("damaged")

// openFiles opens the layer's files. What is wrong with them wraps errDamaged.
func (l *Layer) openFiles(indexDigest digest.Digest) (err error) {
	defer func() {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", errDamaged, err)
		}
	}()
	if err := l.openIndex(indexDigest); err != nil {
		return err
	}
	if l.runs, err = openRuns(filepath.Join(l.dir, "runs")); err != nil {
		return err
	}
	if l.files, err = openFileTable(filepath.Join(l.dir, "files"), l.index.FlatSize); err != nil {
		return err
	}
	if l.flat, err = os.OpenFile(filepath.Join(l.dir, "flat"), os.O_RDWR, 0); err != nil {
		return err
	}
	if st, err := l.flat.Stat(); err != nil {
		return err
	} else if st.Size() != l.index.FlatSize {
		return fmt.Errorf("%w: the flat blob has %d bytes and should have %d", errDamaged, st.Size(), l.index.FlatSize)
	}
	if l.locks, err = os.OpenFile(filepath.Join(l.dir, "map"), os.O_RDWR, 0); err != nil {
		return err
	}
	l.present, err = openMap(l.locks, spanCount(l.spans), l.blocks())
	return err
}

func (l *Layer) blocks() int { return int(l.index.FlatSize / index.BlockSize) }

// openIndex opens the serialised index and checks that it is the one that was
// stored, and the layer's.
func (l *Layer) openIndex(want digest.Digest) (err error) {
	if l.file, err = os.Open(filepath.Join(l.dir, "index")); err != nil {
		return err
	}
	v := want.Verifier()
	size, err := io.Copy(v, l.file)
	if err != nil {
		return err
	}
	if !v.Verified() {
		return fmt.Errorf("%w: the index does not have the digest %s", errDamaged, want)
	}
	if l.index, err = index.Open(l.file, size); err == nil {
		l.spans, err = l.index.Spans()
	}
	if errors.Is(err, index.ErrFormat) { // written by another version
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err != nil {
		return err
	}
	return matches(l.index, l.id)
}

// matches reports whether an index is the layer's.
func matches(f *index.File, id format.Layer) error {
	if f.Blob != id.Blob || f.BlobSize != id.Size || f.DiffID != id.DiffID {
		return fmt.Errorf("the index is for layer %s (%d bytes, tar %s), not for %s (%d bytes, tar %s)",
			f.Blob, f.BlobSize, f.DiffID, id.Blob, id.Size, id.DiffID)
	}
	return nil
}

// restore goes back to what was last made durable if the machine has been
// restarted since.
func (l *Layer) restore() error {
	unlock, err := lockRange(l.ctx, l.locks, mapLock, 1)
	if err != nil {
		return err
	}
	defer unlock()
	durable, err := l.store.meta.getRaw(bucketPresent, l.id.Blob.String())
	if err != nil {
		return err
	}
	if ok, err := l.present.current(); err != nil {
		return err
	} else if !ok {
		err := l.present.restore(durable)
		l.present.setHoles(l.runs, l.spans)
		return err
	}
	l.dirty.Store(!bytes.Equal(durable, l.present.snapshot()))
	return nil
}

// Close ends the use of the layer.
func (l *Layer) Close() error { return l.store.release(l) }

func (l *Layer) close() error {
	l.cancel()
	l.wg.Wait()
	return errors.Join(l.sync(), l.closeFiles(), l.use.Close())
}

func (l *Layer) closeFiles() error {
	var errs []error
	for _, f := range []*os.File{l.file, l.flat, l.locks} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if l.present != nil {
		errs = append(errs, l.present.close())
	}
	return errors.Join(append(errs, l.runs.close(), l.files.close())...)
}

// setSource replaces where missing data comes from.
func (l *Layer) setSource(src Source) {
	if src == nil {
		return
	}
	blob, size, _ := l.index.SpanBlob()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.src = src(blob, size)
}

// String returns the layer's name: the hexadecimal part of its digest.
func (l *Layer) String() string { return l.id.Blob.Encoded() }

// Whole returns the path of the flat blob if all of it is present.
func (l *Layer) Whole() (path string, ok bool) { return l.flat.Name(), l.complete() }

// ID returns what identifies the layer.
func (l *Layer) ID() format.Layer { return l.id }

// Index returns the layer's index.
func (l *Layer) Index() *index.File { return l.index }

// WriteIndex writes the layer's serialised index, as AddIndex takes it.
func (l *Layer) WriteIndex(w io.Writer) (int64, error) {
	st, err := l.file.Stat()
	if err != nil {
		return 0, err
	}
	return io.Copy(w, io.NewSectionReader(l.file, 0, st.Size()))
}

// Size is the length of the flat blob in bytes.
func (l *Layer) Size() int64 { return l.index.FlatSize }

// Stats returns what is here now.
func (l *Layer) Stats() LayerStats {
	st := LayerStats{
		Blob: l.id.Blob, Format: l.index.Format.String(), Bytes: l.Size(), Spans: len(l.spans),
		Present: int64(l.present.blocks.count()) * index.BlockSize, SpansHere: l.present.spans.count(),
		Fetched: l.stats.fetched.Load(), Refetched: l.stats.refetched.Load(),
		Deduped: l.stats.deduped.Load(), Complete: l.complete(), BlobBytes: l.id.Size,
	}
	if fi, err := l.file.Stat(); err == nil {
		st.IndexBytes = fi.Size()
	}
	return st
}

func (l *Layer) complete() bool { return l.present.spans.hasAll(0, spanCount(l.spans)) }

// Local returns the file that holds the n bytes at off, at the same offset, if
// all of them are present. The file is the layer's; it must not be closed.
func (l *Layer) Local(off, n int64) (*os.File, bool) {
	if off < 0 || n < 0 || off+n > l.Size() {
		return nil, false
	}
	return l.flat, l.present.blocks.hasAll(int(off/index.BlockSize), int(index.Align(off+n)/index.BlockSize))
}

// ReadAtContext is io.ReaderAt of the flat blob. It fetches what is missing,
// and waits for it until the context ends. Bytes that are not what the index
// says are never returned: the error then wraps format.ErrCorrupt.
func (l *Layer) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read layer %s at %d: %w", l.id.Blob, off, fs.ErrInvalid)
	}
	n := min(int64(len(p)), l.Size()-off)
	if n <= 0 {
		return 0, io.EOF
	}
	spare, err := l.ensure(ctx, off, n)
	if err != nil {
		return 0, fmt.Errorf("read %d bytes at %d of layer %s: %w", n, off, l.id.Blob, err)
	}
	got, err := l.flat.ReadAt(p[:n], off)
	for span, tar := range spare {
		l.overlay(p[:got], off, span, tar)
	}
	if err == nil && got < len(p) {
		err = io.EOF
	}
	return got, err
}

// sync makes what is present survive a power loss: first the data, then the
// record that it is there, which holds only what was there before the data was
// synced.
func (l *Layer) sync() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	if !l.dirty.Swap(false) {
		return nil
	}
	snapshot := l.present.snapshot()
	err := l.flat.Sync()
	if err == nil {
		err = l.store.meta.putRaw(bucketPresent, l.id.Blob.String(), snapshot)
	}
	if err != nil {
		l.dirty.Store(true)
		if l.store.full.noted(err) {
			return nil // it is tried again
		}
		return fmt.Errorf("sync layer %s: %w", l.id.Blob, err)
	}
	return nil
}
