package segfile

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/slab"
)

// A Report is what a check of a store found.
type Report struct {
	Recovery RecoveryInfo
	Segments []Info
	Pages    int // versions that were read and summed
	MapPages int
	Records  int64 // in live batches that were read and summed
	Gaps     []Gap
	Damage   []Damage
}

// A Gap is where a segment lacks records above its SCL and holds later ones. It is
// no damage: batches of a writer may arrive, and survive a crash, in any order,
// and SCL, which is all that was ever acknowledged, stays below. Acknowledged
// records that are lost show as UNKNOWN.
type Gap struct {
	Segment  redoubt.SegmentID
	Above    redoubt.LSN // it lacks records above this one,
	From, To redoubt.LSN // and what it holds next lies in (From, To]
}

// Check reads everything that is live in a store that was opened read-only:
// every batch, every page version. progress, if not nil, is told of pages done
// and pages in all. It waits for the device.
func (s *Store) Check(progress func(done, total int)) (Report, error) {
	rep := Report{Recovery: s.recovery, Damage: slices.Clone(s.recovery.Damage)}
	segs := s.Segments()
	slices.SortFunc(segs, func(a, b *Segment) int { return cmp.Compare(a.tag, b.tag) })
	total := 0
	for _, g := range segs {
		total += g.pm.pages
	}
	mem, err := slab.New(slab.Options{Name: "check", Size: redoubt.PageSize, Count: 1})
	if err != nil {
		return rep, fmt.Errorf("segfile: memory for a check: %w", err)
	}
	defer mem.Close()
	buf := mem.TryGet()
	defer buf.Drop()
	for _, g := range segs {
		rep.Segments = append(rep.Segments, s.Info(g))
		s.checkChain(g, &rep)
		s.checkBatches(g, &rep)
		rep.MapPages += s.countMapPages(g)
		for page := uint32(0); page < g.Pages; page++ {
			e := g.pm.peek(page)
			if e == nil {
				page += MapChunk - page%MapChunk - 1
				continue
			}
			if e.slot == 0 {
				continue
			}
			s.checkPage(g, page, e, buf.Bytes(), &rep)
			if rep.Pages++; progress != nil && rep.Pages%256 == 0 {
				progress(rep.Pages, total)
			}
		}
	}
	return rep, nil
}

func (s *Store) countMapPages(g *Segment) int {
	n := 0
	for _, r := range g.pm.refs {
		if r.slot != 0 {
			n++
		}
	}
	return n
}

// checkChain reports gaps, and acknowledged records that the segment can't vouch
// for.
func (s *Store) checkChain(g *Segment, rep *Report) {
	above := g.scl
	for _, sp := range g.spans {
		rep.Gaps = append(rep.Gaps, Gap{Segment: g.ID, Above: above, From: sp.prev, To: sp.last})
		above = sp.last
	}
	if g.unknown.Reason == Corrupt {
		rep.add(g, -1, segErr(g, redoubt.ErrCorrupt, "records above LSN %d were acknowledged and may be lost: UNKNOWN", g.unknown.Above))
	}
}

func (rep *Report) add(g *Segment, off int64, err error) {
	rep.Damage = append(rep.Damage, Damage{Segment: g.ID, Offset: off, Err: err})
}

// checkBatches reads every live batch and follows the page links in it.
func (s *Store) checkBatches(g *Segment, rep *Report) {
	w := s.NewWindow()
	defer w.Close()
	last := map[uint32]redoubt.LSN{}
	done := g.coalesced
	for i := g.blocks.front(); i < g.blocks.end(); i++ {
		ref := g.blocks.at(i)
		b, err := w.Batch(g, ref.pos, ref.len)
		if err != nil {
			off, _ := s.log.deviceOffset(ref.pos)
			rep.add(g, off, err)
			continue
		}
		h, err := redo.ParseHeader(b)
		if err != nil {
			continue // Batch has reported it
		}
		rep.Records += int64(h.Count)
		for it := redo.Records(b, h); it.Next(); {
			if it.LSN <= done || it.LSN > ref.last || it.LSN > g.scl || it.Kind == redo.Mark {
				continue
			}
			done = it.LSN
			s.checkLink(g, &it, last, rep)
		}
	}
}

