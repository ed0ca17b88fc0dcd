package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/peelfs/peel/cmd/internal/daemon"
	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/peelfs/peel/content"
	peelfs "github.com/peelfs/peel/fs"
	"github.com/urfave/cli/v2"
)

// mountStatus is what peel status says of one mount.
type mountStatus struct {
	mountInfo
	State        string               `json:"state"`        // serving, or dead
	Driver       string               `json:"driver"`       // how the kernel shows it
	DriverWhy    string               `json:"driverWhy"`    // why by no faster driver; "" if it is the fastest or was asked for
	Bytes        int64                `json:"bytes"`        // of file data in the image
	PresentBytes int64                `json:"presentBytes"` // of these, on this machine
	WireBytes    int64                `json:"wireBytes"`    // received from the registry
	DedupBytes   int64                `json:"dedupBytes"`   // of files that other layers had, and that were not fetched
	Requests     int64                `json:"requests"`     // sent to it
	DiskFull     bool                 `json:"diskFull"`     // what is fetched can be read, and is not kept
	ReadsPresent uint64               `json:"readsPresent"` // reads by the kernel that found their data here
	ReadsFetched uint64               `json:"readsFetched"` // reads that had to wait
	ReadsFailed  uint64               `json:"readsFailed"`
	HitRate      float64              `json:"hitRate"`    // of reads, 0 to 1
	Goroutines   int                  `json:"goroutines"` // of the process; many mean reads that wait
	Layers       []content.LayerStats `json:"layers"`
}

// answering answers for a mount, in the process that serves it.
type answering struct {
	info    mountInfo
	session session
	engine  *engine
	image   *image.Image
	server  *peelfs.Server
}

// start writes the session down and answers until stop is called.
func (a *answering) start() (stop func(), err error) {
	l, err := a.session.listen()
	if err != nil {
		return nil, fmt.Errorf("open the mount's socket: %w", err)
	}
	if err := a.session.write(a.info); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { daemon.Reply(w, a.status(), nil) })
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.engine.Log.Error("the mount's socket is closed", "error", err)
		}
	}()
	return func() {
		ctx, cancel := shutdownContext()
		defer cancel()
		_ = srv.Shutdown(ctx) // so that who asked for the unmount hears of it
		<-served
	}, nil
}

func (a *answering) status() mountStatus {
	st := mountStatus{mountInfo: a.info, State: "serving"}
	driver, why := a.server.Driver()
	st.Driver, st.DriverWhy = string(driver), why
	seen := map[*content.Layer]bool{}
	for _, l := range a.image.Layers {
		if seen[l] {
			continue
		}
		seen[l] = true
		ls := l.Stats()
		st.Bytes += ls.Bytes
		st.PresentBytes += ls.Present
		st.DedupBytes += ls.Deduped
		st.Layers = append(st.Layers, ls)
	}
	wire := a.engine.Client.Stats()
	st.Requests, st.WireBytes = wire.Requests, wire.BytesIn
	st.DiskFull = a.engine.Store.Full()
	st.Goroutines = runtime.NumGoroutine()
	reads := a.server.Stats()
	st.ReadsPresent, st.ReadsFetched, st.ReadsFailed = reads.Present, reads.Fetched, reads.Failed
	if all := reads.Present + reads.Fetched; all > 0 {
		st.HitRate = float64(reads.Present) / float64(all)
	}
	return st
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:        "status",
		Usage:       "show what is mounted, what of it is here, and what it cost",
		Description: "Shows this store's mounts, and the images of the daemon (peeld), if one answers.",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}, stateFlag()},
		Action: func(c *cli.Context) error {
			if _, err := args(c); err != nil {
				return err
			}
			mounts, err := statuses(c)
			if err != nil {
				return err
			}
			served, err := askDaemon(c)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				enc := json.NewEncoder(c.App.Writer)
				enc.SetIndent("", "  ")
				return enc.Encode(allStatus{mounts, served})
			}
			if len(mounts) > 0 || served == nil {
				if err := printStatuses(c, mounts); err != nil {
					return err
				}
			}
			return printDaemon(c.App.Writer, served)
		},
	}
}

// allStatus is what peel status --json prints.
type allStatus struct {
	Mounts []mountStatus  `json:"mounts"`
	Daemon *daemon.Status `json:"daemon,omitempty"`
}

func statuses(c *cli.Context) ([]mountStatus, error) {
	dir, err := root(c)
	if err != nil {
		return nil, err
	}
	list, err := sessions(dir)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	all := []mountStatus{}
	for _, s := range list {
		info, err := s.info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // not mounted yet, or not any more
		}
		if err != nil {
			return nil, fmt.Errorf("list mounts: %s: %w", s.dir, err)
		}
		st := mountStatus{mountInfo: info, State: "dead"}
		if s.alive() {
			err := s.call(c.Context, http.MethodGet, "/status", &st)
			if err != nil && !isMountPoint(info.Dir) {
				continue // unmounted, and its process about to end
			}
			if err != nil {
				st.State = "not answering: " + err.Error()
			}
		}
		all = append(all, st)
	}
	return all, nil
}

func printStatuses(c *cli.Context, all []mountStatus) error {
	if len(all) == 0 {
		fmt.Fprintln(os.Stderr, "nothing is mounted")
		return nil
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DIR\tIMAGE\tSTATE\tDRIVER\tHERE\tOF\tWIRE\tDEDUP\tREQUESTS\tHITS")
	for _, st := range all {
		share := 100.0
		if st.Bytes > 0 {
			share = 100 * float64(st.PresentBytes) / float64(st.Bytes)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.0f%%\t%s\t%s\t%s\t%d\t%.0f%%\n", st.Dir, st.Image, st.State, st.Driver,
			share, bytesText(st.Bytes), bytesText(st.WireBytes), bytesText(st.DedupBytes), st.Requests, 100*st.HitRate)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, st := range all {
		if st.DriverWhy != "" {
			fmt.Fprintf(os.Stderr, "%s is shown by %s: %s\n", st.Dir, st.Driver, st.DriverWhy)
		}
		if st.DiskFull {
			fmt.Fprintf(os.Stderr, "no room on the disk of the store: what %s reads is not kept; peel cache df shows what the store has, peel cache rm removes it\n", st.Dir)
		}
		if st.State == "dead" {
			fmt.Fprintf(os.Stderr, "the process that served %s is gone: peel umount %s, then mount again; nothing that was fetched is lost\n", st.Dir, st.Dir)
		}
	}
	return nil
}
