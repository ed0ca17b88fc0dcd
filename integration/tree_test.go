package integration

import (
	"context"
	"testing"

	"github.com/peelfs/peel/integration/compare"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
)

// sameTree compares what is mounted with what umoci unpacks.
func sameTree(t *testing.T, n *node, img *images.Image) {
	t.Helper()
	diffs, err := compare.Trees(unpacked(t, img), n.mnt)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range diffs {
		if i == 20 {
			t.Errorf("and %d differences more", len(diffs)-i)
			break
		}
		t.Error(d)
	}
}

// compressed returns the size of the image's layers in the registry.
func compressed(t *testing.T, img *images.Image) int64 {
	t.Helper()
	size, err := img.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// indexSize returns the size of everything that refers to the repository's
// image in the registry.
func indexSize(t *testing.T, repo string, img *images.Image) int64 {
	t.Helper()
	size, err := rig.registry.ReferrersSize(t.Context(), img, repo)
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// TestMountedTree is the main promise: a mounted image is the image, byte for
// byte and bit for bit, however it is stored and whether it is indexed or not.
func TestMountedTree(t *testing.T) {
	recompressed := func(as images.Encoding) func(context.Context) (*images.Image, error) {
		return func(ctx context.Context) (*images.Image, error) {
			img, err := images.Python(ctx)
			if err != nil {
				return nil, err
			}
			return images.Recompressed(ctx, img, as)
		}
	}
	tests := []struct {
		name string
		make func(context.Context) (*images.Image, error)
		tree func(context.Context) (*images.Image, error) // the same tree for umoci
		big  bool
	}{
		{"gzip", images.Python, images.Python, false},
		{"gzip members", recompressed(images.Members), images.Python, false},
		{"tar", recompressed(images.Tar), images.Python, false},
		{"100,000 files", images.Files, images.Files, true},
	}
	for _, test := range tests {
		for _, how := range []struct {
			name    string
			indexed bool
			flags   []string
		}{
			{"indexed, by erofs", true, []string{"--driver", "erofs"}},
			{"indexed, by loop", true, []string{"--driver", "loop"}},
			{"indexed, by tree", true, []string{"--driver", "tree"}},
			{"not indexed", false, nil},
		} {
			t.Run(test.name+", "+how.name, func(t *testing.T) {
				if test.big && testing.Short() {
					t.Skip("takes long")
				}
				img, indexed := made(t, test.make), how.indexed
				repo := push(t, img, indexed)
				n := newNode(t, link.Options{})
				n.mount(t, repo, how.flags...)
				sameTree(t, n, made(t, test.tree))

				// All of it came, and little besides.
				limit := compressed(t, img)
				limit += limit / 50
				if indexed {
					limit += indexSize(t, repo, img)
				}
				if got := n.link.Received(); got > limit {
					t.Errorf("reading all of it took %d bytes over the link, want at most %d", got, limit)
				}
			})
		}
	}
}

// TestIndexSize holds the goal of the README: what an index adds to an image.
func TestIndexSize(t *testing.T) {
	img := made(t, images.Python)
	repo := push(t, img, true)
	got, limit := indexSize(t, repo, img), compressed(t, img)*3/100
	if got == 0 || got > limit {
		t.Errorf("the indices have %d bytes, want some and at most %d", got, limit)
	}
}
