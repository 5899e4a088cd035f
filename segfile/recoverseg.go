package segfile

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/redo"
)

// openSegments makes the segments that the log describes.
func (r *recoverer) openSegments() error {
	s := r.s
	tags := make([]uint32, 0, len(r.tags))
	for t := range r.tags {
		tags = append(tags, t)
	}
	slices.Sort(tags)
	for _, t := range tags {
		ts := r.tags[t]
		if ts.tombstone != 0 {
			s.tombs = append(s.tombs, tombstone{t, ts.tombstone})
			continue
		}
		if ts.rootPos == 0 {
			if ts.state.version != 0 || len(ts.blocks) > 0 || len(ts.overlay) > 0 {
				r.damage(ts.state.ID, -1, corruptf("segment tag %d has %d blocks of log, but no root: it can't be opened; rebuild it as a new member", t, len(ts.blocks)))
			}
			continue
		}
		g, err := r.openSegment(t, ts)
		if err != nil {
			return err
		}
		if other, ok := s.segs[g.ID]; ok {
			r.damage(g.ID, -1, corruptf("segment %v is there twice, as tags %d and %d", g.ID, other.tag, t))
			continue
		}
		s.segs[g.ID] = g
		s.pages += int64(g.Pages)
	}
	r.info.Segments = len(s.segs)
	r.orphanExtents()
	return nil
}

func (r *recoverer) openSegment(tag uint32, ts *tagState) (*Segment, error) {
	g := newSegment(ts.state.SegmentSpec, tag)
	g.segState = ts.state
	g.rootPos = ts.rootPos
	g.vdl = max(g.vdl, ts.head.vdl)
	g.floor = max(g.floor, ts.head.floor)
	g.coalesced = max(g.coalesced, ts.head.coalesced)
	g.persisted, g.indexed = g.coalesced, g.coalesced
	for _, e := range r.s.dev.Extents() {
		if e.Role == blockdev.RolePages && e.Owner == tag {
			r.s.slots.add(e, g)
		}
	}
	if off, err := r.loadMap(g, ts); err != nil {
		g.broken, g.mapLost = err, true
		r.damage(g.ID, off, err)
	}
	if err := r.loadBlocks(g, ts); err != nil {
		return nil, err
	}
	return g, nil
}

// loadMap reads the map pages that the root names and applies what changed
// since. With an error it returns where on the device the damage is, or -1.
func (r *recoverer) loadMap(g *Segment, ts *tagState) (off int64, err error) {
	s := r.s
	if err := parseRoot(ts.root, g.pm.refs); err != nil {
		return r.offset(ts.rootPos), segErr(g, redoubt.ErrCorrupt, "%v", err)
	}
	buf, err := s.opts.Small.Get(background)
	if err != nil {
		return -1, fmt.Errorf("segfile: memory for a map page: %w", err)
	}
	defer buf.Drop()
	page := buf.Bytes()[:redoubt.PageSize]
	for i, ref := range g.pm.refs {
		if ref.slot == 0 {
			continue
		}
		if err := s.slots.take(ref.slot, g); err != nil {
			return r.offset(ts.rootPos), err
		}
		entries := new([MapChunk]pageEntry)
		if err := s.loadMapPage(g, i, ref, page, entries); err != nil {
			return s.SlotOffset(uint32(ref.slot)), err
		}
		g.pm.chunks[i] = entries
	}
	for p, c := range ts.overlay {
		if p >= g.Pages {
			return -1, segErr(g, redoubt.ErrCorrupt, "map block names page %d of %d", p, g.Pages)
		}
		g.pm.set(c)
	}
	g.pm.pages = 0
	for _, c := range g.pm.chunks {
		for i := 0; c != nil && i < len(c); i++ {
			if c[i].slot == 0 {
				continue
			}
			g.pm.pages++
			if err := s.slots.take(c[i].slot, g); err != nil {
				return -1, err
			}
		}
	}
	return -1, nil
}

