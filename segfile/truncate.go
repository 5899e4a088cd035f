package segfile

import (
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/slab"
)

// A TruncatePlan is a truncation for which the log has been read.
type TruncatePlan struct {
	seg  *Segment
	t    redoubt.Truncation
	cuts []cut
}

// PlanTruncate reads what PrepareTruncate needs. It may wait for the device.
func (s *Store) PlanTruncate(g *Segment, t redoubt.Truncation) (*TruncatePlan, error) {
	if t.To < t.From {
		return nil, segErr(g, redoubt.ErrInvalid, "truncation (%d, %d]", t.From, t.To)
	}
	if err := s.Index(g, t.From); err != nil {
		return nil, err
	}
	cuts, err := s.findCuts(g, t)
	if err != nil {
		return nil, err
	}
	return &TruncatePlan{g, t, cuts}, nil
}

// PrepareTruncate voids the records in (From, To] of writers before the
// truncation's epoch, which must be installed: since then nothing has been
// admitted that the plan doesn't know. Nobody is told of a record above From
// again until a new one is written past To.
func (s *Store) PrepareTruncate(mem *slab.Buf, p *TruncatePlan) (*Change, error) {
	g, t := p.seg, p.t
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkTruncate(g, t); err != nil {
		return nil, err
	}
	c, err := s.prepareState(mem, g, func(st *segState) {
		st.truncs = slices.DeleteFunc(st.truncs, func(o redoubt.Truncation) bool {
			return o.Epoch == t.Epoch || o.To <= st.coalesced
		})
		st.truncs = append(st.truncs, t)
		if st.unknown.Reason != Known {
			st.unknown.To = min(st.unknown.To, t.From)
			if st.unknown.Above >= st.unknown.To {
				st.unknown = Unknown{}
			}
		}
	})
	if err != nil {
		return nil, err
	}
	s.applyTruncation(g, t, p.cuts)
	return c, nil
}

func (s *Store) checkTruncate(g *Segment, t redoubt.Truncation) error {
	switch {
	case s.failed != nil:
		return s.failed
	case g.deleted || g.rootPos == 0:
		return segErr(g, redoubt.ErrNotFound, "deleted")
	case t.Epoch < g.segState.Epoch:
		return &EpochError{Seg: g, Held: g.segState.Epoch, Got: t.Epoch}
	case t.Epoch > g.segState.Epoch:
		return segErr(g, redoubt.ErrInvalid, "truncation of epoch %d, but %d is installed: fence first", t.Epoch, g.segState.Epoch)
	case t.From < g.coalesced || t.From < g.vdl:
		return segErr(g, redoubt.ErrInvalid, "truncation above LSN %d, but %d is durable and %d in pages", t.From, g.vdl, g.coalesced)
	case len(g.truncs) >= maxTruncations:
		return segErr(g, redoubt.ErrBusy, "%d truncations are remembered; wait until the log before them is trimmed", len(g.truncs))
	}
	for i := g.blocks.find(t.From + 1); i < g.blocks.end(); i++ {
		if b := g.blocks.at(i); b.epoch >= t.Epoch {
			return segErr(g, redoubt.ErrInvalid, "truncation above LSN %d, but LSN %d of the same epoch %d is here already", t.From, b.last, b.epoch)
		}
	}
	return nil
}

// A cut is where a block that straddles a truncation ends from now on: its last
// record at or below From. The block is named by its LSNs, because it may be moved
// in the log before the cut is made.
type cut struct {
	first, was redoubt.LSN
	last       redoubt.LSN
}

// findCuts reads the blocks that straddle t.From.
func (s *Store) findCuts(g *Segment, t redoubt.Truncation) ([]cut, error) {
	var straddle []blockRef
	s.mu.Lock()
	pin := s.limbo.pin()
	for i := g.blocks.find(t.From + 1); i < g.blocks.end(); i++ {
		if b := *g.blocks.at(i); b.first <= t.From {
			straddle = append(straddle, b)
		}
	}
	s.mu.Unlock()
	defer s.Unpin(pin)
	w := s.NewWindow()
	defer w.Close()
	cuts := make([]cut, 0, len(straddle))
	for _, b := range straddle {
		last, err := w.lastAtOrBelow(g, b.pos, b.len, t.From)
		if err != nil {
			return nil, err
		}
		cuts = append(cuts, cut{b.first, b.last, last})
	}
	return cuts, nil
}

// lastAtOrBelow returns the highest LSN at or below limit of a batch whose first
// is not above it.
func (w *Window) lastAtOrBelow(g *Segment, pos uint64, n uint32, limit redoubt.LSN) (redoubt.LSN, error) {
	b, err := w.Batch(g, pos, n)
	if err != nil {
		return 0, err
	}
	h, err := redo.ParseHeader(b)
	if err != nil {
		return 0, err
	}
	last := h.First
	for it := redo.Records(b, h); it.Next() && it.LSN <= limit; {
		last = it.LSN
	}
	return last, nil
}

// applyTruncation drops what t voids and links the rest again.
func (s *Store) applyTruncation(g *Segment, t redoubt.Truncation, cuts []cut) {
	b := &g.blocks
	kept := b.refs[:b.head]
	for _, r := range b.refs[b.head:] {
		if r.epoch < t.Epoch && r.last > t.From && r.first <= t.To {
			i := slices.IndexFunc(cuts, func(c cut) bool { return c.first == r.first && c.was == r.last })
			if i < 0 {
				s.records -= weight(int(r.count))
				g.logSize -= int64(r.len)
				continue
			}
			r.last = cuts[i].last
		}
		kept = append(kept, r)
	}
	b.refs = kept
	slices.SortStableFunc(b.refs[b.head:], func(x, y blockRef) int { return compareLSN(x.last, y.last) })
	b.disorder = true
	s.dropIndex(g, t.From)
	g.relink()
}

func compareLSN(a, b redoubt.LSN) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// relink computes SCL and what is held beyond it anew from the live blocks.
func (g *Segment) relink() {
	g.scl, g.highest, g.spans = g.coalesced, g.coalesced, g.spans[:0]
	for i := g.blocks.front(); i < g.blocks.end(); i++ {
		g.link(g.blocks.at(i).prev, g.blocks.at(i).last)
	}
}
