package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/peelfs/peel/integration/cli"
	"github.com/peelfs/peel/integration/faults"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
	"github.com/peelfs/peel/integration/mounts"
)

// The drivers of a mount.
func drivers() []string { return []string{"erofs", "loop", "tree"} }

const (
	readTimeout = 5 * time.Second                     // --read-timeout
	slowestRead = readTimeout + readTimeout/10 + busy // of a read for which nothing comes
	slowestTwo  = 2 * slowestRead                     // of one that needs two spans, of which one comes at the last moment
	busy        = time.Second                         // that a machine with other things to do may take longer
	recovery    = time.Minute                         // after the last fault, until a pause between attempts must be over
	underWay    = 8 << 20                             // bytes on their way when a mount is killed, which may come twice
)

// flags are those of a mount by the driver whose reads do not wait for long.
func flags(driver string) []string {
	return []string{"--driver", driver, "--read-timeout", readTimeout.String()}
}

// seed returns PEEL_SEED, or a seed that is new each time, and says which.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := rand.Uint64()
	if text := os.Getenv("PEEL_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("PEEL_SEED=%d repeats the plans of this test", s)
	return s
}

// faulty puts a proxy between the node and its link.
func faulty(t *testing.T, n *node) *faults.Proxy {
	t.Helper()
	p := faults.New(n.link.Addr())
	t.Cleanup(p.Close)
	n.registry = p.Addr()
	return p
}

// recovers holds that some time after the last fault all files can be read.
func recovers(t *testing.T, n *node) {
	t.Helper()
	for start := time.Now(); ; {
		_, err := readAll(n.mnt)
		if err == nil {
			t.Logf("all files could be read %v after the last fault", time.Since(start).Round(time.Millisecond))
			return
		}
		if !errors.Is(err, syscall.EIO) || time.Since(start) > recovery {
			t.Fatalf("%v after the last fault: %v", time.Since(start), err)
		}
	}
}

// nothingLeft holds that no process of the node runs and what only a mount
// needs is gone. A process that was interrupted may take a moment.
func nothingLeft(t *testing.T, n *node) {
	t.Helper()
	var left []string
	for start := time.Now(); time.Since(start) < 5*time.Second; time.Sleep(20 * time.Millisecond) {
		left = nil
		for _, pattern := range []string{"tmp/*", "mounts/*", "*.log"} {
			paths, err := filepath.Glob(filepath.Join(n.Root, pattern))
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, paths...)
		}
		points, err := mounts.Below(filepath.Dir(n.Root))
		if err != nil {
			t.Fatal(err)
		}
		devices, err := loops(filepath.Dir(n.Root))
		if err != nil {
			t.Fatal(err)
		}
		left = append(append(left, points...), devices...)
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("left behind: %q", left)
}

// TestRandomFaults makes random reads while answers are spoilt at random. A read
// is right or fails; and without the faults, all are right with no remount.
func TestRandomFaults(t *testing.T) {
	const rounds = 2 // each with an empty store, for what is there meets no faults
	img := made(t, images.Python)
	repo, seed := push(t, img, true), seed(t)
	unpacked(t, img)
	for i, driver := range drivers() {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			for round := range rounds {
				n := newNode(t, link.Options{})
				p := faulty(t, n)
				n.mount(t, repo, flags(driver)...)
				plan := faults.Plan{Seed: seed + uint64(rounds*i+round), Rate: 0.5}
				p.Follow(plan)
				ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
				defer cancel()
				var reads tally
				if err := newReader(t, img, n.mnt, slowestTwo).run(ctx, plan.Seed, 2000, &reads); err != nil {
					t.Fatalf("%v: %v; %v", plan, err, &reads)
				}
				t.Logf("%v; faults: %v", &reads, p.Injected())
				if len(p.Injected()) == 0 || reads.right.Load() == 0 {
					t.Error("no fault was injected or no read was right")
				}
				p.Stop()
				recovers(t, n)
				sameTree(t, n, img)
				n.umount(t)
				nothingLeft(t, n)
			}
		})
	}
}

// passing are faults that a mount gets over or fails with at once. Those that
// keep it waiting are in TestInterruptedMount.
func passing() (some []faults.Fault) {
	for _, f := range faults.All() {
		if f != faults.Stall && f != faults.Drip {
			some = append(some, f)
		}
	}
	return some
}

