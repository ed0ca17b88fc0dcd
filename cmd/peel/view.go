package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"slices"
	"strings"

	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/fs"
	"github.com/urfave/cli/v2"
)

// view is an image to look at without mounting it.
type view struct {
	*image.Image
	tree *fs.Tree
	sums []map[int64]index.SHA256 // of each layer's files, by their place in its flat blob
}

// view opens an image, as a mount does.
func (e *engine) view(ctx context.Context, ref string) (*view, error) {
	bar := newBar(os.Stderr)
	defer bar.end()
	e.Progress = bar.update
	img, err := e.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	v := &view{Image: img}
	if err := v.load(); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, errors.Join(err, img.Close()))
	}
	return v, nil
}

// load merges the layers' entries, and notes their files' digests.
func (v *view) load() error {
	layers, err := v.Entries()
	if err != nil {
		return err
	}
	for n, entries := range layers {
		digests, err := v.Layers[n].Index().Digests()
		if err != nil {
			return err
		}
		sums := map[int64]index.SHA256{}
		for i := range entries {
			if e := &entries[i]; e.Type == index.Regular && e.Size > 0 && len(digests) > 0 {
				sums[e.Off], digests = digests[0], digests[1:]
			}
		}
		v.sums = append(v.sums, sums)
	}
	v.tree, err = fs.Merge(layers)
	return err
}

// withEngine runs fn with an engine.
func withEngine(c *cli.Context, fn func(e *engine) error) (err error) {
	e, err := newEngine(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	return fn(e)
}

// withView runs fn on an image.
func withView(c *cli.Context, ref string, fn func(v *view) error) error {
	return withEngine(c, func(e *engine) (err error) {
		v, err := e.view(c.Context, ref)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, v.Close()) }()
		return fn(v)
	})
}

// maxLinks is how many symlinks one path may lead over, as in the kernel.
const maxLinks = 40

// find returns the node that a path names. Symlinks on its way are followed
// inside the image's root; one at its end is if follow is set, or a slash
// stands behind it.
func (v *view) find(path string, follow bool) (fs.NodeID, error) {
	fail := func(err error) (fs.NodeID, error) {
		return 0, &iofs.PathError{Op: "look up in " + v.Reference, Path: path, Err: err}
	}
	follow = follow || strings.HasSuffix(path, "/")
	cur, rest, links := fs.Root, path, 0
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if name == "" {
			continue
		}
		if v.tree.Attr(cur).Type != index.Dir {
			return fail(errors.New("a name on the way is no directory"))
		}
		switch name {
		case ".":
			continue
		case "..":
			cur = v.tree.Parent(cur)
			continue
		}
		id, ok := v.tree.Lookup(cur, name)
		if !ok {
			return fail(fmt.Errorf("%w; peel ls lists what there is", iofs.ErrNotExist))
		}
		target := v.tree.Readlink(id)
		if target == "" || rest == "" && !follow {
			cur = id
			continue
		}
		if links++; links > maxLinks {
			return fail(fmt.Errorf("more than %d symlinks on the way", maxLinks))
		}
		if target[0] == '/' {
			cur = fs.Root
		}
		if rest != "" {
			target += "/" + rest
		}
		rest = target
	}
	return cur, nil
}

// present returns how many bytes of a file are on this machine.
func (v *view) present(a fs.Attr) int64 { return v.Layers[a.Layer].PresentBytes(a.Off, a.Size) }

// sum returns the SHA-256 of a regular file, from the index.
func (v *view) sum(a fs.Attr) (sum index.SHA256, ok bool) {
	sum, ok = v.sums[a.Layer][a.Off]
	return sum, ok && a.Type == index.Regular && a.Size > 0
}

// someArgs is args for a command whose last argument can be left out, or be
// given several times: it takes from least to most of them.
func someArgs(c *cli.Context, least, most int, names ...string) ([]string, error) {
	n := c.Args().Len()
	if n < least || n > most {
		return args(c, names...)
	}
	named := slices.Clone(names[:min(n, len(names))])
	for len(named) < n {
		named = append(named, names[len(names)-1])
	}
	return args(c, named...)
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
