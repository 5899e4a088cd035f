package segfile

import (
	"fmt"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/slab"
)

// A Change is a change of a segment's state on its way to the log: append its
// Run, a barrier, and call Commit when that is durable. Until then nobody may
// be told of it. The Prepare methods that return one own the memory they are
// given if they succeed; the run's Mem has it.
type Change struct {
	Run    *Run
	Seg    *Segment
	commit func()
}

// Commit makes a durable change part of the store.
func (s *Store) Commit(c *Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.commit != nil {
		c.commit()
	}
	s.sealLimbo()
}

// Abandon forgets a change whose run could not be made durable.
func (s *Store) Abandon(c *Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.segs[c.Seg.ID]; g == c.Seg && g.rootPos == 0 {
		delete(s.segs, c.Seg.ID)
		s.pages -= int64(g.Pages)
	}
}

// Small waits for memory for a block that the node writes itself. The Prepare
// methods take it, and own it from then on. Nobody may wait for it under a lock
// that the log needs to go on.
func (s *Store) Small() (*slab.Buf, error) {
	mem, err := s.opts.Small.Get(background)
	if err != nil {
		return nil, fmt.Errorf("segfile: memory for a block: %w", err)
	}
	return mem, nil
}

// newRun returns a run with one block, which it builds in mem.
func (s *Store) newRun(mem *slab.Buf, seg *Segment, kind BlockKind, build func([]byte) []byte) (*Run, error) {
	r := &Run{Used: RunHeaderSize, Mem: mem, Barrier: true}
	if err := r.append(mem.Bytes(), seg, kind, build); err != nil {
		return nil, err
	}
	r.pad(mem.Bytes(), s.dev.BlockSize())
	return r, nil
}

// append adds a block, which build appends to the slice it is given.
func (r *Run) append(mem []byte, seg *Segment, kind BlockKind, build func([]byte) []byte) error {
	at := r.Used
	content := build(mem[at+BlockHeaderSize : at+BlockHeaderSize : len(mem)])
	if at+blockSize(len(content)) > len(mem) {
		return invalidf("%v block of %d bytes does not fit into %d", kind, len(content), len(mem)-at)
	}
	b := r.Add()
	b.Seg, b.Kind, b.Off, b.Len = seg, kind, at, len(content)
	r.Used = at + blockSize(len(content))
	clear(mem[at+BlockHeaderSize+len(content) : r.Used])
	return nil
}

// pad ends the run on a logical block.
func (r *Run) pad(mem []byte, blockSize int) {
	n := int(alignUp(int64(r.Used), int64(blockSize)))
	clear(mem[r.Used:n])
	r.Bytes = mem[:n]
}

// NewSeal returns an empty run, whose header is the witness for all before it.
func (s *Store) NewSeal(mem *slab.Buf) *Run {
	r := &Run{Used: RunHeaderSize, Mem: mem}
	r.pad(mem.Bytes(), s.dev.BlockSize())
	return r
}

// PrepareCreate makes a segment, which exists when its root is durable. A
// segment that is there already with the same specification is returned with a
// nil Change.
func (s *Store) PrepareCreate(mem *slab.Buf, spec SegmentSpec) (*Segment, *Change, error) {
	if err := spec.check(); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return nil, nil, s.failed
	}
	if g, ok := s.segs[spec.ID]; ok {
		if g.rootPos == 0 {
			return nil, nil, segErr(g, redoubt.ErrBusy, "is being created")
		}
		have := g.segState.SegmentSpec
		have.Epoch, have.Membership, have.Geometry = spec.Epoch, spec.Membership, spec.Geometry
		if have != spec {
			return nil, nil, segErr(g, redoubt.ErrExists, "of volume %v, %d pages, %v", g.Volume, g.Pages, g.Kind)
		}
		return g, nil, nil
	}
	if s.pages+int64(spec.Pages) > s.opts.MaxPages {
		return nil, nil, fmt.Errorf("segfile: %d pages for segment %v, %d of %d are promised on this device; raise the node's memory: %w",
			spec.Pages, spec.ID, s.pages, s.opts.MaxPages, redoubt.ErrFull)
	}
	g := newSegment(spec, s.nextTag)
	run, err := s.newRun(mem, g, BlockRoot, func(b []byte) []byte {
		return appendRoot(g.segState.append(b), g.pm.refs)
	})
	if err != nil {
		return nil, nil, err
	}
	s.nextTag++
	s.segs[g.ID] = g
	s.pages += int64(spec.Pages)
	return g, &Change{Run: run, Seg: g, commit: func() { g.rootPos = run.pos }}, nil
}

