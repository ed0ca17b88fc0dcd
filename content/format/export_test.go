package format

import "io"

// BuildSpans is Build with another length of spans, so that small blobs have
// many.
var BuildSpans = build

// Unzstd reads the frames of a zstd blob, and reports where each starts, in
// the tar and in the blob.
func Unzstd(blob io.Reader, at func(tar, blob int64)) (io.Reader, error) {
	return newUnzstd(newSource(blob), func(r resume) { at(r.tar, r.blob) })
}
