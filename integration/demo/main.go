// Command demo shows what peel is for: it starts a Python program from a Debian
// image behind a slow link, lazily with peel and after a full pull with
// containerd, and prints what each took.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/coldstart"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
	"github.com/peelfs/peel/integration/mounts"
	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/registry"
)

// slow is the link between the registry and the machine.
var slow = link.Options{Rate: 100e6, RTT: 20 * time.Millisecond}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, w io.Writer) (err error) {
	if os.Getuid() != 0 {
		return errors.New("building a Debian image and chroot take root: run make demo as root")
	}
	dir, remove, err := mounts.TempDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()

	fmt.Fprintln(w, "Building peel, the registry and containerd (quick if they are cached)")
	peel, err := parts.Peel(ctx)
	if err != nil {
		return err
	}
	if _, err := parts.Containerd(ctx); err != nil {
		return err
	}
	r, err := registry.Start(ctx, dir, "")
	if err != nil {
		return err
	}
	defer r.Close()
	fmt.Fprintln(w, "Building an image of Debian's own packages (a minute, unless it is cached)")
	img, err := images.Python(ctx)
	if err != nil {
		return err
	}
	if err := r.Push(ctx, img, img.Name); err != nil {
		return err
	}
	fmt.Fprintf(w, "$ peel index --push %s\n", img.Name)
	indexer := cli.Peel{Program: peel, Root: filepath.Join(dir, "indexer")}
	if _, err := indexer.Run(ctx, "index", "--push", r.Addr()+"/"+img.Name+":latest"); err != nil {
		return err
	}
	return compare(ctx, w, coldstart.Node{Peel: peel, Registry: r, Link: slow}, img)
}

// compare starts the program both ways and prints the table.
func compare(ctx context.Context, w io.Writer, node coldstart.Node, img *images.Image) error {
	program := coldstart.Program{Repo: img.Name, Args: images.Program, Ready: images.Ready}
	size, err := img.Compressed()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "\nImage %s: %.1f MB. Link: %.0f Mbit/s, %v a round trip. No cache.\n",
		img.Name, float64(size)/1e6, node.Link.Rate/1e6, node.Link.RTT)
	fmt.Fprintf(w, "$ peel mount %s DIR && chroot DIR %s %s\n", img.Name, program.Args[0], program.Args[1])
	lazy, err := node.Lazily(ctx, program)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s\n$ ctr image pull %s && ...\n", lazy.Line, img.Name)
	full, err := node.AfterPull(ctx, program)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s\n\n", full.Line)
	return table(w, lazy, full)
}

func table(w io.Writer, lazy, full coldstart.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tfile system there\tfirst output\tover the link\trequests\t")
	row := func(name string, r coldstart.Result) {
		fmt.Fprintf(t, "%s\t%.2f s\t%.2f s\t%.1f MB\t%d\t\n", name,
			r.Root.Seconds(), r.Output.Seconds(), float64(r.Received)/1e6, r.Requests)
	}
	row("lazily, peel", lazy)
	row("full pull, containerd", full)
	fmt.Fprintf(t, "ratio\t%.2f\t%.2f\t%.2f\t%.1f\t\n",
		lazy.Root.Seconds()/full.Root.Seconds(), lazy.Output.Seconds()/full.Output.Seconds(),
		float64(lazy.Received)/float64(full.Received), float64(lazy.Requests)/float64(full.Requests))
	return t.Flush()
}