// loadMapPage reads and checks the map page of a chunk.
func (s *Store) loadMapPage(g *Segment, chunk int, ref chunkRef, page []byte, entries *[MapChunk]pageEntry) error {
	if err := s.dev.ReadAt(page, s.SlotOffset(uint32(ref.slot))); err != nil {
		return segErr(g, redoubt.ErrCorrupt, "reading map page %d: %v", chunk, err)
	}
	if err := parseMapPage(page, s.seed, g.tag, chunk, entries); err != nil {
		return err
	}
	return checkMapSum(page, ref, chunk, g)
}

// checkMapSum compares a map page with what the root says of it: an older
// version in the same slot has a right sum of its own.
func checkMapSum(page []byte, ref chunkRef, chunk int, g *Segment) error {
	if sum := mapPageSum(page); sum != ref.sum {
		return segErr(g, redoubt.ErrCorrupt, "map page %d in slot %d has sum %08x, the root says %08x: a write was lost", chunk, ref.slot-1, sum, ref.sum)
	}
	return nil
}

// loadBlocks gives the segment its live redo blocks.
func (r *recoverer) loadBlocks(g *Segment, ts *tagState) error {
	for i := range ts.blocks {
		b := &ts.blocks[i]
		keep, void := g.voids(redo.Header{First: b.first, Last: b.last, Epoch: b.epoch})
		if void || keep <= g.coalesced {
			continue
		}
		if b.ref.key != g.key {
			ts.bad = append(ts.bad, *b)
			continue
		}
		if keep < b.last {
			w := r.s.NewWindow()
			last, err := w.lastAtOrBelow(g, b.pos, b.len, keep)
			w.Close()
			if err != nil {
				return err
			}
			b.last = last
		}
		g.blocks.refs = append(g.blocks.refs, b.blockRef)
	}
	refs := g.blocks.refs
	// A batch that was sent, or moved, twice is there twice; the newer place
	// counts: it comes last. What was sent again as part of another isn't needed.
	slices.SortFunc(refs, func(a, b blockRef) int {
		return cmp.Or(cmp.Compare(a.last, b.last), cmp.Compare(b.first, a.first), cmp.Compare(a.pos, b.pos))
	})
	refs = withoutContained(refs)
	g.blocks.refs, g.blocks.disorder = refs, true
	for _, b := range refs {
		g.logSize += int64(b.len)
		r.s.records += weight(int(b.count))
	}
	g.relink()
	r.judgeBad(g, ts.bad)
	return nil
}

// judgeBad makes the segment answer UNKNOWN for batches that are damaged, as
// their whole headers say. One whose records are here whole as well, since they
// were sent again, is no loss. As with other holes, what is above the witness is
// torn, which is no damage, and what a recovery before has judged stays as it was.
func (r *recoverer) judgeBad(g *Segment, bad []recoveredBlock) {
	doubted := false
	for i := range bad {
		b := &bad[i]
		h := Hole{From: b.pos, To: b.pos + uint64(b.len), Class: Torn}
		if r.judged(h) {
			continue
		}
		if b.pos < r.scan.witness {
			h.Class = Corrupt
			r.damage(g.ID, r.offset(b.pos), segErr(g, redoubt.ErrCorrupt, "batch LSNs %d to %d at log position %d fails its sum", b.first, b.last, b.pos))
		}
		r.info.Holes = append(r.info.Holes, h)
		if b.last > g.scl {
			g.doubt(h.Class)
			doubted = true
		}
	}
	if doubted {
		r.changed = append(r.changed, g)
	}
}

// doubt makes the segment answer UNKNOWN for everything above its SCL that it
// doesn't hold.
func (g *Segment) doubt(reason UnknownReason) {
	if g.unknown.Reason == Known {
		g.unknown.Above = g.scl
	}
	g.unknown = Unknown{Reason: max(g.unknown.Reason, reason), Above: min(g.unknown.Above, g.scl), To: redoubt.MaxLSN}
	g.version++
}

// orphanExtents frees page extents whose segment is gone.
func (r *recoverer) orphanExtents() {
	for _, e := range r.s.dev.Extents() {
		if e.Role == blockdev.RolePages && len(r.s.slots.bySeg[e.Owner]) == 0 {
			r.s.emptied = append(r.s.emptied, e.Index)
		}
	}
}

