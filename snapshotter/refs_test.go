package snapshotter

import (
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// Only the one filter that containerd uses is taken apart; any other one must
// look at all snapshots.
func TestByRef(t *testing.T) {
	used := func(ref, parent string) string { // as core/metadata/snapshot.go makes it
		return fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, ref, parent)
	}
	for filter, want := range map[string]struct {
		ref, parent string
		ok          bool
	}{
		used("sha256:one", ""):                              {"sha256:one", "", true},
		used("sha256:two", "default/1/sha256:"):             {"sha256:two", "default/1/sha256:", true},
		used("sha256:two", `a "b"`):                         {"sha256:two", `a "b"`, true},
		used("a,kind==active", "p"):                         {},
		used("sha256:one", "p") + ",name==x":                {},
		`labels."containerd.io/snapshot.ref"==sha256:one`:   {},
		`labels."containerd.io/snapshot.ref"!=x,parent==""`: {},
		`labels.other==x,parent==""`:                        {},
		`parent==""`:                                        {},
	} {
		ref, parent, ok := byRef(filter)
		if ok != want.ok || ok && (ref != want.ref || parent != want.parent) {
			t.Errorf("%s: %q, %q, %v, want %+v", filter, ref, parent, ok, want)
		}
	}
}
