package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/transfer"
	"github.com/urfave/cli/v2"
)

func cacheRmCommand() *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Usage:     "remove images and layers from the store",
		ArgsUsage: "IMAGE|DIGEST...",
		Flags:     []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "remove everything that is not in use"}},
		Action: func(c *cli.Context) error {
			all := c.Bool("all")
			if all && c.Args().Present() {
				return errors.New("--all and a name exclude each other")
			}
			var names []string
			if !all {
				var err error
				if names, err = someArgs(c, 1, math.MaxInt, "IMAGE|DIGEST..."); err != nil {
					return err
				}
			}
			return withEngine(c, func(e *engine) error { return e.rm(c, names, all) })
		},
	}
}

// removal is what is to be removed.
type removal struct {
	layers []cachedLayer
	images []cachedImage
}

func (e *engine) rm(c *cli.Context, names []string, all bool) error {
	inv, err := e.inventory(c)
	if err != nil {
		return err
	}
	var r removal
	if all {
		r = inv.unused()
	} else if r, err = inv.named(names); err != nil {
		return err
	}
	var disk int64
	for _, l := range r.layers {
		if err := e.Store.Remove(l.Blob); err != nil {
			return err
		}
		disk += l.Disk
	}
	for _, i := range r.images {
		if err := e.Store.RemoveImage(i.Ref, i.Platform); err != nil {
			return err
		}
	}
	if kept := len(inv.layers) - len(r.layers); all && kept > 0 {
		fmt.Fprintf(os.Stderr, "%d layers are in use, and stay\n", kept)
	}
	_, err = fmt.Fprintf(c.App.Writer, "removed %d images and %d layers, which took %s\n", len(r.images), len(r.layers), bytesText(disk))
	return err
}

// unused is all that nobody uses: layers that are not open, and images that
// have no other ones.
func (inv *inventory) unused() removal {
	var r removal
	inUse := map[digest.Digest]bool{}
	for _, l := range inv.layers {
		if l.InUse {
			inUse[l.Blob] = true
		} else {
			r.layers = append(r.layers, l)
		}
	}
	for _, i := range inv.images {
		if !slices.ContainsFunc(i.layers, func(l digest.Digest) bool { return inUse[l] }) {
			r.images = append(r.images, i)
		}
	}
	return r
}

// named is what the names stand for. It is an error if a name stands for
// nothing, or for what is in use.
func (inv *inventory) named(names []string) (removal, error) {
	var r removal
	asked := map[digest.Digest]bool{} // layers, by their own name
	images := map[int]bool{}          // by their place in inv.images
	for _, name := range names {
		found := false
		for n, i := range inv.images {
			if i.is(name) {
				images[n], found = true, true
			}
		}
		for _, l := range inv.layers {
			if isDigest(name, l.Blob) {
				asked[l.Blob], found = true, true
			}
		}
		if !found {
			return r, fmt.Errorf("remove %s: the store has no such image or layer; peel cache df lists what it has", name)
		}
	}
	freed, needed := map[digest.Digest]bool{}, map[digest.Digest]bool{} // by images that go, and by those that stay
	for n, i := range inv.images {
		by := needed
		if images[n] {
			by = freed
			r.images = append(r.images, i)
		}
		for _, l := range i.layers {
			by[l] = true
		}
	}
	for _, l := range inv.layers {
		if !asked[l.Blob] && (!freed[l.Blob] || needed[l.Blob]) {
			continue
		}
		if l.InUse {
			return r, fmt.Errorf("remove layer %s: %w by %s; unmount the image first", short(l.Blob), content.ErrInUse, l.users())
		}
		r.layers = append(r.layers, l)
	}
	return r, nil
}

// is reports whether a name is the image's: a reference, or the digest of its
// manifest.
func (i *cachedImage) is(name string) bool {
	if isDigest(name, i.Digest) {
		return true
	}
	want, err := transfer.FullReference(name)
	if err != nil {
		return false
	}
	got, err := transfer.FullReference(i.Ref)
	return err == nil && got == want
}

// isDigest reports whether a name is a digest, or at least its first digits.
func isDigest(name string, d digest.Digest) bool {
	hex := strings.TrimPrefix(name, "sha256:")
	return len(hex) >= 12 && strings.HasPrefix(d.String(), "sha256:"+hex)
}
