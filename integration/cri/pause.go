package cri

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/peelfs/peel/integration/parts"
)

// Pause returns the image that a pod's first process runs from: one static
// program. It is to be pushed to a registry, and named in containerd.Options.
func Pause(ctx context.Context) (v1.Image, error) {
	dir, err := os.MkdirTemp("", "peel-pause-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path, err := parts.Own(ctx, dir, "cri/pause")
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	layer, err := executable("pause", program)
	if err != nil {
		return nil, err
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, Config: v1.Config{Entrypoint: []string{"/pause"}},
	})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, layer)
}

// executable returns a layer of one program.
func executable(name string, program []byte) (v1.Layer, error) {
	var blob bytes.Buffer
	out := tar.NewWriter(&blob)
	err := out.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))})
	if err != nil {
		return nil, err
	}
	_, err = out.Write(program)
	if err := errors.Join(err, out.Close()); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(blob.Bytes())), nil
	})
}
