package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

const (
	parallelUploads  = 4
	fallbackAttempts = 5 // to update a tag that others may be updating, too
)

// ArtifactBlob is a blob to push. Open is called once for every attempt to
// send it.
type ArtifactBlob struct {
	MediaType   string
	Annotations map[string]string
	Digest      digest.Digest
	Size        int64 // bytes
	Open        func() (io.ReadCloser, error)
}

// BytesBlob returns an ArtifactBlob of bytes in memory.
func BytesBlob(mediaType string, annotations map[string]string, b []byte) ArtifactBlob {
	return ArtifactBlob{
		MediaType:   mediaType,
		Annotations: annotations,
		Digest:      digest.FromBytes(b),
		Size:        int64(len(b)),
		Open:        func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
	}
}

// PushArtifact attaches an artifact to the image: a manifest whose subject is
// the image's. The same artifact always has the same digest, so pushing it
// again changes nothing, and only blobs that the registry lacks are sent. In an
// image layout the manifest is listed in index.json; archives are not written
// to.
func (c *Client) PushArtifact(ctx context.Context, img *Image, artifactType string, blobs []ArtifactBlob) (digest.Digest, error) {
	d, err := c.pushArtifact(ctx, img, artifactType, blobs)
	if err != nil {
		return "", fmt.Errorf("attach %s to %s: %w", artifactType, img.Reference, err)
	}
	return d, nil
}

// CanAttach returns an error that says what to do if nothing can be attached to
// the image where it is. Whether a registry lets us, only PushArtifact finds out.
func (c *Client) CanAttach(img *Image) error {
	_, err := c.attacher(img)
	return err
}

func (c *Client) attacher(img *Image) (attacher, error) {
	to, ok := c.source(img.at, transport.PushScope).(attacher)
	if !ok {
		return nil, fmt.Errorf("an archive is only read: copy the image into a layout with \"skopeo copy %s oci:FOLDER:TAG\", and use that", img.Reference)
	}
	return to, nil
}

func (c *Client) pushArtifact(ctx context.Context, img *Image, artifactType string, blobs []ArtifactBlob) (digest.Digest, error) {
	to, err := c.attacher(img)
	if err != nil {
		return "", err
	}
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: artifactType,
		Config:       ocispec.DescriptorEmptyJSON,
		Layers:       []ocispec.Descriptor{},
		Subject:      &ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Manifest))},
	}
	for _, b := range blobs {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size, Annotations: b.Annotations})
	}
	if len(blobs) == 0 { // the specification wants at least one
		m.Layers = append(m.Layers, ocispec.DescriptorEmptyJSON)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	empty := BytesBlob(ocispec.MediaTypeEmptyJSON, nil, ocispec.DescriptorEmptyJSON.Data)
	a := artifact{subject: img.Digest, blobs: append(slices.Clone(blobs), empty), manifest: raw}
	a.d = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)), ArtifactType: artifactType}
	return a.d.Digest, to.attach(ctx, a)
}

// attacher is a source that artifacts can be added to.
type attacher interface {
	attach(ctx context.Context, a artifact) error
}

// artifact is all that attaching one takes.
type artifact struct {
	subject  digest.Digest
	blobs    []ArtifactBlob // with the config
	manifest []byte
	d        ocispec.Descriptor // of manifest
}

// attach sends the artifact's blobs, then its manifest.
func (r *repo) attach(ctx context.Context, a artifact) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelUploads)
	for _, b := range a.blobs {
		g.Go(func() error { return r.upload(gctx, b) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	header, err := r.putManifest(ctx, a.d.Digest.String(), a.d.MediaType, a.manifest)
	if err != nil {
		return err
	}
	if header.Get("OCI-Subject") == "" { // the registry does not say that it knows about subjects
		if err := r.addReferrer(ctx, a.subject, a.d); err != nil {
			return fmt.Errorf("list the artifact: %w", err)
		}
	}
	return nil
}

// upload sends a blob in one piece, unless the registry has it.
func (r *repo) upload(ctx context.Context, b ArtifactBlob) error {
	// A redirect is as good as the blob: it leads to where the blob is.
	head := newRequest(ctx, http.MethodHead, r.url("blobs/"+b.Digest.String()))
	resp, err := r.do(head, http.StatusOK, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect)
	if err == nil {
		discard(resp)
		return nil
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	resp, err = r.do(newRequest(ctx, http.MethodPost, r.url("blobs/uploads/")), http.StatusAccepted)
	if err != nil {
		return err
	}
	to, err := r.next(resp)
	if err != nil {
		return err
	}
	query := to.Query()
	query.Set("digest", b.Digest.String())
	to.RawQuery = query.Encode()
	req := newRequest(ctx, http.MethodPut, to)
	req.Header.Set("Content-Type", "application/octet-stream")
	req.ContentLength = b.Size
	req.GetBody = b.Open
	if resp, err = r.do(req, http.StatusCreated, http.StatusNoContent); err != nil {
		return err
	}
	discard(resp)
	return nil
}

// putManifest stores a manifest under a tag or its digest.
func (r *repo) putManifest(ctx context.Context, id, mediaType string, raw []byte) (http.Header, error) {
	req := newRequest(ctx, http.MethodPut, r.url("manifests/"+id))
	req.Header.Set("Content-Type", mediaType)
	req.ContentLength = int64(len(raw))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
	resp, err := r.do(req, http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err != nil {
		return nil, err
	}
	discard(resp)
	return resp.Header, nil
}

// addReferrer makes sure that d is listed as a referrer of the subject. If the
// registry does not list it by itself, it is added to the index under the
// fallback tag. Another process may write the tag at the same time, and one of
// both writes be lost, so it is read again after it was written.
func (r *repo) addReferrer(ctx context.Context, subject digest.Digest, d ocispec.Descriptor) error {
	if err := r.listing.lock(ctx); err != nil {
		return err
	}
	defer r.listing.unlock()
	for try := 1; ; try++ {
		list, api, err := r.askReferrers(ctx, subject, "")
		if err != nil || api || slices.ContainsFunc(list, func(o ocispec.Descriptor) bool { return o.Digest == d.Digest }) {
			return err
		}
		if try > fallbackAttempts {
			return fmt.Errorf("tag %s keeps losing the entry", fallbackTag(subject))
		}
		raw, err := json.Marshal(ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: ocispec.MediaTypeImageIndex,
			Manifests: append(list, d),
		})
		if err != nil {
			return err
		}
		if _, err := r.putManifest(ctx, fallbackTag(subject), ocispec.MediaTypeImageIndex, raw); err != nil {
			return err
		}
	}
}
