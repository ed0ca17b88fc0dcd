package transfer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const dockerManifestFile = "manifest.json"

// dockerArchive is the access to the images of a docker-archive: a tar file
// whose manifest.json names each image's config and layers (Docker image
// specification 1.2, "Combined Image JSON + Filesystem Changeset Format").
type dockerArchive struct {
	ref  localRef
	open func(ctx context.Context, path string) (*archiveTree, error)
}

// dockerEntry is an entry of manifest.json.
type dockerEntry struct {
	Config   string   // name of a file
	RepoTags []string // as "app:1"
	Layers   []string // names of files, lowest first
}

// dockerImage is an image with the manifest that is made for it. The same
// image always has the same one.
type dockerImage struct {
	raw   []byte
	doc   *document
	files map[digest.Digest]string // names of the blobs' files
}

// dockerImages is the images of one archive. Each is made when it is asked
// for, since that may take reading its layers.
type dockerImages struct {
	lock    mutex
	entries []dockerEntry // nil before they are read
	made    []*dockerImage
}

func newDockerImages() *dockerImages { return &dockerImages{lock: make(mutex, 1)} }

// manifest returns the manifest with the given digest or, if it is "", of the
// image that the reference's tag names.
func (a dockerArchive) manifest(ctx context.Context, id string) ([]byte, *document, error) {
	path, tag := a.ref.split()
	t, err := a.open(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	defer t.Close()
	var img *dockerImage
	if id == "" {
		img, err = t.docker.tagged(ctx, t, tag)
	} else {
		img, err = t.docker.first(ctx, t, func(i *dockerImage) bool { return digest.FromBytes(i.raw).String() == id })
	}
	if err != nil {
		return nil, nil, err
	}
	return img.raw, img.doc, nil
}

// referrers finds nothing: a docker-archive has no place for them.
func (a dockerArchive) referrers(context.Context, digest.Digest, string) ([]ocispec.Descriptor, error) {
	return nil, nil
}

func (a dockerArchive) blob(d ocispec.Descriptor) opener {
	return &localBlob{d: d, in: a, of: a.ref}
}

func (a dockerArchive) find(ctx context.Context, d digest.Digest) (*localFile, error) {
	path, _ := a.ref.split()
	t, err := a.open(ctx, path)
	if err != nil {
		return nil, err
	}
	img, err := t.docker.first(ctx, t, func(i *dockerImage) bool { return i.files[d] != "" })
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	f, err := openFile(t, img.files[d])
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	f.tree = t
	return f, nil
}

// tagged returns the image with a tag, or the only one if it is "".
func (s *dockerImages) tagged(ctx context.Context, t fs.FS, tag string) (*dockerImage, error) {
	if err := s.lock.lock(ctx); err != nil {
		return nil, err
	}
	defer s.lock.unlock()
	if err := s.read(t); err != nil {
		return nil, err
	}
	i, err := chooseEntry(s.entries, tag)
	if err != nil {
		return nil, err
	}
	return s.get(ctx, t, i)
}

// first returns the first image that matches, of those that are made and then
// of the others. An image that is damaged does not hide the others.
func (s *dockerImages) first(ctx context.Context, t fs.FS, match func(*dockerImage) bool) (*dockerImage, error) {
	if err := s.lock.lock(ctx); err != nil {
		return nil, err
	}
	defer s.lock.unlock()
	if err := s.read(t); err != nil {
		return nil, err
	}
	for _, img := range s.made {
		if img != nil && match(img) {
			return img, nil
		}
	}
	var damage error
	for i, known := range s.made {
		if known != nil {
			continue
		}
		img, err := s.get(ctx, t, i)
		if err == nil && match(img) {
			return img, nil
		}
		damage = cmp.Or(damage, err)
	}
	if damage != nil {
		return nil, damage
	}
	return nil, &localError{errors.New("no image of the archive has it"), ErrNotFound}
}

// read reads manifest.json, once.
func (s *dockerImages) read(t fs.FS) error {
	if s.entries != nil {
		return nil
	}
	raw, err := readFile(t, dockerManifestFile, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("not a docker-archive, which has a file %s%s", dockerManifestFile, layoutHint(t))
	} else if err != nil {
		return err
	}
	entries, err := parseDockerManifest(raw)
	if err != nil {
		return fmt.Errorf("read %s: %w", dockerManifestFile, err)
	}
	s.entries, s.made = entries, make([]*dockerImage, len(entries))
	return nil
}

func layoutHint(t fs.FS) string {
	if _, err := fs.Stat(t, ocispec.ImageLayoutFile); err != nil {
		return ""
	}
	return fmt.Sprintf("; it has a file %s: an archive of a layout is written %s:PATH", ocispec.ImageLayoutFile, schemeOCIArchive)
}

func parseDockerManifest(raw []byte) ([]dockerEntry, error) {
	var entries []dockerEntry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errors.New("it lists no image")
	}
	return entries, nil
}

