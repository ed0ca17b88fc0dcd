package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	lockPoll = 10 * time.Millisecond
	tempFile = ".peel.tmp" // in a layout's folder, for whoever has the lock
)

// attach writes the artifact's blobs and manifest to the layout, and then
// lists the manifest in index.json. Each file is there whole or not at all,
// and of two processes that attach one waits for the other. Other programs do
// not know the lock.
func (l folder) attach(ctx context.Context, a artifact) error {
	path, _ := l.ref.split()
	t, err := openRoot(path)
	if err != nil {
		return err
	}
	defer t.Close()
	release, err := lockLayout(ctx, t)
	if err != nil {
		return err
	}
	defer release()
	manifest := BytesBlob(a.d.MediaType, nil, a.manifest)
	for _, b := range append(a.blobs, manifest) {
		if err := t.writeBlob(ctx, b); err != nil {
			return fmt.Errorf("write blob %s: %w", b.Digest, fileError(err))
		}
	}
	if err := t.list(a.d); err != nil {
		return fmt.Errorf("list the artifact in %s: %w", ocispec.ImageIndexFile, fileError(err))
	}
	return nil
}

// lockLayout locks the file oci-layout, which nobody replaces. It waits by
// asking again, since a blocked call could not be cancelled. The lock goes
// with the process, however it ends.
func lockLayout(ctx context.Context, t rootTree) (release func(), err error) {
	f, err := t.OpenFile(ocispec.ImageLayoutFile, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError(err)
	}
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			err = wait(ctx, lockPoll)
			if err == nil {
				continue
			}
		}
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", ocispec.ImageLayoutFile, err)
		}
		return func() { _ = f.Close() }, nil // which ends the lock
	}
}

// writeBlob writes a blob, unless it is there and has its digest.
func (t rootTree) writeBlob(ctx context.Context, b ArtifactBlob) error {
	if err := checkDigest(b.Digest); err != nil {
		return err
	}
	name := blobName(b.Digest)
	if f, err := openFile(t, name); err == nil {
		got, err := digest.SHA256.FromReader(contextReader{ctx, f})
		_ = f.Close()
		if err == nil && got == b.Digest {
			return nil
		}
	}
	if err := t.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return t.replace(name, 0o644, func(w io.Writer) error {
		from, err := b.Open()
		if err != nil {
			return err
		}
		defer from.Close()
		h := digest.SHA256.Digester()
		n, err := io.Copy(io.MultiWriter(w, h.Hash()), contextReader{ctx, from})
		if err == nil && (n != b.Size || h.Digest() != b.Digest) {
			err = fmt.Errorf("what came has %d bytes and digest %s", n, h.Digest())
		}
		return err
	})
}

// list adds a descriptor to index.json, unless it is there. Everything else
// stays as it is, also what this package does not know.
func (t rootTree) list(d ocispec.Descriptor) error {
	raw, entries, err := readIndex(t)
	if err != nil {
		return err
	}
	for _, o := range entries {
		if o.Digest == d.Digest {
			return nil
		}
	}
	if raw, err = addEntry(raw, d); err != nil {
		return err
	}
	if len(raw) > maxManifest {
		return fmt.Errorf("it would have %d bytes, more than %d", len(raw), maxManifest)
	}
	info, err := t.Stat(ocispec.ImageIndexFile)
	if err != nil {
		return err
	}
	return t.replace(ocispec.ImageIndexFile, info.Mode().Perm(), func(w io.Writer) error {
		_, err := w.Write(raw)
		return err
	})
}

// addEntry adds a descriptor to an index.
func addEntry(index []byte, d ocispec.Descriptor) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(index, &fields); err != nil {
		return nil, err
	}
	for key := range fields {
		if key != "manifests" && strings.EqualFold(key, "manifests") {
			return nil, fmt.Errorf("it says %q for \"manifests\", which some readers take and others do not", key)
		}
	}
	var entries []any
	if old, ok := fields["manifests"]; ok {
		var list []json.RawMessage
		if err := json.Unmarshal(old, &list); err != nil {
			return nil, err
		}
		for _, e := range list {
			entries = append(entries, e)
		}
	}
	raw, err := json.Marshal(append(entries, d))
	if err != nil {
		return nil, err
	}
	fields["manifests"] = raw
	return json.Marshal(fields)
}

// replace makes a file have what write writes, or leaves it as it was. The
// layout is locked.
func (t rootTree) replace(name string, mode fs.FileMode, write func(io.Writer) error) error {
	if err := t.Remove(tempFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // of a process that was killed
	}
	f, err := t.OpenFile(tempFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = t.Rename(tempFile, name)
	}
	if err != nil {
		return errors.Join(err, t.Remove(tempFile))
	}
	return t.sync(path.Dir(name))
}

// sync makes a folder's entries survive a power loss.
func (t rootTree) sync(name string) error {
	dir, err := t.Root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
