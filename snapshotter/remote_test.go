package snapshotter_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/peelfs/peel/snapshotter"
	"golang.org/x/sys/unix"
)

func base(t *testing.T) *layer {
	return newLayer(t, dir("etc/", 0o750), regular("etc/conf", "one"), regular("etc/gone", "x"),
		dir("opt/", 0o700), regular("opt/old", "old"), file{"lib", "", tar.Header{Typeflag: tar.TypeSymlink, Linkname: "opt"}})
}

// A chain of remote layers shows what the layers say, one over the other, and
// takes writes.
func TestRemoteChain(t *testing.T) {
	r := newRig(t)
	top := r.pull(t, base(t), newLayer(t,
		regular("etc/new", "2"), // without its directory: that stays as it is
		regular("etc/.wh.gone", ""), regular("etc/.wh.never", ""),
		dir("opt/", 0o711), regular("opt/.wh..wh..opq", ""), regular("opt/fresh", "3"),
	))
	root, _ := r.show(t, "container", top)
	if got, want := tree(t, root), "etc/ etc/conf=one etc/new=2 lib? opt/ opt/fresh=3"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for name, want := range map[string]os.FileMode{"etc": 0o750, "opt": 0o711} {
		if st, err := os.Stat(filepath.Join(root, name)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v (%v)", name, st.Mode(), want, err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/conf"), []byte("written"), 0o644); err != nil {
		t.Error(err)
	}
}

