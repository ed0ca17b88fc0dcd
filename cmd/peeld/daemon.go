package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/snapshotter"
	"github.com/peelfs/peel/transfer"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// gcPercent keeps the daemon small: it waits for most of its life.
const gcPercent = 40

// serve runs the daemon until the context ends.
func serve(ctx context.Context, cfg config) error {
	debug.SetGCPercent(gcPercent)
	if os.Geteuid() != 0 {
		return errors.New("mounting layers needs root")
	}
	log, err := cfg.logger(os.Stderr)
	if err != nil {
		return err
	}
	for _, dir := range []string{cfg.Root, cfg.State, filepath.Dir(cfg.Address)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	unlock, err := lockDirs(cfg.Root, cfg.State)
	if err != nil {
		return err
	}
	defer unlock()
	return run(ctx, cfg, log)
}

// run is serve in folders that are this daemon's.
func run(ctx context.Context, cfg config, log *slog.Logger) (err error) {
	counts := newMetrics()
	client, err := transfer.New(transfer.Options{Platform: cfg.Platform, PlainHTTP: cfg.PlainHTTP, CAFile: cfg.CAFile, Log: log, ReferrersAhead: true})
	if err != nil {
		return err
	}
	defer client.Close()
	store, err := content.Open(filepath.Join(cfg.Root, "content"), content.Options{Log: log, Observe: counts.fetched})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	pulling, endPulls := context.WithCancel(context.WithoutCancel(ctx))
	puller := &image.Puller{Store: store, Client: client, Platform: cfg.Platform, Log: log}
	from := newLayers(pulling, puller, cfg)
	defer from.wait()
	defer endPulls()
	sn, err := snapshotter.New(from, snapshotter.Options{Root: cfg.Root, State: cfg.State, Log: log, ReadTimeout: cfg.ReadTimeout.Duration})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sn.Close()) }()
	counts.starts.waiting = func() bool { _, waits := sn.Reads(); return len(waits) > 0 }
	report := &reporter{cfg: cfg, started: time.Now().UTC(), puller: puller, snapshotter: sn, metrics: counts}
	stopReport, err := report.serve()
	if err != nil {
		return err
	}
	defer stopReport()
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(watched{sn, counts.starts}))
	listener, err := listen(cfg.Address)
	if err != nil {
		return err
	}
	log.Info("peeld is ready", "address", cfg.Address, "root", cfg.Root)
	return serveUntil(ctx, log, server, listener)
}

// serveUntil serves until the context ends, which also ends calls in progress.
func serveUntil(ctx context.Context, log *slog.Logger, server *grpc.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() {
		if err := notify("STOPPING=1"); err != nil {
			log.Warn("systemd does not hear that peeld is ending", "error", err)
		}
		server.Stop()
	})
	defer stop()
	if err := notify("READY=1"); err != nil {
		return err
	}
	if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// lockDirs makes the root and the state folder this daemon's, until unlock, or
// the end of the process.
func lockDirs(root, state string) (unlock func(), err error) {
	first, err := lockDir(root)
	if err != nil {
		return nil, err
	}
	if filepath.Clean(root) == filepath.Clean(state) {
		return func() { first.Close() }, nil
	}
	second, err := lockDir(state)
	if err != nil {
		return nil, errors.Join(err, first.Close())
	}
	return func() { first.Close(); second.Close() }, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another peeld keeps what it has in %s; give this one --root and --state of its own", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// listen opens a unix socket that only root reaches. The caller has the root's
// lock, so a socket that is there has been left behind, unless it is one of
// another daemon's.
func listen(address string) (net.Listener, error) {
	if c, err := net.Dial("unix", address); err == nil {
		c.Close()
		return nil, fmt.Errorf("another process serves %s; give this one an --address of its own", address)
	}
	if err := os.Remove(address); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", address)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(address, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// notify tells systemd of a state, if it has started this process: sd_notify(3).
func notify(state string) error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}
