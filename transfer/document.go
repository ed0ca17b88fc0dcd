package transfer

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types (image manifest version 2, schema 2).
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

const (
	acceptIndex     = ocispec.MediaTypeImageIndex
	acceptManifests = ocispec.MediaTypeImageManifest + ", " + ocispec.MediaTypeImageIndex + ", " +
		dockerManifest + ", " + dockerList
)

func isImageType(t string) bool { return t == ocispec.MediaTypeImageManifest || t == dockerManifest }
func isIndexType(t string) bool { return t == ocispec.MediaTypeImageIndex || t == dockerList }

// document is a manifest or an index; a manifest has a config. Its kind is
// read from its own bytes, which the digest covers, and never from the HTTP
// header, which it does not.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	ArtifactType  string               `json:"artifactType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Subject       *ocispec.Descriptor  `json:"subject"`
	Annotations   map[string]string    `json:"annotations"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
}

func (d *document) isIndex() bool { return d.Config == nil }

// artifactType returns the type of artifact that a manifest is.
func (d *document) artifactType() string {
	if d.ArtifactType == "" && d.Config != nil {
		return d.Config.MediaType
	}
	return d.ArtifactType
}

// parseDocument reads a manifest or an index. Its media type is set, and what
// a manifest lists has valid digests and sizes. What an index lists may be
// meant for others, and is checked when it is used.
func parseDocument(b []byte) (*document, error) {
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, err
	}
	if d.SchemaVersion == 1 || d.FSLayers != nil {
		return nil, errors.New("this is Docker's manifest schema 1, which is not supported: push the image again with a current tool")
	}
	if d.SchemaVersion != 2 {
		return nil, fmt.Errorf("schemaVersion is %d, not 2", d.SchemaVersion)
	}
	// Bytes that could be read as both would not say what is meant
	// (CVE-2021-41190).
	if d.Manifests != nil && (d.Config != nil || d.Layers != nil) {
		return nil, errors.New("both manifests and layers are listed")
	}
	if d.Config == nil && d.Layers != nil {
		return nil, errors.New("there are layers but no config")
	}
	switch {
	case d.MediaType == "" && d.Config != nil:
		d.MediaType = ocispec.MediaTypeImageManifest
	case d.MediaType == "" && d.Manifests != nil:
		d.MediaType = ocispec.MediaTypeImageIndex
	case isImageType(d.MediaType) && d.Config != nil, isIndexType(d.MediaType) && d.Config == nil:
	default:
		return nil, fmt.Errorf("media type %q with these contents is neither an image manifest nor an index", d.MediaType)
	}
	return &d, d.checkDescriptors()
}

func (d *document) checkDescriptors() error {
	all := slices.Clone(d.Layers)
	if d.Config != nil {
		all = append(all, *d.Config)
	}
	for _, one := range all {
		if err := checkDigest(one.Digest); err != nil {
			return err
		}
		if one.Size < 0 {
			return fmt.Errorf("%s has a size of %d bytes", one.Digest, one.Size)
		}
	}
	return nil
}

// checkDigest refuses what is not a SHA-256, the only algorithm in use.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q: only sha256 is supported", d)
	}
	return nil
}