// What was committed above remote layers is an ordinary snapshot.
func TestCommitAboveRemote(t *testing.T) {
	r := newRig(t)
	top := r.pull(t, base(t))
	root, done := r.show(t, "container", top)
	if err := errors.Join(os.WriteFile(filepath.Join(root, "etc/mine"), []byte("m"), 0o644), os.Remove(filepath.Join(root, "etc/gone"))); err != nil {
		t.Fatal(err)
	}
	done()
	if err := r.Commit(t.Context(), "committed", "container"); err != nil {
		t.Fatal(err)
	}
	again, _ := r.show(t, "another", "committed")
	if got, want := tree(t, filepath.Join(again, "etc")), "conf=one mine=m"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A layer that no directory of its own can show is unpacked, and so is one
// that Layers says is.
func TestUnpacked(t *testing.T) {
	r := newRig(t)
	below := base(t)
	hard := newLayer(t, link("etc/linked", "etc/conf"), regular("etc/.wh.gone", ""))
	told := newLayer(t, regular("told", "t"))
	r.source.fail[told.Blob] = fmt.Errorf("%w: it is a test", snapshotter.ErrUnpack)
	after := newLayer(t, regular("after", "a"))
	root, _ := r.show(t, "container", r.pull(t, below, hard, told, after))
	if got, want := tree(t, root), "after=a etc/ etc/conf=one etc/linked=one lib? opt/ opt/old=old told=t"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A layer that cannot be had remotely is left to containerd.
func TestLeftToContainerd(t *testing.T) {
	r := newRig(t)
	l := base(t)
	r.source.fail[l.Blob] = errors.New("no registry")
	with := labels(l.DiffID, l)
	for name, labels := range map[string]map[string]string{
		"registry away":   with,
		"nothing is said": {snapshots.LabelSnapshotRef: l.DiffID.String()},
	} {
		mounts, err := r.Prepare(t.Context(), name, "", snapshots.WithLabels(labels))
		if err != nil || len(mounts) != 1 {
			t.Errorf("%s: got %v, %v, want mounts to unpack into", name, mounts, err)
		}
	}
	if err := r.Commit(t.Context(), "ns/1/"+l.DiffID.String(), "registry away", snapshots.WithLabels(with)); err != nil {
		t.Fatal(err)
	}
	_, err := r.Prepare(t.Context(), "again", "", snapshots.WithLabels(with))
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("what containerd has unpacked is not found by its label: %v", err)
	}
}

// Images, chains and containers share a layer's mount; it is unmounted, and its
// data let go of, with the last snapshot that shows it.
func TestShared(t *testing.T) {
	r := newRig(t)
	shared, other, above := base(t), newLayer(t, regular("other", "o")), newLayer(t, regular("above", "a"))
	one := r.pull(t, shared, above)
	two := r.pull(t, other, above)
	_, doneOne := r.show(t, "one", one)
	_, doneTwo := r.show(t, "two", two)
	if n := len(mountsBelow(t, r.opts.Root)); n != 3 {
		t.Errorf("%d mounts for 3 layers", n)
	}
	doneOne()
	doneTwo()
	for _, key := range []string{"one", one, r.parent(t, one)} {
		r.remove(t, key)
	}
	if err := r.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.source.dropped[above.Blob] != 0 || r.source.dropped[shared.Blob] != 1 {
		t.Errorf("dropped: %v", r.source.dropped)
	}
	for _, key := range []string{"two", two, r.parent(t, two)} {
		r.remove(t, key)
	}
	if err := r.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.source.dropped[above.Blob] != 1 || r.source.dropped[other.Blob] != 1 {
		t.Errorf("dropped: %v", r.source.dropped)
	}
	if left := mountsBelow(t, r.opts.Root); len(left) > 0 {
		t.Errorf("still mounted: %q", left)
	}
	for _, folder := range []string{"lowers", "snapshots"} {
		if left, err := os.ReadDir(filepath.Join(r.opts.Root, folder)); err != nil || len(left) > 0 {
			t.Errorf("%s has %v, %v", folder, left, err)
		}
	}
}

func (r *rig) parent(t *testing.T, key string) string {
	t.Helper()
	info, err := r.Stat(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return info.Parent
}

func (r *rig) remove(t *testing.T, key string) {
	t.Helper()
	if err := r.Remove(t.Context(), key); err != nil {
		t.Fatalf("remove %s: %v", key, err)
	}
}

// After a restart the snapshots are there, and nobody is asked for a layer.
func TestReopen(t *testing.T) {
	r := newRig(t)
	top := r.pull(t, base(t), newLayer(t, regular("above", "a")))
	asked := len(r.source.brought)
	r.reopen(t)
	root, _ := r.show(t, "container", top)
	if got, want := tree(t, filepath.Join(root, "etc")), "conf=one gone=x"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if r.pull(t, base(t)); len(r.source.brought) != asked {
		t.Errorf("a layer that is there was brought: %v", r.source.brought)
	}
}

// Metadata is not shown over data that another index has put elsewhere.
func TestOtherIndex(t *testing.T) {
	r := newRig(t)
	l := base(t)
	top := r.pull(t, l)
	file := filepath.Join(r.opts.Root, "lowers", "1", "info")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(raw, []byte(`"index":"`)) + len(`"index":"`)
	raw[at] ^= 1
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	r.reopen(t)
	if _, err := r.Prepare(t.Context(), "container", top); err == nil || !strings.Contains(err.Error(), l.Blob.String()) {
		t.Errorf("got %v, want an error that names the layer", err)
	}
}

// A layer that goes with another image just when it is wanted is brought again.
func TestLayerVanishes(t *testing.T) {
	r := newRig(t)
	r.source.vanish = 2
	l := base(t)
	root, _ := r.show(t, "container", r.pull(t, l))
	if got, want := tree(t, filepath.Join(root, "etc")), "conf=one gone=x"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if n := r.source.brought[l.Blob]; n != 3 {
		t.Errorf("it was brought %d times, want 3", n)
	}
}

// Usage is what is on the disk, counted once.
func TestUsage(t *testing.T) {
	r := newRig(t)
	big := newLayer(t, regular("big", string(make([]byte, 8<<20))), regular("small", "s"))
	top := r.pull(t, big)
	usage := func(key string) int64 {
		u, err := r.Usage(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return u.Size
	}
	before := usage(top)
	if before <= 0 || before > 1<<20 {
		t.Errorf("a layer that nobody has read takes %d bytes", before)
	}
	root, _ := r.show(t, "container", top)
	if _, err := os.ReadFile(filepath.Join(root, "big")); err != nil {
		t.Fatal(err)
	}
	if after := usage(top); after < 8<<20 {
		t.Errorf("a layer of 8 MiB that was read takes %d bytes", after)
	}
	second := r.pull(t, newLayer(t, regular("under", "u")), big)
	if n := usage(second); n != 0 {
		t.Errorf("a layer counts twice: %d bytes for the second time", n)
	}
	if err := os.WriteFile(filepath.Join(root, "written"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := usage("container"); n < 1<<20 {
		t.Errorf("the container has written 1 MiB, and takes %d bytes", n)
	}
}

// Many containers that start at once share the mounts.
func TestManyAtOnce(t *testing.T) {
	r := newRig(t)
	layers := []*layer{base(t), newLayer(t, regular("above", "a"))}
	top := r.pull(t, layers...)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			mounts, err := r.Prepare(t.Context(), fmt.Sprint("container ", i), top)
			if err != nil || len(mounts) != 1 {
				t.Errorf("container %d: %v, %v", i, mounts, err)
			}
		})
	}
	all.Wait()
	if n := len(mountsBelow(t, r.opts.Root)); n != 2 {
		t.Errorf("%d mounts for 2 layers", n)
	}
}

// Pulls of one image at once make one snapshot of each layer.
func TestPullsAtOnce(t *testing.T) {
	r := newRig(t)
	l := base(t)
	r.source.layers[l.Blob] = l
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			_, err := r.Prepare(t.Context(), fmt.Sprint("extract ", i), "", snapshots.WithLabels(labels(l.DiffID, l)))
			if !errdefs.IsAlreadyExists(err) {
				t.Errorf("pull %d: %v", i, err)
			}
		})
	}
	all.Wait()
	n := 0
	if err := r.Walk(t.Context(), func(context.Context, snapshots.Info) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d snapshots, %v", n, err)
	}
	if left, err := os.ReadDir(filepath.Join(r.opts.Root, "lowers")); err != nil || len(left) != 1 {
		t.Errorf("%d lowers, %v", len(left), err)
	}
}

// The images' mapping of users makes the files theirs, without a change of the
// layer.
func TestIDMap(t *testing.T) {
	if ok, why := snapshotter.SupportsIDMap(t.TempDir()); !ok {
		t.Fatalf("mounts cannot be ID-mapped: %v", why)
	}
	r := newRig(t)
	top := r.pull(t, base(t), newLayer(t, regular("above", "a")))
	mounts, err := r.Prepare(t.Context(), "container", top, snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:100000:65536", snapshots.LabelSnapshotGIDMapping: "0:200000:65536",
	}))
	if err != nil {
		t.Fatal(err)
	}
	root, _ := mounted(t, mounts)
	for _, name := range []string{".", "etc/conf", "above"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(root, name), &st); err != nil || st.Uid != 100000 || st.Gid != 200000 {
			t.Errorf("%s is of user %d and group %d, want 100000 and 200000 (%v)", name, st.Uid, st.Gid, err)
		}
	}
}
