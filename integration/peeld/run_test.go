package peeld_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/peelfs/peel/integration/containerd"
	"github.com/peelfs/peel/integration/cri"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
)

// slow is the link of the figures.
var slow = link.Options{Rate: 100e6, RTT: 20 * time.Millisecond}

// compressed is the size of an image's layers.
func compressed(t *testing.T, img *images.Image) int64 {
	t.Helper()
	n, err := img.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// layersOf returns the digests of an image's layers.
func layersOf(t *testing.T, imgs ...v1.Image) []v1.Hash {
	t.Helper()
	var all []v1.Hash
	for _, img := range imgs {
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			if !slices.Contains(all, l.Digest) {
				all = append(all, l.Digest)
			}
		}
	}
	return all
}

// An indexed image runs when a quarter of it, at most, has come.
func TestRunIndexed(t *testing.T) {
	for _, test := range []struct {
		image    func(context.Context) (*images.Image, error)
		requests int // at most; the goal is 60, which takes a profile of the start where so much is read
	}{{images.Python, 60}, {images.Postgres, 90}} {
		img := made(t, test.image)
		t.Run(img.Name, func(t *testing.T) {
			push(t, img, img.Name, true)
			n := newNode(t, slow, "")
			out := n.run(t, n.pull(t, img.Name))
			if !strings.Contains(out, images.Ready) {
				t.Errorf("it printed %q", out)
			}
			got, all, requests := n.link.Received(), compressed(t, img), len(n.link.Requests())
			t.Logf("%d of %d bytes (%.1f%%) in %d requests", got, all, 100*float64(got)/float64(all), requests)
			if got > all/4 {
				t.Errorf("%d of %d bytes came, more than a quarter", got, all)
			}
			if requests > test.requests {
				t.Errorf("%d requests, more than %d", requests, test.requests)
			}
			n.noneLeft(t)
		})
	}
}

// Twenty containers of one image start at once, and share what they read.
func TestTwentyContainers(t *testing.T) {
	img := made(t, images.Python)
	push(t, img, img.Name, true)
	n := newNode(t, link.Options{}, "")
	image := n.pull(t, img.Name)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if out, err := n.Run(t.Context(), image); err != nil || !strings.Contains(out, images.Ready) {
				t.Errorf("it printed %q, %v", out, err)
			}
		})
	}
	all.Wait()
	if got, want := n.lowers(t), len(layersOf(t, img)); got != want {
		t.Errorf("%d mounts of layers, want %d", got, want)
	}
	if got, all := n.link.Received(), compressed(t, img); got > all/3 {
		t.Errorf("twenty containers took %d of %d bytes", got, all)
	}
}

// Images that share a base share its mount, and fetch nothing of it twice.
func TestSharedBase(t *testing.T) {
	python, gcc := made(t, images.Python), made(t, images.GCC)
	push(t, python, python.Name, true)
	push(t, gcc, gcc.Name, true)
	base := []string{"sh", "-c", "cat /bin/bash /usr/bin/dpkg | sha256sum"}
	n := newNode(t, link.Options{}, "")
	one := n.run(t, n.pull(t, python.Name), base...)
	image := n.pull(t, gcc.Name)
	before := n.link.Received()
	two := n.run(t, image, base...)
	if one != two {
		t.Errorf("%s printed %q, and %s %q", python.Name, one, gcc.Name, two)
	}
	if got := n.link.Received() - before; got > 1<<20 {
		t.Errorf("%d bytes came for what was here", got)
	}
	if got, want := n.lowers(t), len(layersOf(t, python, gcc)); got != want {
		t.Errorf("%d mounts of layers, want %d", got, want)
	}
}

