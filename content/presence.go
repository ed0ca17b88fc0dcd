package content

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/peelfs/peel/content/index"
	"golang.org/x/sys/unix"
)

// presence is the map of what is present of a layer: a bit for each span, and
// one for each block of the flat blob. It is a file that every process that
// has the layer open maps, so a bit that one sets is seen by all, and outlives
// the process at once.
//
// A bit is set after the data was written, but a power loss may keep the one
// and lose the other. So the file counts only while the machine that wrote it
// runs, which the boot ID in its header tells; after that, what was last made
// durable takes its place (see Layer.sync).
//
// The file: "peel-map", the boot ID (16 bytes), the number of spans and of
// blocks (64 bit each), padding to mapHeader; then the spans' bits and the
// blocks' bits in 32-bit words. Numbers are little-endian.
type presence struct {
	mem    []byte
	spans  bitmap
	blocks bitmap
}

const (
	mapMagic  = "peel-map"
	mapHeader = 64 // bytes
)

// bitmap is a set of numbers below n, in memory that processes share.
type bitmap struct {
	words []uint32
	n     int
}

func wordsFor(n int) int { return (n + 31) / 32 }

func (b bitmap) has(i int) bool { return atomic.LoadUint32(&b.words[i/32])&(1<<(i%32)) != 0 }

// mask returns the bits of the word that lie in [lo, hi).
func mask(word, lo, hi int) uint32 {
	m := ^uint32(0)
	if first := word * 32; lo > first {
		m <<= lo - first
	}
	if end := word*32 + 32; hi < end {
		m &= ^uint32(0) >> (end - hi)
	}
	return m
}

// hasAll reports whether all of [lo, hi) are in the set.
func (b bitmap) hasAll(lo, hi int) bool {
	for w := lo / 32; w*32 < hi; w++ {
		if m := mask(w, lo, hi); atomic.LoadUint32(&b.words[w])&m != m {
			return false
		}
	}
	return true
}

// set adds [lo, hi) to the set.
func (b bitmap) set(lo, hi int) {
	for w := lo / 32; w*32 < hi; w++ {
		atomic.OrUint32(&b.words[w], mask(w, lo, hi))
	}
}

func (b bitmap) clear() {
	for i := range b.words {
		atomic.StoreUint32(&b.words[i], 0)
	}
}

func (b bitmap) count() int {
	n := 0
	for i := range b.words {
		n += bits.OnesCount32(atomic.LoadUint32(&b.words[i]))
	}
	return n
}

func mapSize(spans, blocks int) int { return mapHeader + 4*(wordsFor(spans)+wordsFor(blocks)) }

// newMap returns the bytes of a map in which nothing is present.
func newMap(spans, blocks int) ([]byte, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	mem := make([]byte, mapSize(spans, blocks))
	copy(mem, mapMagic)
	copy(mem[8:], boot[:])
	binary.LittleEndian.PutUint64(mem[24:], uint64(spans))
	binary.LittleEndian.PutUint64(mem[32:], uint64(blocks))
	return mem, nil
}

// mapCounts reads from a map's header how many spans and blocks it is of.
func mapCounts(r io.ReaderAt) (spans, blocks int, err error) {
	var b [mapHeader]byte
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return 0, 0, fmt.Errorf("read the header of a map: %w", err)
	}
	s, n := binary.LittleEndian.Uint64(b[24:]), binary.LittleEndian.Uint64(b[32:])
	if s > maxBits || n > maxBits {
		return 0, 0, fmt.Errorf("%w: a map of %d spans and %d blocks", errDamaged, s, n)
	}
	return int(s), int(n), nil
}

// maxBits is more than there can be in a map; that it has so many its length
// must show.
const maxBits = 1 << 40

// viewMap finds the sets in the bytes of a map.
func viewMap(mem []byte, spans, blocks int) (*presence, error) {
	if len(mem) != mapSize(spans, blocks) || string(mem[:8]) != mapMagic ||
		binary.LittleEndian.Uint64(mem[24:]) != uint64(spans) || binary.LittleEndian.Uint64(mem[32:]) != uint64(blocks) {
		return nil, fmt.Errorf("the map of what is present is not one of %d spans and %d blocks", spans, blocks)
	}
	words := unsafe.Slice((*uint32)(unsafe.Pointer(&mem[mapHeader])), (len(mem)-mapHeader)/4)
	cut := wordsFor(spans)
	return &presence{mem: mem, spans: bitmap{words[:cut], spans}, blocks: bitmap{words[cut:], blocks}}, nil
}

// setHoles makes those blocks present that have no data, the holes of sparse
// files, and those spans that have none, which nobody will ever fetch.
func (p *presence) setHoles(r runs, spans []index.Span) {
	next := 0 // the first block that may be a hole
	for i := range r.len() {
		x := r.at(i)
		p.blocks.set(next, max(next, int(x.flat/index.BlockSize)))
		next = int(index.Align(x.flat+x.len) / index.BlockSize)
	}
	p.blocks.set(next, p.blocks.n)
	for i := range spans {
		if x := r.afterTar(spans[i].TarOff); x == r.len() || r.at(x).tar >= spans[i].TarOff+spans[i].TarLen {
			p.spans.set(i, i+1)
		}
	}
	if r.len() == 0 {
		p.spans.set(0, p.spans.n)
	}
}

// openMap maps a map's file.
func openMap(f *os.File, spans, blocks int) (*presence, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := mapSize(spans, blocks)
	if st.Size() != int64(size) {
		return nil, fmt.Errorf("%w: %s has %d bytes and should have %d", errDamaged, f.Name(), st.Size(), size)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	p, err := viewMap(mem, spans, blocks)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errDamaged, f.Name(), errors.Join(err, unix.Munmap(mem)))
	}
	return p, nil
}

// current reports whether the map was written since the machine started.
func (p *presence) current() (bool, error) {
	boot, err := bootID()
	return string(p.mem[8:24]) == string(boot[:]), err
}

// restore replaces what is present by what was last made durable. Nothing,
// and what does not fit, is nothing present.
func (p *presence) restore(durable []byte) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	bits := p.mem[mapHeader:]
	if len(durable) != len(bits) {
		durable = make([]byte, len(bits))
	}
	copy(bits, durable)
	copy(p.mem[8:], boot[:])
	return nil
}

// snapshot returns the sets' bytes, for restore.
func (p *presence) snapshot() []byte {
	out := make([]byte, 0, len(p.mem)-mapHeader)
	for _, b := range []bitmap{p.spans, p.blocks} {
		for i := range b.words {
			out = binary.NativeEndian.AppendUint32(out, atomic.LoadUint32(&b.words[i]))
		}
	}
	return out
}

func (p *presence) close() error { return unix.Munmap(p.mem) }

// bootID tells one start of the machine from another.
func bootID() (id [16]byte, err error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, fmt.Errorf("tell whether the machine was restarted: %w", err)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(raw)), "-", ""))
	if err != nil || copy(id[:], b) != len(id) {
		return id, fmt.Errorf("boot ID %q is not one", raw)
	}
	return id, nil
}
