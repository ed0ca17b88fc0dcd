package main

import (
	"bytes"
	"embed"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// The texts of --help and of the manual page, a file for each command: its
// description, then sections, whose headings are in capitals. common.txt is
// part of all.
//
//go:embed help
var helpTexts embed.FS

// The parts of a command's help that cli knows, for its templates. The one of
// the whole program has the same fields.
const (
	helpHead = `NAME
   {{.HelpName}} - {{.Usage}}

SYNOPSIS
   {{.HelpName}}{{if .VisibleFlags}} [OPTIONS]{{end}}{{if .VisibleCommands}} COMMAND{{end}}{{if .ArgsUsage}} {{.ArgsUsage}}{{end}}
`
	helpLists = `{{if .VisibleCommands}}COMMANDS{{range .VisibleCommands}}
   {{join .Names ", "}}{{"\t"}}{{.Usage}}{{end}}

{{end}}{{if .VisibleFlags}}OPTIONS{{range .VisibleFlags}}
   {{.}}{{end}}

{{end}}`
)

// manual returns the template of the help of a command, such as "peel cache df".
// The lists stand between the description and the first section.
func manual(name string) string {
	file := strings.ReplaceAll(strings.TrimPrefix(name, "peel "), " ", "-")
	text, err := helpTexts.ReadFile("help/" + file + ".txt")
	common, err2 := helpTexts.ReadFile("help/common.txt")
	if err != nil || err2 != nil {
		return helpHead + "\n" + helpLists // a hidden command; of others a test finds out
	}
	var b strings.Builder
	b.WriteString(helpHead + "\nDESCRIPTION\n")
	indent := "   "
	for line := range strings.Lines(string(text)) {
		if isHeading(line) && indent != "" {
			indent = ""
			b.WriteString(helpLists)
		}
		if line != "\n" {
			b.WriteString(indent)
		}
		b.WriteString(line)
	}
	return b.String() + string(common)
}

func isHeading(line string) bool {
	line = strings.TrimSpace(line)
	return line != "" && strings.Trim(line, "ABCDEFGHIJKLMNOPQRSTUVWXYZ ") == ""
}

func manCommand() *cli.Command {
	return &cli.Command{
		Name:   "man",
		Usage:  "print the manual page, in roff",
		Hidden: true,
		Action: func(c *cli.Context) error {
			var page bytes.Buffer
			fmt.Fprintln(&page, `.TH PEEL 8 "" peel "System administration"`)
			writeRoff(&page, helpOf(c.App, nil), ".SH")
			for _, cmd := range c.App.VisibleCommands() {
				writePages(&page, c.App, cmd)
			}
			_, err := page.WriteTo(c.App.Writer)
			return err
		},
	}
}

func writePages(page *bytes.Buffer, app *cli.App, cmd *cli.Command) {
	if cmd.Name == "help" {
		return
	}
	fmt.Fprintf(page, ".SH %q\n", strings.ToUpper(cmd.HelpName))
	writeRoff(page, helpOf(app, cmd), ".SS")
	for _, sub := range cmd.Subcommands {
		writePages(page, app, sub)
	}
}

// helpOf returns what --help prints, without the part that all have; of the
// whole program, if there is no command, with it.
func helpOf(app *cli.App, cmd *cli.Command) string {
	var text bytes.Buffer
	if cmd == nil {
		cli.HelpPrinter(&text, app.CustomAppHelpTemplate, app)
		return text.String()
	}
	cli.HelpPrinter(&text, cmd.CustomHelpTemplate, cmd)
	own, _, _ := strings.Cut(text.String(), "\nENVIRONMENT\n")
	return own
}

// writeRoff writes a help text as roff: headings, and below them what is laid
// out already.
func writeRoff(page *bytes.Buffer, text, heading string) {
	escape := strings.NewReplacer(`\`, `\e`, `-`, `\-`, `'`, `\(aq`)
	fmt.Fprintln(page, ".nf")
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if isHeading(line) && !strings.HasPrefix(line, " ") {
			fmt.Fprintf(page, ".fi\n%s %q\n.nf\n", heading, line)
			continue
		}
		line = strings.TrimPrefix(line, "   ")
		if strings.HasPrefix(line, ".") {
			line = `\&` + line
		}
		fmt.Fprintln(page, escape.Replace(line))
	}
	fmt.Fprintln(page, ".fi")
}