// Namespaces share layers and nothing else.
func TestNamespaces(t *testing.T) {
	img := made(t, images.Python)
	push(t, img, img.Name, true)
	n := newNode(t, link.Options{}, "")
	image := n.pull(t, img.Name)
	other := n.In("other")
	if list, err := other.Snapshots(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("a namespace without images has the snapshots %v, %v", list, err)
	}
	if err := other.Pull(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	if err := n.Remove(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	if list, err := n.Snapshots(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("after the image's removal its namespace has the snapshots %v, %v", list, err)
	}
	if out, err := other.Run(t.Context(), image); err != nil || !strings.Contains(out, images.Ready) {
		t.Errorf("in the other namespace it printed %q, %v", out, err)
	}
	if err := other.Remove(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	if err := other.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := n.lowers(t); got != 0 {
		t.Errorf("%d layers are mounted when no image is left", got)
	}
}

// Kubernetes' way: a pod with a container.
func TestPod(t *testing.T) {
	img := made(t, images.Python)
	push(t, img, img.Name, true)
	n := newNode(t, link.Options{}, "")
	kubelet := n.dial(t)
	pod, err := kubelet.RunPod(t.Context(), "pod")
	if err != nil {
		t.Fatal(err)
	}
	before := n.link.Received()
	if _, err := kubelet.Pull(t.Context(), n.image(img.Name)); err != nil {
		t.Fatal(err)
	}
	c, err := pod.Start(t.Context(), "main", n.image(img.Name))
	if err != nil {
		t.Fatal(err)
	}
	if code, err := c.Wait(t.Context()); err != nil || code != 0 {
		t.Errorf("it ended with %d, %v", code, err)
	}
	if out, err := c.Output(); err != nil || !strings.Contains(out, images.Ready) {
		t.Errorf("it printed %q, %v", out, err)
	}
	if got, all := n.link.Received()-before, compressed(t, img); got > all/4 {
		t.Errorf("%d of %d bytes came, more than a quarter", got, all)
	}
	n.waitForUsage(t, kubelet)
	if err := pod.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	n.noneLeft(t)
}

// waitForUsage returns when the kubelet sees what images take on the disk, which
// containerd looks at every ten seconds.
func (n *node) waitForUsage(t *testing.T, kubelet *cri.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for poll := time.NewTicker(200 * time.Millisecond); ; {
		bytes, _, path, err := kubelet.Usage(ctx)
		if err != nil || path != n.peeld.Root {
			t.Fatalf("the kubelet looks at %s, %v, want %s", path, err, n.peeld.Root)
		}
		if bytes > 0 {
			poll.Stop()
			return
		}
		<-poll.C
	}
}

// A container that was changed is committed, pushed, and runs elsewhere, with a
// snapshotter that knows nothing of lazy layers.
func TestCommit(t *testing.T) {
	img := made(t, images.Python)
	push(t, img, img.Name, true)
	n := newNode(t, link.Options{}, "")
	id, err := n.Change(t.Context(), n.pull(t, img.Name), "sh", "-c", "rm -r /usr/share/doc; echo changed >/etc/motd; chmod 700 /opt")
	if err != nil {
		t.Fatal(err)
	}
	committed, err := n.Commit(t.Context(), id, img)
	if err != nil {
		t.Fatal(err)
	}
	push(t, committed, "committed", false)
	const look = "cat /etc/motd; stat -c %a /opt; ls /usr/share/doc 2>&1"
	want := "changed\n700\nls: cannot access '/usr/share/doc': No such file or directory\n"
	if out := n.run(t, n.pull(t, "committed"), "sh", "-c", look+"; true"); out != want {
		t.Errorf("on the same node it printed %q, want %q", out, want)
	}
	dir := t.TempDir()
	elsewhere, err := containerd.Start(t.Context(), dir, containerd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := elsewhere.Close(); err != nil {
			t.Error(err)
		}
	})
	image := shared.registry.Addr() + "/committed:latest"
	if err := elsewhere.Pull(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	if out, err := elsewhere.Run(t.Context(), image, "sh", "-c", look+"; true"); err != nil || out != want {
		t.Errorf("elsewhere it printed %q, %v, want %q", out, err, want)
	}
}

// In a user namespace the files are of the container's users, and no file was
// copied for it.
func TestUserNamespace(t *testing.T) {
	img := made(t, images.Python)
	push(t, img, img.Name, true)
	n := newNode(t, link.Options{}, "")
	image := n.pull(t, img.Name)
	before := n.link.Received()
	// With a network of its own: the kernel gives no other one's to a new user
	// namespace.
	out, err := n.Output(t.Context(), "run", "--rm", "--snapshotter", "peel", "--remap-labels",
		"--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", image, "mapped",
		"sh", "-c", "cat /proc/self/uid_map; stat -c '%u %g' / /bin/bash /etc/passwd; echo x >/etc/new && stat -c '%u %g' /etc/new")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(out)
	if want := []string{"0", "100000", "65536", "0", "0", "0", "0", "0", "0", "0", "0"}; !slices.Equal(fields, want) {
		t.Errorf("it printed\n%s", out)
	}
	if got, all := n.link.Received()-before, compressed(t, img); got > all/4 {
		t.Errorf("%d of %d bytes came", got, all)
	}
}

// Pulls at once, of images that share layers, fetch nothing twice.
func TestPullsAtOnce(t *testing.T) {
	var repos []string
	var all []v1.Image
	var want int64
	for _, image := range []func(context.Context) (*images.Image, error){images.Python, images.GCC} {
		img := made(t, image)
		for i := range 5 { // the same layers in images of their own
			repo := fmt.Sprintf("%s-%d", img.Name, i)
			push(t, img, repo, false)
			repos = append(repos, repo)
		}
		all = append(all, img)
	}
	seen := map[v1.Hash]bool{}
	for _, img := range all {
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			if !seen[l.Digest] {
				want += l.Size
			}
			seen[l.Digest] = true
		}
	}
	n := newNode(t, link.Options{}, "")
	var pulls sync.WaitGroup
	for i := range 20 {
		pulls.Go(func() {
			if err := n.Pull(t.Context(), n.image(repos[i%len(repos)])); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	const documents = 1 << 20 // manifests, configurations and HTTP's headers
	if got := n.link.Received(); got > want+documents {
		t.Errorf("%d bytes came of layers with %d", got, want)
	}
	n.noneLeft(t)
}
