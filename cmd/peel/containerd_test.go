package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/peelfs/peel/cmd/internal/daemon"
	"github.com/pelletier/go-toml/v2"
)

const goodContainerd = `version = 3
[proxy_plugins.peel]
  type = "snapshot"
  address = "/run/peeld/peeld.sock"
  capabilities = ["remap-ids"]
  [proxy_plugins.peel.exports]
    enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/ARCH"
  snapshotter = "peel"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "peel"
  disable_snapshot_annotations = false
`

// remedies returns what the doctor recommends for a configuration.
func remedies(t *testing.T, text string, st *daemon.Status) string {
	t.Helper()
	var cfg containerdConfig
	if err := toml.Unmarshal([]byte(strings.ReplaceAll(text, "ARCH", runtime.GOARCH)), &cfg); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range cfg.check(st, daemon.DefaultState) {
		if f.is == "" {
			t.Errorf("%s says nothing", f.what)
		}
		if f.remedy != "" {
			fmt.Fprintf(&all, "%s: %s: %s\n", f.what, f.is, f.remedy)
		}
	}
	return all.String()
}

func TestContainerdFindings(t *testing.T) {
	if got := remedies(t, goodContainerd, nil); got != "" {
		t.Errorf("of a good configuration: %s", got)
	}
	if got := remedies(t, "version = 3", nil); !strings.Contains(got, tell) {
		t.Errorf("of an empty configuration: %s", got)
	}
	for name, tc := range map[string]struct{ old, new, want string }{
		"another name":    {"[proxy_plugins.peel]", "[proxy_plugins.other]", "snapshotter = \"other\""},
		"wrong address":   {"/run/peeld/peeld.sock", "/run/peel.sock", `address = "/run/peeld/peeld.sock"`},
		"wrong type":      {`type = "snapshot"`, `type = "content"`, `type = "snapshot"`},
		"no exports":      {"enable_remote_snapshot_annotations", "other", "downloads all"},
		"export is false": {`annotations = "true"`, `annotations = "false"`, "downloads all"},
		"rebase":          {`["remap-ids"]`, `["remap-ids", "rebase"]`, `take "rebase" out`},
		"no unpacking":    {"[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]", "[[plugins.other.unpack_config]]", "unpack_config"},
		"other platform":  {"linux/ARCH", "linux/s390x", "only for linux/s390x"},
		"CRI snapshotter": {"\"peel\"\n  disable", "\"overlayfs\"\n  disable", "overlayfs, so Kubernetes"},
		"CRI annotations": {"annotations = false", "annotations = true", "disable_snapshot_annotations = false"},
		"CRI by default":  {"[plugins.\"io.containerd.cri.v1.images\"]", "[plugins.other]", "containerd's default"},
		"runtime":         {"version = 3", "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata]\nsnapshotter = \"devmapper\"", "containerd runtime kata"},
		"runtime platform": {"version = 3", "version = 3\n[plugins.\"io.containerd.cri.v1.images\".runtime_platforms.kata]\nsnapshotter = \"devmapper\"",
			"runtime_platforms.kata"},
		"old version": {"version = 3", "version = 2", "migrate"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(goodContainerd, tc.old, tc.new, 1)
			if text == goodContainerd {
				t.Fatalf("%q is not in the configuration", tc.old)
			}
			if got := remedies(t, text, nil); !strings.Contains(got, tc.want) {
				t.Errorf("no %s in %s", tc.want, got)
			}
		})
	}
}

func TestContainerdAndDaemon(t *testing.T) {
	st := &daemon.Status{Address: "/other/peeld.sock"}
	if got := remedies(t, goodContainerd, st); !strings.Contains(got, `address = "/other/peeld.sock"`) {
		t.Errorf("a daemon at another address: %s", got)
	}
	st = &daemon.Status{Address: "/run/peeld/peeld.sock", NoIDMap: "no such thing"}
	if got := remedies(t, goodContainerd, st); !strings.Contains(got, `take "remap-ids" out`) {
		t.Errorf("a daemon that cannot map: %s", got)
	}
}

func TestDoctorReadsContainerd(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("version = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := run(t, "--root", t.TempDir(), "doctor", "--containerd-config", file)
	if !strings.Contains(out, "does not know peeld") || !strings.Contains(out, tell) {
		t.Errorf("of a file without the plugin: %s", out)
	}
	if err := os.WriteFile(file, []byte("version ="), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _ := run(t, "--root", t.TempDir(), "doctor", "--containerd-config", file); !strings.Contains(out, "--containerd-config FILE") {
		t.Errorf("of a broken file: %s", out)
	}
}
