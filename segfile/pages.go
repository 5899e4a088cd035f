package segfile

import (
	"fmt"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/slab"
)

// A PagePlan says how to build one page: the version on disk and the records
// to apply to it, in LSN order.
type PagePlan struct {
	Page uint32
	Slot uint32 // + 1; 0: no version, begin with zeros
	Sum  uint32 // redo.PageSum of the version
	LSN  redoubt.LSN
	Recs []RecRef
}

// A RecRef says where one record lies: in which batch of the log, and where in
// the batch.
type RecRef struct {
	LSN redoubt.LSN
	Pos uint64 // of the batch
	Len uint32 // of the batch
	Off uint32 // of the record in the batch
}

// Last returns the LSN of the page once it is built.
func (p *PagePlan) Last() redoubt.LSN {
	if n := len(p.Recs); n > 0 {
		return p.Recs[n-1].LSN
	}
	return p.LSN
}

// Zeros reports that the page needs no version from disk: there is none, or the
// first record replaces it.
func (p *PagePlan) Zeros() bool { return p.Slot == 0 }

// A RangeError says which bound a read point missed. It matches ErrBelowFloor
// or ErrAboveSCL.
type RangeError struct {
	Seg        *Segment
	Point      redoubt.LSN
	Floor, SCL redoubt.LSN
	Err        error
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("segfile: segment %v pg %d: read at LSN %d, serves [%d, %d]: %v", e.Seg.ID, e.Seg.PG, e.Point, e.Floor, e.SCL, e.Err)
}

func (e *RangeError) Unwrap() error { return e.Err }

