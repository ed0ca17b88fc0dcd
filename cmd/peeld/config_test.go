package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigErrors(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"unknown key":    {"# one\nrot = \"/x\"", `line 2: there is no key "rot"`},
		"wrong type":     {"pprof = \"yes\"", "line 1"},
		"no TOML":        {"root = ", "line 1"},
		"relative root":  {`root = "x"`, `root "x": want an absolute path`},
		"relative state": {`state = "x"`, `state "x": want an absolute path`},
		"index":          {`index = "lazy"`, `index "lazy": want make, push or eager`},
		"time":           {`read_timeout = "soon"`, "soon"},
		"no time":        {`read_timeout = "0s"`, "want more than 0"},
		"metrics":        {`metrics = "9733"`, `metrics "9733": want HOST:PORT`},
		"small layer":    {`small_layer = -1`, "small_layer -1"},
		"log level":      {`log_level = "loud"`, `log_level "loud": want debug, info, warn or error`},
		"log format":     {`log_format = "xml"`, `log_format "xml": want text or json`},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := load(path)
			if err == nil {
				err = c.check()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

func TestConfigDefaults(t *testing.T) {
	c, err := load("")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.check(); err != nil {
		t.Error(err)
	}
	if _, err := load(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a file that was asked for and is missing gives no error")
	}
}

func TestOneDaemonPerFolder(t *testing.T) {
	root, state, other := t.TempDir(), t.TempDir(), t.TempDir()
	unlock, err := lockDirs(root, state)
	if err != nil {
		t.Fatal(err)
	}
	for _, dirs := range [][2]string{{root, other}, {other, state}} {
		if _, err := lockDirs(dirs[0], dirs[1]); err == nil || !strings.Contains(err.Error(), "another peeld") {
			t.Errorf("a second daemon on %v: %v", dirs, err)
		}
	}
	unlock()
	if unlock, err = lockDirs(root, root); err != nil {
		t.Fatal(err)
	}
	unlock()
}
