package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/registry"
)

// The links that are measured over.
var (
	slow = link.Options{Rate: 100e6, RTT: 20 * time.Millisecond}
	fast = link.Options{}
)

// bed is what all experiments share: a folder and a registry with images.
type bed struct {
	peel     string // the program
	load     string // that of the folder load
	dir      string
	remove   func() error
	registry *registry.Registry
	pushed   map[string]bool
}

func newBed(ctx context.Context, peel string) (*bed, error) {
	dir, remove, err := mounts.TempDir()
	if err != nil {
		return nil, err
	}
	load, err := parts.Own(ctx, dir, "bench/load")
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	r, err := registry.Start(ctx, dir, "")
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	return &bed{peel, load, dir, remove, r, map[string]bool{}}, nil
}

func (b *bed) close() error { return errors.Join(b.registry.Close(), b.remove()) }

// push pushes an image, with indices if indexed, and returns its repository.
func (b *bed) push(ctx context.Context, img *images.Image, indexed bool) (repo string, err error) {
	repo = img.Name
	if !indexed {
		repo += "-plain"
	}
	if b.pushed[repo] {
		return repo, nil
	}
	if err := b.registry.Push(ctx, img, repo); err != nil {
		return "", err
	}
	if indexed {
		indexer := cli.Peel{Program: b.peel, Root: filepath.Join(b.dir, "indexer")}
		if _, err := indexer.Run(ctx, "index", "--push", b.ref(repo)); err != nil {
			return "", err
		}
	}
	b.pushed[repo] = true
	return repo, nil
}

// node makes a folder for a peel that has nothing in its store, and in it one
// to mount on.
func (b *bed) node(name string) (peel cli.Peel, dir, mnt string, err error) {
	if dir, err = os.MkdirTemp(b.dir, name); err != nil {
		return peel, "", "", err
	}
	mnt = filepath.Join(dir, "mnt")
	return cli.Peel{Program: b.peel, Root: filepath.Join(dir, "peel")}, dir, mnt, os.Mkdir(mnt, 0o755)
}

// ref names the repository's image, with no link in between.
func (b *bed) ref(repo string) string { return b.registry.Addr() + "/" + repo + ":latest" }

// fileSystems names those that tests usually run on, by statfs(2)'s number.
var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "XFS", unix.BTRFS_SUPER_MAGIC: "Btrfs",
	unix.TMPFS_MAGIC: "tmpfs, which has no cold reads", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
}

// disk returns what holds the files in dir, and how far it reads ahead, which
// is much of what cold reads depend on.
func disk(dir string) (string, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "", err
	}
	name := cmp.Or(fileSystems[int64(fs.Type)], fmt.Sprintf("file system %#x", fs.Type))
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", err
	}
	ahead, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return name, nil // not every file system says
	}
	return fmt.Sprintf("%s that reads %s KiB ahead", name, strings.TrimSpace(string(ahead))), nil
}

// machine returns a line on what this runs on, with its files in dir.
func machine(dir string) (string, error) {
	files, err := disk(dir)
	if err != nil {
		return "", err
	}
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return "", err
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return "", err
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	model := "unknown processor"
	for line := range strings.Lines(string(cpuinfo)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	release := string(uname.Release[:bytes.IndexByte(uname.Release[:], 0)])
	memory := float64(info.Totalram) * float64(info.Unit) / (1 << 30)
	return fmt.Sprintf("%d cores (%s), %.0f GiB, Linux %s, %s, files on %s.",
		runtime.NumCPU(), model, memory, release, runtime.Version(), files), nil
}
