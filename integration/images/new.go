package images

import v1 "github.com/google/go-containerregistry/pkg/v1"

// New makes an image of these layers, as a layout in the folder dir.
func New(name, dir string, layers ...v1.Layer) (*Image, error) {
	if err := write(dir, v1.Config{}, layers); err != nil {
		return nil, err
	}
	return open(name, dir)
}
