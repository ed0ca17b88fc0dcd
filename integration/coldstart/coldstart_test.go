package coldstart

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/registry"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("chroot takes root")
	}
	t.Skip("chroot takes root")
}

func TestFirstOutput(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name, root, script string
		line               string
		err                string
	}{
		{"ready", "/", "echo loading; echo ready: 1; echo ready: 2", "ready: 1", ""},
		{"never ready", "/", "echo loading", "", "without a line"},
		{"fails", "/", "echo ready: 1; echo oh no >&2; exit 3", "ready: 1", "oh no"},
		{"not in this root", t.TempDir(), "echo ready: 1", "", "No such file"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var lines []string
			program := chroot(t.Context(), test.root, Program{Args: []string{"/bin/sh", "-c", test.script}})
			err := firstOutput(program, "ready:", func(line string) { lines = append(lines, line) })
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("got error %v, want %q", err, test.err)
			}
			if got := strings.Join(lines, "|"); got != test.line {
				t.Errorf("the first output was %q, want %q", got, test.line)
			}
		})
	}
}

// TestPulled starts a program after a full pull, as the demo does, and in a
// container.
func TestPulled(t *testing.T) {
	needRoot(t)
	img, err := images.Python(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.Start(t.Context(), t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Push(t.Context(), img, "python"); err != nil {
		t.Fatal(err)
	}
	size, err := img.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	node := Node{Registry: r}
	tests := []struct {
		name  string
		args  []string
		start func(context.Context, Program) (Result, error)
	}{
		{"mounted", images.Program, node.AfterPull},
		{"in a container", nil, func(ctx context.Context, p Program) (Result, error) { return node.Container(ctx, p, Overlayfs) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			result, err := test.start(t.Context(), Program{"python", test.args, images.Ready})
			if err != nil {
				t.Fatal(err)
			}
			if result.Root <= 0 || result.Output <= result.Root {
				t.Errorf("the root file system took %v, and the output %v", result.Root, result.Output)
			}
			if result.Received < size || result.Received > size+size/100 {
				t.Errorf("%d bytes came over the link, want the layers' %d and few more", result.Received, size)
			}
			if result.Requests < 6 { // a manifest, a config, and four layers
				t.Errorf("got %d requests, want at least 6", result.Requests)
			}
		})
	}
}
