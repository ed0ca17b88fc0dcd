// Package images makes the images that peel is tested and measured with: real
// ones of Debian packages and made-up ones of odd or many files.
//
// It knows how their layers come about. Each image is an OCI layout, made once
// and kept in the user's cache folder. Debian's packages come from the sources
// that the machine's apt is set up with. Making an image takes root.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/peelfs/peel/integration/cache"
)

// Tag is the name of each image in its layout.
const Tag = "latest"

// Image is an image in an OCI layout of its own.
type Image struct {
	v1.Image
	Name   string // as a repository may be named: "python"
	Layout string // path of the layout's folder
}

// Compressed returns the size of all layers as they are in a registry.
func (i *Image) Compressed() (size int64, err error) {
	manifest, err := i.Manifest()
	if err != nil {
		return 0, err
	}
	for _, l := range manifest.Layers {
		size += l.Size
	}
	return size, nil
}

// Uncompressed returns the size of all layers as tars.
func (i *Image) Uncompressed() (size int64, err error) {
	layers, err := i.Layers()
	if err != nil {
		return 0, err
	}
	for _, l := range layers {
		tar, err := l.Uncompressed()
		if err != nil {
			return 0, err
		}
		n, err := io.Copy(io.Discard, tar)
		if err := errors.Join(err, tar.Close()); err != nil {
			return 0, err
		}
		size += n
	}
	return size, nil
}

// version is part of every image's name in the cache, so that a change to the
// code that makes images makes them anew.
const version = "2"

// cached returns the image of that name, calling make for its layers if the
// cache has none. The layers are written below a scratch folder.
func cached(name string, config v1.Config, make func(scratch string) ([]v1.Layer, error)) (*Image, error) {
	dir, err := cache.Dir("images/"+name+"-v"+version, func(dir string) error {
		scratch := filepath.Join(dir, "scratch")
		if err := os.Mkdir(scratch, 0o755); err != nil {
			return err
		}
		layers, err := make(scratch)
		if err != nil {
			return err
		}
		if err := write(filepath.Join(dir, "layout"), config, layers); err != nil {
			return err
		}
		return os.RemoveAll(scratch)
	})
	if err != nil {
		return nil, err
	}
	return open(name, filepath.Join(dir, "layout"))
}

// write writes a layout with one image of these layers.
func write(dir string, config v1.Config, layers []v1.Layer) error {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		OS:           "linux",
		Architecture: runtime.GOARCH,
		Config:       config,
		RootFS:       v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return err
	}
	if img, err = mutate.AppendLayers(img, layers...); err != nil {
		return err
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return path.AppendImage(img, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": Tag,
	}))
}

// open returns the one image of a layout.
func open(name, dir string) (*Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", name, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", name, err)
	}
	if n := len(manifest.Manifests); n != 1 {
		return nil, fmt.Errorf("open image %s: %d images in %s, want one", name, n, dir)
	}
	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", name, err)
	}
	return &Image{img, name, dir}, nil
}

// Recompressed returns the image with the same layers in another encoding. It
// is made once, and cached under the names of both.
func Recompressed(ctx context.Context, img *Image, as Encoding) (*Image, error) {
	return converted(img, string(as), func(path string, l v1.Layer) (v1.Layer, error) {
		return reencode(ctx, path, l, as)
	})
}

// converted returns the image with each layer converted, in a file of its own.
func converted(img *Image, as string, convert func(path string, l v1.Layer) (v1.Layer, error)) (*Image, error) {
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s-%s-%s", img.Name, as, digest.Hex[:12])
	return cached(name, config.Config, func(scratch string) ([]v1.Layer, error) {
		encoded := make([]v1.Layer, len(layers))
		for i, l := range layers {
			encoded[i], err = convert(filepath.Join(scratch, fmt.Sprint(i)), l)
			if err != nil {
				return nil, fmt.Errorf("layer %d as %s: %w", i+1, as, err)
			}
		}
		return encoded, nil
	})
}

func reencode(ctx context.Context, path string, l v1.Layer, as Encoding) (v1.Layer, error) {
	tar, err := l.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	return writeLayer(path, as, func(w io.Writer) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := io.Copy(w, tar)
		return err
	})
}
