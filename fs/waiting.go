package fs

import (
	"sync"
	"time"
)

// waiting knows the reads that wait for data. The zero value is ready.
type waiting struct {
	mu    sync.Mutex
	began map[*time.Time]struct{}
}

// wait takes note that a read begins to wait, until done is called.
func (w *waiting) wait() (done func()) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.began == nil {
		w.began = map[*time.Time]struct{}{}
	}
	w.began[&now] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.began, &now)
	}
}

// Waiting returns how long each read has waited that waits for data now.
func (b *Blobs) Waiting() []time.Duration {
	w := &b.stats.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []time.Duration
	for began := range w.began {
		all = append(all, time.Since(*began))
	}
	return all
}

// Stats returns the counts so far, of all mounts together.
func (b *Blobs) Stats() Stats { return b.stats.load() }

// ofImage is a Blob that says what image it is of; it may not know.
type ofImage interface{ Image() string }

// imageOf names the image of a blob, for messages.
func (b *Blobs) imageOf(f blobFile) string {
	if o, ok := f.Blob.(ofImage); ok {
		if image := o.Image(); image != "" {
			return image
		}
	}
	return b.image
}