// PlanRead plans pages as of point. need is the LSN of the group's last record
// at or below point, if the caller knows it, else 0: LSNs are dense in the
// volume and sparse in a group, so a segment whose SCL is below point may be
// complete there without knowing it. plans has the length of pages and is
// reused. On success the caller owes Unpin when it has read what the plans
// name. It may wait for the device, to index log that left memory.
func (s *Store) PlanRead(g *Segment, point, need redoubt.LSN, pages []uint32, plans []PagePlan) (Pin, error) {
	if need == 0 || need > point {
		need = point
	}
	if err := s.checkPoint(g, point, need); err != nil {
		return Pin{}, err
	}
	if err := s.Index(g, point); err != nil {
		return Pin{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Again: the floor may have passed the point while the index was built.
	if err := g.checkPoint(point, need); err != nil {
		return Pin{}, err
	}
	for i, page := range pages {
		if page >= g.Pages {
			return Pin{}, segErr(g, redoubt.ErrInvalid, "page %d of %d", page, g.Pages)
		}
		s.planPage(g, page, point, &plans[i])
	}
	return s.limbo.pin(), nil
}

func (s *Store) checkPoint(g *Segment, point, need redoubt.LSN) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.checkPoint(point, need)
}

func (g *Segment) checkPoint(point, need redoubt.LSN) error {
	switch {
	case g.deleted || g.rootPos == 0:
		return segErr(g, redoubt.ErrNotFound, "deleted")
	case g.Kind != redoubt.FullSegment:
		return segErr(g, redoubt.ErrInvalid, "is a tail segment and has no pages")
	case need > g.scl:
		return &RangeError{Seg: g, Point: need, Floor: g.floor, SCL: g.scl, Err: redoubt.ErrAboveSCL}
	case point < g.floor:
		return &RangeError{Seg: g, Point: point, Floor: g.floor, SCL: g.scl, Err: redoubt.ErrBelowFloor}
	}
	return g.broken
}

// planPage plans one page as of point, which is indexed.
func (s *Store) planPage(g *Segment, page uint32, point redoubt.LSN, p *PagePlan) {
	*p = PagePlan{Page: page, Recs: p.Recs[:0]}
	e := g.pm.peek(page)
	if e == nil {
		return
	}
	p.Slot, p.Sum, p.LSN = uint32(e.slot), e.sum, e.lsn
	for i := e.head; i != 0; {
		r := s.arena.at(i)
		if r.lsn <= point {
			b := g.blocks.lookup(r.block)
			p.Recs = append(p.Recs, RecRef{LSN: r.lsn, Pos: b.pos, Len: b.len, Off: r.off})
		}
		i = r.older
	}
	slices.Reverse(p.Recs)
}

// PickPages appends to dst up to n pages of the segment that can be coalesced
// up to its target: with long, those with long chains, else those whose records
// have waited longest. It may wait for the device, to index log.
func (s *Store) PickPages(g *Segment, n int, long bool, dst []uint32) ([]uint32, error) {
	s.mu.Lock()
	target := g.target()
	s.mu.Unlock()
	if err := s.Index(g, target); err != nil {
		return dst, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.deleted || g.broken != nil {
		return dst, g.broken
	}
	if long {
		return g.pickLong(n, dst), nil
	}
	d := &g.dirty
	for i := d.head; i < len(d.q) && len(dst) < n && d.q[i].first <= target; i++ {
		if e := g.pm.peek(d.q[i].page); s.isDirty(e, d.q[i]) {
			dst = append(dst, d.q[i].page)
		} else if i == d.head {
			d.pop()
		}
	}
	return dst, nil
}

func (g *Segment) pickLong(n int, dst []uint32) []uint32 {
	took := 0
	for _, page := range g.long {
		if len(dst) == n {
			break
		}
		took++
		if e := g.pm.peek(page); e.head != 0 && e.flags&entryLong != 0 {
			dst = append(dst, page)
		}
	}
	for _, page := range g.long[:took] {
		g.pm.peek(page).flags &^= entryLong
	}
	g.long = append(g.long[:0], g.long[took:]...)
	return dst
}

// PlanPages plans pages of a segment up to its target, for coalescing: plans has
// the length of pages. A page without anything to coalesce gets no records. The
// caller owes Unpin.
func (s *Store) PlanPages(g *Segment, pages []uint32, plans []PagePlan) (target redoubt.LSN, pin Pin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	target = min(g.target(), g.indexed)
	for i, page := range pages {
		s.planPage(g, page, target, &plans[i])
	}
	return target, s.limbo.pin()
}

// PlanVersions plans the versions on disk of the pages from first on, without
// their records, until plans is full or the segment ends: for scrubbing. It
// returns how many it planned and where the next call begins. The caller owes
// Unpin.
func (s *Store) PlanVersions(g *Segment, first uint32, plans []PagePlan) (n int, next uint32, pin Pin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for next = first; next < g.Pages && n < len(plans); next++ {
		if e := g.pm.peek(next); e != nil && e.slot != 0 {
			plans[n] = PagePlan{Page: next, Slot: uint32(e.slot), Sum: e.sum, LSN: e.lsn, Recs: plans[n].Recs[:0]}
			n++
		}
	}
	return n, next, s.limbo.pin()
}

// Build applies a plan's records to base, which holds the version that it names
// (or anything, when Zeros says there is none), and returns the LSN and the sum
// of the page that base holds then.
func (w *Window) Build(g *Segment, p *PagePlan, base []byte) (redoubt.LSN, uint32, error) {
	if p.Zeros() {
		clear(base[:redoubt.PageSize])
	} else if sum := redo.PageSum(g.Volume, g.PageNo(p.Page), p.LSN, base); sum != p.Sum {
		return 0, 0, segErr(g, redoubt.ErrCorrupt, "page %d at LSN %d, slot %d, device offset %d: sum %08x, the map says %08x; fetch it from a peer",
			p.Page, p.LSN, p.Slot-1, w.s.SlotOffset(p.Slot), sum, p.Sum)
	}
	if len(p.Recs) == 0 && !p.Zeros() {
		return p.LSN, p.Sum, nil
	}
	for i := range p.Recs {
		r := &p.Recs[i]
		b, err := w.Batch(g, r.Pos, r.Len)
		if err != nil {
			return 0, 0, err
		}
		rec, err := redo.RecordAt(b, int(r.Off), r.LSN)
		if err != nil {
			return 0, 0, segErr(g, redoubt.ErrCorrupt, "record at LSN %d: %v", r.LSN, err)
		}
		rec.Apply(base)
		if len(w.holds) >= 64 {
			w.Release()
		}
	}
	w.Release()
	return p.Last(), redo.PageSum(g.Volume, g.PageNo(p.Page), p.Last(), base), nil
}

// PrepareMap returns the change that makes new versions of pages count: a map
// block, to be appended when the versions are durable in their slots. Changes
// name pages of one PlanPages with its target. One may be under way for a
// segment at a time.
func (s *Store) PrepareMap(mem *slab.Buf, g *Segment, changes []MapChange, target redoubt.LSN) (*Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.deleted {
		return nil, segErr(g, redoubt.ErrNotFound, "deleted")
	}
	for _, c := range changes {
		g.pm.touch(c.Page).flags |= entryBusy
	}
	head := mapHead{coalesced: max(g.coalesced, s.coalescedAfter(g, target)), vdl: g.vdl, floor: g.floor}
	for _, c := range changes {
		g.pm.touch(c.Page).flags &^= entryBusy
	}
	run, err := s.newRun(mem, g, BlockMap, func(b []byte) []byte { return appendMapBlock(b, head, changes) })
	if err != nil {
		return nil, err
	}
	return &Change{Run: run, Seg: g, commit: func() { s.commitMap(g, head.coalesced, changes) }}, nil
}

// coalescedAfter returns the LSN up to which every record is in pages, once
// those that are marked busy are in up to target.
func (s *Store) coalescedAfter(g *Segment, target redoubt.LSN) redoubt.LSN {
	upto := min(target, g.indexed)
	if g.Kind == redoubt.TailSegment {
		return target
	}
	d := &g.dirty
	for i := d.head; i < len(d.q) && d.q[i].first <= upto; i++ {
		if e := g.pm.peek(d.q[i].page); s.isDirty(e, d.q[i]) && e.flags&entryBusy == 0 {
			return d.q[i].first - 1
		}
	}
	return upto
}

func (s *Store) commitMap(g *Segment, coalesced redoubt.LSN, changes []MapChange) {
	if g.deleted {
		return // bury freed the extents with the slots in them
	}
	for _, c := range changes {
		e := g.pm.touch(c.Page)
		invariant.Assert(c.LSN >= e.lsn, "segfile: page %d goes from LSN %d to %d", c.Page, e.lsn, c.LSN)
		s.retireSlot(g.pm.set(c))
		s.cutChain(g, c.Page, e)
	}
	g.coalesced = max(g.coalesced, coalesced)
	g.persisted = max(g.persisted, coalesced)
	s.dropBlocks(g)
}

// cutChain removes from a page's chain what its version has taken in.
func (s *Store) cutChain(g *Segment, page uint32, e *pageEntry) {
	keep := &e.head
	first, n := redoubt.LSN(0), 0
	for *keep != 0 && s.arena.at(*keep).lsn > e.lsn {
		first = s.arena.at(*keep).lsn
		keep = &s.arena.at(*keep).older
		n++
	}
	i := *keep
	dropped := i != 0
	*keep = 0
	for i != 0 {
		older := s.arena.at(i).older
		s.arena.put(i)
		i = older
	}
	e.count = uint16(min(n, 1<<16-1))
	if !dropped {
		return
	}
	if n == 0 {
		g.dirty.n--
		return
	}
	g.dirty.insert(dirtyPage{page, first})
}

// insert adds a page in the order of first.
func (d *dirtyList) insert(p dirtyPage) {
	live := d.q[d.head:]
	i, _ := slices.BinarySearchFunc(live, p.first, func(x dirtyPage, l redoubt.LSN) int { return compareLSN(x.first, l) })
	d.q = slices.Insert(d.q, d.head+i, p)
}

// dropBlocks lets go of a segment's log that nobody needs.
func (s *Store) dropBlocks(g *Segment) {
	b := &g.blocks
	from := b.front()
	g.dropBlocks()
	for i := from; i < b.front(); i++ {
		s.records -= int64(b.at(i).count)
		s.dropped += uint64(b.at(i).len)
	}
}
