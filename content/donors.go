package content

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/peelfs/peel/content/index"
)

// donors are the layers of a store, open or not, as places to take files from.
// What they say is only where to look: whoever takes a file checks it.
type donors struct {
	dir string // of the layers

	mu   sync.RWMutex
	as   time.Time // the folder's time when all was read
	all  []*donor
	last atomic.Int32 // which of all was found to have a file
}

type donor struct {
	dir     string
	files   fileTable
	present *presence
}

// find returns the flat blob of a layer that seems to have the file, which the
// caller closes, and the place of the file in it.
func (d *donors) find(f file) (flat *os.File, off int64, err error) {
	d.refresh()
	d.mu.RLock()
	defer d.mu.RUnlock()
	from, off := d.look(f)
	if from == nil {
		return nil, 0, errors.New("no layer has it any more")
	}
	flat, err = os.Open(filepath.Join(from.dir, "flat"))
	return flat, off, err
}

// has reports whether find would find the file.
func (d *donors) has(f file) bool {
	d.refresh()
	d.mu.RLock()
	defer d.mu.RUnlock()
	from, _ := d.look(f)
	return from != nil
}

// look asks the layers one after the other, first the one that had the last
// file. d.mu is held.
func (d *donors) look(f file) (*donor, int64) {
	first := int(d.last.Load())
	for n := range d.all {
		i := (first + n) % len(d.all)
		if off, ok := d.all[i].place(f); ok {
			d.last.Store(int32(i))
			return d.all[i], off
		}
	}
	return nil, 0
}

// place returns where the layer has the file.
func (d *donor) place(f file) (off int64, ok bool) {
	i, ok := d.files.find(f.digest)
	if !ok {
		return 0, false
	}
	for ; ; i++ {
		got := d.files.at(i)
		if got.digest != f.digest {
			return 0, false
		}
		if got.size == f.size && d.present.blocks.hasAll(got.blocks()) {
			return got.off, true
		}
	}
}

// refresh looks for layers again if some have come or gone since.
func (d *donors) refresh() {
	st, err := os.Stat(d.dir)
	if err != nil {
		return
	}
	d.mu.RLock()
	same := st.ModTime().Equal(d.as)
	d.mu.RUnlock()
	if same {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.drop() // only reading was done with them
	layers, err := os.ReadDir(d.dir)
	if err != nil {
		return
	}
	d.as = st.ModTime()
	for _, e := range layers {
		if from, err := openDonor(filepath.Join(d.dir, e.Name())); err == nil {
			d.all = append(d.all, from) // what cannot be opened has nothing to give
		}
	}
}

func openDonor(dir string) (*donor, error) {
	f, err := os.OpenFile(filepath.Join(dir, "map"), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	spans, blocks, err := mapCounts(f)
	if err != nil {
		return nil, err
	}
	p, err := openMap(f, spans, blocks)
	if err != nil {
		return nil, err
	}
	files, err := openFileTable(filepath.Join(dir, "files"), int64(blocks)*index.BlockSize)
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return &donor{dir, files, p}, nil
}

// drop closes all layers. d.mu is held.
func (d *donors) drop() (err error) {
	for _, from := range d.all {
		err = errors.Join(err, from.files.close(), from.present.close())
	}
	d.all = nil
	return err
}

func (d *donors) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.as = time.Time{}
	return d.drop()
}
