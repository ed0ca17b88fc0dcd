package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/fs"
	"github.com/urfave/cli/v2"
)

func duCommand() *cli.Command {
	return &cli.Command{
		Name:      "du",
		Usage:     "say how much of an image is here, by layer and by directory",
		ArgsUsage: "IMAGE",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "depth", Usage: "show directories down to `N` below the root", Value: 1},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			platformFlag(),
		},
		Action: func(c *cli.Context) error {
			a, err := args(c, "IMAGE")
			if err != nil {
				return err
			}
			if c.Int("depth") < 0 {
				return fmt.Errorf("--depth %d: want 0, which is the root alone, or more", c.Int("depth"))
			}
			return withView(c, a[0], func(v *view) error { return v.du(c) })
		},
	}
}

// usage is how much there is of something, and how much of that is here.
type usage struct {
	Bytes   int64 `json:"bytes"`
	Present int64 `json:"presentBytes"`
}

type layerUsage struct {
	Digest digest.Digest `json:"digest"`
	usage
	BlobBytes int64 `json:"blobBytes"` // as the registry has it
}

type dirUsage struct {
	Path string `json:"path"`
	usage
}

func (v *view) du(c *cli.Context) error {
	layers := v.layerUsages()
	counting := &dirCounting{view: v, depth: c.Int("depth"), seen: make([]bool, v.tree.Len()+1)}
	counting.count("/", fs.Root, 0)
	if c.Bool("json") {
		return printJSON(c.App.Writer, struct {
			Image       string        `json:"image"`
			Digest      digest.Digest `json:"digest"`
			Layers      []layerUsage  `json:"layers"`
			Directories []dirUsage    `json:"directories"`
		}{v.Reference, v.Digest, layers, counting.dirs})
	}
	var rows []string
	for _, l := range layers {
		rows = append(rows, l.row(short(l.Digest)))
	}
	if err := table(c.App.Writer, "LAYER", rows); err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer)
	rows = nil
	for _, d := range counting.dirs {
		rows = append(rows, d.row(printable(d.Path)))
	}
	return table(c.App.Writer, "DIRECTORY", rows)
}

// row is a line of a table.
func (u usage) row(of string) string {
	return fmt.Sprintf("%s\t%s\t%s\t%s", bytesText(u.Present), bytesText(u.Bytes), share(u.Present, u.Bytes), of)
}

func table(out io.Writer, of string, rows []string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "HERE\tOF\tSHARE\t%s\n%s\n", of, strings.Join(rows, "\n"))
	return w.Flush()
}

// layerUsages lists the layers, lowest first, each once.
func (v *view) layerUsages() []layerUsage {
	all := []layerUsage{}
	seen := map[*content.Layer]bool{}
	for _, l := range v.Layers {
		if seen[l] {
			continue
		}
		seen[l] = true
		st := l.Stats()
		all = append(all, layerUsage{st.Blob, usage{st.Bytes, st.Present}, st.BlobBytes})
	}
	return all
}

// dirCounting adds up directories.
type dirCounting struct {
	*view
	depth int // down to which directories are listed
	seen  []bool
	dirs  []dirUsage // parents first
}

// count adds up what is below a directory.
func (d *dirCounting) count(name string, dir fs.NodeID, depth int) usage {
	at := len(d.dirs)
	if depth <= d.depth {
		d.dirs = append(d.dirs, dirUsage{Path: name})
	}
	var sum usage
	for child, id := range d.tree.Children(dir) {
		if d.seen[id] {
			continue
		}
		d.seen[id] = true
		var u usage
		switch a := d.tree.Attr(id); a.Type {
		case index.Dir:
			u = d.count(strings.TrimSuffix(name, "/")+"/"+child, id, depth+1)
		case index.Regular:
			u = usage{a.Size, d.present(a)}
		}
		sum.Bytes, sum.Present = sum.Bytes+u.Bytes, sum.Present+u.Present
	}
	if depth <= d.depth {
		d.dirs[at].usage = sum
	}
	return sum
}

// short is a digest as lists show it.
func short(d digest.Digest) string { return d.Encoded()[:12] }
