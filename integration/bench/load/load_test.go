package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestWork does each kind of work where it can be done, and where it cannot.
func TestWork(t *testing.T) {
	dir := t.TempDir()
	file, small := filepath.Join(dir, "sub", "file"), filepath.Join(dir, "small")
	write(t, file, bytes.Repeat([]byte("x"), 3*bufferSize+page))
	write(t, small, []byte("x"))
	if err := os.Symlink("nowhere", filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		kind, path string
		fails      string // part of the error
	}{
		{"stat", dir, ""},
		{"stat", filepath.Join(dir, "missing"), "missing"},
		{"sequential", file, ""},
		{"sequential", filepath.Join(dir, "missing"), "missing"},
		{"random", file, ""},
		{"random", small, "no whole page"},
		{"mapped", file, ""},
		{"mapped", small, "no whole page"},
		{"start", "/", "start what?"},
	}
	for _, test := range tests {
		for _, jobs := range []int{1, 4} {
			took, err := run([]string{test.kind, test.path}, false, jobs, 100)
			switch {
			case test.fails == "" && (err != nil || took <= 0):
				t.Errorf("%s %s by %d: %v, %v", test.kind, test.path, jobs, took, err)
			case test.fails != "" && (err == nil || !strings.Contains(err.Error(), test.fails)):
				t.Errorf("%s %s by %d: error %v, want %q", test.kind, test.path, jobs, err, test.fails)
			}
		}
	}
}

func TestReadAll(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, nil)
	write(t, b, bytes.Repeat([]byte("x"), bufferSize+1))
	if err := readAll([]string{a, b}); err != nil {
		t.Error(err)
	}
	if err := readAll([]string{a, filepath.Join(dir, "c"), b}); !os.IsNotExist(err) {
		t.Errorf("a missing file gives %v", err)
	}
	if err := readAll([]string{dir}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a folder gives %v", err)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"stat"}, {"unheard of", "/"}} {
		if _, err := run(args, false, 1, 1); err == nil {
			t.Errorf("%q is no error", args)
		}
	}
	if _, err := run([]string{"stat", "/"}, false, 0, 1); err == nil {
		t.Error("no jobs are no error")
	}
}
