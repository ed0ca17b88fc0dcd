package hostile

import (
	"fmt"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/peelfs/peel/integration/images"
)

// Maker makes a layer in a file.
type Maker func(path string) (*Layer, error)

// Case is a hostile image, and what becomes of it.
type Case struct {
	Name   string
	Layers []Maker

	// Refused is what the error says, and Entry the entry that it names; both
	// are "" for an image that is shown.
	Refused, Entry string

	// Mounting says that only a mount refuses it, because its layers are sound
	// and their index is.
	Mounting bool

	// Plain are layers of the same tree for umoci, where it does not read
	// Layers.
	Plain []Maker
}

// Image makes the case's image, and the one for umoci, in a folder.
func (c *Case) Image(name, dir string) (img, plain *images.Image, err error) {
	if img, err = c.image(name, filepath.Join(dir, "image"), c.Layers); err != nil || c.Plain == nil {
		return img, img, err
	}
	plain, err = c.image(name, filepath.Join(dir, "plain"), c.Plain)
	return img, plain, err
}

func (c *Case) image(name, dir string, makers []Maker) (*images.Image, error) {
	var layers []v1.Layer
	for i, make := range makers {
		l, err := make(fmt.Sprintf("%s-layer%d", dir, i))
		if err != nil {
			return nil, fmt.Errorf("make layer %d of %q: %w", i, c.Name, err)
		}
		layers = append(layers, l)
	}
	return images.New(name, dir, layers...)
}

// tarred returns a maker of a gzip layer of a tar.
func tarred(fill func(*Tar)) Maker {
	return func(path string) (*Layer, error) { return gzipped(path, fill) }
}

func shown(name string, layers ...func(*Tar)) Case {
	c := Case{Name: name}
	for _, fill := range layers {
		c.Layers = append(c.Layers, tarred(fill))
	}
	return c
}

func refused(name, says, entry string, layers ...func(*Tar)) Case {
	c := shown(name, layers...)
	c.Refused, c.Entry = says, entry
	return c
}

// mounting is refused, but only by a mount.
func mounting(name, says, entry string, layers ...func(*Tar)) Case {
	c := refused(name, says, entry, layers...)
	c.Mounting = true
	return c
}

// instead gives umoci another layer, of the same tree.
func instead(c Case, plain func(*Tar)) Case {
	c.Plain = []Maker{tarred(plain)}
	return c
}
