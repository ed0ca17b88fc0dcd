package erofs

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/peelfs/peel/content/index"
)

// largeLayer is 100,000 files in 4,000 directories.
func largeLayer() []index.Entry {
	var entries []index.Entry
	for i := range 100_000 {
		d := fmt.Sprintf("usr/share/package-%02d/part-%04d", i/2500, i/25)
		if i%2500 == 0 {
			entries = append(entries, dir(filepath.Dir(d)))
		}
		if i%25 == 0 {
			entries = append(entries, dir(d))
		}
		entries = append(entries, file(fmt.Sprintf("%s/some-file-%06d.txt", d, i), int64(i%3)))
	}
	return entries
}

// BenchmarkWrite makes the image of 100,000 files, from entries to bytes.
func BenchmarkWrite(b *testing.B) {
	entries := largeLayer()
	size := index.LayOut(entries)
	b.ReportAllocs()
	for b.Loop() {
		root, err := FromLayer(entries, nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := Write(io.Discard, root, []int64{size}); err != nil {
			b.Fatal(err)
		}
	}
}

// largeMount puts the large layer into files, ready to be mounted.
func largeMount(b *testing.B) (img, flat string) {
	needMount(b)
	entries := largeLayer()
	size := index.LayOut(entries)
	img = filepath.Join(b.TempDir(), "image")
	if err := os.WriteFile(img, image(b, entries, size), 0o600); err != nil {
		b.Fatal(err)
	}
	return img, flatBlob(b, nil, device{1, size})
}

// BenchmarkMount mounts and detaches the image of 100,000 files.
func BenchmarkMount(b *testing.B) {
	img, flat := largeMount(b)
	dir := b.TempDir()
	for _, backing := range []Backing{File, Loop} {
		b.Run(backing.String(), func(b *testing.B) {
			for b.Loop() {
				if _, err := Mount(img, []string{flat}, dir, MountOptions{Backing: backing}); err != nil {
					b.Fatal(err)
				}
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStat stats 100,000 files, from the image and from the file system of
// the temporary directory. Cold is after dropping all caches.
func BenchmarkStat(b *testing.B) {
	img, flat := largeMount(b)
	native := b.TempDir()
	for _, e := range largeLayer() {
		path := filepath.Join(native, e.Name)
		var err error
		if e.Type == index.Dir {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, bytes.Repeat([]byte("x"), int(e.Size)), 0o644)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, cold := range []bool{true, false} {
		for _, backing := range []Backing{Auto, File, Loop} {
			name, dir := "native", native
			if backing != Auto {
				name, dir = "erofs-"+backing.String(), b.TempDir()
				if _, err := Mount(img, []string{flat}, dir, MountOptions{Backing: backing}); err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
			}
			b.Run(fmt.Sprintf("cold=%v/%s", cold, name), func(b *testing.B) { benchStat(b, dir, cold) })
		}
	}
}

func benchStat(b *testing.B, dir string, cold bool) {
	for b.Loop() {
		if cold {
			b.StopTimer()
			unix.Sync()
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		n := 0
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			_, err = d.Info()
			n++
			return err
		})
		if err != nil || n < 100_000 {
			b.Fatalf("%d files: %v", n, err)
		}
	}
}
