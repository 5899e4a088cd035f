package devtest

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
)

// CrashOptions say how many of the worlds after a power cut are visited.
type CrashOptions struct {
	// Exhaustive is the number of unflushed writes up to which every
	// combination of their fates is visited. Default 4: at most 7^4 = 2401;
	// negative: none.
	Exhaustive int

	// Samples is how many worlds are drawn at random when there are more. The
	// worlds in which all are kept and all are dropped come first. Default 256.
	Samples int

	// Seed is for the draw.
	Seed uint64

	// Whole leaves tears out: every write is kept or dropped.
	Whole bool
}

// A fate is what a power cut does to one unflushed write.
type fate struct {
	name string
	keep func(i, n int) bool // whether sector i of n is on the medium
}

// fates are the ones that exhaustive enumeration knows. Dropped is the first.
var fates = []fate{
	{"dropped", func(i, n int) bool { return false }},
	{"kept", func(i, n int) bool { return true }},
	{"torn: first half", func(i, n int) bool { return i < n/2 }},
	{"torn: last half", func(i, n int) bool { return i >= n/2 }},
	{"torn: every second sector", func(i, n int) bool { return i%2 == 0 }},
	{"torn: first sector", func(i, n int) bool { return i == 0 }},
	{"torn: last sector", func(i, n int) bool { return i == n-1 }},
}

// CrashStates returns the disks that a power cut at this moment may leave. Each
// is independent of this one and of the others, completes inside Submit, and
// has a Label that says what became of which write.
func (d *Disk) CrashStates(o CrashOptions) iter.Seq[*Disk] {
	if o.Exhaustive == 0 {
		o.Exhaustive = 4
	}
	if o.Samples == 0 {
		o.Samples = 256
	}
	d.mu.Lock()
	c := d.cache.clone()
	d.mu.Unlock()
	w := &world{base: c.dur, writes: c.unsafeWrites(), blockSize: d.blockSize}
	return func(yield func(*Disk) bool) {
		if len(w.writes) <= o.Exhaustive {
			w.all(o, yield)
			return
		}
		w.some(o, yield)
	}
}

// A world is a medium and the writes that a cut may have left on it.
type world struct {
	base      *image
	writes    []*write
	blockSize int
}

// all visits every combination, counting through the fates like an odometer.
func (w *world) all(o CrashOptions, yield func(*Disk) bool) {
	choices := make([][]fate, len(w.writes))
	for i, x := range w.writes {
		choices[i] = w.distinct(x, o.Whole)
	}
	at := make([]int, len(w.writes))
	for {
		chosen := make([]fate, len(at))
		for i, c := range at {
			chosen[i] = choices[i][c]
		}
		if !yield(w.disk(chosen)) {
			return
		}
		i := 0
		for i < len(at) && at[i] == len(choices[i])-1 {
			at[i] = 0
			i++
		}
		if i == len(at) {
			return
		}
		at[i]++
	}
}

// distinct returns the fates of x that leave different media: sectors that x
// doesn't change, or that something newer replaced, don't tell fates apart.
func (w *world) distinct(x *write, whole bool) []fate {
	known := fates
	if whole {
		known = fates[:2]
	}
	var out []fate
	seen := make(map[string]bool)
	for _, f := range known {
		var key bitset
		for i := range x.sectors() {
			if f.keep(i, x.sectors()) && w.matters(x, i) {
				key.add(i)
			}
		}
		if k := key.key(); !seen[k] {
			seen[k] = true
			out = append(out, f)
		}
	}
	return out
}

// matters reports whether sector i of x may change the medium: it does unless
// the same bytes stand there and no other write goes there.
func (w *world) matters(x *write, i int) bool {
	if x.gone.has(i) {
		return false
	}
	off := x.off + int64(i)*sectorSize
	if !w.base.equal(x.sector(i), off) {
		return true
	}
	for _, y := range w.writes {
		if from, to := y.overlap(off, off+sectorSize); y != x && from < to {
			return true
		}
	}
	return false
}

// key is the set in a form that maps compare; trailing zeros don't count.
func (s bitset) key() string {
	var b []byte
	for _, w := range s {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return strings.TrimRight(string(b), "\x00")
}

// some visits all dropped, all kept, and worlds at random.
func (w *world) some(o CrashOptions, yield func(*Disk) bool) {
	r := rand.New(rand.NewPCG(o.Seed, uint64(len(w.writes))))
	for n := range o.Samples {
		chosen := make([]fate, len(w.writes))
		for i := range chosen {
			if n < 2 {
				chosen[i] = fates[n]
				continue
			}
			chosen[i] = draw(r, o.Whole)
		}
		if !yield(w.disk(chosen)) {
			return
		}
	}
}

// draw draws a fate: kept and dropped as often as all tears together, since
// combinations of whole writes are what ordering bugs show in.
func draw(r *rand.Rand, whole bool) fate {
	n := r.IntN(2 * len(fates))
	switch {
	case whole || n >= len(fates):
		return fates[n%2]
	case n < 2:
		seed := r.Uint64()
		return fate{fmt.Sprintf("torn: sectors drawn from %d", seed), func(i, _ int) bool {
			return rand.NewPCG(seed, uint64(i)).Uint64()&1 == 1
		}}
	}
	return fates[n]
}

// disk makes the medium that the chosen fates leave.
func (w *world) disk(chosen []fate) *Disk {
	m := w.base.clone()
	for i, x := range w.writes {
		n := x.sectors()
		for j := range n {
			if chosen[i].keep(j, n) && !x.gone.has(j) {
				m.write(x.sector(j), x.off+int64(j)*sectorSize)
			}
		}
	}
	return newDisk(m, w.blockSize, func() string {
		var b strings.Builder
		b.WriteString("power cut")
		for i, x := range w.writes {
			fmt.Fprintf(&b, "; write %d of %d bytes at %d %s", x.id, len(x.data), x.off, chosen[i].name)
		}
		return b.String()
	})
}

// Unflushed returns the number of writes whose fate a power cut at this moment
// would decide.
func (d *Disk) Unflushed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.pend) + len(d.flight)
}
