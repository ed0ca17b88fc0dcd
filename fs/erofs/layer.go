package erofs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/peelfs/peel/content/index"
)

// Names in a layer that say what happens to the layers below: OCI image
// specification, layer.md, "Whiteouts". Overlayfs has a device and an attribute
// in their place: Linux, Documentation/filesystems/overlayfs.rst.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"

	overlayPrefix = "trusted.overlay."
	overlayOpaque = "trusted.overlay.opaque"
)

// maxImplied bounds the directories that have no entry of their own. Each costs
// little (100 bytes), but a name of 4 KiB can ask for 2,000 of them.
const maxImplied = 1 << 18

// plainDir is what a directory without an entry is.
func plainDir() *index.Entry {
	return &index.Entry{Name: "a directory without an entry", Type: index.Dir, Mode: 0o755}
}

// Below says what stands at a name in the layers below, all of them taken
// together, or nil if nothing does. The entry is not changed.
type Below func(name string) *index.Entry

// StandaloneError lists the entries of a layer, by name, that overlayfs cannot
// show with the layer as a directory of its own: hard links to files of lower
// layers, directories reached through what is no directory in a lower layer,
// device nodes 0/0, which are whiteouts to overlayfs, and an opaque root, which
// is not opaque to it. The image has to be mounted in another way.
type StandaloneError struct {
	Names []string
}

func (e *StandaloneError) Error() string {
	const show = 3
	more := ""
	if n := len(e.Names) - show; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("layer cannot be a lower directory of its own because of %q%s", e.Names[:min(show, len(e.Names))], more)
}

// FromLayer makes the tree of one layer, as a lower directory for overlayfs.
// All data is on device 1, the layer's flat blob.
//
// Entries count in their order, as when a tar is unpacked: a later one replaces
// an earlier one of the same name, and a directory keeps what is in it.
// Whiteouts work on lower layers only, so beside an entry of the same layer
// they leave the entry alone, and make it opaque if it is a directory. Names
// that start with .wh..wh. are dropped, with what is below them. Attributes of
// overlayfs (trusted.overlay.*) are escaped, so that they show through an
// overlay as they are in the layer (from Linux 6.7 on).
//
// A directory that has no entry takes the attributes of the one below, so that
// it does not change what is there, or else is root's with mode 0755. With
// below, whiteouts of what is not there are left out too: overlayfs would list
// their names. Without, which is below == nil, nothing is known of the lower
// layers, and the tree does not depend on them.
//
// It returns a *StandaloneError if the layer is good but cannot be shown this
// way; any other error is an entry that no tar should have, and names it.
func FromLayer(entries []index.Entry, below Below) (*Node, error) {
	l := &layer{
		below:  below,
		plain:  plainDir(),
		places: make(map[string]place, len(entries)+1),
		nodes:  make([]Node, 0, len(entries)),
	}
	l.root = &Node{Entry: l.implied(".")}
	for i := range entries {
		if err := l.add(&entries[i]); err != nil {
			return nil, fmt.Errorf("layer entry %.300q: %w", entries[i].Name, err)
		}
	}
	l.whiteOut()
	if len(l.unfit) > 0 {
		return nil, &StandaloneError{Names: l.unfit}
	}
	return l.root, nil
}

// layer is a tree as far as it is known.
type layer struct {
	below     Below
	plain     *index.Entry
	root      *Node
	places    map[string]place // by the cleaned name of an entry; without "."
	nodes     []Node           // storage for those that entries make
	lastDir   string           // the directory that was asked for last
	lastNode  *Node
	nImplied  int
	whiteouts []string // names that are removed, or directories that are opaque
	opaque    []string
	unfit     []string
}

// place is where a name stands: it is dir.Children[i].
type place struct {
	dir *Node
	i   int
}

func (p place) node() *Node { return p.dir.Children[p.i].Node }

// add adds one entry.
func (l *layer) add(e *index.Entry) error {
	if e.Name == "." {
		if e.Type != index.Dir {
			return errors.New("the root is not a directory")
		}
		l.root.Entry = escapeOverlay(e)
		return nil
	}
	if strings.Contains(e.Name, whiteoutPrefix) {
		if is, err := l.addWhiteout(e.Name); is || err != nil {
			return err
		}
	}
	if err := checkPath(e.Name); err != nil {
		return err
	}
	dir, base := splitPath(e.Name)
	parent, err := l.dir(dir)
	if err != nil {
		return err
	}
	at, exists := l.places[e.Name]
	if exists && e.Type == index.Dir && at.node().Entry.Type == index.Dir {
		at.node().Entry = escapeOverlay(e)
		return nil
	}
	n := l.node(e)
	if n == nil {
		l.unfit = append(l.unfit, e.Name)
		return nil
	}
	if exists {
		l.forget(e.Name, at.node())
		at.dir.Children[at.i].Node = n
		return nil
	}
	l.put(parent, e.Name, base, n)
	return nil
}