func newSegment(spec SegmentSpec, tag uint32) *Segment {
	g := &Segment{SegmentSpec: spec, tag: tag, key: redo.Key(spec.Volume), pm: newPageMap(spec.Pages)}
	g.segState = segState{SegmentSpec: spec, version: 1}
	for i := range g.holds {
		g.holds[i] = redoubt.MaxLSN
	}
	return g
}

// Ready reports that the segment's creation is durable and it isn't deleted.
func (s *Store) Ready(g *Segment) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.rootPos != 0 && !g.deleted
}

// PrepareDelete removes a segment. It refuses everything from now on; its space
// is free when the tombstone is durable.
func (s *Store) PrepareDelete(mem *slab.Buf, g *Segment, epoch redoubt.Epoch) (*Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failed != nil:
		return nil, s.failed
	case g.deleted || g.rootPos == 0:
		return nil, segErr(g, redoubt.ErrNotFound, "deleted")
	case epoch < g.segState.Epoch:
		return nil, &EpochError{Seg: g, Held: g.segState.Epoch, Got: epoch}
	}
	g.version++
	run, err := s.newRun(mem, g, BlockTombstone, g.segState.append)
	if err != nil {
		return nil, err
	}
	g.deleted = true
	return &Change{Run: run, Seg: g, commit: func() { s.bury(g, run.pos) }}, nil
}

// bury frees what a deleted segment had.
func (s *Store) bury(g *Segment, pos uint64) {
	delete(s.segs, g.ID)
	s.pages -= int64(g.Pages)
	s.tombs = append(s.tombs, tombstone{g.tag, pos})
	s.dropIndex(g, 0)
	for b := &g.blocks; b.len() > 0; b.head++ {
		s.records -= weight(int(b.at(b.front()).count))
	}
	for _, p := range slices.Clone(s.slots.bySeg[g.tag]) {
		s.slots.remove(p)
		if l := s.limbo.last(); l != nil {
			l.extents = append(l.extents, p.Index)
		} else {
			s.emptied = append(s.emptied, p.Index)
		}
	}
}

// PrepareEpoch installs a volume epoch: from the moment it returns, every batch
// with a lower one is refused. The run is a barrier, so when it is durable, so
// is every older batch that was admitted: what Info then says is final.
func (s *Store) PrepareEpoch(mem *slab.Buf, g *Segment, epoch redoubt.Epoch) (*Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failed != nil:
		return nil, s.failed
	case g.deleted || g.rootPos == 0:
		return nil, segErr(g, redoubt.ErrNotFound, "deleted")
	case epoch < g.segState.Epoch:
		return nil, &EpochError{Seg: g, Held: g.segState.Epoch, Got: epoch}
	}
	return s.prepareState(mem, g, func(st *segState) { st.Epoch = epoch })
}

// prepareState applies a change to the segment's state and returns the run that
// makes it durable.
func (s *Store) prepareState(mem *slab.Buf, g *Segment, change func(*segState)) (*Change, error) {
	next := g.segState
	next.truncs = slices.Clone(next.truncs)
	change(&next)
	next.version++
	run, err := s.newRun(mem, g, BlockState, next.append)
	if err != nil {
		return nil, err
	}
	g.segState = next
	coalesced := next.coalesced
	return &Change{Run: run, Seg: g, commit: func() { g.persisted = max(g.persisted, coalesced) }}, nil
}

// Hold says up to which LSN a holder is done with the segment's log. A holder
// that was never heard of holds nothing.
func (s *Store) Hold(g *Segment, h TrimHolder, upto redoubt.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	invariant.Assert(h >= 0 && h < numHolds, "segfile: trim holder %d", h)
	g.holds[h] = upto
}

// Tell takes VDL and PGMRPL from the client.
func (s *Store) Tell(g *Segment, vdl, floor redoubt.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.told(vdl, floor)
}
