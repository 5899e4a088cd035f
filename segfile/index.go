package segfile

import (
	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
)

// A recEntry is one record in the index: 24 bytes, no pointers, so that
// millions cost the garbage collector nothing. The entries of a page form a
// chain from the newest to the oldest that isn't in the page yet.
type recEntry struct {
	lsn   redoubt.LSN
	block uint32 // absolute number of its block in the segment's list, modulo 2^32
	off   uint32 // of the record in its batch
	older uint32 // the next older record of the page, as index + 1; 0 ends the chain

	covers bool // it sets every byte of the page: nothing older is needed to build it
}

// A recArena holds the entries of all segments of a device. Its size is fixed
// when the store is opened; what is in use is the coalescing debt in records.
type recArena struct {
	entries []recEntry
	free    uint32 // head of the free list, as index + 1, linked through older
	used    int
	fresh   int // entries from here on were never used
}

func newRecArena(capacity int) recArena {
	return recArena{entries: make([]recEntry, capacity)}
}

// get returns a free entry's index + 1, or 0 when there is none.
func (a *recArena) get() uint32 {
	if i := a.free; i != 0 {
		a.free = a.entries[i-1].older
		a.used++
		return i
	}
	if a.fresh == len(a.entries) {
		return 0
	}
	a.fresh++
	a.used++
	return uint32(a.fresh)
}

func (a *recArena) put(i uint32) {
	if i == 0 || a.used == 0 {
		invariant.Assert(false, "segfile: record entry %d freed, %d in use", i, a.used)
	}
	a.entries[i-1] = recEntry{older: a.free}
	a.free = i
	a.used--
}

func (a *recArena) at(i uint32) *recEntry { return &a.entries[i-1] }

// A blockRef is one live redo block of a segment: where it is and what it
// links. Last is lowered when a truncation voids the block's end.
type blockRef struct {
	first, last, prev redoubt.LSN
	epoch             redoubt.Epoch
	pos               uint64 // of the batch in the log
	len               uint32 // of the batch
	count             uint32 // its records
}

// A blockList holds a segment's live redo blocks, ascending by last. Blocks
// have absolute numbers that do not change while they are in the list, except
// that one which fills a gap moves those behind it, none of which is indexed
// yet.
//
// Above SCL no block contains another. A writer that sends its log again may cut
// it otherwise, so that a batch arrives which contains one that waits behind a
// gap: in the order of last that one would be indexed first, and what comes
// before it in the larger one passed over.
type blockList struct {
	refs []blockRef
	head int    // refs[head] is the oldest
	base uint64 // absolute number of refs[0]

	disorder bool // some block may lie below its predecessor in the log
}

func (b *blockList) len() int { return len(b.refs) - b.head }

// front and end are the absolute numbers of the oldest block and of the one
// that comes next.
func (b *blockList) front() uint64 { return b.base + uint64(b.head) }
func (b *blockList) end() uint64   { return b.base + uint64(len(b.refs)) }

func (b *blockList) at(abs uint64) *blockRef { return &b.refs[abs-b.base] }

// lookup turns the 32 bits that an entry keeps into the block.
func (b *blockList) lookup(low uint32) *blockRef {
	front := b.front()
	abs := front + uint64(low-uint32(front))
	if abs >= b.end() {
		invariant.Assert(false, "segfile: record entry names block %d of [%d, %d)", abs, front, b.end())
	}
	return b.at(abs)
}

// insert adds a block in the order of last.
func (b *blockList) insert(r blockRef) {
	if b.head > 64 && b.head > len(b.refs)/2 {
		n := copy(b.refs, b.refs[b.head:])
		b.refs, b.base, b.head = b.refs[:n], b.base+uint64(b.head), 0
	}
	i := len(b.refs)
	for i > b.head && b.refs[i-1].last > r.last {
		i--
	}
	b.refs = append(b.refs, blockRef{})
	copy(b.refs[i+1:], b.refs[i:])
	b.refs[i] = r
	if i+1 < len(b.refs) || i > b.head && b.refs[i-1].pos > r.pos {
		b.disorder = true
	}
}

// contains reports whether one block holds everything from first to last, which
// is above SCL. Since none there contains another, those behind the first with
// such a last begin later.
func (b *blockList) contains(first, last redoubt.LSN) bool {
	i := b.find(last)
	return i < b.end() && b.at(i).first <= first
}

// dropContained removes the blocks above SCL that lie within first to last.
func (b *blockList) dropContained(first, last, scl redoubt.LSN, each func(*blockRef)) {
	end := int(b.find(last+1) - b.base)
	i := end
	for i > b.head && b.refs[i-1].last > scl && b.refs[i-1].first >= first {
		i--
		each(&b.refs[i])
	}
	b.refs = append(b.refs[:i], b.refs[end:]...)
}

// withoutContained drops the blocks that lie within others; refs ascend by last
// and then descend by first, the newest of the same last.
func withoutContained(refs []blockRef) []blockRef {
	kept := len(refs)
	first := redoubt.MaxLSN // of those kept; they end no earlier
	for i := len(refs) - 1; i >= 0; i-- {
		if refs[i].first < first {
			first = refs[i].first
			kept--
			refs[kept] = refs[i]
		}
	}
	return refs[kept:]
}

// find returns the absolute number of the first block whose last LSN is at or
// past lsn, or end.
func (b *blockList) find(lsn redoubt.LSN) uint64 {
	lo, hi := b.head, len(b.refs)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if b.refs[m].last < lsn {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return b.base + uint64(lo)
}
