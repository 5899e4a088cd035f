package segfile

// PlanLog says where on the device live batches of a segment lie, from the
// block with this number on, for scrubbing: until places is full or their bytes,
// rounded to whole logical blocks, would be more than max. It returns how many it
// planned and where the next call begins; 0 places mean that the end is reached.
// Batches that are in memory as well are planned all the same. The caller owes
// Unpin.
func (s *Store) PlanLog(g *Segment, from uint64, max int, places []LogPlace) (n int, next uint64, pin Pin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &g.blocks
	if g.deleted {
		return 0, from, s.limbo.pin()
	}
	room := int64(max)
	for next = b.clamp(from); next < b.end() && n < len(places); next++ {
		ref := b.at(next)
		off, gen, ok := s.log.locate(ref.pos)
		p := LogPlace{Off: off - BlockHeaderSize, pos: ref.pos, gen: gen, n: ref.len}
		if room -= alignUp(int64(p.Len()), int64(s.dev.BlockSize())) + int64(s.dev.BlockSize()); !ok || room < 0 && n > 0 {
			break
		}
		places[n] = p
		n++
	}
	return n, next, s.limbo.pin()
}

// clamp brings an absolute number into the list, which may have moved on.
func (b *blockList) clamp(abs uint64) uint64 { return min(max(abs, b.front()), b.end()) }

// A MapPagePlan says where a map page of a segment lies and what it must be.
type MapPagePlan struct {
	Slot uint32 // + 1

	chunk int
	sum   uint32
}

// PlanMapPages plans the map pages on disk from number first on, for scrubbing:
// as PlanVersions.
func (s *Store) PlanMapPages(g *Segment, first int, plans []MapPagePlan) (n, next int, pin Pin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.deleted || g.mapLost {
		return 0, len(g.pm.refs), s.limbo.pin()
	}
	for next = first; next < len(g.pm.refs) && n < len(plans); next++ {
		if r := g.pm.refs[next]; r.slot != 0 {
			plans[n] = MapPagePlan{Slot: uint32(r.slot), chunk: next, sum: r.sum}
			n++
		}
	}
	return n, next, s.limbo.pin()
}

// CheckMapPage verifies what was read from a map page's slot.
func (s *Store) CheckMapPage(g *Segment, p MapPagePlan, b []byte) error {
	if err := checkMapPage(b, s.seed, g.tag, p.chunk); err != nil {
		return err
	}
	return checkMapSum(b, chunkRef{slot: slot(p.Slot), sum: p.sum}, p.chunk, g)
}
