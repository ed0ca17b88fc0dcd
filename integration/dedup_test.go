package integration

import (
	"encoding/json"
	"testing"

	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
)

// TestUpdate mounts a Debian system where the same one was before, without its
// latest updates: only what differs comes over the link.
func TestUpdate(t *testing.T) {
	need(t)
	before, after, err := images.Updates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old, repo := push(t, before, true), push(t, after, true)
	for _, driver := range drivers() {
		t.Run(driver, func(t *testing.T) {
			n := newNode(t, link.Options{})
			n.mount(t, old, "--driver", driver)
			mustRead(t, n.mnt)
			n.umount(t)
			first := n.link.Received()

			n.mount(t, repo, "--driver", driver)
			sameTree(t, n, after)
			received, taken := n.link.Received()-first, deduped(t, n)
			t.Logf("%d bytes came over the link, of %d in the image; %d bytes of files were here", received, compressed(t, after), taken)
			if limit := compressed(t, after) / 2; received > limit {
				t.Errorf("%d bytes came over the link, want at most %d", received, limit)
			}
			if taken < received {
				t.Errorf("status says that %d bytes were taken from other layers", taken)
			}
			n.umount(t)
			if out, err := n.Run(t.Context(), "cache", "verify"); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// deduped returns how many bytes the node's mount has taken from other layers.
func deduped(t *testing.T, n *node) int64 {
	t.Helper()
	out, err := n.Run(t.Context(), "status", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var status struct{ Mounts []struct{ DedupBytes *int64 } }
	if err := json.Unmarshal([]byte(out), &status); err != nil || len(status.Mounts) != 1 || status.Mounts[0].DedupBytes == nil {
		t.Fatalf("status --json printed %s, %v", out, err)
	}
	return *status.Mounts[0].DedupBytes
}
