package main

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/peelfs/peel/content"
	"github.com/urfave/cli/v2"
)

// The scripts ask peel complete for the words that the last of its arguments
// may become; those before are the line. What cli has of its own for this
// fails on lines that are not finished.
//
//go:embed completion
var completions embed.FS

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print the completion for a shell",
		ArgsUsage: "bash|zsh|fish",
		Action: func(c *cli.Context) error {
			a, err := args(c, "bash|zsh|fish")
			if err != nil {
				return err
			}
			script, err := completions.ReadFile("completion/peel." + a[0])
			if err != nil {
				return fmt.Errorf("there is no completion for %q: want bash, zsh or fish", a[0])
			}
			_, err = c.App.Writer.Write(script)
			return err
		},
	}
}

func completeCommand() *cli.Command {
	return &cli.Command{
		Name:            "complete",
		Hidden:          true,
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			dir, err := root(c)
			if err != nil {
				return err
			}
			for _, w := range complete(c.App, dir, c.Args().Slice()) {
				fmt.Fprintln(c.App.Writer, w)
			}
			return nil
		},
	}
}

// unfinished is a command line as far as it has been typed.
type unfinished struct {
	commands []*cli.Command // that may come next
	flags    []cli.Flag
	command  string // the last one named
	args     int    // behind it
	flag     string // that waits for its value
	root     string // the store that the line is about
}

// complete returns what the last of the words may become.
func complete(app *cli.App, root string, words []string) []string {
	if len(words) == 0 {
		return nil
	}
	line := unfinished{commands: app.Commands, flags: app.Flags, root: root}
	last := words[len(words)-1]
	for _, w := range words[:len(words)-1] {
		line.add(w)
	}
	var found []string
	for _, c := range line.candidates(last) {
		if strings.HasPrefix(c, last) {
			found = append(found, c)
		}
	}
	return found
}

func (u *unfinished) add(word string) {
	switch {
	case u.flag == "--root":
		u.root, u.flag = word, ""
	case u.flag != "":
		u.flag = ""
	case strings.HasPrefix(word, "--root="):
		u.root = strings.TrimPrefix(word, "--root=")
	case strings.HasPrefix(word, "-"):
		if takesValue(u.flags, word) {
			u.flag = word
		}
	default:
		i := slices.IndexFunc(u.commands, func(c *cli.Command) bool { return c.HasName(word) })
		if i < 0 {
			u.args++
			return
		}
		c := u.commands[i]
		u.commands, u.flags, u.command = c.Subcommands, c.Flags, c.Name
	}
}

// candidates are the words that may come next. Where there are none, shells
// offer files.
func (u *unfinished) candidates(word string) []string {
	if u.flag != "" {
		return flagValues[u.flag]
	}
	if strings.HasPrefix(word, "-") {
		return flagNames(u.flags)
	}
	if len(u.commands) > 0 && u.args == 0 {
		var names []string
		for _, c := range u.commands {
			if !c.Hidden {
				names = append(names, c.Names()...)
			}
		}
		return names
	}
	switch u.command {
	case "completion":
		return []string{"bash", "zsh", "fish"}
	case "umount":
		return mountedDirs(u.root)
	case "diff", "rm":
		return images(u.root)
	case "mount", "index", "doctor", "ls", "cat", "stat", "du":
		if u.args == 0 {
			return images(u.root)
		}
	}
	return nil
}

var flagValues = map[string][]string{
	"--driver":    {"auto", "erofs", "loop", "tree"},
	"--log-level": {"debug", "info", "warn", "error"},
	"--platform":  {"linux/amd64", "linux/arm64"},
}

// flagNames returns the flags, with their dashes.
func flagNames(flags []cli.Flag) []string {
	names := []string{"--help"}
	for _, f := range flags {
		for _, n := range f.Names() {
			names = append(names, dashed(n))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// takesValue reports whether a word is a flag that takes the next one.
func takesValue(flags []cli.Flag, word string) bool {
	return slices.ContainsFunc(flags, func(f cli.Flag) bool {
		doc, ok := f.(cli.DocGenerationFlag)
		return ok && doc.TakesValue() && slices.ContainsFunc(f.Names(), func(n string) bool { return dashed(n) == word })
	})
}

// mountedDirs lists where images are mounted. A shell has nowhere to show an
// error.
func mountedDirs(root string) []string {
	list, _ := sessions(root)
	var dirs []string
	for _, s := range list {
		if i, err := s.info(); err == nil {
			dirs = append(dirs, i.Dir)
		}
	}
	return dirs
}

// images lists the images that the store remembers. It makes no store.
func images(root string) []string {
	if _, err := os.Stat(filepath.Join(root, "peel.db")); err != nil {
		return nil
	}
	store, err := content.Open(root, content.Options{})
	if err != nil {
		return nil
	}
	defer store.Close()
	list, _ := store.Images()
	var refs []string
	for _, i := range list {
		refs = append(refs, i.Ref)
	}
	slices.Sort(refs)
	return slices.Compact(refs)
}
