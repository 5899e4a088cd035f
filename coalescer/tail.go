package coalescer

import (
	"cmp"
	"slices"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// moveTail does one thing for the oldest extent of the log to become free.
func (f *Folder) moveTail(now time.Time, debt float64) (Did, error) {
	t, ok := f.store.Tail()
	if !ok {
		return Did{}, nil
	}
	slices.SortFunc(t.Holds, func(a, b segfile.TailHold) int { return cmp.Compare(a.Seg.Tag(), b.Seg.Tag()) })
	live := int64(0)
	for i := range t.Holds {
		h := &t.Holds[i]
		s := f.known[h.Seg]
		if s == nil {
			return Did{}, nil // it is new: after the next survey
		}
		if did, err := f.foldHold(s, now, h.Last); did.Work != Nothing || err != nil {
			return did, err
		}
		live += h.Bytes
		if s.moving.is(now) || s.foldable(now, h.Last) {
			// To move the others would not free the extent. What may be folded
			// and wasn't waits for room in the index, which others must make.
			return Did{}, nil
		}
	}
	size := f.dev.ExtentSize()
	if live > size/2 && (debt < f.opts.MoveDebt || live > size/8*7) {
		return Did{}, nil
	}
	for i := range t.Holds {
		h := &t.Holds[i]
		var did Did
		var err error
		switch s := f.known[h.Seg]; {
		case h.Blocks > 0:
			did, err = f.move(s, t.To, now)
		case h.Root:
			did, err = f.root(s, now)
		}
		if did.Work != Nothing || err != nil {
			return did, err
		}
	}
	return Did{}, nil
}

// foldHold folds what a segment has in the oldest extent, up to LSN last.
func (f *Folder) foldHold(s *segment, now time.Time, last redoubt.LSN) (Did, error) {
	b, there := f.store.Backlog(s.seg)
	if !there {
		return Did{}, nil
	}
	if err := f.look(s, b, now); err != nil {
		return Did{}, err
	}
	return f.foldUpto(s, now, last)
}

// foldable reports whether records up to LSN last, or some of them, may be
// folded and are not.
func (s *segment) foldable(now time.Time, last redoubt.LSN) bool {
	b := &s.backlog
	return !s.folding.is(now) && b.Broken == nil && b.Coalesced < min(last, b.Target)
}

// advance says in the log that a segment has nothing left to fold, so that its
// log may go.
func (f *Folder) advance(s *segment, now time.Time) (Did, error) {
	to := s.backlog.Target
	if s.seg.Kind == redoubt.FullSegment {
		to = min(to, s.backlog.Indexed)
	}
	before := s.backlog.Coalesced
	if to <= before {
		return Did{}, nil
	}
	bytes := 0
	err := f.change(func(mem *slab.Buf) (*segfile.Change, error) {
		c, err := f.store.PrepareMap(mem, s.seg, nil, to)
		if err == nil {
			bytes = len(c.Run.Bytes)
		}
		return c, err
	})
	f.refresh(s)
	if err != nil || s.backlog.Coalesced <= before {
		return Did{}, f.trouble(s, &s.folding, now, err)
	}
	f.ledger.note(func(st *Stats) { st.Advances++ })
	return Did{Work: Advanced, Segment: s.seg, Bytes: int64(bytes)}, nil
}

// root writes a new root of a segment.
func (f *Folder) root(s *segment, now time.Time) (Did, error) {
	var p *segfile.RootPlan
	err := f.change(func(mem *slab.Buf) (c *segfile.Change, err error) {
		if p, err = f.store.PrepareRoot(mem, s.seg); err != nil {
			return nil, err
		}
		return &p.Change, nil
	})
	if err != nil {
		if p != nil {
			f.store.DropRoot(p)
		}
		return Did{}, f.trouble(s, &s.moving, now, err)
	}
	s.moving = rest{}
	f.ledger.note(func(st *Stats) { st.Roots++ })
	return Did{Work: Rooted, Segment: s.seg, Bytes: int64(len(p.Run.Bytes))}, nil
}

// move writes the oldest blocks of a segment again at the head of the log.
func (f *Folder) move(s *segment, to uint64, now time.Time) (Did, error) {
	pin := f.store.Pin()
	defer f.store.Unpin(pin)
	defer f.window.Close()
	c, err := f.store.PrepareMove(s.seg, to, f.window)
	if err == nil && c == nil {
		return Did{}, nil // they are gone
	}
	if err == nil {
		defer c.Run.Mem.Drop()
		err = f.log.AppendOwn(c.Run)
	}
	if err != nil {
		return Did{}, f.trouble(s, &s.moving, now, err)
	}
	f.store.Commit(c)
	s.moving, f.trim = rest{}, true
	n := len(c.Run.Bytes)
	f.ledger.note(func(st *Stats) { st.Moves, st.MovedBytes = st.Moves+1, st.MovedBytes+uint64(n) })
	return Did{Work: Moved, Segment: s.seg, Bytes: 2 * int64(n)}, nil
}

// change makes a change of a segment durable, and commits it.
func (f *Folder) change(prepare func(mem *slab.Buf) (*segfile.Change, error)) error {
	mem, err := f.store.Small()
	if err != nil {
		return err
	}
	defer mem.Drop()
	c, err := prepare(mem)
	if err != nil {
		return err
	}
	if err := f.log.AppendOwn(c.Run); err != nil {
		return err
	}
	f.store.Commit(c)
	f.trim = true
	return nil
}

// release gives back the extents that nobody needs any more, and says so.
func (f *Folder) release() (int, error) {
	n, err := f.store.TrimLog()
	if n > 0 {
		f.ledger.note(func(s *Stats) { s.Extents += uint64(n) })
	}
	// Records that were folded are room too, for the index.
	f.log.Kick()
	return n, err
}
