package images

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

//go:embed app.py
var app []byte

// Program is the command in the Python image that a container would run. It
// prints Ready, and more on the same line, as soon as it can serve.
var Program = []string{"/usr/bin/python3", "/app/main.py"}

// Ready is how the first line of Program's output starts.
const Ready = "ready:"

// Python returns an image of Debian, of the machine's own release, in four
// layers: the base system, Python, two large libraries, and a small program
// that also leaves in the file system what is rare in packages.
func Python(ctx context.Context) (*Image, error) {
	config := v1.Config{Entrypoint: Program, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
	return cached("python", config, func(scratch string) ([]v1.Layer, error) {
		return debian(ctx, scratch,
			install("python3"),
			install("python3-django", "python3-numpy"),
			addOddities,
		)
	})
}

// change changes the root file system below root.
type change func(ctx context.Context, root string) error

// debian builds the base system and one layer on top for each change.
func debian(ctx context.Context, scratch string, changes ...change) ([]v1.Layer, error) {
	base := filepath.Join(scratch, "base.tar")
	if err := bootstrap(ctx, scratch, base); err != nil {
		return nil, err
	}
	lower := filepath.Join(scratch, "base")
	if err := os.Mkdir(lower, 0o755); err != nil {
		return nil, err
	}
	if err := run(ctx, nil, "tar", "-C", lower, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", base); err != nil {
		return nil, err
	}
	fills := []func(io.Writer) error{func(w io.Writer) error { return copyFile(w, base) }}
	lowers := []string{lower}
	for i, c := range changes {
		upper, err := overlay(ctx, filepath.Join(scratch, fmt.Sprint("change", i+1)), lowers, c)
		if err != nil {
			return nil, err
		}
		lowers = append(lowers, upper)
		fills = append(fills, func(w io.Writer) error { return writeDiff(w, upper) })
	}
	return compress(scratch, fills)
}

func compress(scratch string, fills []func(io.Writer) error) ([]v1.Layer, error) {
	layers := make([]v1.Layer, len(fills))
	var all errgroup.Group
	for i, fill := range fills {
		all.Go(func() (err error) {
			layers[i], err = writeLayer(filepath.Join(scratch, fmt.Sprint("layer", i)), Gzip, fill)
			return err
		})
	}
	return layers, all.Wait()
}

// bootstrap writes the tar of a minimal Debian system.
func bootstrap(ctx context.Context, scratch, target string) error {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return err
	}
	codename, err := codename(string(release))
	if err != nil {
		return err
	}
	sources, err := debianSources("/etc/apt", codename)
	if err != nil {
		return err
	}
	args := []string{
		"--variant=minbase", "--format=tar",
		"--aptopt=" + filepath.Join(scratch, "apt.conf"),
		// Merged /usr from the start, as in Debian's own images: the package
		// usrmerge, which apt would choose, brings all of Perl.
		`--setup-hook=mkdir -p "$1"/etc/apt/preferences.d`,
		`--setup-hook=printf 'Package: usrmerge\nPin: release *\nPin-Priority: -1\n' >"$1"/etc/apt/preferences.d/merged`,
		"--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
		`--customize-hook=cd "$1"/etc && rm -f apt/preferences.d/merged apt/apt.conf.d/99mmdebstrap hostname resolv.conf`,
		codename, target,
	}
	for name, text := range sources {
		path := filepath.Join(scratch, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
		args = append(args, path)
	}
	// How this machine reaches its sources: a proxy, for one.
	conf, err := exec.CommandContext(ctx, "apt-config", "dump",
		"Acquire::http", "Acquire::https", "Acquire::Check-Valid-Until", "Acquire::Check-Date").Output()
	if err != nil {
		return fmt.Errorf("apt-config dump: %w", err)
	}
	conf = append(conf, "Acquire::Retries \"3\";\n"...)
	if err := os.WriteFile(filepath.Join(scratch, "apt.conf"), conf, 0o644); err != nil {
		return err
	}
	return run(ctx, nil, "mmdebstrap", args...)
}

// install returns the change that installing packages makes. It uses the apt of
// this machine, so it needs nothing in the image, and leaves no lists there.
func install(packages ...string) change {
	return func(ctx context.Context, root string) error {
		args := []string{"-o", "Dir=" + root, "-o", "DPkg::Chroot-Directory=" + root,
			"-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "--yes"}
		apt := func(more ...string) error {
			env := []string{"DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"}
			return run(ctx, env, "apt-get", append(args[:len(args):len(args)], more...)...)
		}
		if err := apt("update"); err != nil {
			return err
		}
		if err := apt(append([]string{"install", "--no-install-recommends"}, packages...)...); err != nil {
			return err
		}
		for _, trash := range []string{"var/lib/apt/lists/*", "var/cache/apt/*", "var/log/apt", "var/log/*.log"} {
			paths, err := filepath.Glob(filepath.Join(root, trash))
			if err != nil {
				return err
			}
			for _, p := range paths {
				if err := os.RemoveAll(p); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// run runs a command to its end, with env added to this process's environment.
// Its output is part of the error, if there is one.
func run(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, &output)
	}
	return nil
}
