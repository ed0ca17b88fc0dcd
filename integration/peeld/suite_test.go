package peeld_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/peelfs/peel/integration/peeld"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// connect returns the snapshotter behind a daemon's socket.
func connect(d *peeld.Daemon) (snapshots.Snapshotter, func() error, error) {
	conn, err := grpc.NewClient("unix://"+d.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "peel"), conn.Close, nil
}

// TestSuite runs containerd's own tests of snapshotters against the socket of a
// daemon, a new one for each. The name tells the suite what to expect of an
// overlay.
func TestSuite(t *testing.T) {
	needRoot(t)
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		d, err := peeld.Start(ctx, filepath.Clean(root), "")
		if err != nil {
			return nil, nil, err
		}
		sn, disconnect, err := connect(d)
		return sn, func() error { return errors.Join(disconnect(), d.Close()) }, err
	})
}
