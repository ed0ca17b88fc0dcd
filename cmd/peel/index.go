package main

import (
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/urfave/cli/v2"
)

func indexCommand() *cli.Command {
	return &cli.Command{
		Name:      "index",
		Usage:     "make an image lazy: index its layers, and attach the indices to it",
		ArgsUsage: "IMAGE",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "push", Usage: "attach the indices to the image in its registry"},
			&cli.BoolFlag{Name: "show", Usage: "only list the layers, and why each is lazy or not"},
			&cli.BoolFlag{Name: "json", Usage: "with --show: print JSON"},
			platformFlag(),
		},
		Action: func(c *cli.Context) (err error) {
			a, err := args(c, "IMAGE")
			if err != nil {
				return err
			}
			if c.Bool("push") && c.Bool("show") {
				return fmt.Errorf("--push and --show exclude each other")
			}
			e, err := newEngine(c)
			if err != nil {
				return err
			}
			defer func() {
				if cerr := e.close(); err == nil {
					err = cerr
				}
			}()
			if c.Bool("show") {
				return e.show(c, a[0])
			}
			return e.index(c, a[0])
		},
	}
}

func (e *engine) index(c *cli.Context, ref string) error {
	bar := newBar(os.Stderr)
	defer bar.end()
	e.Progress = bar.update
	img, err := e.Client.Resolve(c.Context, ref)
	if err != nil {
		return err
	}
	if c.Bool("push") {
		if err := e.Client.CanAttach(img); err != nil {
			return fmt.Errorf("index %s: %w", ref, err)
		}
	}
	indices, err := e.Index(c.Context, img, c.Bool("push"))
	if err != nil {
		return fmt.Errorf("index %s: %w", ref, err)
	}
	defer indices.Close()
	bar.end()
	var size, blobs int64
	for i, l := range img.Layers {
		size += int64(len(indices.Raw[i]))
		blobs += l.Size
	}
	fmt.Fprintf(c.App.Writer, "%s: %d layers of %s indexed in %s (%.1f %%)\n",
		img.Digest, len(img.Layers), bytesText(blobs), bytesText(size), 100*float64(size)/float64(max(1, blobs)))
	if n := indices.TwinBytes(); n > 0 {
		fmt.Fprintf(c.App.Writer, "twins of %s for layers in which decoding cannot resume\n", bytesText(n))
	}
	if !c.Bool("push") {
		return nil
	}
	d, err := e.Push(c.Context, img, indices)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "attached as %s\n", d)
	return nil
}

func (e *engine) show(c *cli.Context, ref string) error {
	img, err := e.Client.Resolve(c.Context, ref)
	if err != nil {
		return err
	}
	layers, err := e.Report(c.Context, img)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(struct {
			Image  string              `json:"image"`
			Digest string              `json:"digest"`
			Layers []image.LayerReport `json:"layers"`
		}{img.Reference, img.Digest.String(), layers})
	}
	fmt.Fprintf(c.App.Writer, "%s\n%s\n\n", img.Reference, img.Digest)
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LAYER\tSIZE\tINDEX\tLAZY\tWHY")
	for _, l := range layers {
		lazy, size := "no", "-"
		if l.Lazy {
			lazy = "yes"
		}
		if l.IndexBytes > 0 {
			size = bytesText(l.IndexBytes)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Digest.Encoded()[:12], bytesText(l.Size), size, lazy, l.Why)
	}
	return w.Flush()
}
