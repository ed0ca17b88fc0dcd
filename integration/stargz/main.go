// Command stargz serves the stargz snapshotter, from the packages of its Go
// module and with its defaults, as a proxy plugin of containerd. It is a peer
// to compare with.
//
//	stargz SOCKET ROOT
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"google.golang.org/grpc"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: stargz SOCKET ROOT")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}

// serve serves until the context ends, and unmounts what it has mounted.
func serve(ctx context.Context, socket, root string) error {
	snapshotter, err := service.NewStargzSnapshotterService(ctx, root, new(service.Config))
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return errors.Join(err, snapshotter.Close())
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	go func() {
		<-ctx.Done()
		server.Stop()
	}()
	fmt.Fprintln(os.Stderr, "stargz: listening on", socket)
	return errors.Join(server.Serve(listener), snapshotter.Close())
}
