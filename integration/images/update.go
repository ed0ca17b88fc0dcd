package images

import (
	"context"
	"io"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// updated are the packages, above the base system, of the images that Updates
// returns: a program in Python that speaks TLS, with its tools.
var updated = []string{"ca-certificates", "curl", "git", "openssh-client", "perl", "python3"}

// Updates returns the same Debian system twice, as of its last point release
// and with all that was updated since. Each image is one layer, so they share
// files, and no layer.
func Updates(ctx context.Context) (before, after *Image, err error) {
	if before, err = oneLayer(ctx, "debian-released", []string{"-security", "-updates"}); err != nil {
		return nil, nil, err
	}
	after, err = oneLayer(ctx, "debian-updated", nil)
	return before, after, err
}

func oneLayer(ctx context.Context, name string, without []string) (*Image, error) {
	return cached(name, v1.Config{}, func(scratch string) ([]v1.Layer, error) {
		tar := filepath.Join(scratch, "root.tar")
		if err := bootstrap(ctx, scratch, tar, without, updated...); err != nil {
			return nil, err
		}
		l, err := writeLayer(filepath.Join(scratch, "layer"), Gzip, func(w io.Writer) error { return copyFile(w, tar) })
		return []v1.Layer{l}, err
	})
}
