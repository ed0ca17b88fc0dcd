package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// The values of config.Index.
const (
	indexMake  = "make"  // read the layer once and keep the index
	indexPush  = "push"  // that, and attach the indices to the image in the registry
	indexEager = "eager" // unpack the layer, as containerd would
)

// config is the daemon's configuration file.
type config struct {
	Root        string   `toml:"root"`
	State       string   `toml:"state"`
	Address     string   `toml:"address"`
	Metrics     string   `toml:"metrics"`
	Pprof       bool     `toml:"pprof"`
	LogLevel    string   `toml:"log_level"`
	LogFormat   string   `toml:"log_format"`
	Index       string   `toml:"index"`
	SmallLayer  int64    `toml:"small_layer"`
	ReadTimeout duration `toml:"read_timeout"`
	Platform    string   `toml:"platform"`
	PlainHTTP   bool     `toml:"plain_http"`
	CAFile      string   `toml:"ca_file"`
}

// duration is a time.Duration as text, such as "30s".
type duration struct{ time.Duration }

func (d *duration) UnmarshalText(b []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(b))
	return err
}

// defaultConfig is the configuration of a daemon that has none, with what each
// key means.
//
//go:embed peeld.toml
var defaultConfig []byte

// defaultPath is where the configuration is, if there is one.
const defaultPath = "/etc/peeld/config.toml"

// load reads a configuration file over the defaults. An empty path is the
// default one, which need not be there.
func load(path string) (config, error) {
	var c config
	if err := decode(defaultConfig, &c); err != nil {
		return c, fmt.Errorf("the default configuration: %w", err)
	}
	asked := path != ""
	if !asked {
		path = defaultPath
	}
	raw, err := os.ReadFile(path)
	if !asked && errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	if err := decode(raw, &c); err != nil {
		return c, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// decode reads TOML. A key that there is not is an error: it is misspelt.
func decode(raw []byte, c *config) error {
	d := toml.NewDecoder(bytes.NewReader(raw)).DisallowUnknownFields()
	err := d.Decode(c)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		row, _ := unknown.Errors[0].Position()
		return fmt.Errorf("line %d: there is no key %q; peeld config default lists them", row, strings.Join(unknown.Errors[0].Key(), "."))
	case errors.As(err, &wrong):
		row, _ := wrong.Position()
		return fmt.Errorf("line %d: %w", row, err)
	}
	return err
}

// check says what cannot be.
func (c config) check() error {
	for key, dir := range map[string]string{"root": c.Root, "state": c.State, "address": c.Address} {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("%s %q: want an absolute path", key, dir)
		}
	}
	switch c.Index {
	case indexMake, indexPush, indexEager:
	default:
		return fmt.Errorf("index %q: want %s, %s or %s", c.Index, indexMake, indexPush, indexEager)
	}
	if c.Metrics != "" {
		if _, _, err := net.SplitHostPort(c.Metrics); err != nil {
			return fmt.Errorf("metrics %q: want HOST:PORT, or nothing: %w", c.Metrics, err)
		}
	}
	if c.SmallLayer < 0 {
		return fmt.Errorf("small_layer %d: want a number of bytes", c.SmallLayer)
	}
	if c.ReadTimeout.Duration <= 0 {
		return fmt.Errorf("read_timeout %v: want more than 0", c.ReadTimeout.Duration)
	}
	_, err := c.logger(io.Discard)
	return err
}

// whySmall says why a layer of this size in bytes is read whole.
func (c config) whySmall(size int64) string {
	return fmt.Sprintf("%d bytes, less than small_layer (%d)", size, c.SmallLayer)
}

// logger returns the log of the format and level that the configuration says.
func (c config) logger(w io.Writer) (*slog.Logger, error) {
	level, err := parseLevel(c.LogLevel)
	if err != nil {
		return nil, err
	}
	o := &slog.HandlerOptions{Level: level}
	switch c.LogFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("log_format %q: want text or json", c.LogFormat)
}

// parseLevel returns the level of a name: slog's, and those that containerd
// also has.
func parseLevel(name string) (slog.Level, error) {
	switch name {
	case "trace":
		return slog.LevelDebug, nil
	case "fatal", "panic":
		return slog.LevelError, nil
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(name)); err != nil {
		return 0, fmt.Errorf("log_level %q: want debug, info, warn or error", name)
	}
	return level, nil
}
