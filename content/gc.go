package content

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// ErrInUse says that a layer is open, or being made, here or in another
// process.
var ErrInUse = errors.New("layer is in use")

// The bytes of ROOT/locks/HEX that are locked. Who makes the layer locks the
// first; who has it open shares the second; who removes it locks both.
const (
	makeLock = 0
	useLock  = 1
	allLocks = 2 // how many there are
)

func (s *Store) lockFile(id digest.Digest) (*os.File, error) {
	return os.OpenFile(filepath.Join(s.root, "locks", id.Encoded()), os.O_CREATE|os.O_RDWR, 0o600)
}

// useLayer keeps all processes from removing the layer until the file is
// closed. It waits for one that does. The file's time says when the layer was
// last opened.
func (s *Store) useLayer(id digest.Digest) (*os.File, error) {
	f, err := s.lockFile(id)
	if err != nil {
		return nil, err
	}
	for wait := pollLeast; ; wait = min(2*wait, pollMost) {
		lk := unix.Flock_t{Type: unix.F_RDLCK, Start: useLock, Len: 1}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
		if err == nil {
			now := time.Now()
			_ = os.Chtimes(f.Name(), now, now) // if not, it only looks older than it is
			return f, nil
		}
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			err = sleep(s.ctx, wait)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("share %s: %w", f.Name(), err), f.Close())
		}
	}
}

// LayerInfo is what the store knows of a layer without opening it.
type LayerInfo struct {
	Blob     digest.Digest `json:"digest"`
	From     string        `json:"from"`     // where its index is from, in words
	Added    time.Time     `json:"added"`    // when it came into the store
	Used     time.Time     `json:"used"`     // when it was last opened
	Verified bool          `json:"verified"` // it has been complete, and had the digest that its image says
	InUse    bool          `json:"inUse"`    // it is open, or being made, here or in another process
	Disk     int64         `json:"disk"`     // bytes that its files take on the disk
	Bytes    int64         `json:"bytes"`    // of the flat blob
	Present  int64         `json:"present"`  // bytes of it that are here
	Complete bool          `json:"complete"`
}

// Layers lists the layers in the store, by digest. A layer whose files are
// damaged has nothing present.
func (s *Store) Layers() ([]LayerInfo, error) {
	var all []LayerInfo
	err := s.meta.each(bucketLayers, func(key string, raw []byte) error {
		var rec layerRecord
		if err := json.Unmarshal(raw, &rec); err != nil {
			return err
		}
		all = append(all, LayerInfo{Blob: digest.Digest(key), From: rec.From, Added: rec.Added, Used: rec.Added, Verified: rec.Verified})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	for i := range all {
		if err := s.look(&all[i]); err != nil {
			return nil, fmt.Errorf("list layers: %s: %w", all[i].Blob, err)
		}
	}
	return all, nil
}

// look adds what the layer's files say.
func (s *Store) look(i *LayerInfo) (err error) {
	if i.InUse, i.Used, err = s.inUse(i.Blob); err != nil {
		return err
	}
	dir := s.layerDir(i.Blob)
	for _, name := range []string{"index", "runs", "files", "flat", "map"} {
		st, err := os.Stat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		i.Disk += st.Sys().(*syscall.Stat_t).Blocks * 512
		if name == "flat" {
			i.Bytes = st.Size()
		}
	}
	p, err := s.peek(i.Blob)
	if err != nil || p == nil {
		return err
	}
	i.Present, i.Complete = int64(p.blocks.count())*index.BlockSize, p.spans.hasAll(0, p.spans.n)
	return nil
}

// inUse reports whether a process has the layer open or makes it, and when it
// was last opened.
func (s *Store) inUse(id digest.Digest) (bool, time.Time, error) {
	f, err := s.lockFile(id)
	if err != nil {
		return false, time.Time{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return false, time.Time{}, err
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: makeLock, Len: allLocks}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false, time.Time{}, fmt.Errorf("ask for the locks of %s: %w", f.Name(), err)
	}
	return lk.Type != unix.F_UNLCK, st.ModTime().UTC(), nil
}

// peek reads the map of a layer as it is now; nil if it is damaged.
func (s *Store) peek(id digest.Digest) (*presence, error) {
	mem, err := os.ReadFile(filepath.Join(s.layerDir(id), "map"))
	if err != nil {
		return nil, err
	}
	spans, blocks, err := mapCounts(bytes.NewReader(mem))
	if err != nil {
		return nil, nil
	}
	p, err := viewMap(mem, spans, blocks)
	if err != nil {
		return nil, nil
	}
	if ok, err := p.current(); ok || err != nil {
		return p, err
	}
	durable, err := s.meta.getRaw(bucketPresent, id.String())
	if err != nil {
		return nil, err
	}
	return p, p.restore(durable)
}

// LayerID returns what identifies a layer in the store, for those who know
// only its digest. The error wraps ErrNoIndex if it cannot be opened.
func (s *Store) LayerID(id digest.Digest) (format.Layer, error) {
	f, err := os.Open(filepath.Join(s.layerDir(id), "index"))
	if err != nil {
		return format.Layer{}, fmt.Errorf("layer %s: %w: %w", id, ErrNoIndex, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return format.Layer{}, err
	}
	i, err := index.Open(f, st.Size())
	if err != nil {
		return format.Layer{}, fmt.Errorf("layer %s: %w: %w", id, ErrNoIndex, err)
	}
	return format.Layer{Blob: i.Blob, Size: i.BlobSize, DiffID: i.DiffID}, nil
}

// Remove removes a layer, its index included. The error wraps ErrInUse if a
// process has it open. A layer that is not there is no error.
func (s *Store) Remove(id digest.Digest) error {
	f, err := s.lockFile(id)
	if err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	defer f.Close() // and with it the locks; the file stays, others may have it open
	ok, err := tryLock(f, makeLock, allLocks)
	if err == nil && !ok {
		err = ErrInUse
	}
	if err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	// The files first: if it ends in between, the record leads to what is left.
	err = errors.Join(os.RemoveAll(s.layerDir(id)), os.RemoveAll(filepath.Join(s.root, "tmp", id.Encoded())))
	if err == nil {
		err = s.meta.forgetLayer(id)
	}
	if err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	return nil
}

// Images lists the images that the store remembers.
func (s *Store) Images() ([]Image, error) {
	var all []Image
	err := s.meta.each(bucketImages, func(_ string, raw []byte) error {
		var i Image
		err := json.Unmarshal(raw, &i)
		all = append(all, i)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return all, nil
}

// RemoveImage forgets an image. Its layers stay.
func (s *Store) RemoveImage(ref, platform string) error {
	err := s.meta.update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucketImages)).Delete([]byte(imageKey(ref, platform)))
	})
	if err != nil {
		return fmt.Errorf("forget image %s: %w", ref, err)
	}
	return nil
}

// each calls fn for all of a bucket, in the order of the keys. fn must not
// keep raw.
func (m *meta) each(bucket string, fn func(key string, raw []byte) error) error {
	return m.view(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucket)).ForEach(func(k, v []byte) error {
			if err := fn(string(k), v); err != nil {
				return fmt.Errorf("database %s: %s %q: %w", m.path, bucket, k, err)
			}
			return nil
		})
	})
}
