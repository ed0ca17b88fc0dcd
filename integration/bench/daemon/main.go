// Command daemon mounts many images in one process, as a daemon of a node does,
// so that its memory can be looked at.
//
//	daemon ROOT DIR... < layers
//
// ROOT is a store that has the indices of the layers, of which it mounts each,
// as an image of its own, on one of the folders. It reads the layers as JSON.
// For each it prints the seconds that it took to open the layer and decode its
// index, to merge its entries, to write an EROFS image of them to a file, and
// to mount it. It unmounts them all at the end of its input.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/fs"
	"github.com/peelfs/peel/fs/erofs"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: daemon ROOT DIR...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "daemon:", err)
		os.Exit(1)
	}
}

func run(root string, dirs []string) (err error) {
	debug.SetGCPercent(gcPercent)
	store, err := content.Open(root, content.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	in := json.NewDecoder(os.Stdin)
	for _, dir := range dirs {
		var id format.Layer
		if err := in.Decode(&id); err != nil {
			return fmt.Errorf("read the layer for %s: %w", dir, err)
		}
		m, err := mount(store, id, root, dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, m.server.Unmount(), m.layer.Close()) }()
		fmt.Println(m.times.String())
		debug.FreeOSMemory() // as peel mount does
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// gcPercent is what peel mount sets, for the same reason.
const gcPercent = 40

type mounted struct {
	layer  *content.Layer
	server *fs.Server
	times  times
}

// times are what an image took, in the order of the work.
type times struct{ decode, merge, write, mount time.Duration }

func (t times) String() string {
	return fmt.Sprint(t.decode.Seconds(), t.merge.Seconds(), t.write.Seconds(), t.mount.Seconds())
}

func mount(store *content.Store, id format.Layer, root, dir string) (m mounted, err error) {
	clock := time.Now()
	lap := func(d *time.Duration) { *d = time.Since(clock); clock = time.Now() }
	if m.layer, err = store.Layer(id, nil); err != nil {
		return m, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.layer.Close())
		}
	}()
	entries, err := m.layer.Index().Entries()
	if err != nil {
		return m, err
	}
	lap(&m.times.decode)
	tree, err := fs.Merge([][]index.Entry{entries})
	if err != nil {
		return m, err
	}
	lap(&m.times.merge)
	if err := write(filepath.Join(root, "image.erofs"), entries, m.layer.Size()); err != nil {
		return m, err
	}
	lap(&m.times.write)
	m.server, err = fs.Mount(dir, tree, []fs.Blob{m.layer}, fs.Options{State: root})
	lap(&m.times.mount)
	return m, err
}

// write writes the image of one layer, as it is for an overlay's lower
// directory. fs.Mount does about the same for a whole image.
func write(path string, entries []index.Entry, flat int64) (err error) {
	tree, err := erofs.FromLayer(entries, nil)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	return erofs.Write(f, tree, []int64{flat})
}
