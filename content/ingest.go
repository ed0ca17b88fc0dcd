package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
)

// builtHere says of an index that it was built while its layer was stored.
const builtHere = "built here"

// AddIndex gives the store the index of a layer, which makes the layer lazy:
// nothing of its data is present yet. from says where the index is from. An
// index that the store has already stays as it is.
func (s *Store) AddIndex(ctx context.Context, id format.Layer, raw []byte, from string) error {
	return s.AddIndexFrom(ctx, id, from, func() ([]byte, error) { return raw, nil })
}

// AddIndexFrom is AddIndex of an index that has still to be fetched. fetch is
// called only if the store does not have one; of several processes that add a
// layer's index, one fetches it.
func (s *Store) AddIndexFrom(ctx context.Context, id format.Layer, from string, fetch func() ([]byte, error)) error {
	return s.make(ctx, id, func(dir string) ([]byte, string, error) {
		raw, err := fetch()
		if err != nil {
			return nil, "", err
		}
		f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return nil, "", err
		}
		if err := matches(f, id); err != nil {
			return nil, "", fmt.Errorf("%w: %w", index.ErrFormat, err)
		}
		flat, err := os.Create(filepath.Join(dir, "flat"))
		if err != nil {
			return nil, "", err
		}
		return raw, from, errors.Join(flat.Truncate(f.FlatSize), flat.Close())
	})
}

// Ingest reads a layer that has no index from its first byte to its last: it
// is downloaded, decompressed, indexed and stored in one pass, and complete
// and verified after it. progress, if not nil, is told how many more bytes of
// the blob have been read. Of several processes that ingest a layer, one does.
func (s *Store) Ingest(ctx context.Context, id format.Layer, src Blob, progress func(n int)) error {
	ctx = because(ctx, Whole)
	return s.make(ctx, id, func(dir string) (raw []byte, from string, err error) {
		began := time.Now()
		defer func() { s.ended(ctx, id.Blob, began, 0, 0, err) }()
		flat, err := os.Create(filepath.Join(dir, "flat"))
		if err != nil {
			return nil, "", err
		}
		defer func() { err = errors.Join(err, flat.Close()) }()
		raw, err = build(ctx, id, src, format.Options{Flat: flat}, progress)
		return raw, builtHere, err
	})
}

// BuildIndex reads a layer and returns its serialised index; its data is not
// kept. A layer that proves to have no place to resume decoding for longer than
// format.LongSpan is begun again, and its twin written to twin, if that is not
// nil. The index then names the twin, and progress is told that what was read
// before no longer counts.
func BuildIndex(ctx context.Context, id format.Layer, src Blob, twin io.Writer, progress func(n int)) ([]byte, error) {
	if twin == nil {
		return build(ctx, id, src, format.Options{}, progress)
	}
	raw, err := build(ctx, id, src, format.Options{MaxSpan: format.LongSpan}, progress)
	if errors.Is(err, format.ErrNoResume) {
		raw, err = build(ctx, id, src, format.Options{Twin: twin}, progress)
	}
	return raw, err
}

func build(ctx context.Context, id format.Layer, src Blob, o format.Options, progress func(n int)) ([]byte, error) {
	body, _, err := src.Open(ctx, 0, id.Size)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	c := &counted{Reader: body, progress: progress}
	raw, err := format.Build(ctx, id, c, o)
	if errors.Is(err, format.ErrNoResume) {
		c.add(-c.n)
	}
	return raw, err
}

type counted struct {
	io.Reader
	n        int
	progress func(n int)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.add(n)
	return n, err
}

func (c *counted) add(n int) {
	c.n += n
	if c.progress != nil {
		c.progress(n)
	}
}