// chooseEntry returns the place of the entry with a tag, or of the only one.
func chooseEntry(entries []dockerEntry, tag string) (int, error) {
	found := -1
	var choices []string
	several := false
	for i, e := range entries {
		for _, t := range e.RepoTags {
			choices = append(choices, ":"+t)
		}
		if tag != "" && !slices.ContainsFunc(e.RepoTags, func(t string) bool { return sameName(t, tag) }) {
			continue
		}
		several = several || found >= 0 && !(e.Config == entries[found].Config && slices.Equal(e.Layers, entries[found].Layers))
		found = i
	}
	switch {
	case found < 0:
		return 0, &localError{fmt.Errorf("no image was saved as %q; %s", tag, listChoices(choices)), ErrNotFound}
	case several:
		return 0, fmt.Errorf("there are several images, and the reference must say which; %s", listChoices(choices))
	}
	return found, nil
}

// sameName reports whether two names are of the same image, as "app:1" and
// "docker.io/library/app:1" are.
func sameName(a, b string) bool {
	if a == b {
		return true
	}
	x, err := name.ParseReference(a)
	y, err2 := name.ParseReference(b)
	return err == nil && err2 == nil && x.Name() == y.Name()
}

// get returns an image, and makes it if it has not been made.
func (s *dockerImages) get(ctx context.Context, t fs.FS, i int) (*dockerImage, error) {
	if s.made[i] == nil {
		img, err := makeDockerImage(ctx, t, s.entries[i])
		if err != nil {
			return nil, err
		}
		s.made[i] = img
	}
	return s.made[i], nil
}

func makeDockerImage(ctx context.Context, t fs.FS, e dockerEntry) (*dockerImage, error) {
	config, err := readFile(t, e.Config, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("read the image's config: %w", err)
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	if named := digestIn(e.Config); named != "" && named != d.Digest {
		return nil, fmt.Errorf("the image's config %s: what is there has digest %s", e.Config, d.Digest)
	}
	ids, err := diffIDs(config)
	if err != nil {
		return nil, fmt.Errorf("read the image's config %s: %w", e.Config, err)
	}
	if len(ids) != len(e.Layers) {
		return nil, fmt.Errorf("%s lists %d layers, but the config %s has %d diff_ids", dockerManifestFile, len(e.Layers), e.Config, len(ids))
	}
	img := &dockerImage{files: map[digest.Digest]string{d.Digest: e.Config}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: d, Layers: []ocispec.Descriptor{}}
	for i, file := range e.Layers {
		l, err := dockerLayer(ctx, t, file, ids[i])
		if err != nil {
			return nil, fmt.Errorf("layer %d, %s: %w", i, file, err)
		}
		m.Layers = append(m.Layers, l)
		img.files[l.Digest] = file
	}
	if img.raw, err = json.Marshal(m); err != nil {
		return nil, err
	}
	img.doc, err = parseDocument(img.raw)
	return img, err
}

// dockerLayer describes the file of a layer. Most are tar files as they are,
// whose digest is the diffID; a compressed one is read to learn its digest,
// unless its name is that.
func dockerLayer(ctx context.Context, t fs.FS, file string, diffID digest.Digest) (ocispec.Descriptor, error) {
	f, err := openFile(t, file)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close()
	kind, err := sniff(f)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digestIn(file), Size: f.size}
	switch kind {
	case "":
		if d.Digest != "" && d.Digest != diffID {
			return d, fmt.Errorf("its name has another digest than the config's diff_id %s", diffID)
		}
		d.Digest = diffID
		return d, nil
	case "gzip":
		d.MediaType = ocispec.MediaTypeImageLayerGzip
	case "zstd":
		d.MediaType = ocispec.MediaTypeImageLayerZstd
	default:
		return d, fmt.Errorf("it is compressed with %s, which layers are not", kind)
	}
	if d.Digest == "" {
		d.Digest, err = digest.SHA256.FromReader(contextReader{ctx, io.NewSectionReader(f, 0, f.size)})
	}
	return d, err
}

// digestIn returns the digest that a file of an archive is named by, or "".
func digestIn(file string) digest.Digest {
	base := path.Base(file)
	d := digest.NewDigestFromEncoded(digest.SHA256, strings.TrimSuffix(base, path.Ext(base)))
	if d.Validate() != nil {
		return ""
	}
	return d
}
