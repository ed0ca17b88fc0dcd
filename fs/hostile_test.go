package fs

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Marks, whiteouts and replacements must not make a crafted index take time
// that grows with the square of its size. These cases take a fraction of a
// second, and at the square minutes.
func TestMergeHostileTime(t *testing.T) {
	const n = 200_000
	for _, tt := range []struct {
		name  string
		entry func(i int) string
	}{
		{"opaque after each name", func(i int) string {
			return [2]string{fmt.Sprintf("f d/%d", i), "f d/.wh..wh..opq"}[i%2]
		}},
		{"whiteout of each name", func(i int) string { return fmt.Sprintf("f d/.wh.%d", i) }},
		{"directory made and replaced", func(i int) string { return [3]string{"f d/x", "f d", "f d/y/z"}[i%3] }},
		{"symlinks to each other's directories", func(i int) string {
			return [4]string{"l a -> d/d/d/d/d", "f a/x", "l b -> d/d/d/d/d", "f b/x"}[i%4]
		}},
		{"directories above each other opaque", func(i int) string {
			if i < n/2 {
				return fmt.Sprintf("f %s%d", strings.Repeat("d/", 500), i)
			}
			return "f " + strings.Repeat("d/", 500-i%500) + ".wh..wh..opq"
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var lower, upper strings.Builder
			for i := range n {
				fmt.Fprintf(&lower, "f d/%d\n", i)
				upper.WriteString(tt.entry(i))
				upper.WriteByte('\n')
			}
			layers := parseLayers(lower.String() + "--\n" + upper.String())
			start := time.Now()
			if _, err := Merge(layers); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// Short names may lead on long ways, and each entry costs what its way does.
func TestMergeWork(t *testing.T) {
	long := "d/" + strings.Repeat("n", 250) + "/"
	for name, links := range map[string][2]string{
		"through 1,000 directories": {"l a -> " + strings.Repeat("d/", 1000) + "\n", "l b -> " + strings.Repeat("d/", 1000) + "\n"},
		"through 30 symlinks":       {chain("a", long), chain("b", long)},
	} {
		t.Run(name, func(t *testing.T) {
			var text strings.Builder
			text.WriteString(links[0] + links[1])
			for i := range 200_000 {
				fmt.Fprintf(&text, "f %c/x\n", "ab"[i%2])
			}
			layers := parseLayers(text.String())
			start := time.Now()
			_, err := Merge(layers)
			if err == nil || !strings.Contains(err.Error(), "longer ways") || !strings.Contains(err.Error(), "/x\"") {
				t.Errorf("error %v", err)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// chain is symlinks of which each leads through the next one, and then through
// a long path.
func chain(name, long string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "l %s -> %s0\n", name, name)
	for i := range 30 {
		fmt.Fprintf(&b, "l %s%d -> %s%d/%s\n", name, i, name, i+1, strings.Repeat(long, 15))
	}
	fmt.Fprintf(&b, "d %s30\n", name)
	return b.String()
}

func TestMergeMadeDirectories(t *testing.T) {
	var text strings.Builder
	deep := strings.Repeat("d/", 1000)
	for i := range maxMade/1000 + 2 {
		fmt.Fprintf(&text, "f %d/%sx\n", i, deep)
	}
	if _, err := Merge(parseLayers(text.String())); err == nil || !strings.Contains(err.Error(), "directories without an entry") {
		t.Errorf("got error %v", err)
	}
}

func FuzzMerge(f *testing.F) {
	for _, seed := range []string{
		"d a\nf a/b\nl c -> a\nh d -> c/b\n--\nf c/.wh.b\nf a/.wh..wh..opq\np a/x",
		"l a -> b/../c\nf a/x\n--\nd a\nf a/.wh..wh..opq\nf .wh.c\nf .wh..wh.plnk/1",
		"l a -> /../../a/b\nl b -> a\nf b/c\nd .\n--\nh a -> b\nf .wh.",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		layers := parseLayers(text)
		tree, err := Merge(layers)
		if err != nil {
			return
		}
		checkTree(t, tree)
		again, err := Merge(layers)
		if err != nil || list(again) != list(tree) || again.Len() != tree.Len() {
			t.Errorf("the same layers gave another tree, or error %v", err)
		}
	})
}
