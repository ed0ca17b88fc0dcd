// Package registry runs the CNCF distribution registry as a process of its own
// on loopback, and pushes images to it.
//
// It knows how that registry is configured and started. It does not know what
// peel does with it.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/peelfs/peel/integration/parts"
	"github.com/peelfs/peel/integration/process"
)

// Registry is a running registry.
type Registry struct {
	addr    string
	process *process.Process
}

const config = `version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q}
  cache: {blobdescriptor: inmemory}
  delete: {enabled: true}
validation: {manifests: {urls: {allow: ["^http://127\\.0\\.0\\.1:"]}}}
http: {addr: %q}
`

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// Start starts a registry that keeps its storage, and a log, below dir, and
// returns when it listens. What an earlier one left below dir it serves. The
// address is a free port on loopback, or addr if that is not empty.
func Start(ctx context.Context, dir, addr string) (*Registry, error) {
	program, err := parts.Registry(ctx)
	if err != nil {
		return nil, err
	}
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	file := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf(config, filepath.Join(dir, "storage"), addr)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(program, "serve", file)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none")
	p, match, err := process.Start(ctx, cmd, filepath.Join(dir, "log"), listening)
	if err != nil {
		return nil, err
	}
	return &Registry{match[1], p}, nil
}

// Addr returns the address, as "127.0.0.1:34567".
func (r *Registry) Addr() string { return r.addr }

// Close kills the registry and returns when it is gone. What it stores stays.
func (r *Registry) Close() error { return r.process.Kill() }

// Push pushes an image to a repository of the registry, as the tag latest.
func (r *Registry) Push(ctx context.Context, img v1.Image, repo string) error {
	ref, err := name.NewTag(r.addr+"/"+repo+":latest", name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// ReferrersSize returns the size of everything in the repository that refers to
// an image: manifests and what they hold.
func (r *Registry) ReferrersSize(ctx context.Context, img v1.Image, repo string) (size int64, err error) {
	referrers, err := r.referrers(ctx, img, repo)
	if err != nil {
		return 0, err
	}
	for _, referrer := range referrers {
		manifest, err := referrer.Manifest()
		if err != nil {
			return 0, err
		}
		n, err := referrer.Size()
		if err != nil {
			return 0, err
		}
		size += n
		for _, l := range manifest.Layers {
			size += l.Size
		}
	}
	return size, nil
}

// FetchReferrers downloads everything in the repository that refers to an
// image, to nowhere.
func (r *Registry) FetchReferrers(ctx context.Context, img v1.Image, repo string) error {
	referrers, err := r.referrers(ctx, img, repo)
	if err != nil {
		return err
	}
	for _, referrer := range referrers {
		blobs, err := referrer.Layers()
		if err != nil {
			return err
		}
		for _, b := range blobs {
			body, err := b.Compressed()
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, body)
			if err := errors.Join(err, body.Close()); err != nil {
				return err
			}
		}
	}
	return nil
}

// referrers fetches the manifests that refer to an image.
func (r *Registry) referrers(ctx context.Context, img v1.Image, repo string) ([]v1.Image, error) {
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	ref, err := name.NewDigest(r.addr+"/"+repo+"@"+digest.String(), name.Insecure)
	if err != nil {
		return nil, err
	}
	index, err := remote.Referrers(ref, remote.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("list what refers to %s: %w", ref, err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var all []v1.Image
	for _, referrer := range list.Manifests {
		artifact, err := remote.Image(ref.Context().Digest(referrer.Digest.String()), remote.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		all = append(all, artifact)
	}
	return all, nil
}
