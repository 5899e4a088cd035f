package segfile

import (
	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/redo"
)

// A Holder keeps the memory of a run alive; *slab.Buf is one.
type Holder interface {
	Hold()
	Drop()
}

// A Block is one block of a run on its way to the log.
type Block struct {
	Seg  *Segment // nil for a block of the log itself
	Kind BlockKind
	Off  int         // of its header in the run
	Len  int         // bytes of its content
	Head redo.Header // of a redo block's batch

	moved bool // a copy of a block that the segment has

	// Err says why Admit refused the batch; the block is void then.
	Err error
}

// A Run is what one device write is made of: an append frame, or blocks that
// the node itself writes. Its owner passes it to Admit and Place and must leave
// it alone until Done.
type Run struct {
	// Bytes is the run in aligned memory, a whole number of logical blocks,
	// with room for the run header at its start. Used is its length without
	// the padding, which is zero.
	Bytes  []byte
	Used   int
	Blocks []Block

	// Mem holds Bytes. The log takes its own hold while it needs them.
	Mem Holder

	// Barrier makes Done wait until everything before the run is durable too.
	Barrier bool

	// Done is called once, without a lock, when the run is durable or failed.
	Done func(r *Run, err error)
	Ctx  any // the owner's

	pos uint64
}

// Reset makes the run ready for reuse; it keeps the memory of Blocks.
func (r *Run) Reset() {
	clear(r.Blocks)
	*r = Run{Blocks: r.Blocks[:0]}
}

// Add appends a block's description and returns it to be filled in.
func (r *Run) Add() *Block {
	r.Blocks = append(r.Blocks, Block{})
	return &r.Blocks[len(r.Blocks)-1]
}

// Pos returns the run's position in the log; it is set by Place.
func (r *Run) Pos() uint64 { return r.pos }

// A LogWrite is one write to the device: runs side by side in one extent.
type LogWrite struct {
	blockdev.Write
	Runs  []*Run
	Bytes int

	start, end uint64
	filler     []byte // room for a filler's block, at the end of an extent

	// What Complete found, for the caller to act on without the lock.
	Moved    []Moved
	Released []*Run // runs that are done
}

// Moved says that a segment's SCL moved, or should be told again.
type Moved struct {
	Seg *Segment
	SCL redoubt.LSN
}

// NewLogWrite returns a LogWrite; filler is one aligned logical block.
func NewLogWrite(filler []byte) *LogWrite {
	return &LogWrite{filler: filler}
}

func (lw *LogWrite) reset() {
	clear(lw.Runs)
	clear(lw.Bufs)
	clear(lw.Moved)
	clear(lw.Released)
	lw.Runs, lw.Bufs, lw.Moved, lw.Released = lw.Runs[:0], lw.Bufs[:0], lw.Moved[:0], lw.Released[:0]
	lw.Bytes = 0
}

// stamp gives the run its place: it writes the run header and every block
// header, in place.
func (r *Run) stamp(s seed, gen uint32, pos, durable uint64) {
	r.pos = pos
	for i := range r.Blocks {
		b := &r.Blocks[i]
		h := blockHeader{len: b.Len, kind: b.Kind, gen: gen, pos: pos + uint64(b.Off)}
		if b.Seg != nil {
			h.tag = b.Seg.tag
		}
		h.put(r.Bytes[b.Off:], s)
	}
	h := runHeader{used: uint32(r.Used), gen: gen, pos: pos, durable: durable}
	h.put(r.Bytes, s)
}

// checkShape asserts what every run must satisfy, so that a bug here never
// becomes a bad block there.
func (r *Run) checkShape(blockSize int) {
	if len(r.Bytes)%blockSize != 0 || r.Used > len(r.Bytes) || r.Used < RunHeaderSize {
		invariant.Assert(false, "segfile: run of %d bytes, %d used, logical block %d", len(r.Bytes), r.Used, blockSize)
	}
}
