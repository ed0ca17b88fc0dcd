package snapshotter

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/fs/erofs"
	"golang.org/x/sys/unix"
)

// writeMeta writes the metadata of a layer as an EROFS image, and to sum.
func writeMeta(path string, sum hash.Hash, layer *content.Layer, below []string) (err error) {
	entries, err := layer.Index().Entries()
	if err != nil {
		return err
	}
	look := &lookBelow{dirs: below}
	tree, err := erofs.FromLayer(entries, look.at)
	if err := errors.Join(look.close(), look.err); err != nil {
		return fmt.Errorf("look at the layers below: %w", err)
	}
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(io.MultiWriter(f, sum), 1<<20)
	if err := erofs.Write(w, tree, []int64{layer.Size()}); err != nil {
		return err
	}
	return w.Flush()
}

// indexSum returns the SHA-256 of a layer's index.
func indexSum(layer *content.Layer) (string, error) {
	sum := sha256.New()
	_, err := layer.WriteIndex(sum)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// acquire opens a layer, or shares it with who has it open.
func (t *lowers) acquire(o Origin) (*opened, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a, ok := t.open[o.Layer]; ok {
		a.uses++
		return a, nil
	}
	layer, err := t.layers.Open(o)
	if err != nil {
		return nil, err
	}
	a := &opened{Layer: layer, uses: 1}
	t.open[o.Layer] = a
	return a, nil
}

// giveBack closes a layer if nobody else has it open.
func (t *lowers) giveBack(a *opened) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.uses--; a.uses > 0 {
		return
	}
	delete(t.open, a.ID().Blob)
	t.blobs.Remove(a.String())
	if err := a.Close(); err != nil {
		t.log.Warn("closing a layer", "layer", a.ID().Blob, "error", err)
	}
}

// mounted returns the directory of a snapshot's layer, mounted; remote is
// false if the snapshot is an ordinary one.
func (t *lowers) mounted(ctx context.Context, id string) (dir string, remote bool, err error) {
	t.mu.Lock()
	l, ok := t.of[id]
	t.mu.Unlock()
	if !ok {
		return "", false, t.lost(id)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	dir = filepath.Join(t.dir(l), "fs")
	if l.layer != nil {
		return dir, true, nil
	}
	layer, err := t.acquire(l.info.Origin)
	if err != nil {
		return "", true, fmt.Errorf("mount layer %s of %s: %w", l.info.Layer, l.info.Image, err)
	}
	if err := t.mount(l, layer, dir); err != nil {
		t.giveBack(layer)
		return "", true, fmt.Errorf("mount layer %s of %s: %w", l.info.Layer, l.info.Image, err)
	}
	l.layer = layer
	return dir, true, ctx.Err()
}

// mount mounts a lower. Its metadata says where the files' data is in the flat
// blob, so the layer must still have the index that it was made of.
func (t *lowers) mount(l *lower, layer *opened, dir string) error {
	of, err := indexSum(layer.Layer)
	if err != nil {
		return err
	}
	if of != l.info.Index {
		return errors.New("the store has another index of it than when it was pulled; remove its images and pull them again")
	}
	device, ok := layer.Whole()
	if !ok {
		device = t.blobs.Add(layer.String(), layer.Layer)
	}
	_, err = erofs.Mount(filepath.Join(t.dir(l), "meta"), []string{device}, dir, erofs.MountOptions{})
	return err
}

// lost says what is wrong with a snapshot that has a link to nowhere.
func (t *lowers) lost(id string) error {
	link := filepath.Join(filepath.Dir(t.root), "snapshots", id, "fs")
	if to, err := os.Readlink(link); err == nil {
		return fmt.Errorf("snapshot %s: its layer's mount %s is lost; remove its image and pull it again", id, to)
	}
	return nil
}

// unmount unmounts a lower. Containers that have it beneath them keep it.
func (t *lowers) unmount(l *lower) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.layer == nil {
		return nil
	}
	if err := detach(filepath.Join(t.dir(l), "fs")); err != nil {
		return err
	}
	t.giveBack(l.layer)
	l.layer = nil
	return nil
}

// detach takes what is mounted on a folder out of sight, if anything is.
func detach(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("detach %s: %w", dir, err)
	}
	return nil
}
