package powercut

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
)

// Damage tells what a cut did to what was unflushed.
type Damage struct {
	Unflushed           int // writes
	Kept, Dropped, Torn int // writes
	SectorsLost         int // sectors that differ from what was last written to them
}

// Add sums two damages.
func (a Damage) Add(b Damage) Damage {
	return Damage{
		Unflushed: a.Unflushed + b.Unflushed,
		Kept:      a.Kept + b.Kept, Dropped: a.Dropped + b.Dropped, Torn: a.Torn + b.Torn,
		SectorsLost: a.SectorsLost + b.SectorsLost,
	}
}

func (a Damage) String() string {
	return fmt.Sprintf("%d unflushed: %d kept, %d dropped, %d torn; %d sectors lost",
		a.Unflushed, a.Kept, a.Dropped, a.Torn, a.SectorsLost)
}

// A fate is what becomes of one unflushed write.
type fate uint8

const (
	dropped fate = iota
	kept
	torn
	fates
)

// A manner decides the fates of n unflushed writes, the oldest first. Coin flips
// alone would hardly ever show the extremes, where the bugs are, once there are
// more than a few writes.
type manner func(r *rand.Rand, n int) []fate

// manners are drawn from with equal chances.
var manners = []manner{
	func(r *rand.Rand, n int) []fate { // each by itself
		f := make([]fate, n)
		for i := range f {
			f[i] = fate(r.IntN(int(fates)))
		}
		return f
	},
	func(_ *rand.Rand, n int) []fate { return slices.Repeat([]fate{dropped}, n) },
	func(_ *rand.Rand, n int) []fate { return slices.Repeat([]fate{torn}, n) },
	func(r *rand.Rand, n int) []fate { // one is missing, all that came later is there
		f := slices.Repeat([]fate{kept}, n)
		f[r.IntN(n)] = []fate{dropped, torn}[r.IntN(2)]
		return f
	},
	func(r *rand.Rand, n int) []fate { // one is there, all before it is missing
		f := slices.Repeat([]fate{dropped}, n)
		f[r.IntN(n)] = []fate{kept, torn}[r.IntN(2)]
		return f
	},
	func(r *rand.Rand, n int) []fate { // in order up to a point, where it tears
		f, at := slices.Repeat([]fate{dropped}, n), r.IntN(n)
		for i := range at {
			f[i] = kept
		}
		f[at] = torn
		return f
	},
}

// AfterCut gives the bytes that the next boot finds, as r decides. The power must
// be off; the disk is not changed.
func (d *Disk) AfterCut(r *rand.Rand) ([]byte, Damage) {
	d.supply.mu.Lock()
	defer d.supply.mu.Unlock()
	image := bytes.Clone(d.durable)
	damage := Damage{Unflushed: len(d.cache)}
	if len(d.cache) == 0 {
		return image, damage
	}
	for i, f := range manners[r.IntN(len(manners))](r, len(d.cache)) {
		w := d.cache[i]
		if f == torn && len(w.live) == 1 {
			f = fate(r.IntN(int(torn))) // one sector does not tear
		}
		switch f {
		case dropped:
			damage.Dropped++
		case kept:
			damage.Kept++
			w.apply(image, func(int) bool { return true })
		case torn:
			damage.Torn++
			there := tear(r, len(w.live))
			w.apply(image, func(sector int) bool { return there[sector] })
		}
	}
	for at := 0; at < len(image); at += SectorSize {
		if !bytes.Equal(image[at:at+SectorSize], d.current[at:at+SectorSize]) {
			damage.SectorsLost++
		}
	}
	return image, damage
}

// tear chooses which of n sectors, at least two, are there: some but not all.
func tear(r *rand.Rand, n int) []bool {
	there := make([]bool, n)
	switch r.IntN(4) {
	case 0: // the beginning
		for i := range 1 + r.IntN(n-1) {
			there[i] = true
		}
	case 1: // the end
		for i := range 1 + r.IntN(n-1) {
			there[n-1-i] = true
		}
	case 2: // all but one
		for i := range there {
			there[i] = true
		}
		there[r.IntN(n)] = false
	default: // any subset
		for i := range there {
			there[i] = r.IntN(2) == 0
		}
		first := r.IntN(n)
		there[first], there[(first+1)%n] = true, false
	}
	return there
}
