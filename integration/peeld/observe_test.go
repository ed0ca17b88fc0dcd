package peeld_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/peeld"
	"github.com/peelfs/peel/integration/registry"
	"golang.org/x/sys/unix"
)

// observed is an image of a layer that is lazy, and one that is too small.
func observed(t *testing.T) v1.Image {
	t.Helper()
	random := rand.NewChaCha8([32]byte{})
	var files []file
	for i := range 8 {
		data := make([]byte, 1<<20)
		_, _ = random.Read(data)
		files = append(files, regular(fmt.Sprintf("data/%d", i), string(data)))
	}
	return imageOf(t, mutate.Addendum{Layer: layerOf(t, files...)}, mutate.Addendum{Layer: layerOf(t, regular("greeting", "hello\n"))})
}

// bring prepares the layers of an image as containerd does, and returns the
// name of the topmost.
func bring(ctx context.Context, t *testing.T, sn snapshots.Snapshotter, ref string, img v1.Image) (top string) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("sha256:chain-%d", i)
		_, err = sn.Prepare(ctx, "extract-"+strconv.Itoa(i), top, snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef: name, snapshotters.TargetRefLabel: ref,
			snapshotters.TargetManifestDigestLabel: manifest.String(), snapshotters.TargetLayerDigestLabel: d.String(),
		}))
		if !errdefs.IsAlreadyExists(err) {
			t.Fatalf("layer %d: %v, want that it exists already", i, err)
		}
		top = name
	}
	return top
}

// local asks a daemon's status socket.
func local(t *testing.T, d *peeld.Daemon, path string) (status int, body string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(d.State, "status.sock"))
	}}}
	return get(t, &client, "http://peeld"+path)
}

func get(t *testing.T, client *http.Client, address string) (status int, body string) {
	t.Helper()
	resp, err := client.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// sample returns the value of a metric, with the labels in the order of the
// text; -1 if there is none.
func sample(t *testing.T, metrics, name string) float64 {
	t.Helper()
	for line := range strings.Lines(metrics) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	return -1
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// rig is a registry with an image, and a daemon.
type rig struct {
	registry *registry.Registry
	img      v1.Image
	ref      string
	daemon   *peeld.Daemon
	sn       snapshots.Snapshotter
	peel     cli.Peel
}

// newRig pushes the image, with its index if it is to be lazy, and starts a
// daemon.
func newRig(t *testing.T, config string, indexed bool) *rig {
	t.Helper()
	needRoot(t)
	r, err := registry.Start(t.Context(), t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() }) // a test may have closed it
	x := &rig{registry: r, img: observed(t), ref: r.Addr() + "/observed:latest", daemon: start(t, config)}
	if err := r.Push(t.Context(), x.img, "observed"); err != nil {
		t.Fatal(err)
	}
	x.peel = cli.Peel{Program: filepath.Join(filepath.Dir(x.daemon.Program), "peel"), Root: t.TempDir()}
	if indexed {
		if _, err := x.peel.Run(t.Context(), "index", "--push", x.ref); err != nil {
			t.Fatal(err)
		}
	}
	sn, disconnect, err := connect(x.daemon)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := disconnect(); err != nil {
			t.Error(err)
		}
	})
	x.sn = sn
	return x
}

