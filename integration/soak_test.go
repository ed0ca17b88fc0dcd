package integration

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/peelfs/peel/integration/faults"
	"github.com/peelfs/peel/integration/images"
	"github.com/peelfs/peel/integration/link"
)

// TestSoak reads at random for the time in PEEL_SOAK, as "10m", with each
// driver at once, while answers are spoilt and processes are killed. No read
// may be wrong or hang, and nothing may be left.
func TestSoak(t *testing.T) {
	text := os.Getenv("PEEL_SOAK")
	if text == "" {
		t.Skip("PEEL_SOAK is not set; make soak does")
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	img := made(t, images.Python)
	repo, seed := push(t, img, true), seed(t)
	unpacked(t, img)
	size, err := img.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	for i, driver := range drivers() {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			s := soak{img: img, repo: repo, driver: driver, disk: size*3/2 + 64<<20, random: rand.New(rand.NewPCG(seed, uint64(i)))}
			stores := 0
			for end := time.Now().Add(length); time.Now().Before(end) && !t.Failed(); stores++ {
				s.store(t)
			}
			t.Logf("%d stores; %v; %d kills; faults: %v", stores, &s.reads, s.kills, s.faults)
		})
	}
}

// soak is the run of one driver.
type soak struct {
	img    *images.Image
	repo   string
	driver string
	disk   int64 // what a store may take: files in whole blocks, indices, maps, a database
	random *rand.Rand
	reads  tally
	kills  int
	faults map[faults.Fault]int
}

// store is the life of one store, from its first mount to its last: a few that
// are killed, one that recovers, and one that is unmounted.
func (s *soak) store(t *testing.T) {
	t.Helper()
	n := newNode(t, link.Options{})
	p := faulty(t, n)
	r := newReader(t, s.img, n.mnt, slowestTwo)
	for range s.random.IntN(4) {
		s.spoilt(t, n, p, r, true)
	}
	s.spoilt(t, n, p, r, false)
	if t.Failed() {
		return
	}
	n.mount(t, s.repo, flags(s.driver)...)
	sameTree(t, n, s.img)
	n.umount(t)
	nothingLeft(t, n)
	if got := used(t, n.Root); got > s.disk {
		t.Errorf("the store takes %d bytes of the disk, want at most %d", got, s.disk)
	}
	if s.faults == nil {
		s.faults = map[faults.Fault]int{}
	}
	for f, times := range p.Injected() {
		s.faults[f] += times
	}
	if err := os.RemoveAll(n.Root); err != nil { // the disk is not for all stores at once
		t.Error(err)
	}
}

// spoilt is the life of one process, which ends with a kill, or else recovers
// and is unmounted. How many reads it gets to see is a matter of luck.
func (s *soak) spoilt(t *testing.T, n *node, p *faults.Proxy, r *reader, kill bool) {
	t.Helper()
	f, err := n.Foreground(t.Context(), n.image(s.repo), n.mnt, flags(s.driver)...)
	if err != nil {
		t.Fatal(err)
	}
	before := loadOf(t, n)
	plan := faults.Plan{Seed: s.random.Uint64(), Rate: s.random.Float64()}
	p.Follow(plan)
	ctx, cancel := context.WithTimeout(t.Context(), s.upTo(10*time.Second))
	defer cancel()
	most := s.reads.right.Load() + s.reads.failed.Load() + s.random.Int64N(2000)
	ended := make(chan error, 1)
	go func() { ended <- r.run(ctx, plan.Seed, most, &s.reads) }()
	if kill {
		select {
		case <-time.After(s.upTo(3 * time.Second)):
		case err := <-ended:
			ended <- err
		}
		r.down.Store(true)
		err = f.Kill()
		cancel()
		s.kills++
	}
	if bad := <-ended; bad != nil || err != nil {
		t.Errorf("%v: %v, %v", plan, bad, err)
	}
	r.down.Store(false)
	p.Stop()
	if kill {
		return
	}
	recovers(t, n)
	sameTree(t, n, s.img)
	noLeak(t, n, before)
	n.umount(t)
	if err := f.Kill(); err != nil { // it has ended; this only waits for it
		t.Logf("after the end of the process: %v", err)
	}
}

// upTo returns a random time.
func (s *soak) upTo(most time.Duration) time.Duration {
	return time.Duration(s.random.Int64N(int64(most)))
}

// used returns what dir takes of the disk.
func used(t *testing.T, dir string) (size int64) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		size += st.Blocks * 512
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return size
}

// loops returns the loop devices whose file is below dir.
func loops(dir string) (devices []string, err error) {
	paths, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		file, err := os.ReadFile(path)
		if err == nil && strings.HasPrefix(string(file), dir+"/") { // a device may go meanwhile
			devices = append(devices, path+": "+strings.TrimSpace(string(file)))
		}
	}
	return devices, nil
}
