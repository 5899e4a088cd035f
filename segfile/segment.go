package segfile

import (
	"sync/atomic"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/redo"
)

// Holders that may keep a segment's log from being trimmed, besides its own
// pages: each says up to which LSN it is done. The trim point is the minimum.
type TrimHolder int

const (
	HoldArchive TrimHolder = iota // what the archive has confirmed
	HoldPeers                     // what a peer may still ask for
	numHolds
)

// A Segment is one copy of a protection group on this device. Its fields below
// mu's line are guarded by the store's mutex; the store's methods lock it.
type Segment struct {
	SegmentSpec // fixed, but for Epoch and Membership
	tag         uint32
	key         uint32 // redo.Key of the volume

	// Watch belongs to whoever serves the segment: whom to tell of its SCL.
	Watch atomic.Pointer[any]

	// ---- guarded by Store.mu ----

	segState
	scl     redoubt.LSN // every record of the group up to here is durable here
	highest redoubt.LSN // highest LSN held, beyond gaps too
	spans   []span      // held beyond a gap, ascending, apart from each other
	blocks  blockList
	logSize int64 // bytes of the live blocks

	indexed   redoubt.LSN // records up to here are in the index or coalesced
	nextIndex uint64      // the block in which indexing goes on
	pm        pageMap
	dirty     dirtyList // pages with a chain, by the LSN that began it
	long      []uint32  // pages whose chain passed the trigger

	persisted redoubt.LSN // coalesced, as the log's newest durable block gives it
	rootPos   uint64      // of the newest durable root
	holds     [numHolds]redoubt.LSN
	deleted   bool
	broken    error // the page chain doesn't fit: no page past it can be built
	mapLost   bool  // broken because the page map couldn't be read
}

// A span is a stretch of the PG's chain that is held: all records in
// (prev, last].
type span struct{ prev, last redoubt.LSN }

const maxSpans = 4096

// Tag returns the number that stands for the segment on this device.
func (g *Segment) Tag() uint32 { return g.tag }

// CheckBatch verifies a batch that claims to be the segment's: its sum, its
// structure, its group, and that every record lies within the group. It takes
// no lock.
func (g *Segment) CheckBatch(b []byte) (redo.Header, error) {
	h, err := redo.ParseHeader(b)
	if err != nil {
		return h, err
	}
	if h.Len != len(b) {
		return h, segErr(g, redoubt.ErrInvalid, "batch of %d bytes in an entry of %d", h.Len, len(b))
	}
	if h.PG != g.PG {
		return h, segErr(g, redoubt.ErrInvalid, "batch is for PG %d", h.PG)
	}
	if redo.FoundKey(h, b) != g.key {
		return h, segErr(g, redoubt.ErrCorrupt, "batch LSNs %d to %d: sum is wrong for volume %v; send it again", h.First, h.Last, g.Volume)
	}
	it := redo.Records(b, h)
	for it.Next() {
		if it.Page >= g.Pages && it.Kind != redo.Mark {
			return h, segErr(g, redoubt.ErrInvalid, "record at LSN %d is for page %d of %d", it.LSN, it.Page, g.Pages)
		}
	}
	return h, it.Err()
}

// link notes that the records in (prev, last] are durable, and reports whether
// SCL moved.
func (g *Segment) link(prev, last redoubt.LSN) bool {
	g.highest = max(g.highest, last)
	if last <= g.scl {
		return false
	}
	if prev > g.scl {
		g.insertSpan(span{prev, last})
		return false
	}
	g.scl = last
	n := 0
	for n < len(g.spans) && g.spans[n].prev <= g.scl {
		g.scl = max(g.scl, g.spans[n].last)
		n++
	}
	g.spans = append(g.spans[:0], g.spans[n:]...)
	if g.unknown.Reason != Known && g.scl >= g.unknown.To {
		g.unknown = Unknown{}
	}
	return true
}

// insertSpan adds a stretch beyond a gap and joins it to its neighbours.
func (g *Segment) insertSpan(n span) {
	i := len(g.spans)
	for i > 0 && g.spans[i-1].prev > n.prev {
		i--
	}
	if i > 0 && g.spans[i-1].last >= n.prev {
		i--
		g.spans[i].last = max(g.spans[i].last, n.last)
	} else {
		g.spans = append(g.spans, span{})
		copy(g.spans[i+1:], g.spans[i:])
		g.spans[i] = n
	}
	for i+1 < len(g.spans) && g.spans[i+1].prev <= g.spans[i].last {
		g.spans[i].last = max(g.spans[i].last, g.spans[i+1].last)
		g.spans = append(g.spans[:i+1], g.spans[i+2:]...)
	}
}

