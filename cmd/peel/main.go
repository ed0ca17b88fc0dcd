// Command peel mounts container images before they have arrived.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/peelfs/peel/cmd/internal/image"
	"github.com/peelfs/peel/content"
	"github.com/peelfs/peel/transfer"
	"github.com/urfave/cli/v2"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newApp().RunContext(ctx, os.Args); err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			fmt.Fprintln(os.Stderr, "peel: interrupted")
			os.Exit(130)
		}
		fmt.Fprintln(os.Stderr, "peel:", err)
		os.Exit(1)
	}
}

func newApp() *cli.App {
	usage := func(_ *cli.Context, err error, _ bool) error { return fmt.Errorf("%w; --help says what there is", err) }
	app := &cli.App{
		Name:  "peel",
		Usage: "run container images before they have arrived",
		Description: "peel mounts an image's whole file system at once and fetches only what is read,\n" +
			"from any OCI registry and from unmodified images. What was fetched is verified\n" +
			"and kept, and is never fetched again.",
		HideVersion:            true,
		UseShortOptionHandling: true,
		EnableBashCompletion:   true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Usage: "keep everything under `DIR`", Value: defaultRoot(), EnvVars: []string{"PEEL_ROOT"}},
			&cli.BoolFlag{Name: "plain-http", Usage: "speak HTTP, not HTTPS, to every registry (loopback ones may always)"},
			&cli.StringFlag{Name: "ca-file", Usage: "trust the certificates in `FILE` (PEM), too"},
			&cli.StringFlag{Name: "log-level", Usage: "log what is at least this `LEVEL`: debug, info, warn, error", Value: "warn"},
		},
		Commands: []*cli.Command{
			mountCommand(), umountCommand(), statusCommand(), indexCommand(), doctorCommand(),
			lsCommand(), catCommand(), statCommand(), duCommand(), diffCommand(), cacheCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("there is no command %q; peel --help lists them", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		ExitErrHandler: func(*cli.Context, error) {}, // main prints it
		OnUsageError:   usage,
	}
	for _, c := range app.Commands {
		c.OnUsageError = usage
	}
	return app
}

// defaultRoot is the machine's cache for root, and the user's own for others.
func defaultRoot() string {
	if os.Geteuid() == 0 {
		return "/var/lib/peel"
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "peel")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "/var/lib/peel"
	}
	return filepath.Join(home, ".local", "share", "peel")
}

// platformFlag chooses the image of a multi-platform index.
func platformFlag() cli.Flag {
	return &cli.StringFlag{Name: "platform", Usage: "take the image for `OS/ARCH[/VARIANT]` (default: this machine's)"}
}

// args returns the command's arguments, of which there must be as many as are
// named.
func args(c *cli.Context, names ...string) ([]string, error) {
	got := c.Args().Slice()
	for _, a := range got {
		if len(a) > 1 && a[0] == '-' {
			return nil, fmt.Errorf("flag %s stands behind an argument; flags come first: %s [flags] %s", a, c.Command.HelpName, strings.Join(names, " "))
		}
	}
	if len(got) != len(names) {
		return nil, fmt.Errorf("%d arguments, and it takes %d: %s [flags] %s", len(got), len(names), c.Command.HelpName, strings.Join(names, " "))
	}
	return got, nil
}

// root returns the store's directory as an absolute path.
func root(c *cli.Context) (string, error) { return filepath.Abs(c.String("root")) }

// logger returns the log of the level that was asked for.
func logger(c *cli.Context) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", c.String("log-level"))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})), nil
}

// engine is what commands that reach for images share.
type engine struct {
	*image.Puller
	root string
}

func newEngine(c *cli.Context) (*engine, error) {
	log, err := logger(c)
	if err != nil {
		return nil, err
	}
	dir, err := root(c)
	if err != nil {
		return nil, err
	}
	client, err := transfer.New(transfer.Options{
		Platform: c.String("platform"), PlainHTTP: c.Bool("plain-http"), CAFile: c.String("ca-file"),
		Log: log, ReferrersAhead: true,
	})
	if err != nil {
		return nil, err
	}
	store, err := content.Open(dir, content.Options{Log: log})
	if err != nil {
		return nil, err
	}
	return &engine{
		Puller: &image.Puller{Store: store, Client: client, Platform: c.String("platform"), Log: log},
		root:   dir,
	}, nil
}

func (e *engine) close() error {
	e.Client.Close()
	return e.Store.Close()
}
