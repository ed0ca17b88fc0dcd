package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/transfer"
	"github.com/urfave/cli/v2"
)

func cacheCommand() *cli.Command {
	return &cli.Command{
		Name:        "cache",
		Usage:       "look after what was fetched",
		Subcommands: []*cli.Command{cacheDfCommand(), cacheVerifyCommand(), cacheRmCommand()},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("there is no command %q; peel cache --help lists them", c.Args().First())
			}
			return cli.ShowSubcommandHelp(c)
		},
	}
}

func cacheDfCommand() *cli.Command {
	return &cli.Command{
		Name:  "df",
		Usage: "list the layers in the store, what they take, and who uses them",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}},
		Action: func(c *cli.Context) error {
			if _, err := args(c); err != nil {
				return err
			}
			return withEngine(c, func(e *engine) error {
				inv, err := e.inventory(c)
				if err != nil {
					return err
				}
				if c.Bool("json") {
					return printJSON(c.App.Writer, inv.layers)
				}
				return inv.print(c)
			})
		},
	}
}

// cachedLayer is a layer in the store and who needs it.
type cachedLayer struct {
	content.LayerInfo
	Images []string `json:"images"` // that the store remembers and that have it
	Mounts []string `json:"mounts"` // that have it open
}

// users says who has the layer open, in words.
func (l *cachedLayer) users() string {
	switch {
	case len(l.Mounts) > 0:
		return strings.Join(l.Mounts, ", ")
	case l.InUse:
		return "another process"
	}
	return "-"
}

// inventory is all that is in the store.
type inventory struct {
	layers []cachedLayer
	images []cachedImage
}

// cachedImage is an image that the store remembers.
type cachedImage struct {
	content.Image
	layers []digest.Digest
}

// uses reports whether the layer is one of the image's.
func (i *cachedImage) uses(l digest.Digest) bool { return slices.Contains(i.layers, l) }

func (e *engine) inventory(c *cli.Context) (*inventory, error) {
	infos, err := e.Store.Layers()
	if err != nil {
		return nil, err
	}
	images, err := e.Store.Images()
	if err != nil {
		return nil, err
	}
	mounts, err := statuses(c)
	if err != nil {
		return nil, err
	}
	inv := &inventory{layers: []cachedLayer{}}
	for _, i := range images {
		inv.images = append(inv.images, e.cachedImage(i))
	}
	for _, info := range infos {
		l := cachedLayer{LayerInfo: info, Images: []string{}, Mounts: []string{}}
		for _, i := range inv.images {
			if i.uses(l.Blob) {
				l.Images = append(l.Images, i.Ref)
			}
		}
		for _, m := range mounts {
			if slices.ContainsFunc(m.Layers, func(st content.LayerStats) bool { return st.Blob == l.Blob }) {
				l.Mounts = append(l.Mounts, m.Dir)
			}
		}
		inv.layers = append(inv.layers, l)
	}
	return inv, nil
}

// cachedImage reads an image's manifest. One that cannot be read has no layers
// that anyone could mount.
func (e *engine) cachedImage(i content.Image) cachedImage {
	known := cachedImage{Image: i}
	img, err := transfer.ParseImage(i.Ref, i.Manifest, i.Config)
	if err != nil {
		e.Log.Warn("an image in the store cannot be read", "image", i.Ref, "error", err)
		return known
	}
	for _, l := range img.Layers {
		known.layers = append(known.layers, l.Digest)
	}
	return known
}

func (inv *inventory) print(c *cli.Context) error {
	if len(inv.layers) == 0 {
		fmt.Fprintln(os.Stderr, "the store has no layers")
		return nil
	}
	var disk int64
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LAYER\tDISK\tHERE\tOF\tLAST OPENED\tIN USE\tIMAGES")
	for i := range inv.layers {
		l := &inv.layers[i]
		disk += l.Disk
		images := "-"
		if len(l.Images) > 0 {
			images = strings.Join(l.Images, ", ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", short(l.Blob), bytesText(l.Disk), share(l.Present, l.Bytes),
			bytesText(l.Bytes), l.Used.Format(time.DateTime), l.users(), images)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.App.Writer, "%d layers take %s\n", len(inv.layers), bytesText(disk))
	return err
}

func cacheVerifyCommand() *cli.Command {
	return &cli.Command{
		Name:  "verify",
		Usage: "read again all that is present, and repair what is damaged",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}},
		Action: func(c *cli.Context) error {
			if _, err := args(c); err != nil {
				return err
			}
			return withEngine(c, func(e *engine) error { return e.verify(c) })
		},
	}
}

// verdict is what verifying one layer has given.
type verdict struct {
	Digest digest.Digest `json:"digest"`
	content.Checked
	Removed bool   `json:"removed"`         // its index or its files were damaged, so all of it was
	Error   string `json:"error,omitempty"` // why it could not be verified, or fetched anew
}

func (v *verdict) good() bool { return v.Bad == 0 && v.Stray == 0 && !v.Removed && v.Error == "" }

// String says it in a line.
func (v *verdict) String() string {
	text := fmt.Sprintf("%s, %d spans verified", bytesText(v.Bytes), v.Spans)
	if v.Bad > 0 {
		text += fmt.Sprintf("; %d of them (%s) were damaged, and were dropped; %d of these were fetched anew", v.Bad, bytesText(v.BadBytes), v.Refetched)
	}
	if v.Stray > 0 {
		text += fmt.Sprintf("; %d blocks were marked as present and had not come, which is put right", v.Stray)
	}
	if v.Removed {
		text = "its files were damaged; it was removed, and comes back with the next mount"
	}
	if v.Error != "" {
		text += "; " + v.Error
	}
	return text
}

// errDamaged is the error where verifying found damage.
var errDamaged = errors.New("layers were damaged")

func (e *engine) verify(c *cli.Context) error {
	inv, err := e.inventory(c)
	if err != nil {
		return err
	}
	all, bad := []verdict{}, 0
	for _, l := range inv.layers {
		v := e.verifyLayer(c, inv, l.Blob)
		if c.Context.Err() != nil {
			return c.Context.Err()
		}
		all = append(all, v)
		if !v.good() {
			bad++
		}
		if !c.Bool("json") {
			fmt.Fprintf(c.App.Writer, "%s: %s\n", short(l.Blob), &v)
		}
	}
	if c.Bool("json") {
		if err := printJSON(c.App.Writer, all); err != nil {
			return err
		}
	}
	if bad > 0 {
		return fmt.Errorf("%w: %d of %d", errDamaged, bad, len(all))
	}
	return nil
}

func (e *engine) verifyLayer(c *cli.Context, inv *inventory, blob digest.Digest) verdict {
	v := verdict{Digest: blob}
	l, err := e.openCached(inv, blob)
	if errors.Is(err, content.ErrNoIndex) {
		if err = e.Store.Remove(blob); err != nil {
			err = fmt.Errorf("its files are damaged: %w", err)
		}
		v.Removed = err == nil
	}
	if l != nil {
		v.Checked, err = l.VerifyPresent(c.Context)
		err = errors.Join(err, l.Close())
	}
	if err != nil {
		v.Error = err.Error()
	}
	return v
}

// openCached opens a layer, with the registry of an image that has it as its
// source, if the store remembers one.
func (e *engine) openCached(inv *inventory, blob digest.Digest) (*content.Layer, error) {
	for _, i := range inv.images {
		if i.uses(blob) {
			return e.OpenKnown(i.Image, blob)
		}
	}
	id, err := e.Store.LayerID(blob)
	if err != nil {
		return nil, err
	}
	return e.Store.Layer(id, nil)
}
