package main

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/peelfs/peel/integration/link"
)

func TestGeometricMean(t *testing.T) {
	tests := []struct {
		values []float64
		want   float64
	}{
		{[]float64{0.3}, 0.3},
		{[]float64{0.5, 2}, 1},
		{[]float64{1, 10, 100}, 10},
	}
	for _, test := range tests {
		if got := geometricMean(test.values); math.Abs(got-test.want) > 1e-9 {
			t.Errorf("geometric mean of %v is %v, want %v", test.values, got, test.want)
		}
	}
}

func TestAsked(t *testing.T) {
	get := func(path, part string) link.Request { return link.Request{Method: "GET", Path: path, Range: part} }
	const blob = "/v2/repo/blobs/sha256:a"
	tests := []struct {
		name        string
		requests    []link.Request
		once, again int64
	}{
		{"nothing", nil, 0, 0},
		{"whole", []link.Request{get(blob, "")}, 100, 0},
		{"whole, of two repositories", []link.Request{get(blob, ""), get("/v2/other/blobs/sha256:a", "")}, 100, 100},
		{"two blobs", []link.Request{get(blob, ""), get("/v2/repo/blobs/sha256:b", "")}, 150, 0},
		{"not a layer", []link.Request{get("/v2/repo/blobs/sha256:c", ""), get("/v2/repo/manifests/latest", "")}, 0, 0},
		{"only its header", []link.Request{{Method: "HEAD", Path: blob}}, 0, 0},
		{"parts", []link.Request{get(blob, "bytes=50-99"), get(blob, "bytes=0-49")}, 100, 0},
		{"parts that overlap", []link.Request{get(blob, "bytes=0-59"), get(blob, "bytes=50-79")}, 80, 10},
		{"a part of a part", []link.Request{get(blob, "bytes=0-59"), get(blob, "bytes=10-19"), get(blob, "bytes=20-29")}, 60, 20},
		{"to the end", []link.Request{get(blob, "bytes=90-")}, 10, 0},
		{"the same part twice", []link.Request{get(blob, "bytes=0-9"), get(blob, "bytes=0-9")}, 10, 10},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			once, again := asked(test.requests, map[string]int64{"sha256:a": 100, "sha256:b": 50})
			if once != test.once || again != test.again {
				t.Errorf("asked for %d bytes, and %d again, want %d and %d", once, again, test.once, test.again)
			}
		})
	}
}

// What is measured is only worth something if the layers change what is below.
func TestWriteLayer(t *testing.T) {
	root := t.TempDir()
	made, changed, removed := 0, 0, 0
	before := map[string]os.FileInfo{}
	for i := range chainLength {
		if err := writeLayer(root, i); err != nil {
			t.Fatal(err)
		}
		names, err := filepath.Glob(filepath.Join(root, "*"))
		if err != nil {
			t.Fatal(err)
		}
		after := map[string]os.FileInfo{}
		for _, name := range names {
			info, err := os.Lstat(name)
			if err != nil {
				t.Fatal(err)
			}
			if info.Size() != fileSize {
				t.Errorf("layer %d: %s has %d bytes", i, name, info.Size())
			}
			after[name] = info
			switch old := before[name]; {
			case old == nil:
				made++
			case !old.ModTime().Equal(info.ModTime()):
				changed++
			}
		}
		for name := range before {
			if after[name] == nil {
				removed++
			}
		}
		before = after
	}
	if made <= filesPerLayer || changed == 0 || removed == 0 {
		t.Errorf("%d files made, %d changed, %d removed in %d layers", made, changed, removed, chainLength)
	}
}
