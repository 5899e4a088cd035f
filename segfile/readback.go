package segfile

import (
	"fmt"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/slab"
)

// A Window reads batches of the log back: from the memory they arrived in, or
// from the device in large pieces of which it remembers a few. Whoever uses it
// holds a Pin, so that what it reads stays where it is. It isn't safe for
// concurrent use; the slices it returns are good until Release or Close.
type Window struct {
	s      *Store
	pieces [4]piece
	next   int
	holds  []Holder
}

// A piece is a stretch of the log in memory.
type piece struct {
	buf      *slab.Buf
	pos      uint64
	n        int
	verified []uint64 // a bit for each 8 bytes: a batch that begins here passed its sum
}

// NewWindow returns an empty window. It takes slabs as it needs them.
func (s *Store) NewWindow() *Window { return &Window{s: s} }

// Release ends the use of the slices that Batch returned; what was read from
// the device is kept for the next.
func (w *Window) Release() {
	for i, h := range w.holds {
		h.Drop()
		w.holds[i] = nil
	}
	w.holds = w.holds[:0]
}

// Close releases everything.
func (w *Window) Close() {
	w.Release()
	for i := range w.pieces {
		if p := &w.pieces[i]; p.buf != nil {
			p.buf.Drop()
			*p = piece{verified: p.verified}
		}
	}
}

// Batch returns the batch of n bytes at a live position of the segment's log,
// verified. An error matches redoubt.ErrCorrupt when the bytes are damaged.
func (w *Window) Batch(g *Segment, pos uint64, n uint32) ([]byte, error) {
	w.s.mu.Lock()
	b, mem := w.s.cache.find(pos, int(n))
	if b != nil {
		mem.Hold()
	}
	off, ok := w.s.log.deviceOffset(pos)
	w.s.mu.Unlock()
	if b != nil {
		w.holds = append(w.holds, mem)
		return b, nil
	}
	for i := range w.pieces {
		if p := &w.pieces[i]; p.buf != nil && pos >= p.pos && pos+uint64(n) <= p.pos+uint64(p.n) {
			return w.verify(g, p, pos, n)
		}
	}
	if !ok {
		return nil, segErr(g, redoubt.ErrCorrupt, "log position %d is not in the log any more", pos)
	}
	p, err := w.load(pos, off, n)
	if err != nil {
		return nil, segErr(g, err, "log at position %d, device offset %d", pos, off)
	}
	return w.verify(g, p, pos, n)
}

// load reads a piece that begins with the logical block that pos lies in.
func (w *Window) load(pos uint64, off int64, n uint32) (*piece, error) {
	p := &w.pieces[w.next]
	w.next = (w.next + 1) % len(w.pieces)
	if p.buf == nil {
		buf, err := w.s.opts.Windows.Get(background)
		if err != nil {
			return nil, fmt.Errorf("memory to read log into: %w", err)
		}
		p.buf = buf
		if p.verified == nil {
			p.verified = make([]uint64, len(buf.Bytes())/BlockAlign/64)
		}
	}
	block := int64(w.s.dev.BlockSize())
	back := pos % uint64(block)
	inExtent := pos % uint64(w.s.dev.ExtentSize())
	size := min(int64(len(p.buf.Bytes())), w.s.dev.ExtentSize()-int64(inExtent-back))
	clear(p.verified)
	p.pos, p.n = pos-back, 0
	if err := w.s.dev.ReadAt(p.buf.Bytes()[:size], off-int64(back)); err != nil {
		return nil, err
	}
	p.n = int(size)
	return p, nil
}

// verify checks a batch's sum once for each time it was read from the device.
func (w *Window) verify(g *Segment, p *piece, pos uint64, n uint32) ([]byte, error) {
	at := int(pos - p.pos)
	b := p.buf.Bytes()[at : at+int(n) : at+int(n)]
	bit := at / BlockAlign
	if p.verified[bit/64]&(1<<(bit%64)) == 0 {
		if _, err := g.CheckBatch(b); err != nil {
			return nil, segErr(g, redoubt.ErrCorrupt, "log at position %d: %v", pos, err)
		}
		p.verified[bit/64] |= 1 << (bit % 64)
	}
	return b, nil
}

