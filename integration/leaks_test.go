package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// load is what a mount's process has open and running.
type load struct{ descriptors, goroutines int }

// idle is by how much an idle process may exceed what it had when it had
// mounted: connections that it keeps, with two goroutines each, and pipes to
// splice through, as many as reads have needed at once. What leaks with every
// read, or with every fault, comes to more.
var idle = load{descriptors: 128, goroutines: 32}

// loadOf returns what the process has that serves the node's mount. One that
// has just mounted may not answer yet.
func loadOf(t *testing.T, n *node) load {
	t.Helper()
	var out string
	for start := time.Now(); time.Since(start) < recovery; time.Sleep(time.Millisecond) {
		var err error
		if out, err = n.Run(t.Context(), "status", "--json"); err != nil {
			t.Fatal(err)
		}
		var status struct {
			Mounts []struct{ PID, Goroutines int }
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		all := status.Mounts
		if len(all) != 1 || all[0].Goroutines == 0 {
			continue
		}
		open, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(all[0].PID), "fd"))
		if err != nil {
			t.Fatal(err)
		}
		return load{len(open), all[0].Goroutines}
	}
	t.Fatalf("no process answers: %s", out)
	return load{}
}

// noLeak holds that a process which had so much when it had mounted has soon
// no more than that and its connections. What was fetched ahead may yet be on
// its way.
func noLeak(t *testing.T, n *node, before load) {
	t.Helper()
	var now load
	for start := time.Now(); time.Since(start) < recovery; time.Sleep(20 * time.Millisecond) {
		now = loadOf(t, n)
		if now.descriptors <= before.descriptors+idle.descriptors && now.goroutines <= before.goroutines+idle.goroutines {
			t.Logf("the process has %+v, and had %+v when it had mounted", now, before)
			return
		}
	}
	t.Errorf("the process has %+v, and had %+v when it had mounted", now, before)
}
