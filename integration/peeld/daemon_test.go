package peeld_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/link"
	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/peeld"
	"github.com/peelfs/peel/integration/registry"
)

// start starts a daemon for a test.
func start(t *testing.T, config string) *peeld.Daemon {
	t.Helper()
	d, err := peeld.Start(t.Context(), t.TempDir(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(d.Log())
		}
	})
	return d
}

// TestEndDuringPull ends a daemon while it reads a layer over a link on which
// that takes minutes.
func TestEndDuringPull(t *testing.T) {
	needRoot(t)
	r, err := registry.Start(t.Context(), t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	img := observed(t)
	if err := r.Push(t.Context(), img, "slow"); err != nil {
		t.Fatal(err)
	}
	slow, err := link.New(r.Addr(), link.Options{Rate: 500e3})
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	d := start(t, "")
	sn, disconnect, err := connect(d)
	if err != nil {
		t.Fatal(err)
	}
	defer disconnect()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "default"), time.Minute)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		layers, _ := img.Layers()
		_, err := sn.Prepare(ctx, "extract", "", snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef: "sha256:chain", snapshotters.TargetRefLabel: slow.Addr() + "/slow:latest",
			snapshotters.TargetManifestDigestLabel: must(img.Digest()).String(), snapshotters.TargetLayerDigestLabel: must(layers[0].Digest()).String(),
		}))
		failed <- err
	}()
	for slow.Received() < 100<<10 { // it is reading the layer
		select {
		case err := <-failed:
			t.Fatalf("Prepare ended early: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	began := time.Now()
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the daemon took %v to end", took)
	}
	if err := <-failed; err == nil {
		t.Error("Prepare succeeded without the layer")
	}
	if err := d.Restart(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSecondDaemon starts a daemon where one runs.
func TestSecondDaemon(t *testing.T) {
	needRoot(t)
	d := start(t, "")
	for _, dirs := range [][2]string{{d.Root, t.TempDir()}, {t.TempDir(), d.State}} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		out, err := exec.CommandContext(ctx, d.Program, "--root", dirs[0], "--state", dirs[1]).CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), "another peeld") {
			t.Errorf("a second daemon in %v: %v: %s", dirs, err, out)
		}
	}
	if status, body := local(t, d, "/status"); status != 200 {
		t.Errorf("the first one then answers %d: %s", status, body)
	}
}

// TestDoctorOfContainerd has containerd itself tell its configuration.
func TestDoctorOfContainerd(t *testing.T) {
	needRoot(t)
	programs, err := parts.Containerd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, "")
	good, err := d.ContainerdConfig()
	if err != nil {
		t.Fatal(err)
	}
	peel := cli.Peel{Program: filepath.Join(filepath.Dir(d.Program), "peel"), Root: t.TempDir()}
	for text, want := range map[string]string{
		good:          "",
		"version = 3": "does not know peeld",
		strings.ReplaceAll(good, "enable_remote", "enable"):                       "downloads all",
		strings.Replace(good, `capabilities = [`, `capabilities = ["rebase",`, 1): "rebase",
	} {
		file := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := peel.Command(t.Context(), "doctor", "--state", d.State, "--containerd-config", file)
		cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var ill []string
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "--") && strings.Contains(line, "containerd") {
				ill = append(ill, line)
			}
		}
		if want == "" && len(ill) > 0 || want != "" && !strings.Contains(strings.Join(ill, ""), want) {
			t.Errorf("of this configuration, the doctor finds %q, want %q:\n%s", ill, want, text)
		}
	}
}
