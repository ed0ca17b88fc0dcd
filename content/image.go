package content

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Image is what the store remembers of an image, so that it can be mounted
// again when its registry does not answer. The bytes are as the registry gave
// them, and were checked against their digests.
type Image struct {
	Ref      string        `json:"ref"`      // as it was resolved
	Platform string        `json:"platform"` // that was asked for
	Digest   digest.Digest `json:"digest"`   // of the manifest
	Manifest []byte        `json:"manifest"`
	Config   []byte        `json:"config"`
	Resolved time.Time     `json:"resolved"`
}

func imageKey(ref, platform string) string { return platform + " " + ref }

// PutImage remembers an image.
func (s *Store) PutImage(i Image) error {
	return asFull(s.meta.put(bucketImages, imageKey(i.Ref, i.Platform), i))
}

// Image returns what was last remembered of a reference; found is false if
// there is nothing.
func (s *Store) Image(ref, platform string) (i Image, found bool, err error) {
	found, err = s.meta.get(bucketImages, imageKey(ref, platform), &i)
	return i, found, err
}
