package content

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
)

// The buckets of the database.
const (
	bucketLayers  = "layers"  // digest of the blob: layerRecord
	bucketPresent = "present" // digest of the blob: the map as of the last sync
	bucketImages  = "images"  // platform and reference: Image
)

// layerRecord is what the database keeps of a layer.
type layerRecord struct {
	Index    digest.Digest `json:"index"` // of the serialised index
	Added    time.Time     `json:"added"`
	From     string        `json:"from"`     // how the index was obtained, for people to read
	Verified bool          `json:"verified"` // complete, and its diffID has been checked
}

// meta is the database. bbolt lets one process at a time have it open for
// writing, so it is open only as long as a transaction takes. No transaction
// lasts over a mount or over anything on the network.
type meta struct {
	path string
	mu   sync.Mutex
}

// lockTimeout is how long another process may have the database open.
const lockTimeout = 20 * time.Second

func openMeta(path string) (*meta, error) {
	m := &meta{path: path}
	if _, err := os.Stat(path); err == nil {
		return m, m.view(func(*bbolt.Tx) error { return nil })
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return m, m.update(func(tx *bbolt.Tx) error {
		for _, name := range []string{bucketLayers, bucketPresent, bucketImages} {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *meta) with(readOnly bool, fn func(*bbolt.DB) error) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	db, err := bbolt.Open(m.path, 0o600, &bbolt.Options{Timeout: lockTimeout, ReadOnly: readOnly})
	if err != nil {
		return fmt.Errorf("open database %s: %w", m.path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return fn(db)
}

func (m *meta) update(fn func(*bbolt.Tx) error) error {
	return m.with(false, func(db *bbolt.DB) error { return db.Update(fn) })
}

func (m *meta) view(fn func(*bbolt.Tx) error) error {
	return m.with(true, func(db *bbolt.DB) error { return db.View(fn) })
}

// get decodes a value; it reports whether there is one.
func (m *meta) get(bucket, key string, v any) (found bool, err error) {
	err = m.view(func(tx *bbolt.Tx) error {
		raw := tx.Bucket([]byte(bucket)).Get([]byte(key))
		if raw == nil {
			return nil
		}
		found = true
		if err := json.Unmarshal(raw, v); err != nil {
			return fmt.Errorf("database %s: %s %q: %w", m.path, bucket, key, err)
		}
		return nil
	})
	return found, err
}

func (m *meta) put(bucket, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return m.putRaw(bucket, key, raw)
}

func (m *meta) putRaw(bucket, key string, raw []byte) error {
	return m.update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), raw) })
}

func (m *meta) getRaw(bucket, key string) (raw []byte, err error) {
	err = m.view(func(tx *bbolt.Tx) error {
		raw = append(raw, tx.Bucket([]byte(bucket)).Get([]byte(key))...)
		return nil
	})
	return raw, err
}

// setVerified records that a layer has been checked as a whole.
func (m *meta) setVerified(id digest.Digest) error {
	return m.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucketLayers))
		var rec layerRecord
		if raw := b.Get([]byte(id)); raw == nil {
			return nil // dropped meanwhile
		} else if err := json.Unmarshal(raw, &rec); err != nil {
			return err
		}
		rec.Verified = true
		raw, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		return b.Put([]byte(id), raw)
	})
}

// forgetLayer drops what is known of a layer.
func (m *meta) forgetLayer(id digest.Digest) error {
	return m.update(func(tx *bbolt.Tx) error {
		for _, bucket := range []string{bucketLayers, bucketPresent} {
			if err := tx.Bucket([]byte(bucket)).Delete([]byte(id)); err != nil {
				return err
			}
		}
		return nil
	})
}
