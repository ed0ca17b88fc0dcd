package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/peelfs/peel/fs"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "mount an image, fetching what is read when it is read",
		ArgsUsage: "IMAGE DIR",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "foreground", Aliases: []string{"f"}, Usage: "stay, and unmount when interrupted"},
			&cli.BoolFlag{Name: "rw", Usage: "allow writes; they are lost with the mount (needs root)"},
			&cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: "return when the whole image is here and verified; it can be read before"},
			&cli.BoolFlag{Name: "json", Usage: "print the progress as lines of JSON"},
			&cli.StringFlag{Name: "options", Aliases: []string{"o"}, Usage: "mount with `OPTIONS` of mount(8), such as nosuid,nodev,noexec"},
			&cli.StringFlag{Name: "driver", Usage: "show the image by `DRIVER`: erofs, loop, tree, or auto, the first of these that works", Value: string(fs.Auto)},
			&cli.DurationFlag{Name: "read-timeout", Usage: "let a read fail after `TIME` without the data it needs", Value: fs.DefaultReadTimeout},
			platformFlag(),
		},
		Action: func(c *cli.Context) error {
			a, err := args(c, "IMAGE", "DIR")
			if err != nil {
				return err
			}
			m, err := newMounting(c, a[0], a[1])
			if err != nil {
				return err
			}
			if child := os.Getenv(childEnv); child != "" {
				return m.serveParent(c)
			}
			if c.Bool("foreground") {
				return m.inForeground(c)
			}
			return m.inBackground(c)
		},
	}
}

// gcPercent keeps a mount's process small: it waits for most of its life, and
// there may be hundreds on a machine.
const gcPercent = 40

// mounting is one image on its way to one place.
type mounting struct {
	ref, dir, root string
	session        session
	attrs          unix.MountAttr
}

func newMounting(c *cli.Context, ref, dir string) (*mounting, error) {
	rootDir, err := root(c)
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	abs, err = filepath.EvalSymlinks(abs)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w; make the folder first", dir, err)
	}
	if st, err := os.Stat(abs); err != nil {
		return nil, fmt.Errorf("mount on %s: %w; if a mount was left behind, peel umount %s removes it", dir, err, dir)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("mount on %s: it is not a folder", dir)
	}
	driver, err := fs.ParseDriver(c.String("driver"))
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 && (driver == fs.EROFS || driver == fs.Loop) {
		return nil, fmt.Errorf("--driver %s needs root; an ordinary user's mounts are by the driver tree", driver)
	}
	if c.Bool("rw") && os.Geteuid() != 0 {
		return nil, errors.New("--rw mounts an overlay, which needs root; mount it read-only, or as root")
	}
	attrs, err := parseAttributes(c.String("options"), os.Geteuid() == 0)
	if err != nil {
		return nil, err
	}
	return &mounting{ref: ref, dir: abs, root: rootDir, session: sessionFor(rootDir, abs), attrs: attrs}, nil
}

// bar shows the mount's progress.
func (m *mounting) bar(c *cli.Context) *bar {
	if c.Bool("json") {
		return newJSONBar(c.App.Writer)
	}
	return newBar(os.Stderr)
}

// inForeground serves the mount until it is unmounted or interrupted.
func (m *mounting) inForeground(c *cli.Context) error {
	bar := m.bar(c)
	defer bar.end()
	return m.serve(c.Context, c, bar.update, func(msg message) {
		bar.end()
		switch {
		case bar.json:
			bar.event(msg)
		case msg.Complete:
			fmt.Fprintf(os.Stderr, "all of %s is here\n", m.ref)
		case msg.Error != "":
			fmt.Fprintf(os.Stderr, "peel: %s\n", msg.Error)
		default:
			fmt.Fprintf(os.Stderr, "%s is mounted on %s; interrupt to unmount\n", m.ref, m.dir)
		}
	})
}

// serve mounts the image, says so to tell, and returns when it is unmounted.
// Until it is mounted, the end of the context waiting ends it; after that, the
// end of c's unmounts it. With --wait it then fetches the rest, as long as
// somebody waits, and tells how that has ended.
func (m *mounting) serve(waiting context.Context, c *cli.Context, progress image.Progress, tell func(message)) (err error) {
	debug.SetGCPercent(gcPercent)
	lock, err := m.session.acquireAfter(waiting, m.dir)
	if errors.Is(err, errAlive) {
		return fmt.Errorf("an image is mounted on %s already: peel umount %s", m.dir, m.dir)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	defer func() { err = errors.Join(err, m.session.remove()) }()
	e, err := newEngine(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	e.Progress = progress
	img, err := e.Open(waiting, m.ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	srv, err := m.mount(c, img)
	if err != nil {
		return err
	}
	defer srv.Wait()
	info := mountInfo{Image: img.Reference, Digest: img.Digest.String(), Dir: m.dir, PID: os.Getpid(), RW: c.Bool("rw"), Started: time.Now().UTC()}
	a := &answering{info: info, session: m.session, engine: e, image: img, server: srv}
	stop, err := a.start()
	if err != nil {
		return errors.Join(err, srv.Unmount())
	}
	defer stop()
	tell(message{Mounted: true})
	debug.FreeOSMemory() // the entries are garbage now, and most of what the process has ever used
	if c.Bool("wait") {
		fetching, cancel := context.WithCancel(waiting)
		fetched := make(chan struct{})
		go func() { defer close(fetched); tell(m.complete(fetching, img, progress)) }()
		defer func() { cancel(); <-fetched }()
	}
	return m.wait(c.Context, srv)
}

// mount builds the tree and mounts it.
func (m *mounting) mount(c *cli.Context, img *image.Image) (*fs.Server, error) {
	entries, err := img.Entries()
	if err != nil {
		return nil, err
	}
	tree, err := fs.Merge(entries)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", m.ref, err)
	}
	blobs := make([]fs.Blob, len(img.Layers))
	for i, l := range img.Layers {
		blobs[i] = l
	}
	opts := fs.Options{Image: img.Reference, State: m.session.dir, ReadTimeout: c.Duration("read-timeout"), NoExec: m.attrs.Attr_set&unix.MOUNT_ATTR_NOEXEC != 0}
	if opts.Log, err = logger(c); err != nil {
		return nil, err
	}
	if opts.Driver, err = fs.ParseDriver(c.String("driver")); err != nil {
		return nil, err
	}
	if c.Bool("rw") {
		opts.Scratch = m.session.path("scratch")
		if err := os.MkdirAll(opts.Scratch, 0o700); err != nil {
			return nil, err
		}
	}
	srv, err := fs.Mount(m.dir, tree, blobs, opts)
	if err != nil {
		return nil, err
	}
	if err := setAttributes(m.dir, m.attrs); err != nil {
		return nil, errors.Join(err, srv.Unmount())
	}
	return srv, nil
}

// wait returns when the image is unmounted. At the end of the context it
// unmounts it, and if it is in use, goes on until it is not.
func (m *mounting) wait(ctx context.Context, srv *fs.Server) error {
	done := make(chan struct{})
	go func() { srv.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	if err := srv.Unmount(); err != nil {
		fmt.Fprintf(os.Stderr, "peel: %v; peel goes on until it is unmounted\n", err)
		<-done
	}
	return nil
}
