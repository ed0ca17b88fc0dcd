package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/peelfs/peel/cmd/internal/daemon"
	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/urfave/cli/v2"
)

// stateFlag says which daemon is meant.
func stateFlag() cli.Flag {
	return &cli.StringFlag{Name: "state", Usage: "ask the peeld whose sockets are in `DIR`", Value: daemon.DefaultState, EnvVars: []string{"PEELD_STATE"}}
}

// askDaemon asks the daemon for its status; nil if there is none.
func askDaemon(c *cli.Context) (*daemon.Status, error) {
	st, err := daemon.Ask(c.Context, c.String("state"))
	if errors.Is(err, daemon.ErrNone) && !c.IsSet("state") {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask peeld: %w", err)
	}
	return &st, nil
}

// printDaemon prints the daemon's images.
func printDaemon(to io.Writer, st *daemon.Status) error {
	if st == nil {
		return nil
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PEELD IMAGE\tLAYERS\tLAZY\tWHOLE\tUNPACKED\tHERE\tOF\tUSERS")
	for _, i := range st.Images {
		kinds, users := map[daemon.Kind]int{}, 0
		for _, l := range i.Layers {
			kinds[l.Kind]++
			users = max(users, l.Users)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%.0f%%\t%s\t%d\n", i.Image, len(i.Layers),
			kinds[daemon.Lazy], kinds[daemon.Whole], kinds[daemon.Unpacked], 100*i.Share(), bytesText(i.Bytes), users)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(to, "peeld (process %d): %s in %d requests; %d reads served locally, %d fetched, %d failed, %d stuck\n",
		st.PID, bytesText(st.BytesIn), st.Requests, st.Reads.Present, st.Reads.Fetched, st.Reads.Failed, st.Reads.Stuck)
	return err
}

func explainCommand() *cli.Command {
	return &cli.Command{
		Name:      "explain",
		Usage:     "say for each layer of an image whether it is lazy, read whole or unpacked, and why",
		ArgsUsage: "IMAGE",
		Flags:     []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}, stateFlag(), platformFlag()},
		Action: func(c *cli.Context) error {
			a, err := args(c, "IMAGE")
			if err != nil {
				return err
			}
			i, err := daemon.Explain(c.Context, c.String("state"), a[0])
			switch {
			case err == nil && i.Expected:
				fmt.Fprintln(os.Stderr, "peeld does not have the image; it would show it so:")
			case errors.Is(err, daemon.ErrNone) && !c.IsSet("state"):
				fmt.Fprintln(os.Stderr, "no peeld answers; peel mount would show the image so:")
				i, err = expect(c, a[0])
			}
			if err != nil {
				return err
			}
			return printExplained(c, i)
		},
	}
}

func printExplained(c *cli.Context, i daemon.Image) error {
	if c.Bool("json") {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(i)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LAYER\tSIZE\tHERE\tIS\tWHY")
	for _, l := range i.Layers {
		here := "-"
		if l.Bytes > 0 && !i.Expected && l.Kind != daemon.Absent {
			here = fmt.Sprintf("%.0f%%", 100*float64(l.Present)/float64(l.Bytes))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Digest, bytesText(l.Size), here, l.Kind, l.Why)
	}
	return w.Flush()
}

// expect says what peel mount would make of the layers of an image.
func expect(c *cli.Context, ref string) (out daemon.Image, err error) {
	e, err := newEngine(c)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	img, err := e.Resolve(c.Context, ref)
	if err != nil {
		return out, err
	}
	layers, err := e.Report(c.Context, img)
	if err != nil {
		return out, err
	}
	out = daemon.Image{Image: img.Reference, Digest: img.Digest, Expected: true}
	for i, r := range layers {
		l := daemon.Layer{Digest: r.Digest, Size: r.Size, Bytes: r.Size, Kind: daemon.Whole, Why: r.Why}
		switch {
		case image.Refused(img.Layers[i]) != "":
			l.Kind = daemon.Absent
		case r.Lazy:
			l.Kind = daemon.Lazy
		}
		out.Bytes += l.Bytes
		out.Layers = append(out.Layers, l)
	}
	return out, nil
}
