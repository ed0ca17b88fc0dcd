package transfer

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"
)

// A layer that registries need not have is got from where the image says,
// without the registry's credentials, and only where the registry lacks it.
func TestBlobElsewhere(t *testing.T) {
	layer := randomBytes(10_000)
	blobs := newStore(t, layer)
	const signed = "/layer?X-Signature=sig-1"
	for _, test := range []struct {
		name string
		urls []string
		want string // of the error; "" if it is got
	}{
		{"second address", []string{blobs.URL + "/layer?X-Signature=old", blobs.URL + signed}, ""},
		{"none works", []string{blobs.URL + "/layer?X-Signature=old"}, "403"},
		{"no address", nil, "404"},
		{"no https", []string{"ftp://127.0.0.1/layer", "/etc/passwd", "file:///etc/passwd"}, "not used"},
	} {
		t.Run(test.name, func(t *testing.T) {
			reg := newRegistry(t, onBlob(layer, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }))
			reg.putImage("1", layer)
			auth := &keys{cfg: alice}
			c := newClient(t, Options{Keychain: auth})
			img := c.resolve(t, reg.host+"/app:1")
			d := descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", layer)
			d.URLs = test.urls
			got, _, err := read(t.Context(), c.Blob(img, d), 100, 5000)
			switch {
			case test.want == "" && (err != nil || !bytes.Equal(got, layer[100:5100])):
				t.Errorf("got %d bytes, %v", len(got), err)
			case test.want != "" && (!errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want an error that says %q", err, test.want)
			}
		})
	}
	if blobs.leaked != "" {
		t.Errorf("another host was sent %q", blobs.leaked)
	}
}
