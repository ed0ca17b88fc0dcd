package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
	"github.com/peelfs/peel/integration/registry"
)

// readAll reads every file below dir and returns how many bytes they have.
func readAll(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.Copy(io.Discard, f)
		size += n
		return err
	})
	return size, err
}

func mustRead(t *testing.T, dir string) {
	t.Helper()
	if size, err := readAll(dir); err != nil || size == 0 {
		t.Fatalf("read %d bytes below %s: %v", size, dir, err)
	}
}

// blobs returns the requests for blobs over the link, without what answers with
// a redirect or no data.
func blobs(l *link.Link) (requests []link.Request) {
	for _, r := range l.Requests() {
		if r.Method == "GET" && strings.Contains(r.Path, "/blobs/") {
			requests = append(requests, r)
		}
	}
	return requests
}

func TestOnlyWhatIsReadIsFetched(t *testing.T) {
	img := made(t, images.Python)
	n := newNode(t, link.Options{})
	n.mount(t, push(t, img, true))
	out, err := exec.CommandContext(t.Context(), "chroot", append([]string{n.mnt}, images.Program...)...).CombinedOutput()
	if err != nil || !bytes.HasPrefix(out, []byte(images.Ready)) {
		t.Fatalf("the program printed %q, %v", out, err)
	}
	if got, limit := n.link.Received(), compressed(t, img)/4; got > limit {
		t.Errorf("to start it took %d bytes over the link, want at most %d", got, limit)
	}
}

func TestRemountWithoutTheRegistry(t *testing.T) {
	img := made(t, images.Python)
	for _, indexed := range []bool{true, false} {
		repo := push(t, img, indexed)
		n := newNode(t, link.Options{})
		n.mount(t, repo)
		mustRead(t, n.mnt)
		n.umount(t)

		if err := n.link.Close(); err != nil { // and with it the registry
			t.Fatal(err)
		}
		n.mount(t, repo)
		sameTree(t, n, img)
		n.umount(t)
	}
}

func TestStatus(t *testing.T) {
	img := made(t, images.Python)
	n := newNode(t, link.Options{})
	n.mount(t, push(t, img, true))
	mustRead(t, filepath.Join(n.mnt, "etc"))

	out, err := n.Run(t.Context(), "status", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var status any
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatalf("status --json printed %q: %v", out, err)
	}
	plain, err := n.Run(t.Context(), "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{out, plain} {
		if !strings.Contains(text, n.mnt) || !strings.Contains(text, img.Name) {
			t.Errorf("status does not name the mount %s of %s: %s", n.mnt, img.Name, text)
		}
	}
	n.umount(t)
	if out, err := n.Run(t.Context(), "status", "--json"); err != nil || strings.Contains(out, n.mnt) {
		t.Errorf("status after umount printed %q, %v", out, err)
	}
}

func TestReadOnlyAndReadWrite(t *testing.T) {
	img := made(t, images.Python)
	repo := push(t, img, true)
	n := newNode(t, link.Options{})
	n.mount(t, repo)
	err := os.WriteFile(filepath.Join(n.mnt, "etc/new"), nil, 0o644)
	if !errors.Is(err, syscall.EROFS) {
		t.Errorf("writing to a mount without --rw gives %v, want %v", err, syscall.EROFS)
	}
	n.umount(t)

	n.mount(t, repo, "--rw")
	passwd, added := filepath.Join(n.mnt, "etc/passwd"), filepath.Join(n.mnt, "etc/new")
	before, err := os.ReadFile(passwd)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.WriteFile(passwd, append(before, "me:x:1000:1000::/:/bin/sh\n"...), 0o644),
		os.WriteFile(added, []byte("new"), 0o600),
		os.Remove(filepath.Join(n.mnt, "etc/issue")),
		os.Rename(filepath.Join(n.mnt, "opt/odd/file"), filepath.Join(n.mnt, "opt/file")),
		os.RemoveAll(filepath.Join(n.mnt, "usr/share/man")),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if after, err := os.ReadFile(passwd); err != nil || len(after) <= len(before) {
		t.Errorf("read %d bytes of the changed file, %v, want more than %d", len(after), err, len(before))
	}
	for _, gone := range []string{"etc/issue", "opt/odd/file", "usr/share/man"} {
		if _, err := os.Lstat(filepath.Join(n.mnt, gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	n.umount(t)

	n.mount(t, repo) // the image itself has not changed
	sameTree(t, n, img)
}

// TestKilledWhileReading kills the mount process at several points. What had
// been read before must not come over the link a second time. What was still
// under way, ahead of the reader, may.
func TestKilledWhileReading(t *testing.T) {
	const underWay = 8 << 20
	img := made(t, images.Python)
	repo := push(t, img, true)
	n := newNode(t, link.Options{})
	parts := []string{"usr/bin", "usr/lib/python3.11", "usr/lib/x86_64-linux-gnu"}
	for i := range parts {
		f, err := n.Foreground(t.Context(), n.image(repo), n.mnt)
		if err != nil {
			t.Fatal(err)
		}
		before := len(blobs(n.link))
		for _, part := range parts[:i] {
			mustRead(t, filepath.Join(n.mnt, part))
		}
		if again := blobs(n.link)[before:]; len(again) > 0 {
			t.Errorf("after the kill, what had been read was fetched again: %v", again)
		}
		mustRead(t, filepath.Join(n.mnt, parts[i]))
		if err := f.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	n.mount(t, repo)
	sameTree(t, n, img)
	limit := compressed(t, img)*102/100 + indexSize(t, repo, img) + int64(len(parts))*underWay
	if got := n.link.Received(); got > limit {
		t.Errorf("over all lives %d bytes came over the link, want at most %d", got, limit)
	}
}

// TestRegistryComesBack reads while the registry is gone, and after.
func TestRegistryComesBack(t *testing.T) {
	const patience = 2 * time.Minute // far more than a read may wait
	img := made(t, images.Python)
	dir := t.TempDir()
	r, err := registry.Start(t.Context(), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { r.Close() }()
	if err := r.Push(t.Context(), img, "python"); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, link.Options{})
	image := r.Addr() + "/python:latest"
	if _, err := n.Run(t.Context(), "index", "--push", image); err != nil {
		t.Fatal(err)
	}
	n.Root = filepath.Join(dir, "empty") // the index's cache may hold the layers
	if err := n.Mount(t.Context(), image, n.mnt); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.umount(t) })
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := readAll(filepath.Join(n.mnt, "usr/lib/python3.11"))
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("with the registry gone a read gives %v, want %v", err, syscall.EIO)
		}
	case <-time.After(patience):
		t.Fatalf("with the registry gone a read hangs for %v", patience)
	}
	if r, err = registry.Start(t.Context(), dir, r.Addr()); err != nil {
		t.Fatal(err)
	}
	mustRead(t, filepath.Join(n.mnt, "usr/lib/python3.11"))
	sameTree(t, n, img)
}