// Index brings the record index of a segment up to LSN upto, or as far as the
// log is complete. It may wait for the device.
func (s *Store) Index(g *Segment, upto redoubt.LSN) error {
	if done, err := s.indexCached(g, upto); done || err != nil {
		return err
	}
	pin := s.Pin()
	defer s.Unpin(pin)
	w := s.NewWindow()
	defer w.Close()
	for {
		s.mu.Lock()
		ref, ok := g.nextUnindexed(upto)
		err := g.broken
		s.mu.Unlock()
		if !ok || err != nil {
			return err
		}
		b, err := w.Batch(g, ref.pos, ref.len)
		if err != nil {
			return err
		}
		s.mu.Lock()
		if now, ok := g.nextUnindexed(upto); ok && now == ref {
			err = s.indexBatch(g, ref, b)
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
		w.Release()
	}
}

// indexCached indexes what is in memory, some batches for each hold of the
// mutex. It reports whether that was all.
func (s *Store) indexCached(g *Segment, upto redoubt.LSN) (bool, error) {
	const perHold = 16
	for {
		s.mu.Lock()
		for range perHold {
			ref, ok := g.nextUnindexed(upto)
			if !ok || g.broken != nil {
				defer s.mu.Unlock()
				return true, g.broken
			}
			b, _ := s.cache.find(ref.pos, int(ref.len))
			if b == nil {
				s.mu.Unlock()
				return false, nil
			}
			if err := s.indexBatch(g, ref, b); err != nil {
				s.mu.Unlock()
				return false, err
			}
		}
		s.mu.Unlock()
	}
}

// nextUnindexed returns the block in which the next record for the index lies.
func (g *Segment) nextUnindexed(upto redoubt.LSN) (blockRef, bool) {
	upto = min(upto, g.scl)
	if g.deleted || g.indexed >= upto {
		return blockRef{}, false
	}
	for g.nextIndex = max(g.nextIndex, g.blocks.front()); g.nextIndex < g.blocks.end(); g.nextIndex++ {
		if b := g.blocks.at(g.nextIndex); b.last > g.indexed {
			return *b, true
		}
	}
	return blockRef{}, false
}

// indexBatch puts the records of a batch into the index. The segment is
// complete up to the batch's last LSN.
func (s *Store) indexBatch(g *Segment, ref blockRef, batch []byte) error {
	h, err := redo.ParseHeader(batch)
	if err != nil {
		return segErr(g, redoubt.ErrCorrupt, "log at position %d: %v", ref.pos, err)
	}
	it := redo.Records(batch, h)
	for it.Next() {
		if it.LSN <= g.indexed || it.LSN > ref.last || it.Kind == redo.Mark {
			continue
		}
		if err := s.indexRecord(g, &it, uint32(g.nextIndex)); err != nil {
			return err
		}
		g.indexed = it.LSN
	}
	if err := it.Err(); err != nil {
		return segErr(g, redoubt.ErrCorrupt, "log at position %d: %v", ref.pos, err)
	}
	g.indexed = max(g.indexed, ref.last)
	g.nextIndex++
	return nil
}

func (s *Store) indexRecord(g *Segment, it *redo.Iter, block uint32) error {
	e := g.pm.touch(it.Page)
	if it.LSN <= e.lsn {
		return nil // its effect is in the version on disk
	}
	prev := e.lsn
	if e.head != 0 {
		prev = s.arena.at(e.head).lsn
	}
	if !it.FollowsPage(prev) {
		g.broken = segErr(g, redoubt.ErrCorrupt, "record at LSN %d of page %d says the page's record before it is %d LSNs back, but it is LSN %d",
			it.LSN, it.Page, it.Link, prev)
		return g.broken
	}
	i := s.arena.get()
	if i == 0 {
		return segErr(g, redoubt.ErrBusy, "the index of %d records is full", s.opts.MaxRecords)
	}
	*s.arena.at(i) = recEntry{lsn: it.LSN, block: block, off: uint32(it.Offset()), older: e.head}
	if e.head == 0 {
		g.dirty.push(dirtyPage{it.Page, it.LSN})
		g.dirty.n++
	}
	e.head = i
	if e.count < 1<<16-1 {
		e.count++
	}
	if int(e.count) >= s.opts.LongChain && e.flags&entryLong == 0 {
		e.flags |= entryLong
		g.long = append(g.long, it.Page)
	}
	return nil
}

// dropIndex removes the index entries above LSN from.
func (s *Store) dropIndex(g *Segment, from redoubt.LSN) {
	d := &g.dirty
	kept := d.q[:d.head]
	for _, p := range d.q[d.head:] {
		e := g.pm.peek(p.page)
		if !s.isDirty(e, p) {
			continue
		}
		for e.head != 0 && s.arena.at(e.head).lsn > from {
			older := s.arena.at(e.head).older
			s.arena.put(e.head)
			e.head = older
			e.count -= min(e.count, 1)
		}
		if e.head == 0 {
			d.n--
			e.count = 0
			continue
		}
		kept = append(kept, p)
	}
	d.q = kept
	g.indexed = min(g.indexed, max(from, g.coalesced))
	g.nextIndex = g.blocks.front()
}

// isDirty reports that p is what the page's chain still begins with: a version
// that took its first record in has an LSN at or past it.
func (s *Store) isDirty(e *pageEntry, p dirtyPage) bool {
	return e != nil && e.head != 0 && e.lsn < p.first
}
