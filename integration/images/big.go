package images

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// BigFile is the path of the file in the Big image, and BigSize its length.
const (
	BigFile = "srv/big"
	BigSize = 512 << 20
)

// Big returns an image of one layer with one file of text, as a database or a
// model is one. Every machine makes the same bytes.
func Big(ctx context.Context) (*Image, error) {
	return cached("big", v1.Config{}, func(scratch string) ([]v1.Layer, error) {
		l, err := writeLayer(filepath.Join(scratch, "layer"), Gzip, func(w io.Writer) error {
			return writeBig(ctx, w, BigSize)
		})
		return []v1.Layer{l}, err
	})
}

func writeBig(ctx context.Context, w io.Writer, size int64) error {
	random := rand.New(rand.NewPCG(3, 4))
	words := vocabulary(random, 4096)
	modified := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)
	out := tar.NewWriter(w)
	if err := errors.Join(
		out.WriteHeader(&tar.Header{Name: "srv/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: modified}),
		out.WriteHeader(&tar.Header{Name: BigFile, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: modified}),
	); err != nil {
		return err
	}
	var text []byte
	for left := size; left > 0; left -= int64(len(text)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		for text = text[:0]; len(text) < 1<<20; {
			text = append(text, words[random.IntN(len(words))]...)
		}
		text = text[:min(int64(len(text)), left)]
		if _, err := out.Write(text); err != nil {
			return err
		}
	}
	return out.Close()
}
