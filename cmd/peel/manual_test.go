package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// Every command has a text of its own, and the manual page has all of them.
func TestHelp(t *testing.T) {
	page, err := run(t, "man")
	if err != nil || !strings.HasPrefix(page, ".TH PEEL 8") {
		t.Fatalf("%v\n%s", err, page)
	}
	if bad := regexp.MustCompile(`(?m)^'|^\.[^A-Za-z]`).FindString(page); bad != "" {
		t.Errorf("roff would take %q for a request", bad)
	}
	var check func(words []string, commands []*cli.Command)
	check = func(words []string, commands []*cli.Command) {
		for _, c := range commands {
			if c.Hidden || c.Name == "help" {
				continue
			}
			words := append(words[:len(words):len(words)], c.Name)
			name := "peel " + strings.Join(words, " ")
			out, err := run(t, append(words, "--help")...)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, want := range []string{"NAME\n   " + name + " - ", "\nSYNOPSIS\n   " + name, "\nDESCRIPTION\n   ", "\nOPTIONS\n   --", "\nEXIT STATUS\n   0 ", "\nEXAMPLES\n   ", "\nENVIRONMENT\n   ", "\nFILES\n   "} {
				if strings.Count(out, want) != 1 {
					t.Errorf("%s --help has %q %d times:\n%s", name, want, strings.Count(out, want), out)
				}
			}
			if strings.Contains(out, "default: false") || strings.Contains(out, "\n\n\n") || strings.Contains(out, " \n") {
				t.Errorf("%s --help:\n%s", name, out)
			}
			for line := range strings.Lines(out) {
				if len(line) > 140 {
					t.Errorf("%s --help has a line of %d bytes: %s", name, len(line), line)
				}
			}
			if !strings.Contains(page, `.SH "`+strings.ToUpper(name)+`"`) {
				t.Errorf("%s is not in the manual page", name)
			}
			check(words, c.Subcommands)
		}
	}
	app := newApp()
	check(nil, app.Commands)
	if out, err := run(t, "--help"); err != nil || !strings.Contains(out, "\nCOMMANDS\n   mount ") || !strings.Contains(out, "\nDESCRIPTION\n   peel mounts") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := run(t, "completion", "tcsh"); err == nil || !strings.Contains(err.Error(), "want bash, zsh or fish") {
		t.Errorf("completion tcsh: %v", err)
	}
}
