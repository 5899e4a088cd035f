package segfile

import (
	"encoding/binary"

	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/redo"
)

// A foundBlock is a whole block that a scan found.
type foundBlock struct {
	blockHeader
	content []byte      // in the scan's memory
	head    redo.Header // of a redo block
	key     uint32      // of the volume that the batch must belong to
}

// A scanner reads the extents of a log, oldest first. It keeps everything that
// is whole and notes every hole; it judges nothing.
type scanner struct {
	seed      seed
	blockSize int
	visit     func(foundBlock)

	holes   []Hole // Class is not set
	witness uint64
	end     uint64 // of the last whole run, or of damage with signs of life
	runs    int
	blocks  int

	// The extent being scanned.
	ext  blockdev.Extent
	base uint64
	b    []byte
}

// extent scans one extent, whose bytes are b. It reports whether there is any
// sign that something was written to it in its present life.
func (s *scanner) extent(e blockdev.Extent, base uint64, b []byte) bool {
	s.ext, s.base, s.b = e, base, b
	alive := false
	for off := 0; off < len(b); {
		h, ok := s.runAt(off)
		if ok {
			alive = true
			off = s.run(off, h)
			s.end = base + uint64(off)
			continue
		}
		next, found := s.resync(off)
		if !found && next == off {
			// Nothing of this life from here on. If the log goes on in
			// another extent, the caller makes this a hole.
			return alive
		}
		alive = true
		s.hole(off, next)
		s.end = base + uint64(next)
		off = next
	}
	return alive
}

// runAt returns the run header at off if one of this life stands there.
func (s *scanner) runAt(off int) (runHeader, bool) {
	h, ok := parseRunHeader(s.b[off:], s.seed)
	if !ok || h.gen != s.ext.Gen || h.pos != s.base+uint64(off) {
		return h, false
	}
	if h.filler {
		return h, int(h.used) == len(s.b)-off
	}
	return h, h.used >= RunHeaderSize && int(h.used) <= len(s.b)-off
}

// run takes in the run at off and returns where the next begins.
func (s *scanner) run(off int, h runHeader) int {
	s.runs++
	s.witness = max(s.witness, h.durable)
	if h.filler {
		return len(s.b)
	}
	end := off + int(h.used)
	for o := off + RunHeaderSize; o+BlockHeaderSize <= end; {
		size, ok := s.blockAt(o, end)
		if ok {
			o += size
			continue
		}
		next := o + BlockAlign
		for next+BlockHeaderSize <= end && !s.looksLikeBlock(next, end) {
			next += BlockAlign
		}
		if next+BlockHeaderSize > end {
			next = end
		}
		s.hole(o, next)
		o = next
	}
	return int(alignUp(int64(end), int64(s.blockSize)))
}

// blockAt takes in the block at off if it is whole, and returns its size.
func (s *scanner) blockAt(off, end int) (int, bool) {
	h, ok := parseBlockHeader(s.b[off:end], s.seed)
	if !ok || h.gen != s.ext.Gen || h.pos != s.base+uint64(off) {
		return 0, false
	}
	f := foundBlock{blockHeader: h, content: s.b[off+BlockHeaderSize : off+BlockHeaderSize+h.len]}
	if h.kind == BlockRedo {
		var err error
		if f.head, err = redo.ParseHeader(f.content); err != nil || f.head.Len != h.len {
			return 0, false
		}
		// Damage makes the key one that belongs to no segment with this tag.
		f.key = redo.FoundKey(f.head, f.content)
	}
	s.blocks++
	s.visit(f)
	return blockSize(h.len), true
}

// looksLikeBlock is blockAt without taking it in.
func (s *scanner) looksLikeBlock(off, end int) bool {
	le := binary.LittleEndian
	if le.Uint32(s.b[off+12:]) != s.ext.Gen || le.Uint64(s.b[off+16:]) != s.base+uint64(off) {
		return false
	}
	_, ok := parseBlockHeader(s.b[off:end], s.seed)
	return ok
}

// resync looks behind damage at off for what else was written. It takes in
// whole blocks on the way and returns where the next run begins, or, found
// being false, where the last sign of life ends: off itself if there is none.
func (s *scanner) resync(off int) (next int, found bool) {
	next = off
	if s.damagedHeader(off) {
		next = off + s.blockSize
	}
	for o := off; o+BlockHeaderSize <= len(s.b); {
		if o > off && (o-off)%s.blockSize == 0 {
			if _, ok := s.runAt(o); ok {
				return o, true
			}
			if s.damagedHeader(o) {
				next = o + s.blockSize
			}
		}
		if s.looksLikeBlock(o, len(s.b)) {
			if size, ok := s.blockAt(o, len(s.b)); ok {
				o += size
				next = int(alignUp(int64(o), int64(s.blockSize)))
				continue
			}
		}
		o += BlockAlign
	}
	return next, false
}

// damagedHeader reports that off holds what was a run header of this life:
// most of it is right, its sum is not.
func (s *scanner) damagedHeader(off int) bool {
	h, _ := parseRunHeader(s.b[off:], s.seed)
	right := 0
	if m := binary.LittleEndian.Uint32(s.b[off:]); m == runMagic || m == fillerMagic {
		right++
	}
	if h.gen == s.ext.Gen {
		right++
	}
	if h.pos == s.base+uint64(off) {
		right++
	}
	return right >= 2
}

func (s *scanner) hole(from, to int) {
	s.addHole(s.base+uint64(from), s.base+uint64(to))
}

// addHole notes a hole and joins it to the last if they touch, or if there are
// too many to keep them apart.
func (s *scanner) addHole(from, to uint64) {
	if n := len(s.holes); n > 0 && (s.holes[n-1].To == from || n == maxHoles) {
		s.holes[n-1].To = to
		return
	}
	s.holes = append(s.holes, Hole{From: from, To: to})
}

// insertHole is addHole for a hole before those of the extent just scanned.
func (s *scanner) insertHole(from, to uint64) {
	i := len(s.holes)
	for i > 0 && s.holes[i-1].From > from {
		i--
	}
	s.holes = append(s.holes, Hole{})
	copy(s.holes[i+1:], s.holes[i:])
	s.holes[i] = Hole{From: from, To: to}
}

// binaryMark makes bytes that can't be read look like a damaged header of this
// life, so that they count as a hole and not as the end of the log.
func binaryMark(b []byte, gen uint32, pos uint64) {
	binary.LittleEndian.PutUint32(b[12:], gen)
	binary.LittleEndian.PutUint64(b[16:], pos)
}
