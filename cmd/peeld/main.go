// Command peeld is a snapshotter for containerd that runs lazy images.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newApp().RunContext(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "peeld:", err)
		os.Exit(1)
	}
}

func newApp() *cli.App {
	usage := func(_ *cli.Context, err error, _ bool) error { return fmt.Errorf("%w; --help says what there is", err) }
	app := &cli.App{
		Name:  "peeld",
		Usage: "give containerd the layers of images before they have been downloaded",
		Description: "peeld serves containerd's snapshots API on a unix socket. containerd is told of\n" +
			"it by a proxy plugin in its configuration: peeld config containerd prints that.\n" +
			"It runs in the foreground, logs to standard error, tells systemd when it is\n" +
			"ready, and ends with SIGTERM or SIGINT.",
		HideVersion: true,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "read the configuration from `FILE` (default: " + defaultPath + ", if it is there)", EnvVars: []string{"PEELD_CONFIG"}},
			&cli.StringFlag{Name: "root", Usage: "keep what survives a reboot under `DIR`"},
			&cli.StringFlag{Name: "state", Usage: "keep sockets and mounts under `DIR`"},
			&cli.StringFlag{Name: "address", Aliases: []string{"a"}, Usage: "serve containerd on the unix socket `PATH`"},
			&cli.StringFlag{Name: "log-level", Aliases: []string{"l"}, Usage: "log what is at least this `LEVEL`: debug, info, warn, error"},
		},
		Commands: []*cli.Command{configCommand()},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("there is no command %q; peeld --help lists them", c.Args().First())
			}
			cfg, err := configured(c)
			if err != nil {
				return err
			}
			return serve(c.Context, cfg)
		},
		ExitErrHandler: func(*cli.Context, error) {}, // main prints it
		OnUsageError:   usage,
	}
	for _, c := range app.Commands {
		c.OnUsageError = usage
	}
	return app
}

// configured returns the configuration with the flags put over it. Without an
// address of its own, a daemon of another state has its socket there.
func configured(c *cli.Context) (config, error) {
	cfg, err := load(c.String("config"))
	if err != nil {
		return cfg, err
	}
	if c.IsSet("state") {
		cfg.Address = filepath.Join(c.String("state"), "peeld.sock")
	}
	for flag, key := range map[string]*string{"root": &cfg.Root, "state": &cfg.State, "address": &cfg.Address, "log-level": &cfg.LogLevel} {
		if c.IsSet(flag) {
			*key = c.String(flag)
		}
	}
	return cfg, cfg.check()
}

func configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "print configurations",
		Subcommands: []*cli.Command{
			{
				Name:  "default",
				Usage: "print the daemon's configuration file with all defaults",
				Action: func(c *cli.Context) error {
					_, err := c.App.Writer.Write(defaultConfig)
					return err
				},
			},
			{
				Name:  "containerd",
				Usage: "print what belongs into containerd's configuration for this daemon, on this machine",
				Action: func(c *cli.Context) error {
					cfg, err := configured(c)
					if err != nil {
						return err
					}
					return containerdConfig(c.App.Writer, cfg)
				},
			},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("there is no configuration %q; want default or containerd", c.Args().First())
			}
			return errors.New("which one: peeld config default, or peeld config containerd")
		},
	}
}