// TestFaultsWhileMounting spoils what a mount itself asks for. It mounts the
// right tree, or says what is wrong and leaves nothing.
func TestFaultsWhileMounting(t *testing.T) {
	img := made(t, images.Python)
	seed := seed(t)
	unpacked(t, img)
	for i := range uint64(8) {
		indexed := i%2 == 0
		repo := push(t, img, indexed)
		t.Run(fmt.Sprintf("%d, indexed %t", i, indexed), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, link.Options{})
			p := faulty(t, n)
			p.Follow(faults.Plan{Seed: seed + i, Rate: 0.1 + 0.1*float64(i/2), Faults: passing()})
			err := n.Mount(t.Context(), n.image(repo), n.mnt)
			t.Logf("mounted with %v: %v", p.Injected(), err)
			p.Stop()
			var exit *exec.ExitError
			if err != nil {
				if !errors.As(err, &exit) || exit.ExitCode() != 1 {
					t.Errorf("it did not end as a command that fails: %v", err)
				}
				nothingLeft(t, n)
				n.mount(t, repo)
			}
			sameTree(t, n, img)
			n.umount(t)
			nothingLeft(t, n)
		})
	}
}

// TestInterruptedMount interrupts a mount that waits for a registry.
func TestInterruptedMount(t *testing.T) {
	img := made(t, images.Python)
	for _, indexed := range []bool{true, false} {
		repo := push(t, img, indexed)
		for _, f := range []faults.Fault{faults.Stall, faults.Drip} {
			t.Run(fmt.Sprintf("%s, indexed %t", f, indexed), func(t *testing.T) {
				n := newNode(t, link.Options{})
				p := faulty(t, n)
				p.Follow(faults.Plan{Seed: 1, Rate: 1, Faults: []faults.Fault{f}})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := n.Command(ctx, "mount", n.image(repo), n.mnt)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				if err := p.Await(ctx, f, 1); err != nil {
					t.Fatal(err)
				}
				interrupt(t, cmd, 5*time.Second)
				nothingLeft(t, n)
			})
		}
	}
}

// interrupt sends SIGINT, as Ctrl-C does, and holds that the process ends.
func interrupt(t *testing.T, cmd *exec.Cmd, within time.Duration) {
	t.Helper()
	start := time.Now()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it ended as if all were well")
		}
		t.Logf("%s ended %v after SIGINT: %v", filepath.Base(cmd.Path), time.Since(start).Round(time.Millisecond), err)
	case <-time.After(within):
		t.Fatalf("%s goes on %v after SIGINT", cmd.Path, within)
	}
}

// TestHangingRegistry reads from a registry that accepts requests and sends
// nothing more: reads fail in time, and whoever waits can be interrupted.
func TestHangingRegistry(t *testing.T) {
	img := made(t, images.Python)
	repo := push(t, img, true)
	files := []string{"usr/lib/python3.11/os.py", "usr/lib/x86_64-linux-gnu/libc.so.6"}
	for _, driver := range drivers() {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, link.Options{})
			p := faulty(t, n)
			n.mount(t, repo, flags(driver)...)
			before := loadOf(t, n)
			p.Follow(faults.Plan{Seed: 1, Rate: 1, Faults: []faults.Fault{faults.Stall}})
			for _, name := range files {
				start := time.Now()
				_, err := os.ReadFile(filepath.Join(n.mnt, name))
				took := time.Since(start)
				if !errors.Is(err, syscall.EIO) || took > slowestRead {
					t.Errorf("reading %s gives %v after %v, want EIO after about %v", name, err, took, readTimeout)
				}
				t.Logf("reading %s gives EIO after %v", name, took.Round(time.Millisecond))
			}
			p.Stop()
			recovers(t, n)
			noLeak(t, n, before)
			n.umount(t)
			nothingLeft(t, n)
		})
	}
}

// TestInterruptedRead interrupts a program that waits for a file of a registry
// that hangs. It must not have to wait for the read's timeout.
func TestInterruptedRead(t *testing.T) {
	img := made(t, images.Python)
	repo := push(t, img, true)
	for _, driver := range drivers() {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, link.Options{})
			p := faulty(t, n)
			n.mount(t, repo, "--driver", driver, "--read-timeout", "20s")
			before := loadOf(t, n)
			p.Follow(faults.Plan{Seed: 1, Rate: 1, Faults: []faults.Fault{faults.Stall}})
			cmd := exec.CommandContext(t.Context(), "cat", filepath.Join(n.mnt, "usr/lib/python3.11/os.py"))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if err := p.Await(t.Context(), faults.Stall, 1); err != nil {
				t.Fatal(err)
			}
			interrupt(t, cmd, 3*time.Second)
			p.Stop()
			recovers(t, n)
			noLeak(t, n, before)
			n.umount(t)
			nothingLeft(t, n)
		})
	}
}

