package peel_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/peelfs/peel/"

// layers is who may import whom: a folder imports only what stands behind it,
// and itself.
const layers = `
	cmd:         shim snapshotter fs transfer content
	shim:        content
	snapshotter: fs content
	fs:          content
	transfer:    content
	content:
	integration: cmd shim snapshotter fs transfer content
`

// owners is which folders may import a dependency, tests excepted.
const owners = `
	github.com/hanwen/go-fuse:               fs
	github.com/google/go-containerregistry:  transfer
	go.etcd.io/bbolt:                        content snapshotter
	github.com/containerd/:                  snapshotter shim transfer/service cmd integration
	github.com/klauspost/compress:           content
	github.com/urfave/cli:                   cmd
	github.com/prometheus/:                  cmd/peeld
`

// table parses lines of "key: value value".
func table(text string) map[string][]string {
	t := map[string][]string{}
	for line := range strings.Lines(text) {
		if key, values, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			t[key] = strings.Fields(values)
		}
	}
	return t
}

func top(dir string) string {
	first, _, _ := strings.Cut(dir, "/")
	return first
}

func TestWhoImportsWhom(t *testing.T) {
	allowed, owned := table(layers), table(owners)
	files := 0
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return fs.SkipDir
		}
		dir := path.Dir(name)
		if !strings.HasSuffix(name, ".go") || dir == "." {
			return nil
		}
		files++
		if _, ok := allowed[top(dir)]; !ok {
			t.Errorf("%s: the folder %s has no place in the layers", name, top(dir))
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if own, ok := strings.CutPrefix(imported, module); ok {
				if to := top(own); to != top(dir) && !slices.Contains(allowed[top(dir)], to) {
					t.Errorf("%s: %s may not import %s", name, top(dir), to)
				}
				continue
			}
			if strings.HasSuffix(name, "_test.go") || top(dir) == "integration" {
				continue
			}
			for dep, by := range owned {
				if strings.HasPrefix(imported, dep) && !slices.ContainsFunc(by, func(o string) bool { return dir == o || strings.HasPrefix(dir, o+"/") }) {
					t.Errorf("%s: %s may be imported only by %v", name, dep, by)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 {
		t.Errorf("only %d files were looked at", files)
	}
}
