package image_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/peelfs/peel/content"
	"golang.org/x/sys/unix"
)

// indexBlobs returns the blobs of the image's indices, with their sizes.
func indexBlobs(t *testing.T, s *server, p *image.Puller, ref string) map[string]int64 {
	t.Helper()
	img, err := p.Resolve(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	referrers, err := p.Client.Referrers(context.Background(), img, image.ArtifactType)
	if err != nil || len(referrers) != 1 {
		t.Fatal(referrers, err)
	}
	at, err := name.NewDigest(s.host + "/app@" + referrers[0].Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Get(at)
	if err != nil {
		t.Fatal(err)
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(got.Manifest, &manifest); err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int64{}
	for _, b := range manifest.Layers {
		sizes[b.Digest.String()] = b.Size
	}
	return sizes
}

// Several processes open an image at once: one of them fetches its indices.
func TestOpenAtOnce(t *testing.T) {
	s := newServer(t, true)
	ref := s.host + "/app:1"
	tar1, file1 := layerTar(t, 1)
	tar2, file2 := layerTar(t, 2)
	s.push(t, ref, tar1, tar2)
	first := newPuller(t, t.TempDir())
	pushIndex(t, first, ref)
	blobs := indexBlobs(t, s, first, ref)
	if len(blobs) != 2 {
		t.Fatalf("%d blobs of indices", len(blobs))
	}
	before := map[string]int64{}
	for blob := range blobs {
		before[blob] = s.sentOf(blob).Load()
	}
	root := t.TempDir()
	var all sync.WaitGroup
	for range 5 {
		p := newPuller(t, root)
		all.Go(func() { check(t, p, ref, file1, file2) })
	}
	all.Wait()
	for blob, size := range blobs {
		if sent := s.sentOf(blob).Load() - before[blob]; sent != size {
			t.Errorf("of an index of %d bytes %d were fetched", size, sent)
		}
	}
}

// A layer is removed after it was found in the store and before it is in use.
func TestOpenWhileRemoved(t *testing.T) {
	s := newServer(t, true)
	tar1, file1 := layerTar(t, 1)
	tar2, file2 := layerTar(t, 2)
	s.push(t, s.host+"/old:1", tar1)
	img := s.push(t, s.host+"/app:1", tar1, tar2)
	root := t.TempDir()
	p, other := newPuller(t, root), newPuller(t, root)
	check(t, p, s.host+"/old:1", file1)
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	p.Progress = func(_ string, blob digest.Digest, _, _ int64) {
		if blob.String() == manifest.Layers[1].Digest.String() {
			once.Do(func() {
				if err := other.Store.Remove(digest.Digest(manifest.Layers[0].Digest.String())); err != nil {
					t.Error(err)
				}
			})
		}
	}
	check(t, p, s.host+"/app:1", file1, file2)
	once.Do(func() { t.Error("nothing was removed") })
}

// On a full disk an image that is not here cannot be opened, and the error says
// what next; nothing is read whole for want of an index. One that is here can.
func TestOpenOnFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("mounting takes root")
		}
		t.Skip("mounting takes root")
	}
	mnt := t.TempDir()
	if err := unix.Mount("none", mnt, "tmpfs", 0, "size=32m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	})
	s := newServer(t, true)
	tar1, file1 := layerTar(t, 1)
	tar2, file2 := layerTar(t, 2)
	s.push(t, s.host+"/here:1", tar1)
	s.push(t, s.host+"/app:1", tar2)
	indexer := newPuller(t, t.TempDir())
	pushIndex(t, indexer, s.host+"/here:1")
	pushIndex(t, indexer, s.host+"/app:1")
	p := newPuller(t, filepath.Join(mnt, "store"))
	img, err := p.Open(context.Background(), s.host+"/here:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(mnt, "filler")
	if err := os.WriteFile(filler, make([]byte, 33<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	check(t, p, s.host+"/here:1", file1)
	before := s.blobs.Load()
	_, err = p.Open(context.Background(), s.host+"/app:1")
	if !errors.Is(err, content.ErrFull) || !strings.Contains(err.Error(), "peel cache rm") {
		t.Errorf("error %v", err)
	}
	if sent := s.blobs.Load() - before; sent > 100_000 {
		t.Errorf("%d bytes were fetched for nothing", sent)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	check(t, p, s.host+"/app:1", file2)
}
