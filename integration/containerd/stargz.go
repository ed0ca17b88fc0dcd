package containerd

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/process"
)

// stargzConfig adds the snapshotter, and has layers' references and digests
// told to it, so that it need not wait for their contents.
const stargzConfig = `
[proxy_plugins.stargz]
type = "snapshot"
address = %q
[proxy_plugins.stargz.exports]
root = %q
enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/%s"
snapshotter = "stargz"
`

var stargzListens = regexp.MustCompile("stargz: listening")

// StartStargz starts containerd as Start does, with the stargz snapshotter. It
// pulls lazily what is in the eStargz format.
func StartStargz(ctx context.Context, dir string) (*Containerd, error) {
	program, err := parts.Own(ctx, dir, "stargz")
	if err != nil {
		return nil, err
	}
	socket, root := filepath.Join(dir, "stargz.socket"), filepath.Join(dir, "stargz.root")
	p, _, err := process.Start(ctx, exec.Command(program, socket, root), filepath.Join(dir, "stargz.log"), stargzListens)
	if err != nil {
		return nil, err
	}
	c, err := start(ctx, dir, "stargz", fmt.Sprintf(stargzConfig, socket, root, runtime.GOARCH))
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	c.stargz = p
	return c, nil
}
