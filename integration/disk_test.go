package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
)

// TestDiskFull reads an image whose data has no room on the disk of the store,
// until there is room.
func TestDiskFull(t *testing.T) {
	const room = 64 << 20
	img := made(t, images.Python)
	repo := push(t, img, true)
	for _, driver := range drivers() {
		t.Run(driver, func(t *testing.T) {
			n := newNode(t, link.Options{})
			filler := smallDisk(t, n.Root, room)
			n.mount(t, repo, "--driver", driver)
			sameTree(t, n, img)
			log := n.Log()
			status, err := n.Run(t.Context(), "status", "--json")
			n.umount(t)
			if said := strings.Count(log, "no room on the disk of the store"); said != 1 {
				t.Errorf("a full disk is said %d times:\n%s", said, log)
			}
			if err != nil || !strings.Contains(status, `"diskFull": true`) {
				t.Errorf("status --json printed %s, %v", status, err)
			}

			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			n.mount(t, repo, "--driver", driver)
			mustRead(t, n.mnt)
			n.umount(t)
			if out, err := n.Run(t.Context(), "cache", "verify"); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			if err := n.link.Close(); err != nil { // and with it the registry
				t.Fatal(err)
			}
			n.mount(t, repo, "--driver", driver)
			sameTree(t, n, img)
			n.umount(t)
		})
	}
}

// smallDisk mounts a disk on dir with that much room in bytes, and returns a
// file whose removal makes much more.
func smallDisk(t *testing.T, dir string, room int64) (filler string) {
	t.Helper()
	const size = 1 << 30
	disk := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, size), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{"mkfs.ext4", "-q", "-m", "0", disk}, {"mount", "-o", "loop", disk, dir}} {
		if out, err := exec.CommandContext(t.Context(), cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	filler = filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-room), f.Close()); err != nil {
		t.Fatal(err)
	}
	return filler
}