// TestKilledAgainAndAgain kills the mount's process with reads in flight. What
// had come must be right, and must not come again.
func TestKilledAgainAndAgain(t *testing.T) {
	const rounds = 9
	img := made(t, images.Python)
	repo, seed := push(t, img, true), seed(t)
	n := newNode(t, link.Options{})
	r := newReader(t, img, n.mnt, slowestTwo)
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range rounds {
		killWhileReading(t, n, r, repo, drivers()[i%len(drivers())], random)
	}
	n.mount(t, repo)
	sameTree(t, n, img)
	n.umount(t)
	nothingLeft(t, n)
	limit := compressed(t, img)*102/100 + indexSize(t, repo, img) + rounds*underWay
	got := n.link.Received()
	t.Logf("over all lives %d bytes came over the link, of %d in the image", got, compressed(t, img))
	if got > limit {
		t.Errorf("over all lives %d bytes came over the link, want at most %d", got, limit)
	}
}

// killWhileReading mounts, kills after some reads, and removes the dead mount.
func killWhileReading(t *testing.T, n *node, r *reader, repo, driver string, random *rand.Rand) {
	t.Helper()
	f, err := n.Foreground(t.Context(), n.image(repo), n.mnt, flags(driver)...)
	if err != nil {
		t.Fatal(err)
	}
	// It reads on, however many reads there are before the kill.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var before, after tally
	if err := r.run(ctx, random.Uint64(), random.Int64N(100), &before); err != nil {
		t.Error(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.run(ctx, random.Uint64(), 1<<62, &after) }()
	for after.right.Load()+after.failed.Load() == 0 && len(ended) == 0 {
		time.Sleep(time.Millisecond)
	}
	r.down.Store(true)
	err = f.Kill()
	cancel()
	if err := errors.Join(err, <-ended); err != nil {
		t.Errorf("killed with %s: %v", driver, err)
	}
	r.down.Store(false)
}

// TestManyMounts mounts one image several times at once, by processes that share
// a store: each byte comes once.
func TestManyMounts(t *testing.T) {
	img := made(t, images.Python)
	unpacked(t, img)
	for _, test := range []struct {
		mounts  int
		indexed bool
	}{{2, true}, {10, true}, {2, false}, {10, false}} {
		t.Run(fmt.Sprintf("%d, indexed %t", test.mounts, test.indexed), func(t *testing.T) {
			repo := push(t, img, test.indexed)
			n := newNode(t, link.Options{})
			var all sync.WaitGroup
			for i := range test.mounts {
				one := &node{cli.Peel{Program: n.Program, Root: n.Root}, n.link, n.registry, fmt.Sprint(n.mnt, i)}
				if err := os.Mkdir(one.mnt, 0o755); err != nil {
					t.Fatal(err)
				}
				all.Go(func() {
					if err := one.Mount(t.Context(), one.image(repo), one.mnt, "--driver", drivers()[i%3]); err != nil {
						t.Error(err)
						return
					}
					if size, err := readAll(one.mnt); err != nil || size == 0 {
						t.Errorf("read %d bytes below %s: %v", size, one.mnt, err)
					}
					if i < 3 {
						sameTree(t, one, img)
					}
					if err := one.Umount(t.Context(), one.mnt); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			nothingLeft(t, n)
			requestedOnce(t, n, img)
			limit := compressed(t, img) * 102 / 100
			if test.indexed {
				limit += indexSize(t, repo, img)
			}
			got := n.link.Received()
			t.Logf("%d bytes came over the link, of %d in the image", got, compressed(t, img))
			if got > limit {
				t.Errorf("%d bytes came over the link, want at most %d", got, limit)
			}
		})
	}
}

// requestedOnce holds that no byte of a layer was asked for twice, but for one
// that two spans share.
func requestedOnce(t *testing.T, n *node, img *images.Image) {
	t.Helper()
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range manifest.Layers {
		var asked, requests int64
		for _, r := range n.link.Requests() {
			if r.Method != "GET" || !strings.HasSuffix(r.Path, "/blobs/"+l.Digest.String()) {
				continue
			}
			first, last := int64(0), l.Size-1
			if r.Range != "" {
				if _, err := fmt.Sscanf(r.Range, "bytes=%d-%d", &first, &last); err != nil {
					t.Errorf("range %q: %v", r.Range, err)
				}
			}
			asked += last - first + 1
			requests++
		}
		if asked > l.Size+requests {
			t.Errorf("layer %s: %d requests for %d bytes, of %d", l.Digest, requests, asked, l.Size)
		}
	}
}
