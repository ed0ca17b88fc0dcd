package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/parts"
)

// The limits of a process that has this many images of 100,000 files mounted.
const (
	daemonImages     = 20
	daemonMemory     = 60  // MB
	erofsWriteLimit  = 0.1 // seconds
	inProcessMetrics = "100,000 files, in the process: "
)

// daemon mounts many images of 100,000 files in one process.
func daemon(ctx context.Context, b *bed) (round, func() error, error) {
	img, err := images.Files(ctx)
	if err != nil {
		return nil, nil, err
	}
	program, err := parts.Own(ctx, b.dir, "bench/daemon")
	if err != nil {
		return nil, nil, err
	}
	root := filepath.Join(b.dir, "daemon.root")
	layers, err := fill(ctx, root, img)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, s *samples) error { return b.daemon(ctx, s, program, root, layers) }, nothing, nil
}

// daemon runs the process once.
func (b *bed) daemon(ctx context.Context, s *samples, program, root string, layers []format.Layer) (err error) {
	dir, err := os.MkdirTemp(b.dir, "daemon")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mounts.Detach(dir), os.RemoveAll(dir)) }()
	args := []string{root}
	for i := range layers {
		mnt := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(mnt, 0o755); err != nil {
			return err
		}
		args = append(args, mnt)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = json.NewEncoder(stdin).Encode(layers[0])
	for _, l := range layers[1:] {
		err = errors.Join(err, json.NewEncoder(stdin).Encode(l))
	}
	if err == nil {
		err = watch(ctx, s, stdout, cmd.Process.Pid, args[1:])
	}
	if err := errors.Join(err, stdin.Close(), cmd.Wait()); err != nil {
		return fmt.Errorf("%s: %w\n%s", program, err, &stderr)
	}
	return nil
}

// watch takes the figures of a daemon that is to mount on the folders.
func watch(ctx context.Context, s *samples, stdout io.Reader, pid int, dirs []string) error {
	lines := bufio.NewScanner(stdout)
	for range dirs {
		if !lines.Scan() {
			return errors.Join(errors.New("it ended before it had mounted all"), lines.Err())
		}
		var decode, merge, write, mount float64
		if _, err := fmt.Sscan(lines.Text(), &decode, &merge, &write, &mount); err != nil {
			return fmt.Errorf("it printed %q: %w", lines.Text(), err)
		}
		s.add(inProcessMetrics+"index decoded", peelRow, "s", decode)
		s.add(inProcessMetrics+"entries merged", peelRow, "s", merge)
		s.add(inProcessMetrics+"EROFS image of one layer written", peelRow, "s", write)
		s.limit(inProcessMetrics+"EROFS image of one layer written", peelRow, erofsWriteLimit)
		s.add(inProcessMetrics+"EROFS image of the tree written and mounted", peelRow, "s", mount)
	}
	for _, dir := range dirs {
		if err := exec.CommandContext(ctx, "find", dir, "-size", "+1000G").Run(); err != nil {
			return fmt.Errorf("find %s: %w", dir, err)
		}
	}
	now, peak, err := resident(pid)
	if err != nil {
		return err
	}
	metric := fmt.Sprintf("memory, %d images of 100,000 files mounted and listed", daemonImages)
	s.add(metric+": now", peelRow, "MB", now)
	s.limit(metric+": now", peelRow, daemonMemory)
	s.add(metric+": peak", peelRow, "MB", peak)
	return nil
}

// fill makes a store with the indices of many layers: the image's own with one
// file changed, another one in each.
func fill(ctx context.Context, root string, img *images.Image) (layers []format.Layer, err error) {
	all, err := img.Layers()
	if err != nil {
		return nil, err
	}
	id, blob, err := source(all[0])
	if err != nil {
		return nil, err
	}
	raw, err := content.BuildIndex(ctx, id, blob, nil, nil)
	if err != nil {
		return nil, err
	}
	store, err := content.Open(root, content.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	for i := range daemonImages {
		id, raw, err := variant(raw, i)
		if err != nil {
			return nil, err
		}
		if err := store.AddIndex(ctx, id, raw, "made up"); err != nil {
			return nil, err
		}
		layers = append(layers, id)
	}
	return layers, nil
}

// variant returns the index with the i-th entry changed, as that of a layer of
// its own.
func variant(raw []byte, i int) (id format.Layer, changed []byte, err error) {
	f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return id, nil, err
	}
	b, err := index.NewBuilder()
	if err != nil {
		return id, nil, err
	}
	b.Header = f.Header
	b.Header.Blob, b.Header.DiffID = digest.FromString(fmt.Sprint("blob", i)), digest.FromString(fmt.Sprint("tar", i))
	if b.Entries, err = f.Entries(); err != nil {
		return id, nil, err
	}
	b.Entries[i].Mode ^= 0o100
	if b.Digests, err = f.Digests(); err != nil {
		return id, nil, err
	}
	if b.Spans, err = f.Spans(); err != nil {
		return id, nil, err
	}
	for i := range b.Spans {
		window, err := f.Window(&b.Spans[i])
		if err != nil {
			return id, nil, err
		}
		if window != nil {
			b.Spans[i].Window = b.AddWindow(window)
		}
	}
	id = format.Layer{Blob: b.Header.Blob, Size: b.Header.BlobSize, DiffID: b.Header.DiffID}
	changed, err = b.Encode()
	return id, changed, err
}

// source returns a layer as a store takes it.
func source(l v1.Layer) (id format.Layer, blob content.Blob, err error) {
	hash, err := l.Digest()
	if err != nil {
		return id, nil, err
	}
	diffID, err := l.DiffID()
	if err != nil {
		return id, nil, err
	}
	size, err := l.Size()
	return format.Layer{Blob: digest.Digest(hash.String()), Size: size, DiffID: digest.Digest(diffID.String())}, whole{l}, err
}

// whole is a layer that can only be had whole.
type whole struct{ v1.Layer }

// Open implements content.Blob.
func (w whole) Open(context.Context, int64, int64) (io.ReadCloser, bool, error) {
	body, err := w.Compressed()
	return body, true, err
}
