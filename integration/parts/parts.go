// Package parts builds the programs that peel is run against, from their own Go
// modules at the versions that this module's go.mod pins, and peel itself.
//
// It knows how each is built. It does not run them. It must be called with a
// working directory inside this module.
package parts

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/peelfs/peel/integration/cache"
)

// Peel builds peel from this checkout and returns the path of the program.
func Peel(ctx context.Context) (string, error) {
	mod, err := output(ctx, "go", "env", "GOMOD")
	if err != nil {
		return "", err
	}
	root := filepath.Dir(filepath.Dir(mod))
	if _, err := output(ctx, "make", "--no-print-directory", "-C", root, "build"); err != nil {
		return "", err
	}
	return filepath.Join(root, "bin", "peel"), nil
}

// Registry returns the path of the CNCF distribution registry.
func Registry(ctx context.Context) (string, error) {
	const module = "github.com/distribution/distribution/v3"
	dir, err := build(ctx, module, "", "registry")
	return filepath.Join(dir, "registry"), err
}

// Containerd returns a folder with containerd, ctr and containerd-shim-runc-v2.
// It is containerd without the snapshotters that need a file system of their
// own, which nothing here uses.
func Containerd(ctx context.Context) (dir string, err error) {
	const module = "github.com/containerd/containerd/v2"
	return build(ctx, module, "no_btrfs,no_devmapper,no_zfs", "containerd", "ctr", "containerd-shim-runc-v2")
}

// Own builds a command of this folder, as "bench/load", into dir, and returns
// the path of the program. Go's own cache makes it quick.
func Own(ctx context.Context, dir, name string) (string, error) {
	mod, err := output(ctx, "go", "env", "GOMOD")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, filepath.Base(name))
	_, err = output(ctx, "env", "CGO_ENABLED=0", "go", "build", "-C", filepath.Join(filepath.Dir(mod), name),
		"-trimpath", "-ldflags=-s -w", "-o", program, ".")
	return program, err
}

// build builds commands of a module's cmd folder into one cached folder.
func build(ctx context.Context, module, tags string, commands ...string) (dir string, err error) {
	version, err := output(ctx, "go", "list", "-m", "-f", "{{.Version}}", module)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("bin/%s-%s-%s", commands[0], version, runtime.Version())
	if tags != "" {
		name += "-" + strings.ReplaceAll(tags, ",", "-")
	}
	return cache.Dir(name, func(dir string) error {
		args := []string{"build", "-trimpath", "-ldflags=-s -w", "-tags=" + tags, "-o", dir + "/"}
		for _, c := range commands {
			args = append(args, module+"/cmd/"+c)
		}
		_, err := output(ctx, "env", append([]string{"CGO_ENABLED=0", "go"}, args...)...)
		return err
	})
}

// output runs a command and returns what it writes, without the last newline.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out)), nil
}
