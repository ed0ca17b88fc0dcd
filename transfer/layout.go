package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxLayoutFile = 4 << 10 // bytes of oci-layout
	maxListedTags = 20      // in an error

	containerdName = "io.containerd.image.name" // annotation: the name with the tag, where ref.name is the tag alone
)

// layout is the access to images in the form of an image layout (image
// specification, "OCI Image Layout Specification"), in a folder or an archive.
type layout struct {
	ref  localRef
	open func(ctx context.Context, path string) (tree, error)
}

// folder is a layout in a folder, which can be written to.
type folder struct{ layout }

func openFolder(_ context.Context, path string) (tree, error) {
	t, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// manifest returns the manifest or index with the given digest or, if it is
// "", the one that the reference's tag names.
func (l layout) manifest(ctx context.Context, id string) ([]byte, *document, error) {
	path, tag := l.ref.split()
	t, err := l.open(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	defer t.Close()
	if id != "" {
		return readManifest(t, ocispec.Descriptor{Digest: digest.Digest(id)})
	}
	return findImage(t, tag)
}

// findImage returns the manifest or index with the given tag or, without a
// tag, the only one. Where index.json lists one image for several platforms,
// it is index.json itself.
func findImage(t fs.FS, tag string) ([]byte, *document, error) {
	raw, all, err := readIndex(t)
	if err != nil {
		return nil, nil, err
	}
	found := withTag(t, all, tag)
	switch {
	case len(found) == 1:
		return readManifest(t, found[0])
	case len(found) == 0 && tag == "":
		return nil, nil, errors.New("index.json lists no image")
	case len(found) == 0:
		return nil, nil, &localError{fmt.Errorf("no image has the tag %q; %s", tag, listTags(withTag(t, all, ""))), ErrNotFound}
	}
	for _, d := range found {
		if d.Platform == nil || tag == "" && len(tagsOf(d)) > 0 {
			return nil, nil, fmt.Errorf("there are several images, and the reference must say which; %s", listTags(found))
		}
	}
	return raw, &document{SchemaVersion: 2, MediaType: ocispec.MediaTypeImageIndex, Manifests: found}, nil
}

// withTag returns the entries of index.json that have the tag or, if it is
// "", that are images, each once.
func withTag(t fs.FS, entries []ocispec.Descriptor, tag string) []ocispec.Descriptor {
	var found []ocispec.Descriptor
	for _, d := range entries {
		if tag != "" && !slices.Contains(tagsOf(d), tag) ||
			slices.ContainsFunc(found, func(o ocispec.Descriptor) bool { return o.Digest == d.Digest }) {
			continue
		}
		found = append(found, d)
	}
	if tag == "" && len(found) > 1 {
		found = slices.DeleteFunc(found, func(d ocispec.Descriptor) bool { return !isImage(t, d) })
	}
	return found
}

// isImage tells an entry of index.json that may be an image from what is there
// because of an image.
func isImage(t fs.FS, d ocispec.Descriptor) bool {
	switch d.ArtifactType {
	case "", ocispec.MediaTypeImageConfig, dockerConfig: // some tools call an image an artifact of its config's type
	default:
		return false
	}
	if !isImageType(d.MediaType) && !isIndexType(d.MediaType) {
		return false
	}
	for _, tag := range tagsOf(d) {
		if strings.HasPrefix(tag, "sha256-") { // see fallbackTag; signatures have such tags, too
			return false
		}
	}
	_, doc, err := readManifest(t, d)
	return err != nil || doc.Subject == nil
}

// tagsOf returns the tags of an entry of index.json.
func tagsOf(d ocispec.Descriptor) []string {
	var tags []string
	for _, key := range []string{ocispec.AnnotationRefName, containerdName} {
		if tag := d.Annotations[key]; tag != "" {
			tags = append(tags, tag)
		}
	}
	return tags
}

// listTags says what could be written instead of a tag.
func listTags(entries []ocispec.Descriptor) string {
	var choices []string
	for _, d := range entries {
		if tags := tagsOf(d); len(tags) > 0 {
			choices = append(choices, ":"+tags[len(tags)-1])
		} else {
			choices = append(choices, "@"+d.Digest.String())
		}
	}
	return listChoices(choices)
}

func listChoices(choices []string) string {
	if len(choices) == 0 {
		return "there is no image"
	}
	more := ""
	if n := len(choices) - maxListedTags; n > 0 {
		choices, more = choices[:maxListedTags], fmt.Sprintf(" and %d more", n)
	}
	for i, c := range choices {
		if q := strconv.Quote(c); q != `"`+c+`"` {
			choices[i] = q // it has bytes that are not for a terminal
		}
	}
	return "there is " + strings.Join(choices, ", ") + more
}

// referrers returns the manifests in index.json, and in the indexes that it
// lists, whose subject is the given one, of all artifact types. What cannot be
// read does not hide the others.
func (l layout) referrers(ctx context.Context, subject digest.Digest, _ string) ([]ocispec.Descriptor, error) {
	path, _ := l.ref.split()
	t, err := l.open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	_, entries, err := readIndex(t)
	if err != nil {
		return nil, err
	}
	s := subjectSearch{t: t, subject: subject, seen: map[digest.Digest]bool{}}
	if err := s.search(ctx, entries, 0); err != nil {
		return nil, err
	}
	return s.found, nil
}

// subjectSearch looks for what refers to a subject.
type subjectSearch struct {
	t       fs.FS
	subject digest.Digest
	seen    map[digest.Digest]bool
	found   []ocispec.Descriptor
}

func (s *subjectSearch) search(ctx context.Context, entries []ocispec.Descriptor, depth int) error {
	for _, d := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.seen[d.Digest] || !isImageType(d.MediaType) && !isIndexType(d.MediaType) {
			continue
		}
		s.seen[d.Digest] = true
		_, doc, err := readManifest(s.t, d)
		switch {
		case err != nil:
		case doc.isIndex() && depth < maxIndexDepth:
			if err := s.search(ctx, doc.Manifests, depth+1); err != nil {
				return err
			}
		case doc.Subject != nil && doc.Subject.Digest == s.subject:
			d.ArtifactType, d.Annotations = doc.artifactType(), doc.Annotations // as the Referrers API has them
			s.found = append(s.found, d)
		}
	}
	return nil
}

func (l layout) blob(d ocispec.Descriptor) opener { return &localBlob{d: d, in: l, of: l.ref} }

// find opens a blob. It is looked for in the layout as it is now.
func (l layout) find(ctx context.Context, d digest.Digest) (*localFile, error) {
	if err := checkDigest(d); err != nil {
		return nil, err
	}
	path, _ := l.ref.split()
	t, err := l.open(ctx, path)
	if err != nil {
		return nil, err
	}
	f, err := openFile(t, blobName(d))
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	f.tree = t
	return f, nil
}

// blobName returns the name of a blob's file. The digest is a valid one.
func blobName(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// readIndex reads index.json.
func readIndex(t fs.FS) (raw []byte, entries []ocispec.Descriptor, err error) {
	raw, err = readFile(t, ocispec.ImageLayoutFile, maxLayoutFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("not an OCI image layout, which has a file %s%s", ocispec.ImageLayoutFile, dockerHint(t))
	} else if err != nil {
		return nil, nil, err
	}
	var version ocispec.ImageLayout
	if err := json.Unmarshal(raw, &version); err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", ocispec.ImageLayoutFile, err)
	}
	if !strings.HasPrefix(version.Version, "1.") {
		return nil, nil, fmt.Errorf("read %s: imageLayoutVersion %q is not supported", ocispec.ImageLayoutFile, version.Version)
	}
	if raw, err = readFile(t, ocispec.ImageIndexFile, maxManifest); err != nil {
		return nil, nil, err
	}
	if entries, err = parseIndex(raw); err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", ocispec.ImageIndexFile, err)
	}
	return raw, entries, nil
}

