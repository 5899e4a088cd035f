package segfile

import (
	"errors"
	"math/bits"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/internal/invariant"
)

// A pageExtent is an extent of a segment's pages: which of its slots are free.
type pageExtent struct {
	blockdev.Extent
	owner *Segment
	bits  []uint64 // 1: taken
	taken int
}

// A slotTable knows every page extent of a device and which slots are taken.
// It is guarded by the store's mutex.
type slotTable struct {
	per     int // slots of an extent
	extents map[uint32]*pageExtent
	bySeg   map[uint32][]*pageExtent // by tag, in no order
}

func newSlotTable(extentSize int64) slotTable {
	return slotTable{per: int(extentSize / redoubt.PageSize), extents: map[uint32]*pageExtent{}, bySeg: map[uint32][]*pageExtent{}}
}

// add makes the slots of an extent available to its segment.
func (t *slotTable) add(e blockdev.Extent, g *Segment) *pageExtent {
	p := &pageExtent{Extent: e, owner: g, bits: make([]uint64, (t.per+63)/64)}
	t.extents[e.Index] = p
	t.bySeg[e.Owner] = append(t.bySeg[e.Owner], p)
	return p
}

// remove forgets an extent.
func (t *slotTable) remove(p *pageExtent) {
	delete(t.extents, p.Index)
	list := t.bySeg[p.Owner]
	for i := range list {
		if list[i] == p {
			list[i] = list[len(list)-1]
			list = list[:len(list)-1]
			break
		}
	}
	if t.bySeg[p.Owner] = list; len(list) == 0 {
		delete(t.bySeg, p.Owner)
	}
}

// take marks a slot (+1) that the segment's map names. It fails when the slot
// isn't the segment's or is taken: the table or the map is stale.
func (t *slotTable) take(s slot, g *Segment) error {
	p, i := t.locate(s)
	if p == nil || p.Owner != g.tag {
		return segErr(g, redoubt.ErrCorrupt, "page map names slot %d, which lies in no extent of the segment", s-1)
	}
	if p.bits[i/64]&(1<<(i%64)) != 0 {
		return segErr(g, redoubt.ErrCorrupt, "page map names slot %d twice", s-1)
	}
	p.bits[i/64] |= 1 << (i % 64)
	p.taken++
	return nil
}

// free gives a slot (+1) back and returns its extent if that is empty now.
func (t *slotTable) free(s slot) *pageExtent {
	p, i := t.locate(s)
	if p == nil {
		return nil // its segment was deleted meanwhile
	}
	if p.bits[i/64]&(1<<(i%64)) == 0 {
		invariant.Assert(false, "segfile: slot %d freed twice", s-1)
	}
	p.bits[i/64] &^= 1 << (i % 64)
	p.taken--
	if p.taken == 0 {
		return p
	}
	return nil
}

func (t *slotTable) locate(s slot) (*pageExtent, int) {
	if s == 0 {
		return nil, 0
	}
	return t.extents[uint32(int(s-1)/t.per)], int(s-1) % t.per
}

// A SlotRange is N slots side by side. First is + 1, as in a map entry.
type SlotRange struct {
	First uint32
	N     int
}

// run finds the longest run of free slots in p, up to want.
func (p *pageExtent) run(per, want int) (at, n int) {
	for i := 0; i < per; {
		w := p.bits[i/64] >> (i % 64)
		if w&1 != 0 {
			i += min(bits.TrailingZeros64(^w), 64-i%64)
			continue
		}
		start := i
		for i < per && i-start < want {
			if w := p.bits[i/64] >> (i % 64); w != 0 {
				i += bits.TrailingZeros64(w)
				break
			}
			i += 64 - i%64
		}
		i = min(i, per)
		if i-start > n {
			at, n = start, min(i-start, want)
		}
		if n == want {
			break
		}
	}
	return at, n
}

func (p *pageExtent) mark(at, n int) {
	for i := at; i < at+n; i++ {
		p.bits[i/64] |= 1 << (i % 64)
	}
	p.taken += n
}

// best returns the extent of the segment with the longest free run up to want.
func (t *slotTable) best(tag uint32, want int) (p *pageExtent, at, n int) {
	for _, e := range t.bySeg[tag] {
		if t.per-e.taken <= n {
			continue
		}
		if a, m := e.run(t.per, want); m > n {
			p, at, n = e, a, m
		}
		if n == want {
			break
		}
	}
	return p, at, n
}

// sparse reports that the segment uses its extents so badly that it should
// fill the gaps before it gets another.
func (t *slotTable) sparse(tag uint32) bool {
	taken, all := 0, 0
	for _, e := range t.bySeg[tag] {
		taken += e.taken
		all += t.per
	}
	return all > 2*t.per && taken < all*5/8
}

// AllocSlots takes n free slots for pages of the segment, in as few ranges as
// it can, and appends them to dst. It may assign an extent, which waits for the
// device. The slots are lost, until the next restart, unless CommitPages or
// FreeSlots follows.
func (s *Store) AllocSlots(g *Segment, n int, dst []SlotRange) ([]SlotRange, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var full error // no extent is to be had
	for n > 0 {
		if g.deleted {
			s.freeRanges(dst)
			return nil, segErr(g, redoubt.ErrNotFound, "deleted")
		}
		p, at, m := s.slots.best(g.tag, n)
		if m < min(n, s.slots.per) && full == nil && !(m > 0 && s.slots.sparse(g.tag)) {
			// The mutex was free meanwhile: whatever comes of it, what was
			// best before may be gone.
			full = s.growLocked(g)
			if full == nil || errors.Is(full, redoubt.ErrFull) {
				continue
			}
		}
		if m == 0 || full != nil && !errors.Is(full, redoubt.ErrFull) {
			s.freeRanges(dst)
			return nil, full
		}
		p.mark(at, m)
		dst = append(dst, SlotRange{First: p.Index*uint32(s.slots.per) + uint32(at) + 1, N: m})
		n -= m
	}
	return dst, nil
}

// growLocked gives the segment another extent. It lets go of the mutex while
// the device works.
func (s *Store) growLocked(g *Segment) error {
	s.mu.Unlock()
	e, err := s.dev.Assign(blockdev.RolePages, g.tag, 0, blockdev.Reserve)
	s.mu.Lock()
	if err != nil {
		return segErr(g, err, "no extent for pages")
	}
	if g.deleted {
		s.emptied = append(s.emptied, e.Index)
		return segErr(g, redoubt.ErrNotFound, "deleted")
	}
	s.slots.add(e, g)
	return nil
}

// FreeSlots gives back slots that AllocSlots took and no map names.
func (s *Store) FreeSlots(ranges []SlotRange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freeRanges(ranges)
}

func (s *Store) freeRanges(ranges []SlotRange) {
	for _, r := range ranges {
		for i := range r.N {
			s.freeSlot(slot(r.First) + slot(i))
		}
	}
}

// freeSlot frees a slot at once; nobody can be reading it.
func (s *Store) freeSlot(sl slot) {
	if p := s.slots.free(sl); p != nil {
		s.slots.remove(p)
		s.emptied = append(s.emptied, p.Index)
	}
}

// SlotOffset returns where a slot (+1) lies on the device.
func (s *Store) SlotOffset(slot1 uint32) int64 {
	i := int(slot1 - 1)
	return s.dev.Offset(uint32(i/s.slots.per)) + int64(i%s.slots.per)*redoubt.PageSize
}
