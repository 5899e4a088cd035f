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
// concurrent use; the slice that Batch returns is good until the next call.
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

// Use makes an empty or closed window one of store s.
func (w *Window) Use(s *Store) { w.s = s }

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
	w.next = 0
}

// Batch returns the batch of n bytes at a live position of the segment's log,
// verified. An error matches redoubt.ErrCorrupt when the bytes are damaged.
func (w *Window) Batch(g *Segment, pos uint64, n uint32) ([]byte, error) {
	return w.batch(g, pos, n, n)
}

// batch is Batch for a caller who will want up to ahead bytes from pos on: if
// the device must be asked, it is asked for these at once. Other segments' blocks
// lie in between, so nothing is read on the chance that it may be of use.
func (w *Window) batch(g *Segment, pos uint64, n, ahead uint32) ([]byte, error) {
	place, err := w.s.Locate(g, pos, n)
	if err != nil {
		return nil, err
	}
	if place.Bytes != nil {
		w.holds = append(w.holds, place.Mem)
		return place.Bytes, nil
	}
	for i := range w.pieces {
		if p := &w.pieces[i]; p.buf != nil && pos >= p.pos+BlockHeaderSize && pos+uint64(n) <= p.pos+uint64(p.n) {
			return w.verify(g, p, place)
		}
	}
	p, err := w.load(place, max(n, ahead))
	if err != nil {
		return nil, segErr(g, err, "log at position %d, device offset %d", pos, place.Off)
	}
	return w.verify(g, p, place)
}

// load reads a piece that begins with the logical block in which the batch's
// header lies and has n bytes of what follows the header, if the slab and the
// extent have.
func (w *Window) load(place LogPlace, n uint32) (*piece, error) {
	p := &w.pieces[w.next]
	if p.buf == nil && w.next > 0 {
		// Windows never wait for a slab while they have one: they could wait
		// for each other.
		if p.buf = w.s.opts.Windows.TryGet(); p.buf == nil {
			w.next = 0
			p = &w.pieces[0]
		}
	}
	w.next = (w.next + 1) % len(w.pieces)
	if p.buf == nil {
		var err error
		if p.buf, err = w.s.opts.Windows.Get(background); err != nil {
			return nil, fmt.Errorf("memory to read log into: %w", err)
		}
	}
	if p.verified == nil {
		p.verified = make([]uint64, len(p.buf.Bytes())/BlockAlign/64)
	}
	block, header := int64(w.s.dev.BlockSize()), place.pos-BlockHeaderSize
	back := header % uint64(block)
	inExtent := int64(header%uint64(w.s.dev.ExtentSize())) - int64(back)
	size := alignUp(int64(back)+BlockHeaderSize+int64(n), block)
	size = min(size, int64(len(p.buf.Bytes())), w.s.dev.ExtentSize()-inExtent)
	clear(p.verified)
	p.pos, p.n = header-back, 0
	if err := w.s.dev.ReadAt(p.buf.Bytes()[:size], place.Off-int64(back)); err != nil {
		return nil, err
	}
	p.n = int(size)
	return p, nil
}

// reserve waits for the slab without which the window can't read.
func (w *Window) reserve() error {
	if w.pieces[0].buf != nil {
		return nil
	}
	buf, err := w.s.opts.Windows.Get(background)
	if err != nil {
		return fmt.Errorf("segfile: memory to read log into: %w", err)
	}
	w.pieces[0].buf = buf
	return nil
}

// verify checks a block once for each time it was read from the device.
func (w *Window) verify(g *Segment, p *piece, place LogPlace) ([]byte, error) {
	at := int(place.pos - p.pos)
	b := p.buf.Bytes()[at-BlockHeaderSize : at+int(place.n) : at+int(place.n)]
	bit := at / BlockAlign
	if p.verified[bit/64]&(1<<(bit%64)) == 0 {
		if err := w.s.CheckPlace(g, place, b); err != nil {
			return nil, err
		}
		p.verified[bit/64] |= 1 << (bit % 64)
	}
	return b[BlockHeaderSize:], nil
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
		ahead := s.reach(g, upto)
		err := g.broken
		s.mu.Unlock()
		if !ok || err != nil {
			return err
		}
		b, err := w.batch(g, ref.pos, ref.len, ahead)
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

// indexCached indexes what is in memory, some records for each hold of the
// mutex. It reports whether that was all.
func (s *Store) indexCached(g *Segment, upto redoubt.LSN) (bool, error) {
	const perHold = 256 // records, some 20 us
	for {
		s.mu.Lock()
		for n := 0; n < perHold; {
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
			n += int(ref.count)
		}
		s.mu.Unlock()
	}
}

// nextUnindexed returns the block in which the next record for the index lies.
func (g *Segment) nextUnindexed(upto redoubt.LSN) (blockRef, bool) {
	upto = min(upto, g.scl)
	if g.deleted || g.indexed >= upto || g.Kind != redoubt.FullSegment {
		return blockRef{}, false // a tail segment has no pages to take records off the index again
	}
	for g.nextIndex = max(g.nextIndex, g.blocks.front()); g.nextIndex < g.blocks.end(); g.nextIndex++ {
		if b := g.blocks.at(g.nextIndex); b.last > g.indexed {
			return *b, true
		}
	}
	return blockRef{}, false
}

// reach returns how many bytes of the log, from the batch on in which indexing
// goes on, are worth one read: as long as the segment's next batches, up to LSN
// upto, lie near.
func (s *Store) reach(g *Segment, upto redoubt.LSN) uint32 {
	b := &g.blocks
	if g.nextIndex >= b.end() {
		return 0
	}
	first := b.at(g.nextIndex)
	end := first.pos + uint64(first.len)
	most := first.pos + uint64(s.opts.Windows.Size()-2*s.dev.BlockSize())
	for i := g.nextIndex + 1; i < b.end(); i++ {
		r := b.at(i)
		if r.first > upto || r.pos < end || r.pos-end > NearLog || r.pos+uint64(r.len) > most {
			break
		}
		end = r.pos + uint64(r.len)
	}
	return uint32(end - first.pos)
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
	*s.arena.at(i) = recEntry{lsn: it.LSN, block: block, off: uint32(it.Offset()), older: e.head, covers: it.Covers()}
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
