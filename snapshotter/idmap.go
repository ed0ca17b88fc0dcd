package snapshotter

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/fs/erofs"
	"golang.org/x/sys/unix"
)

// SupportsIDMap says whether the kernel can show a layer to a container of
// another user namespace without a change of its files' owners, by an ID-mapped
// mount of EROFS (Linux 5.19), and if not, why. It tries it, in a folder. Only
// where it works may containerd be told of the capability remap-ids.
func SupportsIDMap(folder string) (ok bool, why error) {
	why = tryIDMap(folder)
	return why == nil, why
}

func tryIDMap(folder string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("trying it needs root")
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(folder, "probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var meta bytes.Buffer
	root := &erofs.Node{Entry: &index.Entry{Name: ".", Type: index.Dir, Mode: 0o755}}
	if err := erofs.Write(&meta, root, nil); err != nil {
		return err
	}
	image, at, mapped := filepath.Join(dir, "meta"), filepath.Join(dir, "at"), filepath.Join(dir, "mapped")
	if err := os.WriteFile(image, meta.Bytes(), 0o600); err != nil {
		return err
	}
	for _, d := range []string{at, mapped} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if _, err := erofs.Mount(image, nil, at, erofs.MountOptions{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Unmount(at, 0)) }()
	const shifted = "0:100000:65536"
	ns, err := mount.GetUsernsFD(shifted, shifted)
	if err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	defer ns.Close()
	if err := mount.IDMapMount(at, mapped, int(ns.Fd())); err != nil {
		return err
	}
	return unix.Unmount(mapped, 0)
}