// parseIndex reads what index.json lists, which may be nothing.
func parseIndex(raw []byte) ([]ocispec.Descriptor, error) {
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	if doc.SchemaVersion != 2 {
		return nil, fmt.Errorf("schemaVersion is %d, not 2", doc.SchemaVersion)
	}
	if doc.Config != nil || doc.Layers != nil {
		return nil, errors.New("it is a manifest, not an index")
	}
	return doc.Manifests, nil
}

func dockerHint(t fs.FS) string {
	if _, err := fs.Stat(t, dockerManifestFile); err != nil {
		return ""
	}
	return fmt.Sprintf("; it has a %s: what docker save wrote is written %s:PATH", dockerManifestFile, schemeDockerArchive)
}

// readManifest reads the manifest or index of a descriptor.
func readManifest(t fs.FS, d ocispec.Descriptor) ([]byte, *document, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, nil, err
	}
	raw, err := readFile(t, blobName(d.Digest), maxManifest)
	if err == nil {
		err = checkBytes(raw, d)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read manifest %s: %w", d.Digest, err)
	}
	doc, err := parseDocument(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("read manifest %s: %w", d.Digest, err)
	}
	return raw, doc, nil
}

// checkBytes compares bytes with their descriptor, in which a size of 0 means
// that it is not known.
func checkBytes(b []byte, d ocispec.Descriptor) error {
	if d.Size != 0 && d.Size != int64(len(b)) {
		return fmt.Errorf("it has %d bytes, but its descriptor says %d", len(b), d.Size)
	}
	if got := digest.FromBytes(b); got != d.Digest {
		return fmt.Errorf("what is there has digest %s", got)
	}
	return nil
}
