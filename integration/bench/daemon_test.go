package main

import (
	"bytes"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"

	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/content/index"
)

// TestVariant makes indices that a store takes for different layers' and that
// differ in nothing else but a mode.
func TestVariant(t *testing.T) {
	layer, err := crane.Layer(map[string][]byte{"a": []byte("first"), "b": bytes.Repeat([]byte("second"), 10_000)})
	if err != nil {
		t.Fatal(err)
	}
	id, blob, err := source(layer)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := content.BuildIndex(t.Context(), id, blob, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := entries(t, raw)
	seen := map[string]bool{id.Blob.String(): true}
	for i := range before {
		id, changed, err := variant(raw, i)
		if err != nil {
			t.Fatal(err)
		}
		if seen[id.Blob.String()] {
			t.Errorf("variant %d is of the same layer as another", i)
		}
		seen[id.Blob.String()] = true
		after := entries(t, changed)
		if len(after) != len(before) {
			t.Fatalf("variant %d has %d entries, want %d", i, len(after), len(before))
		}
		for j := range after {
			if same := after[j].Mode == before[j].Mode; same == (i == j) {
				t.Errorf("variant %d: entry %d has mode %o, was %o", i, j, after[j].Mode, before[j].Mode)
			}
			if after[j].Name != before[j].Name || after[j].Size != before[j].Size {
				t.Errorf("variant %d: entry %d is %s, %d bytes", i, j, after[j].Name, after[j].Size)
			}
		}
	}
}

func entries(t *testing.T, raw []byte) []index.Entry {
	t.Helper()
	f, err := index.Open(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	all, err := f.Entries()
	if err != nil {
		t.Fatal(err)
	}
	return all
}
