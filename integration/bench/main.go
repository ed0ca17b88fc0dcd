// Command bench measures peel beside containerd and a plain unpack, and prints
// one table: a row for each metric and system, with medians of several rounds.
//
//	bench [-run REGEXP] [-n ROUNDS]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"

	"github.com/peelfs/peel/integration/parts"
)

func main() {
	pattern := flag.String("run", ".", "run only the experiments whose `name` matches")
	rounds := flag.Int("n", 5, "`rounds` of each experiment")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *pattern, *rounds); err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// experiment measures something for one or several systems, once a round. In a
// round the systems take turns, so that what changes on the machine meets all.
type experiment struct {
	name    string
	prepare prepare
}

type (
	// prepare makes what the rounds need, and returns what removes it.
	prepare = func(ctx context.Context, b *bed) (round, func() error, error)
	// round takes one sample of each system.
	round = func(ctx context.Context, s *samples) error
)

func experiments() []experiment {
	return []experiment{
		{"first-output", firstOutput("indexed", slow, true)},
		{"no-index", firstOutput("not indexed", slow, false)},
		{"no-index-fast", firstOutput("not indexed, loopback", fast, false)},
		{"warm", warm},
		{"index", index},
		{"memory", memory},
	}
}

// The systems that are measured.
const (
	peelRow       = "peel"
	containerdRow = "containerd"
	diskRow       = "unpacked on disk"
)

func nothing() error { return nil }

func run(ctx context.Context, pattern string, rounds int) (err error) {
	match, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("mounting and chroot take root: run make bench as root")
	}
	facts, err := machine()
	if err != nil {
		return err
	}
	peel, err := parts.Peel(ctx)
	if err != nil {
		return err
	}
	b, err := newBed(ctx, peel)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()

	var all samples
	for _, e := range experiments() {
		if !match.MatchString(e.name) {
			continue
		}
		if err := e.run(ctx, b, &all, rounds); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	fmt.Println(facts)
	fmt.Printf("Medians of %d rounds, with the least and the most.\n\n", rounds)
	return all.print(os.Stdout)
}

func (e experiment) run(ctx context.Context, b *bed, all *samples, rounds int) (err error) {
	fmt.Fprintf(os.Stderr, "%s: preparing", e.name)
	defer fmt.Fprintln(os.Stderr)
	round, close, err := e.prepare(ctx, b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, close()) }()
	for i := range rounds {
		fmt.Fprintf(os.Stderr, ", round %d", i+1)
		if err := round(ctx, all); err != nil {
			return err
		}
	}
	return nil
}
