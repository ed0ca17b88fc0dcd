package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/peelfs/peel/integration/containerd"
	"github.com/peelfs/peel/integration/peeld"
)

// lazy is a daemon of peel's as the snapshotter of one start. When that is over
// it tells what it has needed.
type lazy struct {
	config string // of the daemon
	until  string // what the daemon must have said before it may end; may be empty

	now, peak float64 // its memory before it ended, in MB
	log       string
}

// start is a coldstart.Snapshotter.
func (l *lazy) start(ctx context.Context, dir string) (containerd.Snapshotter, error) {
	own := filepath.Join(dir, "peeld") // containerd's files have the same names
	if err := os.Mkdir(own, 0o700); err != nil {
		return containerd.Snapshotter{}, err
	}
	d, err := peeld.Start(ctx, own, l.config)
	if err != nil {
		return containerd.Snapshotter{}, err
	}
	sn, err := d.Snapshotter()
	if err != nil {
		return sn, errors.Join(err, d.Close())
	}
	sn.Stop = func() error { return errors.Join(l.take(ctx, d), d.Close()) }
	return sn, nil
}

// take takes what there is to know of a daemon that is about to end.
func (l *lazy) take(ctx context.Context, d *peeld.Daemon) (err error) {
	err = d.WaitForLog(ctx, l.until)
	l.log = d.Log()
	if err != nil {
		return err
	}
	l.now, l.peak, err = resident(d.PID())
	return err
}

// said returns what the daemon has said, to explain an error; nothing if there
// is no daemon.
func (l *lazy) said() string {
	if l == nil {
		return ""
	}
	return l.log
}
