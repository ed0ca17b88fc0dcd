package format

// BuildSpans is Build with another length of spans, so that small blobs have
// many.
var BuildSpans = build
