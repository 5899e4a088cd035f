package segfile

import (
	"fmt"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/slab"
)

// TrimLog releases the extents at the log's tail that nobody needs, and page
// extents that were emptied. It waits for the device and returns how many it
// released.
func (s *Store) TrimLog() (int, error) {
	s.mu.Lock()
	s.retireTail()
	free := append(s.trimmed, s.emptied...)
	s.trimmed, s.emptied = nil, nil
	s.mu.Unlock()
	for i, index := range free {
		if err := s.dev.Release(index); err != nil {
			s.mu.Lock()
			s.emptied = append(s.emptied, free[i:]...)
			s.mu.Unlock()
			return i, fmt.Errorf("segfile: releasing extent %d: %w", index, err)
		}
	}
	return len(free), nil
}

// retireTail takes extents off the log's tail.
func (s *Store) retireTail() {
	live := s.log.durable
	for _, g := range s.segs {
		if g.rootPos == 0 {
			return // its root is on its way, at a position that isn't known here
		}
		s.dropBlocks(g)
		live = min(live, g.firstLive())
	}
	for len(s.log.exts) > 1 && s.log.base(s.log.exts[1]) <= live {
		s.retireExtent(s.log.exts[0])
		s.log.exts = append(s.log.exts[:0], s.log.exts[1:]...)
	}
	s.sealLimbo()
	tail := s.log.tail()
	for s.cache.len() > 0 && s.cache.runs[s.cache.head].pos < tail {
		s.cache.evict()
	}
	s.dropTombs(tail)
}

// dropTombs forgets tombstones whose extent has left the log.
func (s *Store) dropTombs(tail uint64) {
	kept := s.tombs[:0]
	for _, t := range s.tombs {
		if t.pos >= tail {
			kept = append(kept, t)
		}
	}
	s.tombs = kept
}

// TailExtent describes what keeps the oldest extent of the log where it is.
type TailExtent struct {
	From, To uint64 // positions
	Holds    []TailHold
}

// A TailHold is a segment that needs something in the oldest extent.
type TailHold struct {
	Seg    *Segment
	Root   bool        // its root lies there: write a new one
	First  redoubt.LSN // of its redo there; 0: none
	Last   redoubt.LSN
	Blocks int
	Bytes  int64
}

// Tail returns what keeps the oldest extent, or false when the log has only
// its head.
func (s *Store) Tail() (TailExtent, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.log.exts) < 2 {
		return TailExtent{}, false
	}
	t := TailExtent{From: s.log.tail(), To: s.log.base(s.log.exts[1])}
	for _, g := range s.segs {
		h := TailHold{Seg: g, Root: g.rootPos != 0 && g.rootPos < t.To}
		for i := g.blocks.front(); i < g.blocks.end(); i++ {
			b := g.blocks.at(i)
			if b.pos >= t.To {
				if !g.blocks.disorder {
					break
				}
				continue
			}
			if h.First == 0 {
				h.First = b.first
			}
			h.Last = max(h.Last, b.last)
			h.Blocks++
			h.Bytes += int64(b.len)
		}
		if h.Root || h.Blocks > 0 {
			t.Holds = append(t.Holds, h)
		}
	}
	return t, true
}

// A RootPlan is a new root of a segment on its way to the log.
type RootPlan struct {
	Change
	ranges  []SlotRange
	refs    []chunkRef
	version uint64 // of the state in it
}