// make makes a layer's directory: fill writes the flat blob into a new one and
// returns the index. Nothing is seen of it before it is whole; what a killed
// process has left is removed by the next one.
func (s *Store) make(ctx context.Context, id format.Layer, fill func(dir string) (raw []byte, from string, err error)) (err error) {
	defer func() { err = asFull(err) }()
	unlock, err := s.lockLayer(ctx, id.Blob)
	if err != nil {
		return err
	}
	defer unlock()
	if ok, err := s.HasIndex(id.Blob); ok || err != nil {
		return err
	}
	dir := filepath.Join(s.root, "tmp", id.Blob.Encoded())
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("make layer %s: %w", id.Blob, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make layer %s: %w", id.Blob, err)
	}
	raw, from, err := fill(dir)
	if err == nil {
		err = s.install(id, dir, raw, from)
	}
	if err != nil {
		return fmt.Errorf("make layer %s: %w", id.Blob, errors.Join(err, os.RemoveAll(dir)))
	}
	return nil
}

// install puts a directory with a flat blob in its place. If the index was
// built here, the flat blob is complete.
func (s *Store) install(id format.Layer, dir string, raw []byte, from string) error {
	f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return err
	}
	entries, err := f.Entries()
	if err != nil {
		return err
	}
	spans, err := f.Spans()
	if err != nil {
		return err
	}
	digests, err := f.Digests()
	if err != nil {
		return err
	}
	files, err := encodeFiles(entries, digests)
	if err != nil {
		return err
	}
	table := encodeRuns(entries)
	mem, err := newMap(spanCount(spans), int(f.FlatSize/index.BlockSize))
	if err != nil {
		return err
	}
	p, err := viewMap(mem, spanCount(spans), int(f.FlatSize/index.BlockSize))
	if err != nil {
		return err
	}
	if from == builtHere {
		p.spans.set(0, p.spans.n)
		p.blocks.set(0, p.blocks.n)
	} else {
		p.setHoles(runs{table}, spans)
	}
	if err := os.Truncate(filepath.Join(dir, "flat"), f.FlatSize); err != nil {
		return err
	}
	for name, b := range map[string][]byte{"index": raw, "runs": table, "files": files, "map": mem} {
		if err := writeSynced(filepath.Join(dir, name), b); err != nil {
			return err
		}
	}
	to := s.layerDir(id.Blob)
	if err := os.RemoveAll(to); err != nil { // it has no record, so nobody uses it
		return err
	}
	if err := os.Rename(dir, to); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(to)); err != nil {
		return err
	}
	rec := layerRecord{Index: digest.FromBytes(raw), Added: time.Now().UTC(), From: from, Verified: from == builtHere}
	return s.meta.put(bucketLayers, id.Blob.String(), rec)
}

// writeSynced writes a file that the record of the layer relies on.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// HasIndex reports whether the store has the index of a layer.
func (s *Store) HasIndex(id digest.Digest) (bool, error) {
	return s.meta.get(bucketLayers, id.String(), new(layerRecord))
}

// IndexFrom says where the index of a layer in the store is from, in words; ""
// if the store has none.
func (s *Store) IndexFrom(id digest.Digest) (string, error) {
	var rec layerRecord
	_, err := s.meta.get(bucketLayers, id.String(), &rec)
	return rec.From, err
}

// lockLayer keeps other processes from making the layer.
func (s *Store) lockLayer(ctx context.Context, id digest.Digest) (func(), error) {
	f, err := s.lockFile(id)
	if err != nil {
		return nil, err
	}
	unlock, err := lockRange(ctx, f, makeLock, 1)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { unlock(); f.Close() }, nil
}

// tryLockLayer is lockLayer that does not wait; ok is false if another process
// makes the layer.
func (s *Store) tryLockLayer(hex string) (unlock func(), ok bool, err error) {
	f, err := s.lockFile(digest.NewDigestFromEncoded(digest.SHA256, hex))
	if err != nil {
		return nil, false, err
	}
	ok, err = tryLock(f, makeLock, 1)
	if !ok || err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, true, nil // which unlocks it
}
