package segfile

import (
	"github.com/redoubt-storage/redoubt"
)

// A Backlog says what of a segment waits to be coalesced.
type Backlog struct {
	Seg                             *Segment
	SCL, Target, Coalesced, Indexed redoubt.LSN
	Oldest                          redoubt.LSN // began the chain that waits longest, of those in the index; 0: none
	First                           redoubt.LSN // last LSN of the oldest live block; 0: none
	Long                            int         // pages with long chains
	LogBytes                        int64
	Broken                          error
}

// Backlogs appends the backlog of every segment that is there, in no order.
func (s *Store) Backlogs(dst []Backlog) []Backlog {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segs {
		if g.rootPos != 0 && !g.deleted {
			dst = append(dst, s.backlog(g))
		}
	}
	return dst
}

// Backlog returns a segment's backlog, or false when it is gone.
func (s *Store) Backlog(g *Segment) (Backlog, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.backlog(g), g.rootPos != 0 && !g.deleted
}

func (s *Store) backlog(g *Segment) Backlog {
	b := Backlog{Seg: g, SCL: g.scl, Target: g.target(), Coalesced: g.coalesced, Indexed: g.indexed, Long: len(g.long),
		LogBytes: g.logSize, Broken: g.broken}
	d := &g.dirty
	for d.len() > 0 && !s.isDirty(g.pm.peek(d.q[d.head].page), d.q[d.head]) {
		d.pop()
	}
	if d.len() > 0 {
		b.Oldest = d.q[d.head].first
	}
	if g.blocks.len() > 0 {
		b.First = g.blocks.at(g.blocks.front()).last
	}
	return b
}

// PickOlder appends to dst up to n pages of the segment whose records have
// waited longest, of those with a record at or below LSN upto, which is not above
// the segment's target. It looks only at what is in the index.
func (s *Store) PickOlder(g *Segment, n int, upto redoubt.LSN, dst []uint32) []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.deleted || g.broken != nil {
		return dst
	}
	return s.pickOldest(g, n, min(upto, g.target()), dst)
}

// NearLog is the gap, in bytes, up to which two pieces of the log are better
// read as one: a drive reads that much in the time that another request costs.
const NearLog = 64 << 10

// A LogPlace says where a batch of the log is.
type LogPlace struct {
	Off   int64  // on the device, of the block header in front of the batch
	Bytes []byte // the batch, if it is in memory; whoever asked has a hold on
	Mem   Holder // what holds it

	pos uint64
	gen uint32
	n   uint32
}

// Len returns the bytes at Off, block header included.
func (p *LogPlace) Len() int { return BlockHeaderSize + int(p.n) }

// Locate says where the batch of n bytes at a live position of the log is. The
// caller holds a Pin, so that it stays there.
func (s *Store) Locate(g *Segment, pos uint64, n uint32) (LogPlace, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := LogPlace{pos: pos, n: n}
	if b, mem := s.cache.find(pos, int(n)); b != nil {
		mem.Hold()
		p.Bytes, p.Mem = b, mem
		return p, nil
	}
	off, gen, ok := s.log.locate(pos)
	if !ok {
		return p, segErr(g, redoubt.ErrCorrupt, "log position %d is not in the log any more", pos)
	}
	p.Off, p.gen = off-BlockHeaderSize, gen
	return p, nil
}

// CheckPlace verifies the bytes that were read from a place: that they are the
// block that was written there, in the extent's present life, and the segment's.
// The batch's own sum would let an older block pass whose successor was lost.
func (s *Store) CheckPlace(g *Segment, p LogPlace, b []byte) error {
	h, ok := parseBlockHeader(b, s.seed)
	switch {
	case !ok:
		return segErr(g, redoubt.ErrCorrupt, "log at position %d, device offset %d: the block is damaged", p.pos, p.Off)
	case h.kind != BlockRedo || h.tag != g.tag || h.gen != p.gen || h.pos != p.pos-BlockHeaderSize || h.len != int(p.n):
		return segErr(g, redoubt.ErrCorrupt, "log at position %d, device offset %d: a %v block of tag %d, generation %d, position %d is there: a write was lost or went elsewhere",
			p.pos, p.Off, h.kind, h.tag, h.gen, h.pos)
	}
	if _, err := g.CheckBatch(b[BlockHeaderSize:p.Len()]); err != nil {
		return segErr(g, redoubt.ErrCorrupt, "log at position %d, device offset %d: %v", p.pos, p.Off, err)
	}
	return nil
}
