package transfer

import (
	"io"
	"testing"
)

func TestTraffic(t *testing.T) {
	reg := newRegistry(t, nil)
	layer := []byte("some bytes of a layer")
	reg.putImage("1", layer)
	c := newClient(t, Options{})
	img := c.resolve(t, reg.host+"/app:1")
	read := func(purpose string) {
		t.Helper()
		body, _, err := c.Blob(img, img.Layers[0].Descriptor).Open(For(t.Context(), purpose), 0, int64(len(layer)))
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if _, err := io.Copy(io.Discard, body); err != nil {
			t.Fatal(err)
		}
	}
	read("")
	read("demand")
	read("demand")
	got := map[string]Traffic{}
	var sum Stats
	for _, x := range c.Traffic() {
		if x.Registry != reg.host {
			t.Errorf("%+v is not of %s", x, reg.host)
		}
		got[x.Purpose] = x
		sum.Requests += x.Requests
		sum.BytesIn += x.BytesIn
	}
	n := int64(len(layer))
	for purpose, want := range map[string]Traffic{"blobs": {Requests: 1, BytesIn: n}, "demand": {Requests: 2, BytesIn: 2 * n}, "manifests": {Requests: 1, BytesIn: int64(len(img.Manifest))}} {
		if g := got[purpose]; g.Requests != want.Requests || g.BytesIn != want.BytesIn {
			t.Errorf("%s: %+v, want %+v", purpose, g, want)
		}
	}
	if got["config"].Requests == 0 || sum != c.Stats() {
		t.Errorf("%+v, and all together %+v", got, c.Stats())
	}
}
