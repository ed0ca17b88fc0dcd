package cache

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func TestDirIsMadeOnce(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, err := Dir("images/one", func(dir string) error {
				made.Add(1)
				return os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644)
			})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := os.Stat(filepath.Join(path, "file")); err != nil {
				t.Errorf("the folder was handed out incomplete: %v", err)
			}
		})
	}
	wg.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("made %d times, want once", n)
	}
}

func TestDirOfAFailureIsNotKept(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	broken := errors.New("broken")
	fill := func(dir string) error { return os.WriteFile(filepath.Join(dir, "half"), nil, 0o644) }
	if _, err := Dir("x", func(dir string) error { fill(dir); return broken }); !errors.Is(err, broken) {
		t.Fatalf("got error %v, want %v", err, broken)
	}
	path, err := Dir("x", func(dir string) error {
		names, err := os.ReadDir(dir)
		if len(names) > 0 {
			t.Errorf("the second try found %v, want an empty folder", names)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + ".tmp"); !os.IsNotExist(err) {
		t.Errorf("the temporary folder is still there: %v", err)
	}
}

func TestDirReplacesWhatAKilledProcessLeft(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", home)
	left := filepath.Join(home, "peel", "x.tmp", "left")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	path, err := Dir("x", func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(path); err != nil || len(names) > 0 {
		t.Errorf("got %v, %v, want an empty folder", names, err)
	}
}
