package transfer

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// What references to local files begin with. An image of Docker Hub that is
// called "oci" is still reached as "docker.io/library/oci".
const (
	schemeLayout        = "oci"
	schemeOCIArchive    = "oci-archive"
	schemeDockerArchive = "docker-archive"
)

// reference says which image is meant: one in a registry, or one in local
// files.
type reference struct {
	remote name.Reference // nil for a local image
	local  localRef
}

// localRef is a reference of the form SCHEME:PATH[:TAG][@DIGEST].
type localRef struct {
	scheme string        // "" if the image is in a registry
	rest   string        // PATH[:TAG]; PATH is absolute
	digest digest.Digest // of a manifest or index, or ""; it takes precedence over TAG
}

// FullReference returns a reference as Image.Reference has it. It means the
// same in every working folder: a registry and a tag are spelled out, and a
// path is absolute.
func FullReference(ref string) (string, error) {
	r, err := parseReference(ref)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

// ByDigest returns the reference of the manifest with that digest in the
// repository, or the local files, of an image.
func ByDigest(ref string, manifest digest.Digest) (string, error) {
	r, err := parseReference(ref)
	if err != nil {
		return "", err
	}
	if r.remote == nil {
		r.local.digest = manifest
		return r.String(), nil
	}
	return reference{remote: r.remote.Context().Digest(manifest.String())}.String(), nil
}

func parseReference(s string) (reference, error) {
	scheme, rest, _ := strings.Cut(s, ":")
	switch scheme {
	case schemeLayout, schemeOCIArchive, schemeDockerArchive:
		l, err := parseLocal(scheme, rest)
		if err != nil {
			return reference{}, fmt.Errorf("reference %q: %w", s, err)
		}
		return reference{local: l}, nil
	}
	n, err := name.ParseReference(s)
	if err != nil {
		return reference{}, err
	}
	return reference{remote: n}, nil
}

func parseLocal(scheme, rest string) (localRef, error) {
	l := localRef{scheme: scheme, rest: rest}
	if i := strings.LastIndex(rest, "@sha256:"); i >= 0 {
		l.rest, l.digest = rest[:i], digest.Digest(rest[i+1:])
		if err := checkDigest(l.digest); err != nil {
			return l, err
		}
	}
	if l.rest == "" || l.rest[0] == ':' {
		return l, fmt.Errorf("want %s:PATH or %s:PATH:TAG", scheme, scheme)
	}
	if filepath.IsAbs(l.rest) {
		return l, nil
	}
	wd, err := os.Getwd()
	if err != nil {
		return l, err
	}
	l.rest = strings.TrimSuffix(wd, "/") + "/" + l.rest // not Join: ".." may come after a symbolic link
	return l, nil
}

// String returns the reference in full.
func (r reference) String() string {
	if r.remote == nil {
		return r.local.String()
	}
	full := r.remote.Name()
	if rest, ok := strings.CutPrefix(full, name.DefaultRegistry+"/"); ok {
		return "docker.io/" + rest // as people write it
	}
	return full
}

func (l localRef) String() string {
	s := l.scheme + ":" + l.rest
	if l.digest != "" {
		s += "@" + l.digest.String()
	}
	return s
}

// id returns the tag or digest to ask a repository for. Local files are asked
// for "", unless it is a digest: only they can tell the tag from the path.
func (r reference) id() string {
	if r.remote == nil {
		return r.local.digest.String()
	}
	return r.remote.Identifier()
}

// split tells the path from the tag, both of which may have colons in them:
// the path is as much of both as there is a file for. Where there is none, it
// ends at the first colon.
func (l localRef) split() (path, tag string) {
	for end := len(l.rest); end > 0; end = strings.LastIndexByte(l.rest[:end], ':') {
		if _, err := os.Stat(l.rest[:end]); err == nil {
			return l.rest[:end], strings.TrimPrefix(l.rest[end:], ":")
		}
	}
	path, tag, _ = strings.Cut(l.rest, ":")
	return path, tag
}
