package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxReferrerPages  = 16
	maxUntypedLookups = 16 // manifests read because the registry did not tell their artifact type
)

// Artifact is a manifest that refers to an image, and what it carries.
type Artifact struct {
	Digest       digest.Digest
	ArtifactType string
	Annotations  map[string]string
	Blobs        []ocispec.Descriptor
}

// Referrers lists the artifacts of the given type that refer to the image, or
// of every type if it is "". There may be none. Where the registry does not
// have the Referrers API, the fallback tag is read (distribution
// specification, "Listing Referrers" and "Referrers Tag Schema"). In an image
// layout they are what index.json lists; a docker-archive has none.
func (c *Client) Referrers(ctx context.Context, img *Image, artifactType string) ([]ocispec.Descriptor, error) {
	list, err := listReferrers(ctx, c.source(img.at, transport.PullScope), img, artifactType)
	if err != nil {
		return nil, fmt.Errorf("list what refers to %s: %w", img.Reference, err)
	}
	return list, nil
}

func listReferrers(ctx context.Context, from source, img *Image, artifactType string) ([]ocispec.Descriptor, error) {
	var all []ocispec.Descriptor
	if ahead := img.ahead.Swap(nil); ahead != nil {
		all = *ahead
	} else {
		var err error
		if all, err = from.referrers(ctx, img.Digest, artifactType); err != nil {
			return nil, err
		}
	}
	if artifactType == "" {
		return all, nil
	}
	var list []ocispec.Descriptor
	lookups := 0
	for _, d := range all {
		// A registry from before artifactType tells the config's type
		// instead, which for an artifact is the empty one.
		if d.ArtifactType == "" || d.ArtifactType == ocispec.MediaTypeEmptyJSON {
			if lookups++; lookups > maxUntypedLookups {
				break
			}
			_, doc, err := manifestOf(ctx, from, d)
			if ctx.Err() != nil || errors.Is(err, ErrUnavailable) {
				return nil, err
			} else if err != nil {
				continue // one bad entry does not hide the others
			}
			d.ArtifactType = doc.artifactType()
		}
		if d.ArtifactType == artifactType {
			list = append(list, d)
		}
	}
	return list, nil
}

// referrers lists what refers to a manifest. The registry may have left out
// other types than the given one.
func (r *repo) referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	list, _, err := r.askReferrers(ctx, subject, artifactType)
	return list, err
}

// askReferrers is referrers, and tells if the registry has the Referrers API.
func (r *repo) askReferrers(ctx context.Context, subject digest.Digest, artifactType string) (list []ocispec.Descriptor, api bool, err error) {
	u := r.url("referrers/" + subject.String())
	if artifactType != "" {
		u.RawQuery = url.Values{"artifactType": {artifactType}}.Encode()
	}
	for page := 0; u != nil && page < maxReferrerPages; page++ {
		raw, header, err := r.fetch(ctx, u, acceptIndex, maxManifest, nil)
		var status *statusError
		if errors.As(err, &status) && page == 0 && meansNoAPI(status.code) {
			return r.fallbackReferrers(ctx, subject)
		} else if err != nil {
			return nil, false, err
		}
		doc, err := parseDocument(raw)
		if page == 0 && (err != nil || !doc.isIndex()) {
			return r.fallbackReferrers(ctx, subject) // a page for people, served for every address
		} else if err != nil {
			return nil, false, fmt.Errorf("read page %d of the referrers: %w", page+1, err)
		}
		list = append(list, doc.Manifests...)
		u = nextPage(u, header)
	}
	return list, true, nil
}

// meansNoAPI reports whether a status may mean that the registry does not know
// the Referrers API. Only 404 should. If it means something else, the request
// for the fallback tag will meet it, too.
func meansNoAPI(code int) bool {
	return code >= 400 && code < 500 && code != http.StatusTooManyRequests || code == http.StatusNotImplemented
}

func (r *repo) fallbackReferrers(ctx context.Context, subject digest.Digest) ([]ocispec.Descriptor, bool, error) {
	_, doc, err := r.manifest(ctx, fallbackTag(subject))
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	case !doc.isIndex():
		return nil, false, fmt.Errorf("tag %s is not an index", fallbackTag(subject))
	}
	return doc.Manifests, false, nil
}

func fallbackTag(subject digest.Digest) string {
	return strings.Replace(subject.String(), ":", "-", 1)
}

var nextLink = regexp.MustCompile(`<([^>]*)>\s*;\s*rel="?next"?`)

// nextPage returns the address of the next page (RFC 5988), or nil.
func nextPage(u *url.URL, header http.Header) *url.URL {
	m := nextLink.FindStringSubmatch(header.Get("Link"))
	if m == nil {
		return nil
	}
	next, err := u.Parse(m[1])
	if err != nil || !sameHost(next, u.Host) {
		return nil
	}
	return next
}

// Artifact reads the manifest of one of the image's referrers.
func (c *Client) Artifact(ctx context.Context, img *Image, referrer ocispec.Descriptor) (*Artifact, error) {
	_, doc, err := manifestOf(ctx, c.source(img.at, transport.PullScope), referrer)
	switch {
	case err != nil:
	case doc.isIndex():
		err = errors.New("it is an index, not a manifest")
	case doc.Subject == nil || doc.Subject.Digest != img.Digest:
		err = fmt.Errorf("it does not refer to %s", img.Digest)
	}
	if err != nil {
		return nil, fmt.Errorf("read artifact %s of %s: %w", referrer.Digest, img.Reference, err)
	}
	return &Artifact{
		Digest:       referrer.Digest,
		ArtifactType: doc.artifactType(),
		Annotations:  doc.Annotations,
		Blobs:        doc.Layers,
	}, nil
}

// FetchBlob writes a blob of the image's repository to w. Only if it returns
// nil are the bytes those that the digest is of. A blob larger than
// Options.MaxArtifactBlob is refused.
func (c *Client) FetchBlob(ctx context.Context, img *Image, d ocispec.Descriptor, w io.Writer) error {
	if d.Size > c.opts.MaxArtifactBlob {
		return fmt.Errorf("fetch blob %s of %s: it has %d bytes, more than %d", d.Digest, img.Reference, d.Size, c.opts.MaxArtifactBlob)
	}
	return c.Blob(img, d).copyTo(ctx, w)
}
