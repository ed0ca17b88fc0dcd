package snapshotter_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/format"
	"github.com/peelfs/peel/snapshotter"
	"golang.org/x/sys/unix"
)

// file is an entry of a layer.
type file struct {
	name string
	data string
	tar.Header
}

func dir(name string, mode int64) file {
	return file{name, "", tar.Header{Typeflag: tar.TypeDir, Mode: mode}}
}

func regular(name, data string) file {
	return file{name, data, tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}}
}

func link(name, to string) file {
	return file{name, "", tar.Header{Typeflag: tar.TypeLink, Linkname: to}}
}

// layer is an uncompressed layer.
type layer struct {
	format.Layer
	tar []byte
}

func newLayer(t *testing.T, files ...file) *layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := f.Header
		h.Name, h.Size = f.name, int64(len(f.data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(buf.Bytes())
	return &layer{format.Layer{Blob: d, Size: int64(buf.Len()), DiffID: d}, buf.Bytes()}
}

// Open is that of content.Blob.
func (l *layer) Open(_ context.Context, off, n int64) (io.ReadCloser, bool, error) {
	return io.NopCloser(bytes.NewReader(l.tar[off : off+n])), n == l.Size, nil
}

// source is a Layers whose layers are in memory.
type source struct {
	store *content.Store

	mu      sync.Mutex
	layers  map[digest.Digest]*layer
	fail    map[digest.Digest]error // of Bring
	brought map[digest.Digest]int
	dropped map[digest.Digest]int
	vanish  int // so many layers are gone again once they have been brought
}

func (s *source) Bring(ctx context.Context, o snapshotter.Origin) (string, error) {
	s.mu.Lock()
	l, err := s.layers[o.Layer], s.fail[o.Layer]
	s.brought[o.Layer]++
	s.mu.Unlock()
	if err != nil {
		return "", err
	}
	raw, err := content.BuildIndex(ctx, l.Layer, l, nil, nil)
	if err != nil {
		return "", err
	}
	if err := s.store.AddIndex(ctx, l.Layer, raw, "test"); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vanish--; s.vanish >= 0 {
		return "indexed", s.store.Remove(o.Layer)
	}
	return "indexed", nil
}

func (s *source) Open(o snapshotter.Origin) (*content.Layer, error) {
	s.mu.Lock()
	l := s.layers[o.Layer]
	s.mu.Unlock()
	return s.store.Layer(l.Layer, func(digest.Digest, int64) content.Blob { return l })
}

func (s *source) Tar(_ context.Context, o snapshotter.Origin) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return io.NopCloser(bytes.NewReader(s.layers[o.Layer].tar)), nil
}

func (s *source) Drop(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropped[d]++
}

// rig is a snapshotter in a folder.
type rig struct {
	*snapshotter.Snapshotter
	source *source
	opts   snapshotter.Options
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("this needs root")
		}
		t.Skip("this needs root")
	}
	root := t.TempDir()
	store, err := content.Open(filepath.Join(root, "content"), content.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &rig{
		source: &source{store: store, layers: map[digest.Digest]*layer{}, fail: map[digest.Digest]error{}, brought: map[digest.Digest]int{}, dropped: map[digest.Digest]int{}},
		opts: snapshotter.Options{
			Root: filepath.Join(root, "root"), State: filepath.Join(root, "state"), Log: slog.New(slog.DiscardHandler),
		},
	}
	r.open(t)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left := mountsBelow(t, root); len(left) > 0 {
			t.Errorf("mounts are left: %q", left)
		}
	})
	return r
}

func (r *rig) open(t *testing.T) {
	t.Helper()
	var err error
	if r.Snapshotter, err = snapshotter.New(r.source, r.opts); err != nil {
		t.Fatal(err)
	}
}

// reopen ends the snapshotter and opens it again, as a new process would.
func (r *rig) reopen(t *testing.T) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r.open(t)
}

// mountsBelow returns what is mounted below a folder.
func mountsBelow(t *testing.T, dir string) (points []string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	return points
}

// labels are what containerd says of a layer.
func labels(chain digest.Digest, l *layer) map[string]string {
	return map[string]string{
		snapshots.LabelSnapshotRef:             chain.String(),
		snapshotters.TargetRefLabel:            "registry.example/app:1",
		snapshotters.TargetManifestDigestLabel: digest.FromString("manifest").String(),
		snapshotters.TargetLayerDigestLabel:    l.Blob.String(),
	}
}

// pull asks for the layers as containerd does, and returns the name of the
// topmost snapshot. It fails the test if one is not there remotely.
func (r *rig) pull(t *testing.T, layers ...*layer) (top string) {
	t.Helper()
	var ids []digest.Digest
	for _, l := range layers {
		r.source.mu.Lock()
		r.source.layers[l.Blob] = l
		r.source.mu.Unlock()
		ids = append(ids, l.DiffID)
		chain := identity.ChainID(ids)
		_, err := r.Prepare(t.Context(), "extract "+chain.String(), top, snapshots.WithLabels(labels(chain, l)))
		if !errdefs.IsAlreadyExists(err) {
			t.Fatalf("prepare layer %d: %v, want that it exists", len(ids), err)
		}
		top = r.find(t, chain, top)
	}
	return top
}

// find returns the name of a snapshot, as containerd looks for it.
func (r *rig) find(t *testing.T, chain digest.Digest, parent string) (name string) {
	t.Helper()
	filter := `labels."containerd.io/snapshot.ref"==` + chain.String() + `,parent=="` + parent + `"`
	err := r.Walk(t.Context(), func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted {
			name = i.Name
		}
		return nil
	}, filter)
	if err != nil || name == "" {
		t.Fatalf("no snapshot matches %s: %v", filter, err)
	}
	return name
}

// show mounts a container's snapshot until the end of the test, or until done
// is called.
func (r *rig) show(t *testing.T, key, parent string) (root string, done func()) {
	t.Helper()
	mounts, err := r.Prepare(t.Context(), key, parent)
	if err != nil {
		t.Fatal(err)
	}
	return mounted(t, mounts)
}

func mounted(t *testing.T, mounts []mount.Mount) (root string, done func()) {
	t.Helper()
	root = t.TempDir()
	if err := mount.All(mounts, root); err != nil {
		t.Fatal(err)
	}
	once := sync.OnceFunc(func() {
		if err := unix.Unmount(root, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	t.Cleanup(once)
	return root, once
}

// tree lists the files below a folder: directories with a slash, files with
// their data.
func tree(t *testing.T, root string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, _ := filepath.Rel(root, path)
		switch {
		case d.IsDir():
			out = append(out, name+"/")
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			out = append(out, name+"="+string(data))
		default:
			out = append(out, name+"?")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}