// explain returns what peel explain says of the image.
func (r *rig) explain(t *testing.T) string {
	t.Helper()
	out, err := r.peel.Run(t.Context(), "explain", "--state", r.daemon.State, r.ref)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestObserve brings an image through the daemon, reads a file, and looks at
// what the daemon says of it at every step.
func TestObserve(t *testing.T) {
	ctx := namespaces.WithNamespace(t.Context(), "default")
	address := freePort(t)
	r := newRig(t, fmt.Sprintf("metrics = %q\nlog_level = \"debug\"\n", address), true)
	d, ref := r.daemon, r.ref
	if out := r.explain(t); !strings.Contains(out, "index attached to the image") || !strings.Contains(out, "less than small_layer") {
		t.Errorf("before the image is here, peel explain says %s", out)
	}
	top := bring(ctx, t, r.sn, ref, r.img)
	if out := r.explain(t); !strings.Contains(out, "index from artifact") || !strings.Contains(out, "read whole") {
		t.Errorf("peel explain says %s", out)
	}
	_, before := local(t, d, "/metrics")
	readOne(ctx, t, r.sn, top)
	_, after := local(t, d, "/metrics")

	host := "registry=\"" + r.registry.Addr() + "\""
	for name, more := range map[string]bool{
		`peeld_fetch_seconds_count{cause="demand"}`:                 true,
		`peeld_fetch_seconds_count{cause="whole"}`:                  false,
		`peeld_spans_total{result="verified"}`:                      true,
		`peeld_spans_total{result="corrupt"}`:                       false,
		`peeld_wire_bytes_total{cause="demand",` + host + `}`:       true,
		`peeld_wire_bytes_total{cause="index",` + host + `}`:        false,
		`peeld_wire_bytes_total{cause="manifests",` + host + `}`:    false,
		`peeld_wire_bytes_total{cause="whole",` + host + `}`:        false,
		`peeld_wire_requests_total{cause="referrers",` + host + `}`: false,
		`peeld_reads_total{result="fetched"}`:                       true,
		`peeld_reads_total{result="failed"}`:                        false,
		`peeld_layers{kind="lazy"}`:                                 false,
	} {
		if was, is := sample(t, before, name), sample(t, after, name); is < 0 || is > max(was, 0) != more {
			t.Errorf("%s was %v and is %v, want more: %v", name, was, is, more)
		}
	}
	share := "peeld_image_present_ratio{digest=\"" + must(r.img.Digest()).String() + "\",image=\"" + ref + "\"}"
	if was, is := sample(t, before, share), sample(t, after, share); was < 0 || is <= was || is >= 1 {
		t.Errorf("the image's share was %v and is %v", was, is)
	}
	for deadline := time.Now().Add(time.Minute); sample(t, after, "peeld_start_seconds_count") != 1; _, after = local(t, d, "/metrics") {
		if time.Now().After(deadline) {
			t.Fatal("the container's start is not measured")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if _, public := get(t, http.DefaultClient, "http://"+address+"/metrics"); sample(t, public, `peeld_layers{kind="read whole"}`) != 1 || sample(t, public, "go_goroutines") <= 0 {
		t.Errorf("at the address for Prometheus: %s", public)
	}
	for path, want := range map[string]int{"/debug/pprof/": http.StatusNotFound, "/explain?image=UPPER": http.StatusConflict, "/status": http.StatusOK} {
		if got, body := local(t, d, path); got != want || path == "/status" && !json.Valid([]byte(body)) {
			t.Errorf("%s gives %d, want %d: %s", path, got, want, body)
		}
	}
	if out, err := r.peel.Run(ctx, "status", "--state", d.State); err != nil || !strings.Contains(out, ref) {
		t.Errorf("peel status says %s, %v", out, err)
	}
	for line := range strings.Lines(d.Log()) {
		if strings.Contains(line, " layer=") && !strings.Contains(line, " image=") {
			t.Errorf("a line about a layer does not name its image: %s", line)
		}
	}
}

// TestExplainUnpacked has a layer unpacked, and asks why, also a daemon that
// has been started since.
func TestExplainUnpacked(t *testing.T) {
	ctx := namespaces.WithNamespace(t.Context(), "default")
	r := newRig(t, `index = "eager"`, false)
	d := r.daemon
	top := bring(ctx, t, r.sn, r.ref, r.img)
	readOne(ctx, t, r.sn, top)
	_, metrics := local(t, d, "/metrics")
	if n := sample(t, metrics, `peeld_wire_bytes_total{cause="unpack",registry="`+r.registry.Addr()+`"}`); n < 8<<20 {
		t.Errorf("%v bytes were fetched to be unpacked", n)
	}
	for _, when := range []string{"at first", "after a restart"} {
		if out := r.explain(t); !strings.Contains(out, "unpacked") || !strings.Contains(out, `index is "eager"`) || !strings.Contains(out, "small_layer") {
			t.Errorf("%s, peel explain says %s", when, out)
		}
		if when == "at first" {
			if err := d.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := d.Restart(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func must(h v1.Hash, err error) v1.Hash {
	if err != nil {
		panic(err)
	}
	return h
}

// shown mounts a container's snapshot of an image.
func shown(ctx context.Context, t *testing.T, sn snapshots.Snapshotter, top string) (dir string) {
	t.Helper()
	if _, err := sn.Prepare(ctx, "container", top); err != nil {
		t.Fatal(err)
	}
	mounts, err := sn.Mounts(ctx, "container")
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.UnmountAll(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// readOne reads a file of each layer of an image in a container's snapshot.
func readOne(ctx context.Context, t *testing.T, sn snapshots.Snapshotter, top string) {
	t.Helper()
	dir := shown(ctx, t, sn, top)
	for name, size := range map[string]int{"data/3": 1 << 20, "greeting": 6} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || len(got) != size || bytes.Count(got, []byte{0}) == size {
			t.Fatalf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// TestStuckRead reads what is not here when the registry is gone.
func TestStuckRead(t *testing.T) {
	ctx := namespaces.WithNamespace(t.Context(), "default")
	r := newRig(t, `read_timeout = "16s"`, true)
	d := r.daemon
	dir := shown(ctx, t, r.sn, bring(ctx, t, r.sn, r.ref, r.img))
	if err := r.registry.Close(); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(dir, "data/5"))
		failed <- err
	}()
	for stuck := 0.0; stuck < 1; {
		_, metrics := local(t, d, "/metrics")
		stuck = sample(t, metrics, "peeld_reads_stuck")
		select {
		case err := <-failed:
			t.Fatalf("the read ended with %v before it was seen to be stuck", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if err := <-failed; !errors.Is(err, unix.EIO) {
		t.Errorf("the read ends with %v", err)
	}
	_, metrics := local(t, d, "/metrics")
	if n := sample(t, metrics, `peeld_reads_total{result="failed"}`); n < 1 {
		t.Errorf("%v reads have failed", n)
	}
	if !strings.Contains(d.Log(), `msg="read failed" image=`+r.registry.Addr()+"/observed") {
		t.Error("the log does not say of which image a read failed")
	}
}
