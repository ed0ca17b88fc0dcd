package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/peelfs/peel/content/index"
	"github.com/peelfs/peel/fs"
	"github.com/urfave/cli/v2"
)

func lsCommand() *cli.Command {
	return &cli.Command{
		Name:      "ls",
		Usage:     "list a directory of an image without mounting it",
		ArgsUsage: "IMAGE [PATH]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "long", Aliases: []string{"l"}, Usage: "show type, mode, links, owner, size and time, too"},
			&cli.BoolFlag{Name: "recursive", Aliases: []string{"R"}, Usage: "list what is below, too"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON, with everything that stat shows"},
			platformFlag(),
		},
		Action: func(c *cli.Context) error {
			a, err := someArgs(c, 1, 2, "IMAGE", "[PATH]")
			if err != nil {
				return err
			}
			at := "/"
			if len(a) > 1 {
				at = a[1]
			}
			return withView(c, a[0], func(v *view) error { return v.ls(c, at) })
		},
	}
}

func (v *view) ls(c *cli.Context, at string) error {
	id, err := v.find(at, !c.Bool("long"))
	if err != nil {
		return err
	}
	if c.Bool("json") {
		all := []entry{}
		v.walk(path.Clean("/"+at), id, c.Bool("recursive"), func(name string, id fs.NodeID) { all = append(all, v.entry(name, id)) })
		return printJSON(c.App.Writer, all)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 1, ' ', 0)
	dir := ""
	v.walk(at, id, c.Bool("recursive"), func(name string, id fs.NodeID) {
		parent, base := path.Split(name)
		if parent != dir && c.Bool("recursive") {
			if dir != "" {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "%s:\n", printable(path.Clean("/"+parent)))
		}
		dir = parent
		if c.Bool("long") {
			fmt.Fprintln(w, v.line(base, id))
		} else {
			fmt.Fprintln(w, printable(base))
		}
	})
	return w.Flush()
}