// told takes VDL and PGMRPL as the client gives them with a batch.
func (g *Segment) told(vdl, floor redoubt.LSN) {
	g.vdl = max(g.vdl, vdl)
	g.floor = max(g.floor, min(floor, g.vdl))
}

// target is the LSN up to which pages may be built.
func (g *Segment) target() redoubt.LSN { return min(g.scl, g.vdl, g.floor) }

// trimPoint is the LSN up to which nobody needs the log any more, as far as
// the log itself can prove after a crash.
func (g *Segment) trimPoint() redoubt.LSN {
	p := g.persisted
	for _, h := range g.holds {
		p = min(p, h)
	}
	return p
}

// voids reports whether the segment's truncations void a whole batch, and up
// to which LSN they leave it.
func (g *Segment) voids(h redo.Header) (keep redoubt.LSN, all bool) {
	keep = h.Last
	for _, t := range g.truncs {
		if h.Epoch >= t.Epoch || h.Last <= t.From || h.First > t.To {
			continue
		}
		if h.First > t.From {
			return 0, true
		}
		keep = min(keep, t.From)
	}
	return keep, false
}

// hold adds a durable block to the segment's list, in the place of those above
// SCL that it contains. It returns by how much the list weighs more.
func (g *Segment) hold(h redo.Header, pos uint64) (more int64) {
	keep, void := g.voids(h)
	if void || keep <= g.scl || keep <= g.coalesced {
		return 0
	}
	if keep < h.Last {
		// Only a truncation that overtook the batch leads here. Its records up
		// to keep are not acknowledged, and the writer sends them no more.
		return 0
	}
	if g.blocks.contains(h.First, h.Last) {
		return 0
	}
	g.blocks.dropContained(h.First, h.Last, g.scl, func(r *blockRef) {
		g.logSize -= int64(r.len)
		more -= weight(int(r.count))
	})
	g.blocks.insert(blockRef{first: h.First, last: h.Last, prev: h.Prev, epoch: h.Epoch, pos: pos, len: uint32(h.Len), count: uint32(h.Count)})
	g.logSize += int64(h.Len)
	g.link(h.Prev, h.Last)
	return more + weight(h.Count)
}

// dropBlocks lets go of blocks that nobody needs.
func (g *Segment) dropBlocks() (blocks int) {
	upto := min(g.trimPoint(), g.coalesced)
	for b := &g.blocks; b.len() > 0 && b.at(b.front()).last <= upto; blocks++ {
		g.logSize -= int64(b.at(b.front()).len)
		b.head++
	}
	g.nextIndex = max(g.nextIndex, g.blocks.front())
	return blocks
}

// firstLive is the lowest log position the segment needs. Blocks mostly lie in
// the log as they lie in the list; those that filled gaps or were written again
// do not, and cost a walk until they are gone.
func (g *Segment) firstLive() uint64 {
	b := &g.blocks
	if b.len() == 0 {
		return g.rootPos
	}
	if !b.disorder {
		return min(g.rootPos, b.at(b.front()).pos)
	}
	p, last := g.rootPos, uint64(0)
	b.disorder = false
	for i := b.front(); i < b.end(); i++ {
		pos := b.at(i).pos
		b.disorder = b.disorder || pos < last
		p, last = min(p, pos), pos
	}
	return p
}

// A dirtyPage says that a page's chain began at first.
type dirtyPage struct {
	page  uint32
	first redoubt.LSN
}

// A dirtyList is a queue of dirty pages, oldest first. An entry whose page was
// coalesced since is stale and dropped when it reaches the front.
type dirtyList struct {
	q    []dirtyPage
	head int
	n    int // pages that are dirty
}

func (d *dirtyList) push(p dirtyPage) {
	if d.head > 256 && d.head > len(d.q)/2 {
		d.q, d.head = d.q[:copy(d.q, d.q[d.head:])], 0
	}
	d.q = append(d.q, p)
}

func (d *dirtyList) len() int { return len(d.q) - d.head }

func (d *dirtyList) pop() {
	invariant.Assert(d.len() > 0, "segfile: pop of an empty dirty list")
	d.head++
}