// PrepareRoot writes the map pages that changed to new slots and returns the
// root that names them. It waits for the device. No map change of the segment
// may be under way until the root is committed or dropped with DropRoot.
func (s *Store) PrepareRoot(mem *slab.Buf, g *Segment) (*RootPlan, error) {
	p := &RootPlan{}
	s.mu.Lock()
	lost := g.mapLost
	p.refs = append(p.refs, g.pm.refs...)
	s.mu.Unlock()
	if lost {
		return nil, segErr(g, redoubt.ErrCorrupt, "its page map is damaged: a new root would forget what the old one still knows")
	}
	if err := s.writeMapPages(mem, g, p); err != nil {
		s.FreeSlots(p.ranges)
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.deleted {
		s.freeRanges(p.ranges)
		return nil, segErr(g, redoubt.ErrNotFound, "deleted")
	}
	g.version++
	p.version = g.version
	coalesced := g.coalesced
	run, err := s.newRun(mem, g, BlockRoot, func(b []byte) []byte { return appendRoot(g.segState.append(b), p.refs) })
	if err != nil {
		s.freeRanges(p.ranges)
		return nil, err
	}
	p.Change = Change{Run: run, Seg: g, commit: func() { s.commitRoot(g, p, coalesced) }}
	return p, nil
}

// DropRoot undoes PrepareRoot when its run was not appended.
func (s *Store) DropRoot(p *RootPlan) { s.FreeSlots(p.ranges) }

// writeMapPages writes each dirty chunk into a slot and notes it in p.refs.
func (s *Store) writeMapPages(mem *slab.Buf, g *Segment, p *RootPlan) error {
	dirty := 0
	for _, r := range p.refs {
		if r.dirty {
			dirty++
		}
	}
	if dirty == 0 {
		return nil
	}
	var err error
	if p.ranges, err = s.AllocSlots(g, dirty, nil); err != nil {
		return err
	}
	page := mem.Bytes()[:redoubt.PageSize]
	next := slotsOf(p.ranges)
	for i := range p.refs {
		if !p.refs[i].dirty {
			continue
		}
		sl := next()
		s.mu.Lock()
		sum := putMapPage(page, s.seed, g.tag, i, g.pm.chunks[i])
		s.mu.Unlock()
		if err := s.dev.WriteAt(page, s.SlotOffset(uint32(sl))); err != nil {
			return segErr(g, err, "writing map page %d", i)
		}
		p.refs[i] = chunkRef{slot: sl, sum: sum}
	}
	return nil
}

// slotsOf returns a function that hands out the slots (+1) of ranges in turn.
func slotsOf(ranges []SlotRange) func() slot {
	r, i := 0, 0
	return func() slot {
		for i == ranges[r].N {
			r, i = r+1, 0
		}
		i++
		return slot(ranges[r].First) + slot(i-1)
	}
}

func (s *Store) commitRoot(g *Segment, p *RootPlan, coalesced redoubt.LSN) {
	if g.deleted {
		return
	}
	for i := range p.refs {
		if old := g.pm.refs[i]; old.slot != p.refs[i].slot {
			s.retireSlot(old.slot)
			g.pm.refs[i] = p.refs[i]
		}
	}
	g.persisted = max(g.persisted, coalesced)
	s.dropBlocks(g)
	if g.version == p.version {
		g.rootPos = p.Run.pos
	}
	// Else the state has changed since the root was built, and the block that
	// says so may lie before the root: a fence would be forgotten if the tail
	// passed it. The older root keeps the tail until the next has it all.
}

// PrepareMove returns a run with copies of up to max bytes of the segment's
// oldest redo blocks below position to: written again at the head, they no
// longer keep the log's tail. It waits for the device, and fails with ErrBusy
// when there is no memory just now. The caller holds a Pin.
func (s *Store) PrepareMove(g *Segment, to uint64, w *Window) (*Change, error) {
	var refs []blockRef
	s.mu.Lock()
	size, most := RunHeaderSize, min(s.opts.Windows.Size(), int(s.log.extentSize))
	for i := g.blocks.front(); i < g.blocks.end(); i++ {
		if b := g.blocks.at(i); b.pos < to {
			if size += blockSize(int(b.len)); size > most && len(refs) > 0 {
				break
			}
			refs = append(refs, *b)
		}
	}
	s.mu.Unlock()
	if len(refs) == 0 {
		return nil, nil
	}
	// The window takes what it may wait for first: nobody who has some memory
	// waits for more.
	if err := w.reserve(); err != nil {
		return nil, err
	}
	buf := s.opts.Windows.TryGet()
	if buf == nil {
		return nil, fmt.Errorf("segfile: no memory to move blocks: %w", redoubt.ErrBusy)
	}
	r := &Run{Used: RunHeaderSize, Mem: buf, Barrier: true}
	for _, ref := range refs {
		b, err := w.Batch(g, ref.pos, ref.len)
		if err == nil {
			err = r.append(buf.Bytes(), g, BlockRedo, func(dst []byte) []byte { return append(dst, b...) })
		}
		if err != nil {
			buf.Drop()
			return nil, err
		}
		w.Release()
	}
	r.pad(buf.Bytes(), s.dev.BlockSize())
	for i := range r.Blocks {
		r.Blocks[i].moved = true
	}
	return &Change{Run: r, Seg: g, commit: func() { s.commitMove(g, r, refs) }}, nil
}

func (s *Store) commitMove(g *Segment, r *Run, refs []blockRef) {
	for i, ref := range refs {
		for j := g.blocks.find(ref.last); j < g.blocks.end() && g.blocks.at(j).last == ref.last; j++ {
			if b := g.blocks.at(j); b.pos == ref.pos {
				b.pos = r.pos + uint64(r.Blocks[i].Off) + BlockHeaderSize
				g.blocks.disorder = true
			}
		}
	}
}

// Room returns how many bytes of redo the log can take before only reserve
// extents are left of those it may have. What is queued counts as well.
func (s *Store) Room(reserve int) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	spare := len(s.log.spare)
	grow := max(0, min(s.opts.LogExtents-len(s.log.exts)-spare, s.dev.FreeExtents(blockdev.Normal)))
	room := int64(spare+grow-reserve) * s.log.extentSize
	if len(s.log.exts) > 0 {
		room += s.log.extentSize - s.log.off
	}
	if s.records >= int64(s.opts.MaxRecords) {
		return 0
	}
	return room
}
