package segfile

import (
	"errors"
	"fmt"
	"math"
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

// WireDetail returns the bounds of what the segment serves.
func (e *RangeError) WireDetail() (a, b uint64) { return uint64(e.Floor), uint64(e.SCL) }

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
		s.planPage(g, page, point, math.MaxInt, &plans[i])
	}
	return s.limbo.pin(), nil
}

// TryPlanRead is PlanRead for callers that must not wait: where log would have
// to be read back first it plans nothing and returns false.
func (s *Store) TryPlanRead(g *Segment, point, need redoubt.LSN, pages []uint32, plans []PagePlan) (Pin, bool, error) {
	if done, err := s.indexCached(g, point); !done && err == nil {
		return Pin{}, false, nil
	}
	pin, err := s.PlanRead(g, point, need, pages, plans)
	return pin, true, err
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

// planPage plans one page as of point, which is indexed, with at most limit
// records, the oldest, and reports whether these are all. What lies before a
// record that covers the page is left out, the version on disk as well.
func (s *Store) planPage(g *Segment, page uint32, point redoubt.LSN, limit int, p *PagePlan) (all bool) {
	*p = PagePlan{Page: page, Recs: p.Recs[:0]}
	e := g.pm.peek(page)
	if e == nil {
		return true
	}
	p.Slot, p.Sum, p.LSN = uint32(e.slot), e.sum, e.lsn
	n := 0
	for i := e.head; i != 0; {
		r := s.arena.at(i)
		i = r.older
		if r.lsn > point {
			continue
		}
		b := g.blocks.lookup(r.block)
		ref := RecRef{LSN: r.lsn, Pos: b.pos, Len: b.len, Off: r.off}
		if n < limit {
			p.Recs = append(p.Recs, ref)
		} else {
			p.Recs[n%limit] = ref // in the place of the newest there is
		}
		n++
		if r.covers {
			p.Slot, p.Sum, p.LSN = 0, 0, 0
			break
		}
	}
	if n > limit {
		rotate(p.Recs, n%limit)
	}
	slices.Reverse(p.Recs)
	return n <= limit
}

// rotate moves the first n of refs behind the others.
func rotate(refs []RecRef, n int) {
	slices.Reverse(refs[:n])
	slices.Reverse(refs[n:])
	slices.Reverse(refs)
}

// PickPages appends to dst up to n pages of the segment that can be coalesced
// up to its target: with long, those with long chains, else those whose records
// have waited longest. It may wait for the device, to index log.
func (s *Store) PickPages(g *Segment, n int, long bool, dst []uint32) ([]uint32, error) {
	s.mu.Lock()
	target := g.target()
	s.mu.Unlock()
	// An index that is full must not keep anyone from emptying it: what is in
	// it can be coalesced.
	if err := s.Index(g, target); err != nil && !errors.Is(err, redoubt.ErrBusy) {
		return dst, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.deleted || g.broken != nil {
		return dst, g.broken
	}
	if long {
		return s.pickLong(g, n, dst), nil
	}
	return s.pickOldest(g, n, target, dst), nil
}

// pickOldest appends up to n pages whose chains began at or below upto.
func (s *Store) pickOldest(g *Segment, n int, upto redoubt.LSN, dst []uint32) []uint32 {
	d := &g.dirty
	for i := d.head; i < len(d.q) && len(dst) < n && d.q[i].first <= upto; i++ {
		if e := g.pm.peek(d.q[i].page); s.isDirty(e, d.q[i]) {
			dst = append(dst, d.q[i].page)
		} else if i == d.head {
			d.pop()
		}
	}
	return dst
}

// pickLong appends up to n pages whose chains are long. One that was coalesced
// since it was listed isn't any more.
func (s *Store) pickLong(g *Segment, n int, dst []uint32) []uint32 {
	took := 0
	for _, page := range g.long {
		if len(dst) == n {
			break
		}
		took++
		if e := g.pm.peek(page); e.head != 0 && int(e.count) >= s.opts.LongChain {
			dst = append(dst, page)
		}
	}
	for _, page := range g.long[:took] {
		g.pm.peek(page).flags &^= entryLong
	}
	g.long = append(g.long[:0], g.long[took:]...)
	return dst
}

// MaxPlanRecords bounds the records that PlanPages gives one page, and with
// them the memory of a plan: 1.5 MiB. A page that was written more often while
// nothing could be coalesced takes several rounds.
const MaxPlanRecords = 1 << 16

// PlanPages plans pages of a segment up to its target, for coalescing: plans has
// the length of pages. A page without anything to coalesce gets no records. With
// a page that has more than MaxPlanRecords the target is lower: the LSN up to
// which every page is complete. The caller owes Unpin.
func (s *Store) PlanPages(g *Segment, pages []uint32, plans []PagePlan) (target redoubt.LSN, pin Pin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	target = min(g.target(), g.indexed)
	complete := target
	for i, page := range pages {
		if !s.planPage(g, page, target, MaxPlanRecords, &plans[i]) {
			complete = min(complete, plans[i].Last())
		}
	}
	return complete, s.limbo.pin()
}

// PlanVersions plans the versions on disk of the pages from first on, without
// their records, until plans is full, enough entries were looked at, or the
// segment ends: for scrubbing. It returns how many it planned, which may be none,
// and where the next call begins. The caller owes Unpin.
func (s *Store) PlanVersions(g *Segment, first uint32, plans []PagePlan) (n int, next uint32, pin Pin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.deleted || g.mapLost {
		return 0, g.Pages, s.limbo.pin() // what its map names may be somebody else's
	}
	next = first
	for looked := 0; next < g.Pages && n < len(plans) && looked < MapChunk; looked++ {
		e := g.pm.peek(next)
		if e == nil {
			next += MapChunk - next%MapChunk
			continue
		}
		if e.slot != 0 {
			plans[n] = PagePlan{Page: next, Slot: uint32(e.slot), Sum: e.sum, LSN: e.lsn, Recs: plans[n].Recs[:0]}
			n++
		}
		next++
	}
	return n, min(next, g.Pages), s.limbo.pin()
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
		b, err := w.batch(g, r.Pos, r.Len, w.reach(p.Recs[i:]))
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

// reach returns how many bytes from the first record's batch on are worth one
// read, as long as the batches of the records behind it lie near.
func (w *Window) reach(recs []RecRef) uint32 {
	first := recs[0].Pos
	end := first + uint64(recs[0].Len)
	most := first + uint64(w.s.opts.Windows.Size()-2*w.s.dev.BlockSize())
	for _, r := range recs[1:] {
		if r.Pos < first || r.Pos > end+NearLog || r.Pos+uint64(r.Len) > most {
			break
		}
		end = max(end, r.Pos+uint64(r.Len))
	}
	return uint32(end - first)
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
		if c.LSN < e.lsn {
			invariant.Assert(false, "segfile: page %d goes from LSN %d to %d", c.Page, e.lsn, c.LSN)
		}
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
		s.records -= weight(int(b.at(i).count))
		s.dropped += uint64(b.at(i).len)
	}
}
