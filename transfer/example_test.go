package transfer_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/peelfs/peel/transfer"
)

// Read a part of a layer, without the rest of it.
func Example() {
	host, stop := startRegistry()
	defer stop()
	ctx := context.Background()

	client, err := transfer.New(transfer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	img, err := client.Resolve(ctx, host+"/app:1")
	if err != nil {
		log.Fatal(err)
	}
	body, _, err := client.Blob(img, img.Layers[0].Descriptor).Open(ctx, 7, 5)
	if err != nil {
		log.Fatal(err)
	}
	defer body.Close()
	part, err := io.ReadAll(body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, in %d requests\n", part, client.Stats().Requests)
	// Output: world, in 3 requests
}

// Read a part of a layer of an image in a folder.
func ExampleClient_Resolve_layout() {
	dir, err := os.MkdirTemp("", "layout")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer([]byte("Hello, world!"), types.OCIUncompressedLayer))
	if err != nil {
		log.Fatal(err)
	}
	folder, err := layout.Write(dir, empty.Index)
	if err != nil {
		log.Fatal(err)
	}
	tag := layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"})
	if err := folder.AppendImage(img, tag); err != nil {
		log.Fatal(err)
	}

	ctx := context.Background()
	client, err := transfer.New(transfer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	local, err := client.Resolve(ctx, "oci:"+dir+":1")
	if err != nil {
		log.Fatal(err)
	}
	body, _, err := client.Blob(local, local.Layers[0].Descriptor).Open(ctx, 7, 5)
	if err != nil {
		log.Fatal(err)
	}
	defer body.Close()
	part, err := io.ReadAll(body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, in %d requests\n", part, client.Stats().Requests)
	// Output: world, in 0 requests
}

// Attach an artifact to an image, and find it again.
func ExampleClient_PushArtifact() {
	host, stop := startRegistry()
	defer stop()
	ctx := context.Background()

	client, err := transfer.New(transfer.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	img, err := client.Resolve(ctx, host+"/app:1")
	if err != nil {
		log.Fatal(err)
	}
	note := transfer.BytesBlob("text/plain", nil, []byte("tested"))
	if _, err := client.PushArtifact(ctx, img, "application/vnd.example.note", []transfer.ArtifactBlob{note}); err != nil {
		log.Fatal(err)
	}

	list, err := client.Referrers(ctx, img, "application/vnd.example.note")
	if err != nil {
		log.Fatal(err)
	}
	for _, referrer := range list {
		a, err := client.Artifact(ctx, img, referrer)
		if err != nil {
			log.Fatal(err)
		}
		var text strings.Builder
		if err := client.FetchBlob(ctx, img, a.Blobs[0], &text); err != nil {
			log.Fatal(err)
		}
		fmt.Println(a.ArtifactType, text.String())
	}
	// Output: application/vnd.example.note tested
}

// startRegistry starts a registry on loopback with the image app:1.
func startRegistry() (host string, stop func()) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	host = strings.TrimPrefix(srv.URL, "http://")
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer([]byte("Hello, world!"), types.OCIUncompressedLayer))
	if err != nil {
		log.Fatal(err)
	}
	tag, err := name.NewTag(host + "/app:1")
	if err != nil {
		log.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		log.Fatal(err)
	}
	return host, srv.Close
}
