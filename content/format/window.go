package format

import (
	"bytes"
	"io"

	"github.com/klauspost/compress/flate"
)

// maxDistance is how far a deflate stream refers back (RFC 1951, section 2).
const maxDistance = 32 << 10

// usedWindow returns the window with every byte zeroed that the deflate stream
// in blob does not refer to, less the unused bytes at its start. What is left
// is often a third of it when compressed, and windows are most of an index.
//
// Only the first maxDistance bytes of output can refer to the window. They are
// decoded three times, with windows whose bytes tell where they stand: two
// that differ in every byte tell what came from the window, and the low and
// high halves of each byte's position tell from where.
func usedWindow(window, blob []byte, bits uint8) []byte {
	low, inverted, high := make([]byte, len(window)), make([]byte, len(window)), make([]byte, len(window))
	for i := range window {
		low[i], inverted[i], high[i] = byte(i), ^byte(i), byte(i>>8)
	}
	decode := func(w []byte) []byte {
		r := flate.NewReaderOpts(bytes.NewReader(blob), flate.WithResumeFrom(flate.InflateCheckpoint{BitOffset: bits, Window: w}))
		out := make([]byte, maxDistance)
		n, _ := io.ReadFull(r, out) // the member, or the span, may end before
		return out[:n]
	}
	a, b, c := decode(low), decode(inverted), decode(high)
	used := make([]byte, len(window))
	first := len(window)
	for i := range a {
		if a[i] != b[i] {
			at := int(a[i]) | int(c[i])<<8
			used[at] = window[at]
			first = min(first, at)
		}
	}
	return used[first:]
}
