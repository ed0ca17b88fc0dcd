package registry

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestPushAndRestart(t *testing.T) {
	dir := t.TempDir()
	r, err := Start(t.Context(), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { r.Close() }()
	img, err := random.Image(100_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Push(t.Context(), img, "some/repo"); err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	pull := func() {
		t.Helper()
		ref, err := name.ParseReference(r.Addr() + "/some/repo")
		if err != nil {
			t.Fatal(err)
		}
		pulled, err := remote.Image(ref)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := pulled.Digest(); got != want || err != nil {
			t.Errorf("pulled %v, %v, want %v", got, err, want)
		}
		if err := validate.Image(pulled); err != nil {
			t.Error(err)
		}
	}
	pull()

	addr := r.Addr()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("it still listens after Close")
	}
	if r, err = Start(t.Context(), dir, addr); err != nil {
		t.Fatal(err)
	}
	if r.Addr() != addr {
		t.Errorf("it came back on %s, want %s", r.Addr(), addr)
	}
	pull()
	if log, err := os.ReadFile(filepath.Join(dir, "log")); err != nil || strings.Count(string(log), "listening on") != 2 {
		t.Errorf("the log does not hold both starts: %s, %v", log, err)
	}
}

func TestReferrersSize(t *testing.T) {
	r, err := Start(t.Context(), t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	img, err := random.Image(1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Push(t.Context(), img, "repo"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.ReferrersSize(t.Context(), img, "repo"); got != 0 || err != nil {
		t.Errorf("got %d, %v before there are any", got, err)
	}
	subject, err := partial.Descriptor(img)
	if err != nil {
		t.Fatal(err)
	}
	var want int64
	for i := range 2 {
		artifact, err := random.Image(2000, 2)
		if err != nil {
			t.Fatal(err)
		}
		artifact = mutate.Subject(artifact, *subject).(v1.Image)
		ref, err := name.NewTag(fmt.Sprintf("%s/repo:artifact%d", r.Addr(), i))
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, artifact); err != nil {
			t.Fatal(err)
		}
		manifest, err := artifact.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		size, err := artifact.Size()
		if err != nil {
			t.Fatal(err)
		}
		want += size + manifest.Layers[0].Size + manifest.Layers[1].Size
	}
	if got, err := r.ReferrersSize(t.Context(), img, "repo"); got != want || err != nil {
		t.Errorf("got %d, %v, want %d", got, err, want)
	}
}

func TestStartFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = Start(t.Context(), t.TempDir(), taken.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "log: ") {
		t.Errorf("got error %v, want one that names the log", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, t.TempDir(), ""); err == nil {
		t.Error("it started after the context had ended")
	}
}
