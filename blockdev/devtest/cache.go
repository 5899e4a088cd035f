package devtest

import (
	"math/bits"
	"slices"
)

// A cached write is one whose bytes are not promised to be on the medium.
type write struct {
	id     int // of its operation
	off    int64
	data   []byte // a copy, taken at Submit
	doneAt int    // order of completion, 0 while in flight
	doomed bool   // a failed write, or under a failed sync: no later sync covers it
	gone   bitset // sectors that something newer on the medium has replaced
}

func (w *write) sectors() int { return len(w.data) / sectorSize }
func (w *write) end() int64   { return w.off + int64(len(w.data)) }

func (w *write) sector(i int) []byte { return w.data[i*sectorSize : (i+1)*sectorSize] }

// overlap returns the sectors of w, [from, to), that [off, end) touches.
func (w *write) overlap(off, end int64) (from, to int) {
	off, end = max(off, w.off), min(end, w.end())
	if off >= end {
		return 0, 0
	}
	return int((off - w.off) / sectorSize), int((end - w.off + sectorSize - 1) / sectorSize)
}

// A cache is the state of a disk: what reads see, what a power cut leaves for
// certain, and the writes in between.
type cache struct {
	cur *image // the medium with every completed write
	dur *image // the medium

	pend   []*write // completed and not durable, in order of completion
	flight []*write // not completed, in order of submission
	clock  int      // completions so far
}

// launch notes a write as in flight.
func (c *cache) launch(w *write) { c.flight = append(c.flight, w) }

// land takes a write out of flight and makes it a completed one.
func (c *cache) land(w *write) {
	if i := slices.Index(c.flight, w); i >= 0 {
		c.flight = slices.Delete(c.flight, i, i+1)
	}
	c.clock++
	w.doneAt = c.clock
}

// complete is the completion of a plain write: it is visible, and volatile.
func (c *cache) complete(w *write) {
	c.land(w)
	c.cur.write(w.data, w.off)
	c.pend = append(c.pend, w)
}

// completeDurable is the completion of a DSync write.
func (c *cache) completeDurable(w *write) {
	c.land(w)
	writeBoth(c.cur, c.dur, w.data, w.off)
	c.supersede(w)
}

// abandon is the end of a write that failed: not visible, and from then on it
// may or may not be found after a power cut.
func (c *cache) abandon(w *write) {
	c.land(w)
	w.doomed = true
	c.pend = append(c.pend, w)
}

// flush makes everything durable that was complete at the time upTo.
func (c *cache) flush(upTo int) {
	rest := c.pend[:0:0]
	for _, w := range c.pend {
		if w.doneAt > upTo || w.doomed {
			rest = append(rest, w)
			continue
		}
		for i := range w.sectors() {
			if !w.gone.has(i) {
				c.dur.write(w.sector(i), w.off+int64(i)*sectorSize)
			}
		}
	}
	covered := c.pend
	c.pend = rest
	for _, w := range covered {
		if w.doneAt <= upTo && !w.doomed {
			c.supersede(w)
		}
	}
}

// failFlush is a failed sync: what it should have covered is beyond any later
// sync.
func (c *cache) failFlush(upTo int) {
	for _, w := range c.pend {
		w.doomed = w.doomed || w.doneAt <= upTo
	}
}

// supersede takes the sectors of a durable write from the writes that completed
// before it: the cache holds one version of a sector, the newest.
func (c *cache) supersede(w *write) {
	c.pend = slices.DeleteFunc(c.pend, func(old *write) bool {
		if old.doneAt > w.doneAt {
			return false
		}
		from, to := old.overlap(w.off, w.end())
		for i := from; i < to; i++ {
			old.gone.add(i)
		}
		return to > from && old.gone.count() == old.sectors()
	})
}

// unsafeWrites lists, in the order in which they apply, the writes of which a
// power cut may leave anything.
func (c *cache) unsafeWrites() []*write { return append(slices.Clone(c.pend), c.flight...) }

// poke changes the medium under everything: in both images, and in what the
// cache will still write there.
func (c *cache) poke(b []byte, off int64) {
	writeBoth(c.cur, c.dur, b, off)
	end := off + int64(len(b))
	for _, w := range c.pend {
		from, to := max(off, w.off), min(end, w.end())
		if from < to {
			w.data = slices.Clone(w.data)
			copy(w.data[from-w.off:to-w.off], b[from-off:])
		}
	}
}

// clone returns an independent copy; writes are immutable apart from their
// flags, which are copied.
func (c *cache) clone() cache {
	d := cache{cur: c.cur.clone(), dur: c.dur.clone(), clock: c.clock}
	for _, w := range c.pend {
		d.pend = append(d.pend, w.clone())
	}
	for _, w := range c.flight {
		d.flight = append(d.flight, w.clone())
	}
	return d
}

func (w *write) clone() *write {
	x := *w
	x.gone = slices.Clone(w.gone)
	return &x
}

// A bitset is a set of small integers.
type bitset []uint64

func (s bitset) has(i int) bool { return i/64 < len(s) && s[i/64]>>(i%64)&1 == 1 }

func (s *bitset) add(i int) {
	for i/64 >= len(*s) {
		*s = append(*s, 0)
	}
	(*s)[i/64] |= 1 << (i % 64)
}

func (s bitset) count() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}
