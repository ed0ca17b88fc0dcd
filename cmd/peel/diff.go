package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/fs"
	"github.com/urfave/cli/v2"
)

func diffCommand() *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "list the paths in which two images differ",
		ArgsUsage: "IMAGE IMAGE",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "times", Usage: "compare modification times, too"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			platformFlag(),
		},
		Action: func(c *cli.Context) error {
			a, err := args(c, "IMAGE", "IMAGE")
			if err != nil {
				return err
			}
			return withEngine(c, func(e *engine) error { return e.diff(c, a[0], a[1]) })
		},
	}
}

// difference is one path in which two images differ.
type difference struct {
	Kind string   `json:"kind"` // A, D or M
	Path string   `json:"path"`
	What []string `json:"what,omitempty"` // of M
}

// errDiffer is the error where images differ.
var errDiffer = errors.New("the images differ")

func (e *engine) diff(c *cli.Context, refA, refB string) (err error) {
	a, err := e.view(c.Context, refA)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := e.view(c.Context, refB)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	d := &differing{a: a, b: b, times: c.Bool("times"), all: []difference{}}
	if what := d.what(fs.Root, fs.Root); len(what) > 0 {
		d.add("M", "/", what...)
	}
	d.dirs("", fs.Root, fs.Root)
	if err := d.print(c.App.Writer, c.Bool("json")); err != nil {
		return err
	}
	if len(d.all) > 0 {
		return fmt.Errorf("%w in %d paths", errDiffer, len(d.all))
	}
	return nil
}

// differing gathers in what two images differ.
type differing struct {
	a, b  *view // the first image, and the second
	times bool
	all   []difference
}

func (d *differing) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, d.all)
	}
	for _, x := range d.all {
		what := ""
		if len(x.What) > 0 {
			what = " (" + strings.Join(x.What, ", ") + ")"
		}
		if _, err := fmt.Fprintf(w, "%s %s%s\n", x.Kind, printable(x.Path), what); err != nil {
			return err
		}
	}
	return nil
}

func (d *differing) add(kind, path string, what ...string) {
	d.all = append(d.all, difference{kind, path, what})
}

// dirs compares two directories of one path, in the order of the names.
func (d *differing) dirs(path string, a, b fs.NodeID) {
	names := []string{}
	for name := range d.a.tree.Children(a) {
		names = append(names, name)
	}
	for name := range d.b.tree.Children(b) {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		at := path + "/" + name
		a, inA := d.a.tree.Lookup(a, name)
		b, inB := d.b.tree.Lookup(b, name)
		switch {
		case !inA:
			d.whole(d.b, "A", at, b)
		case !inB:
			d.whole(d.a, "D", at, a)
		default:
			d.nodes(at, a, b)
		}
	}
}

// nodes compares what both images have under one path.
func (d *differing) nodes(path string, a, b fs.NodeID) {
	if what := d.what(a, b); len(what) > 0 {
		d.add("M", path, what...)
	}
	dirA, dirB := d.a.tree.Attr(a).Type == index.Dir, d.b.tree.Attr(b).Type == index.Dir
	switch {
	case dirA && dirB:
		d.dirs(path, a, b)
	case dirA:
		d.below(d.a, "D", path, a)
	case dirB:
		d.below(d.b, "A", path, b)
	}
}

// whole notes a node that only one image has, and all below it.
func (d *differing) whole(v *view, kind, path string, id fs.NodeID) {
	d.add(kind, path)
	if v.tree.Attr(id).Type == index.Dir {
		d.below(v, kind, path, id)
	}
}

// below notes all that is below a directory which only one image has.
func (d *differing) below(v *view, kind, path string, dir fs.NodeID) {
	for name, id := range v.tree.Children(dir) {
		d.whole(v, kind, path+"/"+name, id)
	}
}

// what says in what two nodes differ.
func (d *differing) what(a, b fs.NodeID) []string {
	x, y := d.a.tree.Attr(a), d.b.tree.Attr(b)
	var what []string
	note := func(differ bool, name string) {
		if differ {
			what = append(what, name)
		}
	}
	note(x.Type != y.Type, "type")
	note(x.Type == y.Type && d.content(x, y), "content")
	note(x.Mode != y.Mode, "mode")
	note(x.UID != y.UID || x.GID != y.GID, "owner")
	note(x.Type == y.Type && d.a.tree.Readlink(a) != d.b.tree.Readlink(b), "target")
	note(x.Type == y.Type && (x.Major != y.Major || x.Minor != y.Minor), "device")
	note(!slices.Equal(d.a.tree.Xattrs(a), d.b.tree.Xattrs(b)), "xattrs")
	note(d.times && (x.Sec != y.Sec || x.Nsec != y.Nsec), "time")
	return what
}

// content reports whether two nodes of one type have other data.
func (d *differing) content(x, y fs.Attr) bool {
	if x.Type != index.Regular || x.Size != y.Size {
		return x.Size != y.Size
	}
	sumA, _ := d.a.sum(x)
	sumB, _ := d.b.sum(y)
	return sumA != sumB
}
