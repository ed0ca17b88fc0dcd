// Command bench measures peel beside its peers, and prints one table: a row for
// each metric and system, with medians of several rounds and the limit that
// peel has set itself.
//
//	bench [-run REGEXP] [-n ROUNDS] [-markdown] [-plot FILE]
//
// What fails is a row that says why; the rest goes on. The folder that TMPDIR
// names, else /tmp, is where everything is unpacked: it should be on ext4.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/parts"
)

func main() {
	pattern := flag.String("run", ".", "run only the experiments whose `name` matches")
	rounds := flag.Int("n", 3, "`rounds` of each experiment")
	markdown := flag.Bool("markdown", false, "print the table in Markdown")
	plot := flag.String("plot", "", "draw the ratios in an SVG `file`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *pattern, *rounds, output{*markdown, *plot}); err != nil {
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
		{"containers", containers},
		{"pulls", pulls},
		{"snapshots", chains},
		{"start", local(images.Python, start)},
		{"tree", local(images.Files, tree)},
		{"file", local(images.Big, file)},
		{"near", near},
		{"update", update},
		{"mounting", mounting},
		{"index", indexing},
		{"memory", memory},
		{"daemon", daemon},
	}
}

// The systems that are measured.
const (
	peelRow       = "peel"
	stargzRow     = "stargz"
	containerdRow = "containerd"
	everyRow      = "all" // of an experiment that failed
)

func nothing() error { return nil }

func run(ctx context.Context, pattern string, rounds int, out output) (err error) {
	match, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("mounting and chroot take root: run make bench as root")
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

	facts, err := machine(b.dir)
	if err != nil {
		return err
	}
	var all samples
	for _, e := range experiments() {
		if !match.MatchString(e.name) {
			continue
		}
		err := e.run(ctx, b, &all, rounds)
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		if err != nil { // the others may work
			fmt.Fprintf(os.Stderr, "%s: %v\n", e.name, err)
			all.missing(e.name, everyRow, err)
		}
	}
	fmt.Printf("%s Medians of %d rounds, with the least and the most.\n\n", facts, rounds)
	if err := out.write(&all); err != nil {
		return err
	}
	if failed := all.failures(); len(failed) > 0 {
		return fmt.Errorf("not everything could be measured:\n%s", strings.Join(failed, "\n"))
	}
	return nil
}

// output says in what form the figures are wanted.
type output struct {
	markdown bool
	plot     string // a file; none if empty
}

func (o output) write(s *samples) error {
	table := s.print
	if o.markdown {
		table = s.markdown
	}
	if err := table(os.Stdout); err != nil || o.plot == "" {
		return err
	}
	f, err := os.Create(o.plot)
	if err != nil {
		return err
	}
	return errors.Join(s.plot(f), f.Close())
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