// markUnknown makes every segment answer UNKNOWN for what fresh holes may have
// held: a damaged header doesn't say whose the block was.
func (r *recoverer) markUnknown(fresh []Hole) {
	reason := Known
	for _, h := range fresh {
		reason = max(reason, h.Class)
	}
	if reason == Known {
		return
	}
	r.doubtAll(reason)
}

func (r *recoverer) doubtAll(reason UnknownReason) {
	r.changed = r.changed[:0]
	for _, g := range r.s.segs {
		g.doubt(reason)
		r.changed = append(r.changed, g)
	}
	slices.SortFunc(r.changed, func(a, b *Segment) int { return cmp.Compare(a.tag, b.tag) })
}

// boundHoles joins holes until a restart block has room for them. What lies
// between those that are joined counts as judged from then on, whosever it is, so
// every segment is in doubt.
func (r *recoverer) boundHoles() []Hole {
	holes := slices.Clone(r.info.Holes)
	slices.SortFunc(holes, func(a, b Hole) int { return cmp.Compare(a.From, b.From) })
	if len(holes) <= maxHoles {
		return holes
	}
	last := &holes[maxHoles-1]
	for _, h := range holes[maxHoles:] {
		last.To, last.Class = max(last.To, h.To), max(last.Class, h.Class)
	}
	r.doubtAll(last.Class)
	return holes[:maxHoles]
}

// begin gives the log a fresh extent and writes down there what was decided. The
// restart block comes last: once it is there, no later recovery will look at
// the holes again, so every segment must know of them. Until then nothing may
// claim that all below it is whole, or a recovery that is cut short would make
// what is torn look corrupt.
func (r *recoverer) begin(spares []blockdev.Extent) error {
	s := r.s
	seq := s.log.nextSeq()
	for _, e := range spares {
		seq = max(seq, e.Seq+1)
		if err := s.dev.Release(e.Index); err != nil {
			return fmt.Errorf("segfile: releasing spare extent %d: %w", e.Index, err)
		}
	}
	for range SpareExtents {
		e, err := s.dev.Assign(blockdev.RoleLog, 0, seq, blockdev.Reserve)
		if err != nil {
			return fmt.Errorf("segfile: no extent for the log to go on in: %w", err)
		}
		s.log.spare = append(s.log.spare, e)
		seq = e.Seq + 1
	}
	rs := restart{witness: r.scan.witness, end: r.scan.end, holes: r.boundHoles()}
	s.log.mute = true
	for _, g := range r.changed {
		if err := s.writeBlock(g, BlockState, g.segState.append); err != nil {
			return err
		}
	}
	if err := s.writeBlock(nil, BlockRestart, rs.append); err != nil {
		return err
	}
	s.log.mute = false
	return nil
}

// writeBlock writes a run of one block at once and waits for it.
func (s *Store) writeBlock(g *Segment, kind BlockKind, build func([]byte) []byte) error {
	mem, err := s.Small()
	if err != nil {
		return err
	}
	defer mem.Drop()
	filler, err := s.Small()
	if err != nil {
		return err
	}
	defer filler.Drop()
	run, err := s.newRun(mem, g, kind, build)
	if err != nil {
		return err
	}
	for n := 0; n == 0; {
		var ok bool
		lw := NewLogWrite(filler.Bytes()[:s.dev.BlockSize()])
		if n, ok = s.Place(lw, []*Run{run}, 1); !ok {
			return errNoExtent(s)
		}
		off := lw.Off
		for _, b := range lw.Bufs {
			if err := s.dev.WriteAt(b, off); err != nil {
				return fmt.Errorf("segfile: writing the log at device offset %d: %w", off, err)
			}
			off += int64(len(b))
		}
		if err := s.Complete(lw, nil); err != nil {
			return err
		}
	}
	return nil
}

func errNoExtent(s *Store) error {
	return fmt.Errorf("segfile: the log of device %v has no extent to go on in: %w", s.opts.Device, redoubt.ErrFull)
}