// node returns the node for an entry that is not a directory's second one, or
// nil if it cannot be shown.
func (l *layer) node(e *index.Entry) *Node {
	switch {
	case e.Type == index.Hardlink:
		at, ok := l.places[e.Link]
		if !ok || e.Link == e.Name || at.node().Entry.Type == index.Dir {
			return nil
		}
		return at.node()
	case e.Type == index.Char && e.Major == 0 && e.Minor == 0:
		return nil
	}
	l.nodes = append(l.nodes, Node{Entry: escapeOverlay(e), Device: 1}) // never grows
	return &l.nodes[len(l.nodes)-1]
}

// put adds a name that is new in its directory.
func (l *layer) put(dir *Node, name, base string, n *Node) {
	l.places[name] = place{dir, len(dir.Children)}
	dir.Children = append(dir.Children, Dirent{base, n})
}

// forget removes what is below a directory that is about to be replaced.
func (l *layer) forget(name string, n *Node) {
	type tree struct {
		name string
		node *Node
	}
	l.lastNode = nil
	for todo := []tree{{name, n}}; len(todo) > 0; {
		t := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, c := range t.node.Children {
			name := t.name + "/" + c.Name
			delete(l.places, name)
			todo = append(todo, tree{name, c.Node})
		}
	}
}

// dir returns the directory of that name, and makes what is missing of it.
func (l *layer) dir(name string) (*Node, error) {
	if name == "." {
		return l.root, nil
	}
	if l.lastNode != nil && name == l.lastDir {
		return l.lastNode, nil
	}
	var missing []string
	for at := name; ; {
		n := l.root
		if at != "." {
			p, ok := l.places[at]
			if !ok {
				missing = append(missing, at)
				at, _ = splitPath(at)
				continue
			}
			n = p.node()
		}
		if n.Entry.Type != index.Dir {
			return nil, fmt.Errorf("%q is not a directory", at)
		}
		for _, m := range slices.Backward(missing) {
			if l.nImplied++; l.nImplied > maxImplied {
				return nil, fmt.Errorf("more than %d directories without an entry", maxImplied)
			}
			_, base := splitPath(m)
			child := &Node{Entry: l.implied(m)}
			l.put(n, m, base, child)
			n = child
		}
		l.lastDir, l.lastNode = name, n
		return n, nil
	}
}

// implied returns an entry for a directory that has none.
func (l *layer) implied(name string) *index.Entry {
	if l.below != nil {
		if e := l.below(name); e != nil {
			if e.Type == index.Dir {
				return escapeOverlay(e)
			}
			l.unfit = append(l.unfit, name)
		}
	}
	return l.plain
}

// splitPath cuts a cleaned name into its directory and its last part.
func splitPath(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return ".", name
}

// checkPath checks a name that is not ".".
func checkPath(name string) error {
	if len(name) > maxPath {
		return fmt.Errorf("path of %d bytes, at most %d are possible", len(name), maxPath)
	}
	for part := range strings.SplitSeq(name, "/") {
		if err := checkName(part); err != nil {
			return fmt.Errorf("%.64q: %w", part, err)
		}
	}
	return nil
}

// escapeOverlay returns an entry whose attributes mean nothing to the overlayfs
// that has it as a lower directory.
func escapeOverlay(e *index.Entry) *index.Entry {
	ours := func(x index.Xattr) bool { return strings.HasPrefix(x.Name, overlayPrefix) }
	if !slices.ContainsFunc(e.Xattrs, ours) {
		return e
	}
	c := *e
	c.Xattrs = slices.Clone(e.Xattrs)
	for i, x := range c.Xattrs {
		if rest, ok := strings.CutPrefix(x.Name, overlayPrefix); ok {
			c.Xattrs[i].Name = overlayPrefix + "overlay." + rest
		}
	}
	slices.SortFunc(c.Xattrs, func(a, b index.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return &c
}
