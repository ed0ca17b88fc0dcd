// Command load does to files what programs do to them, and prints how many
// seconds it took.
//
//	load [-cold] [-jobs N] [-n N] stat DIR
//	load [-cold] [-jobs N] [-n N] files DIR < names
//	load [-cold] [-jobs N] [-n N] sequential|random|mapped FILE
//	load [-cold] start ROOT PROGRAM [ARG...]
//
// With -cold it first drops the kernel's caches. The clock then starts with all
// of this program in memory, so that only the files count.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

func main() {
	cold := flag.Bool("cold", false, "drop the kernel's caches first")
	jobs := flag.Int("jobs", 1, "threads that share the work")
	n := flag.Int("n", 1, "how many operations, all jobs together")
	flag.Parse()
	took, err := run(flag.Args(), *cold, *jobs, *n)
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
	fmt.Println(took.Seconds())
}

func run(args []string, cold bool, jobs, n int) (time.Duration, error) {
	if len(args) < 2 || jobs < 1 {
		return 0, errors.New("want a kind of work and a path")
	}
	work, err := prepare(args[0], args[1], args[2:], n/jobs)
	if err != nil {
		return 0, err
	}
	debug.SetGCPercent(-1)
	if err := unix.Mlockall(unix.MCL_CURRENT); err != nil {
		return 0, fmt.Errorf("lock this program in memory: %w", err)
	}
	if cold {
		unix.Sync() // what is dirty cannot be dropped
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
			return 0, err
		}
	}
	start := time.Now()
	var all errgroup.Group
	for job := range jobs {
		all.Go(func() error {
			runtime.LockOSThread()
			return work(job, jobs)
		})
	}
	err = all.Wait()
	return time.Since(start), err
}

// prepare returns what each job does: n operations, or its share of the file.
func prepare(kind, path string, args []string, n int) (work func(job, jobs int) error, err error) {
	switch kind {
	case "stat":
		return func(int, int) error { return statAll(path) }, nil
	case "files":
		var names []string
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			names = append(names, filepath.Join(path, in.Text()))
		}
		return func(int, int) error { return readAll(names) }, nil
	case "start":
		return func(int, int) error { return startIn(path, args) }, nil
	case "sequential":
		return func(job, jobs int) error { return sequential(path, job, jobs) }, nil
	case "random":
		return func(job, _ int) error { return random(path, uint64(job), n) }, nil
	case "mapped":
		return func(job, _ int) error { return mapped(path, uint64(job), n) }, nil
	}
	return nil, fmt.Errorf("%q is no kind of work", kind)
}

// startIn runs a program to its end, with root as its root file system.
func startIn(root string, args []string) error {
	if len(args) == 0 {
		return errors.New("start what?")
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s in %s: %w\n%s", args[0], root, err, out)
	}
	return nil
}