func (s *Store) checkLink(g *Segment, it *redo.Iter, last map[uint32]redoubt.LSN, rep *Report) {
	if g.mapLost {
		return // what the page's version has taken in isn't known
	}
	prev, seen := last[it.Page]
	e := g.pm.peek(it.Page)
	if e != nil && it.LSN <= e.lsn {
		return
	}
	if !seen && e != nil {
		prev = e.lsn
	}
	if !it.FollowsPage(prev) {
		rep.add(g, -1, segErr(g, redoubt.ErrCorrupt, "record at LSN %d of page %d links back %d LSNs; the page's record before it is at LSN %d", it.LSN, it.Page, it.Link, prev))
	}
	last[it.Page] = it.LSN
}

func (s *Store) checkPage(g *Segment, page uint32, e *pageEntry, buf []byte, rep *Report) {
	off := s.SlotOffset(uint32(e.slot))
	if err := s.dev.ReadAt(buf, off); err != nil {
		rep.add(g, off, segErr(g, redoubt.ErrCorrupt, "page %d, slot %d: %v", page, e.slot-1, err))
		return
	}
	if sum := redo.PageSum(g.Volume, g.PageNo(page), e.lsn, buf); sum != e.sum {
		rep.add(g, off, segErr(g, redoubt.ErrCorrupt, "page %d at LSN %d, slot %d: sum %08x, the map says %08x", page, e.lsn, e.slot-1, sum, e.sum))
	}
}

// A LogEntry is one block of the log, for inspection.
type LogEntry struct {
	Position uint64
	Offset   int64 // on the device
	Kind     BlockKind
	Tag      uint32
	Bytes    int
	Batch    redo.Header // of a redo block
}

// WalkLog calls each for every whole block of a device's log, oldest first, and
// returns the holes between them. It needs no store, so it works on a device
// whose segments can't be opened.
func WalkLog(dev Device, id redoubt.DeviceID, each func(LogEntry)) ([]Hole, error) {
	exts := slices.DeleteFunc(dev.Extents(), func(e blockdev.Extent) bool { return e.Role != blockdev.RoleLog })
	slices.SortFunc(exts, func(a, b blockdev.Extent) int { return cmp.Compare(a.Seq, b.Seq) })
	mem, err := slab.New(slab.Options{Name: "walk", Size: int(dev.ExtentSize()), Count: 1})
	if err != nil {
		return nil, fmt.Errorf("segfile: memory to walk the log: %w", err)
	}
	defer mem.Close()
	buf := mem.TryGet()
	defer buf.Drop()
	sc := scanner{seed: newSeed(id), blockSize: dev.BlockSize()}
	for _, e := range exts {
		if err := dev.ReadAt(buf.Bytes(), dev.Offset(e.Index)); err != nil {
			return sc.holes, fmt.Errorf("segfile: reading extent %d: %w", e.Index, err)
		}
		base := e.Seq * uint64(dev.ExtentSize())
		sc.visit = func(f foundBlock) {
			each(LogEntry{Position: f.pos, Offset: dev.Offset(e.Index) + int64(f.pos-base), Kind: f.kind, Tag: f.tag, Bytes: f.len, Batch: f.head})
		}
		sc.extent(e, base, buf.Bytes())
	}
	return sc.holes, nil
}

// PageState is what the map says of one page, for inspection.
type PageState struct {
	Page   uint32
	LSN    redoubt.LSN
	Slot   uint32 // + 1
	Offset int64  // on the device, -1 for none
	Sum    uint32
}

// PageState returns what the map says of a page.
func (s *Store) PageState(g *Segment, page uint32) (PageState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if page >= g.Pages {
		return PageState{}, segErr(g, redoubt.ErrInvalid, "page %d of %d", page, g.Pages)
	}
	st := PageState{Page: page, Offset: -1}
	if e := g.pm.peek(page); e != nil && e.slot != 0 {
		st.LSN, st.Slot, st.Sum, st.Offset = e.lsn, uint32(e.slot), e.sum, s.SlotOffset(uint32(e.slot))
	}
	return st, nil
}
