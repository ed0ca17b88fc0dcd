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
	name, run, status := "peel", runPeel, peelStatus
	if filepath.Base(os.Args[0]) == helperName {
		name, run, status = helperName, runHelper, helperStatus
	}
	err := run(ctx)
	if err == nil {
		return
	}
	if stays := (*interrupted)(nil); ctx.Err() != nil && errors.Is(err, context.Canceled) && !errors.As(err, &stays) {
		fmt.Fprintf(os.Stderr, "%s: interrupted\n", name)
	} else {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	}
	os.Exit(status(err))
}

func runPeel(ctx context.Context) error { return newApp().RunContext(ctx, os.Args) }

// peelStatus is the exit status of an error: that of a shell for a signal, or 1.
func peelStatus(err error) int {
	if errors.Is(err, context.Canceled) {
		return 128 + int(syscall.SIGINT)
	}
	return 1
}

func newApp() *cli.App {
	app := &cli.App{
		Name:                   "peel",
		Usage:                  "run container images before they have arrived",
		HideVersion:            true,
		UseShortOptionHandling: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Usage: "keep everything under `DIR`", Value: defaultRoot(), EnvVars: []string{"PEEL_ROOT"}},
			&cli.BoolFlag{Name: "plain-http", Usage: "speak HTTP, not HTTPS, to every registry (loopback ones may always)"},
			&cli.StringFlag{Name: "ca-file", Usage: "trust the certificates in `FILE` (PEM), too"},
			&cli.StringFlag{Name: "log-level", Usage: "log what is at least this `LEVEL`: debug, info, warn, error", Value: "warn"},
		},
		Commands: []*cli.Command{
			mountCommand(), umountCommand(), statusCommand(), explainCommand(), indexCommand(), doctorCommand(),
			lsCommand(), catCommand(), statCommand(), duCommand(), diffCommand(), cacheCommand(),
			completionCommand(), completeCommand(), manCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("there is no command %q; peel --help lists them", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		ExitErrHandler: func(*cli.Context, error) {}, // main prints it
		OnUsageError:   wrongUsage,
	}
	app.CustomAppHelpTemplate = manual("peel")
	equipFlags(app.Flags)
	equip(app.Commands, app.Name)
	return app
}

func wrongUsage(_ *cli.Context, err error, _ bool) error {
	return fmt.Errorf("%w; --help says what there is", err)
}

// equip gives the commands below parent what all of them have.
func equip(commands []*cli.Command, parent string) {
	for _, c := range commands {
		c.OnUsageError, c.HideHelpCommand = wrongUsage, true
		name := parent + " " + c.Name
		c.CustomHelpTemplate = manual(name)
		equipFlags(c.Flags)
		for _, sub := range c.Subcommands {
			sub.HelpName = name + " " + sub.Name // cli only names them when they run
		}
		equip(c.Subcommands, name)
	}
}

// equipFlags keeps --help from saying that every switch is off by default.
func equipFlags(flags []cli.Flag) {
	for _, f := range flags {
		if b, ok := f.(*cli.BoolFlag); ok {
			b.DisableDefaultText = true
		}
	}
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