// printable is a name as a terminal can show it: quoted, if it would do more.
func printable(name string) string {
	quoted := strconv.Quote(name)
	if quoted[1:len(quoted)-1] == strings.ReplaceAll(strings.ReplaceAll(name, `\`, `\\`), `"`, `\"`) {
		return name
	}
	return quoted
}

// walk calls fn for what a directory has, and with recursive for what is in
// its directories after that; of any other node, for itself. name is the
// node's path, and each call's is below it.
func (v *view) walk(name string, id fs.NodeID, recursive bool, fn func(name string, id fs.NodeID)) {
	if v.tree.Attr(id).Type != index.Dir {
		fn(name, id)
		return
	}
	for child, n := range v.tree.Children(id) {
		fn(strings.TrimSuffix(name, "/")+"/"+child, n)
	}
	if !recursive {
		return
	}
	for child, n := range v.tree.Children(id) {
		if v.tree.Attr(n).Type == index.Dir {
			v.walk(strings.TrimSuffix(name, "/")+"/"+child, n, true, fn)
		}
	}
}

func modified(a fs.Attr) time.Time { return time.Unix(a.Sec, int64(a.Nsec)).UTC() }

// line is what ls -l says of a node.
func (v *view) line(name string, id fs.NodeID) string {
	e := v.entry(name, id)
	size := strconv.FormatInt(e.Size, 10)
	if e.Device != "" {
		size = e.Device
	}
	name = printable(name)
	if e.Target != "" {
		name += " -> " + printable(e.Target)
	}
	return fmt.Sprintf("%s\t%d\t%d\t%d\t%s\t%s\t%s", modeText(v.tree.Attr(id)), e.Nlink, e.UID, e.GID, size,
		modified(v.tree.Attr(id)).Format("2006-01-02 15:04"), name)
}

func catCommand() *cli.Command {
	return &cli.Command{
		Name:      "cat",
		Usage:     "write files of an image to the standard output without mounting it",
		ArgsUsage: "IMAGE PATH...",
		Flags:     []cli.Flag{platformFlag()},
		Action: func(c *cli.Context) error {
			a, err := someArgs(c, 2, math.MaxInt, "IMAGE", "PATH...")
			if err != nil {
				return err
			}
			return withView(c, a[0], func(v *view) error {
				for _, name := range a[1:] {
					if err := v.cat(c.Context, c.App.Writer, name); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// catBuffer is how much of a file is asked for at once: most files as a whole,
// so that what comes is one request, and nothing that was only read ahead.
const catBuffer = 8 << 20

func (v *view) cat(ctx context.Context, w io.Writer, name string) error {
	id, err := v.find(name, true)
	if err != nil {
		return err
	}
	a := v.tree.Attr(id)
	if a.Type != index.Regular {
		return fmt.Errorf("cat %s of %s: it is a %s, not a file", name, v.Reference, typeText(a.Type))
	}
	buf := make([]byte, min(a.Size, catBuffer))
	for off := int64(0); off < a.Size; {
		n, err := v.Layers[a.Layer].ReadAtContext(ctx, buf[:min(a.Size-off, catBuffer)], a.Off+off)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("cat %s of %s: %w", name, v.Reference, err)
		}
		if n == 0 {
			return fmt.Errorf("cat %s of %s: %w", name, v.Reference, io.ErrUnexpectedEOF)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return fmt.Errorf("cat %s of %s: %w", name, v.Reference, err)
		}
		off += int64(n)
	}
	return nil
}

// entry is what stat says of a path.
type entry struct {
	Path     string            `json:"path"`
	Type     string            `json:"type"`
	Mode     string            `json:"mode"` // in octal
	UID      uint32            `json:"uid"`
	GID      uint32            `json:"gid"`
	Nlink    uint32            `json:"nlink"`
	Size     int64             `json:"size"`             // bytes
	Modified string            `json:"modified"`         // as RFC 3339 has it
	Target   string            `json:"target,omitempty"` // of a symlink
	Device   string            `json:"device,omitempty"` // major:minor
	SHA256   string            `json:"sha256,omitempty"` // of a file that is not empty
	Xattrs   map[string][]byte `json:"xattrs,omitempty"` // in base64
	Layer    digest.Digest     `json:"layer"`            // that it comes from
	Present  int64             `json:"presentBytes"`     // of a file's bytes, on this machine
}

func (v *view) entry(name string, id fs.NodeID) entry {
	a := v.tree.Attr(id)
	e := entry{
		Path: name, Type: typeText(a.Type), Mode: fmt.Sprintf("%04o", a.Mode), UID: a.UID, GID: a.GID, Nlink: a.Nlink,
		Size: a.Size, Modified: modified(a).Format(time.RFC3339Nano), Target: v.tree.Readlink(id),
	}
	if a.Layer < len(v.Layers) {
		e.Layer = v.Layers[a.Layer].ID().Blob
	}
	switch a.Type {
	case index.Regular:
		e.Present = v.present(a)
	case index.Symlink:
		e.Size = int64(len(e.Target))
	case index.Char, index.Block:
		e.Device = fmt.Sprintf("%d:%d", a.Major, a.Minor)
	}
	if sum, ok := v.sum(a); ok {
		e.SHA256 = hex.EncodeToString(sum[:])
	}
	for _, x := range v.tree.Xattrs(id) {
		if e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		e.Xattrs[x.Name] = []byte(x.Value)
	}
	return e
}

func statCommand() *cli.Command {
	return &cli.Command{
		Name:      "stat",
		Usage:     "say what an image has under a path, and how much of it is here",
		ArgsUsage: "IMAGE PATH",
		Flags:     []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}, platformFlag()},
		Action: func(c *cli.Context) error {
			a, err := args(c, "IMAGE", "PATH")
			if err != nil {
				return err
			}
			return withView(c, a[0], func(v *view) error { return v.stat(c, a[1]) })
		},
	}
}

func (v *view) stat(c *cli.Context, name string) error {
	id, err := v.find(name, false)
	if err != nil {
		return err
	}
	e := v.entry(name, id)
	if c.Bool("json") {
		return printJSON(c.App.Writer, e)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	row := func(key, format string, args ...any) { fmt.Fprintf(w, key+"\t"+format+"\n", args...) }
	row("path", "%s", printable(e.Path))
	row("type", "%s", e.Type)
	if e.Target != "" {
		row("target", "%s", printable(e.Target))
	}
	if e.Device != "" {
		row("device", "%s", e.Device)
	}
	row("mode", "%s (%s)", e.Mode, modeText(v.tree.Attr(id)))
	row("owner", "%d:%d", e.UID, e.GID)
	row("links", "%d", e.Nlink)
	row("size", "%d", e.Size)
	row("modified", "%s", e.Modified)
	for _, x := range v.tree.Xattrs(id) {
		row("xattr", "%s=%q", x.Name, x.Value)
	}
	row("layer", "%s, %d of %d", e.Layer, v.tree.Attr(id).Layer+1, len(v.Layers))
	if e.SHA256 != "" {
		row("sha256", "%s", e.SHA256)
		row("here", "%d of %d bytes (%s)", e.Present, e.Size, share(e.Present, e.Size))
	}
	return w.Flush()
}

// share is a part of a whole in percent. It is 100 only if nothing is missing.
func share(part, whole int64) string {
	if part >= whole {
		return "100%"
	}
	return fmt.Sprintf("%d%%", int64(math.Floor(100*float64(part)/float64(whole))))
}

func typeText(t index.Type) string {
	switch t {
	case index.Regular:
		return "file"
	case index.Dir:
		return "directory"
	case index.Symlink:
		return "symlink"
	case index.Char:
		return "character device"
	case index.Block:
		return "block device"
	case index.Fifo:
		return "fifo"
	}
	return fmt.Sprintf("type %d", t)
}

// modeText is a node's type and mode as ls shows them.
func modeText(a fs.Attr) string {
	b := []byte("-rwxrwxrwx")
	b[0] = "-dl-cbp"[a.Type]
	for i := range 9 {
		if a.Mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for i, special := range []byte("sst") { // setuid, setgid, sticky
		if a.Mode&(04000>>i) == 0 {
			continue
		}
		at := 3 * (i + 1)
		if b[at] == '-' {
			special -= 'a' - 'A'
		}
		b[at] = special
	}
	return string(b)
}
