package fs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The process that shows an image of 100,000 files stays small, also when every
// file has been looked at.
func TestMemory(t *testing.T) {
	needFUSE(t)
	if raced {
		t.Skip("the race detector takes several times the memory")
	}
	dir := t.TempDir()
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	_, out := role(t, "memory", dir, string(testDriver(t)))
	if !out.Scan() {
		t.Fatal("not mounted")
	}
	pid := out.Text()
	find, err := exec.Command("find", dir, "-printf", "%s\\n").Output()
	if err != nil || bytes.Count(find, []byte("\n")) < 100_000 {
		t.Fatalf("find: %d names, %v", bytes.Count(find, []byte("\n")), err)
	}
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"VmRSS", "VmHWM"} {
		_, rest, _ := strings.Cut(string(status), key+":")
		kb, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s %d MiB", key, kb>>10)
		// To write its image, a lazy mount has the tree twice for a moment.
		if limit := 80 << 10; kb > limit && (key == "VmRSS" || testDriver(t) == TreeFUSE) {
			t.Errorf("%s is %d KiB, more than 80 MiB", key, kb)
		}
	}
}

// playMemory mounts 100,000 files and serves them until it is killed.
func playMemory(args []string) error {
	tree, err := Merge(benchLayers(100_000))
	if err != nil {
		return err
	}
	blobs := []Blob{&testBlob{size: 1 << 40}, &testBlob{size: 1 << 40}, &testBlob{size: 1 << 40}}
	s, err := Mount(args[0], tree, blobs, Options{Driver: Driver(args[1])})
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // as the command does
	fmt.Println(os.Getpid())
	s.Wait()
	return nil
}
