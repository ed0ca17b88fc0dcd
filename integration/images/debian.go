package images

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// searchPath is where the shells of all images look for programs.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Debian returns an image of one layer: a minimal system of Debian, of the
// machine's own release. It is the base of the others.
func Debian(ctx context.Context) (*Image, error) {
	return cached("debian", v1.Config{Cmd: []string{"bash"}, Env: []string{searchPath}}, func(scratch string) ([]v1.Layer, error) {
		tar := filepath.Join(scratch, "base.tar")
		if err := bootstrap(ctx, scratch, tar, nil); err != nil {
			return nil, err
		}
		return compress(scratch, func(w io.Writer) error { return copyFile(w, tar) })
	})
}

// onDebian returns an image of the base and one layer on top for each change.
func onDebian(ctx context.Context, name string, program []string, changes ...change) (*Image, error) {
	base, err := Debian(ctx)
	if err != nil {
		return nil, err
	}
	layers, err := base.Layers()
	if err != nil {
		return nil, err
	}
	config := v1.Config{Entrypoint: program, Env: []string{searchPath}}
	return cached(name, config, func(scratch string) ([]v1.Layer, error) {
		lower := filepath.Join(scratch, "base")
		if err := unpack(ctx, layers[0], lower); err != nil {
			return nil, err
		}
		lowers := []string{lower}
		var fills []func(io.Writer) error
		for i, c := range changes {
			upper, err := overlay(ctx, filepath.Join(scratch, fmt.Sprint("change", i+1)), lowers, c)
			if err != nil {
				return nil, err
			}
			lowers = append(lowers, upper)
			fills = append(fills, func(w io.Writer) error { return writeDiff(w, upper) })
		}
		changed, err := compress(scratch, fills...)
		return append(layers, changed...), err
	})
}

// unpack unpacks a layer into a new directory.
func unpack(ctx context.Context, l v1.Layer, dir string) error {
	tar, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer tar.Close()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return run(ctx, tar, nil, "tar", "-C", dir, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xp")
}

// compress makes a layer of each tar.
func compress(scratch string, fills ...func(io.Writer) error) ([]v1.Layer, error) {
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

// bootstrap writes the tar of a minimal Debian system. without names suites, as
// "bookworm-security", whose packages are not taken.
func bootstrap(ctx context.Context, scratch, target string, without []string, packages ...string) error {
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
		"--include=" + strings.Join(packages, ","),
		`--customize-hook=cd "$1"/etc && rm -f apt/preferences.d/merged apt/apt.conf.d/99mmdebstrap hostname resolv.conf`,
	}
	for _, suite := range without {
		args = append(args, `--setup-hook=printf '\nPackage: *\nPin: release n=`+codename+suite+`\nPin-Priority: -1\n' >>"$1"/etc/apt/preferences.d/merged`)
	}
	args = append(args, codename, target)
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
	return run(ctx, nil, nil, "mmdebstrap", args...)
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
func run(ctx context.Context, stdin io.Reader, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = stdin
	cmd.Env = append(os.Environ(), env...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, &output)
	}
	return nil
}
