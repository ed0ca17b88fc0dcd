package containerd

import (
	"context"
	"os/exec"
	"path/filepath"
	"regexp"

	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/process"
)

var stargzListens = regexp.MustCompile("stargz: listening")

// Stargz starts the stargz snapshotter, with everything it keeps, and a log,
// below dir. It pulls lazily what is in the eStargz format.
func Stargz(ctx context.Context, dir string) (Snapshotter, error) {
	program, err := parts.Own(ctx, dir, "stargz")
	if err != nil {
		return Snapshotter{}, err
	}
	s := Snapshotter{
		Name:    "stargz",
		Address: filepath.Join(dir, "stargz.socket"),
		Root:    filepath.Join(dir, "stargz.root"),
	}
	p, _, err := process.Start(ctx, exec.Command(program, s.Address, s.Root), filepath.Join(dir, "stargz.log"), stargzListens)
	if err != nil {
		return Snapshotter{}, err
	}
	s.Stop = p.Stop
	return s, nil
}
