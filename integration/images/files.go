package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Files returns an image of one layer with 100,000 small files of text in 100
// directories, as a large tree of sources has them: most under 2 KiB, the
// largest 16 KiB, about 400 MB in all. Every machine makes the same bytes.
func Files(ctx context.Context) (*Image, error) {
	return cached("files", v1.Config{}, func(scratch string) ([]v1.Layer, error) {
		l, err := writeLayer(filepath.Join(scratch, "layer"), Gzip, func(w io.Writer) error {
			return writeFiles(ctx, w, 100, 1000)
		})
		return []v1.Layer{l}, err
	})
}

func writeFiles(ctx context.Context, w io.Writer, dirs, files int) error {
	random := rand.New(rand.NewPCG(1, 2))
	words := vocabulary(random, 4096)
	modified := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)
	out := tar.NewWriter(w)
	mkdir := func(name string) error {
		return out.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: modified})
	}
	if err := errors.Join(mkdir("./"), mkdir("srv/")); err != nil {
		return err
	}
	var text []byte
	for d := range dirs {
		dir := fmt.Sprintf("srv/dir%02d/", d)
		if err := errors.Join(ctx.Err(), mkdir(dir)); err != nil {
			return err
		}
		for f := range files {
			x := random.Float64()
			size := int(16 << 10 * x * x * x)
			text = text[:0]
			for len(text) < size {
				text = append(text, words[int(random.ExpFloat64()*256)%len(words)]...)
			}
			if err := out.WriteHeader(&tar.Header{
				Name: fmt.Sprintf("%sfile%03d.txt", dir, f), Typeflag: tar.TypeReg,
				Mode: 0o644, Size: int64(size), ModTime: modified,
			}); err != nil {
				return err
			}
			if _, err := out.Write(text[:size]); err != nil {
				return err
			}
		}
	}
	return out.Close()
}

// vocabulary returns n made-up words, each with a space or a newline after it.
func vocabulary(random *rand.Rand, n int) []string {
	words := make([]string, n)
	for i := range words {
		word := make([]byte, 2+random.IntN(10))
		for j := range word {
			word[j] = 'a' + byte(random.IntN(26))
		}
		word[len(word)-1] = " \n"[random.IntN(8)/7]
		words[i] = string(word)
	}
	return words
}
