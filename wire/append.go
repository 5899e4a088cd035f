package wire

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/redo"
)

const (
	// EntryHeaderSize is the size of what stands before each batch of an APPEND
	// frame, in bytes.
	EntryHeaderSize = 24

	entryAlign = 8
	minEntry   = (EntryHeaderSize + redo.MinBatchSize + entryAlign - 1) / entryAlign * entryAlign
)

// An Entry is one batch of an APPEND frame and the segment that it is for.
type Entry struct {
	Handle uint32
	VDL    redoubt.LSN
	Floor  redoubt.LSN // PGMRPL
	Off    int         // of the entry header in the frame, bytes; a multiple of 8
	Batch  []byte      // inside the frame
}

// An EntryIter walks the entries of an APPEND frame. It allocates nothing.
//
//	for it := wire.Entries(frame, header.Aux); it.Next(); { use it.Entry }
type EntryIter struct {
	Entry
	frame []byte
	base  int // what frame is short of, at its start
	next  int
	left  uint32
	err   error
}

// Entries starts a walk over the n entries of an APPEND frame, of which frame
// is Len bytes. Each step has left the current entry's header behind: it may be
// overwritten before the next call of Next.
func Entries(frame []byte, n uint32) EntryIter {
	return EntryIter{frame: frame, next: HeaderSize, left: n}
}

// Next decodes the next entry and reports whether there is one. It stops at the
// first that breaks the format; Err then says why.
func (it *EntryIter) Next() bool {
	if it.err != nil {
		return false
	}
	if it.left == 0 {
		if it.next != len(it.frame) {
			it.err = invalid("APPEND: entries end at byte %d of %d", it.base+it.next, it.base+len(it.frame))
		}
		return false
	}
	b := it.frame[it.next:]
	if len(b) < minEntry {
		it.err = invalid("APPEND: %d bytes left and %d entries to come", len(b), it.left)
		return false
	}
	le := binary.LittleEndian
	it.Handle = le.Uint32(b)
	n := le.Uint32(b[4:])
	it.VDL = redoubt.LSN(le.Uint64(b[8:]))
	it.Floor = redoubt.LSN(le.Uint64(b[16:]))
	if n < redo.MinBatchSize || n > redoubt.MaxBatchBytes || int(n) > len(b)-EntryHeaderSize {
		it.err = invalid("APPEND: entry at byte %d: batch of %d bytes in %d", it.base+it.next, n, len(b)-EntryHeaderSize)
		return false
	}
	size := Padded(EntryHeaderSize+int(n), entryAlign)
	if size > len(b) {
		it.err = invalid("APPEND: entry at byte %d: ends in the middle of its padding", it.base+it.next)
		return false
	}
	if own := le.Uint32(b[EntryHeaderSize+4:]); own != n {
		it.err = invalid("APPEND: entry at byte %d: batch of %d bytes says it has %d", it.base+it.next, n, own)
		return false
	}
	it.Off = it.next
	it.Batch = b[EntryHeaderSize : EntryHeaderSize+n : EntryHeaderSize+n]
	it.next += size
	it.left--
	return true
}

// Err returns what ended the walk early, or nil.
func (it *EntryIter) Err() error { return it.err }

// checkEntries is CheckBody of an APPEND frame: the structure, and the sum over
// the entry headers.
func (h Header) checkEntries(body []byte) error {
	if HeaderSize+len(body) != h.Len {
		return invalid("APPEND of %d bytes in %d", h.Len, HeaderSize+len(body))
	}
	it := EntryIter{frame: body, base: HeaderSize, left: h.Aux}
	sum := uint32(0)
	for it.Next() {
		sum = crc32.Update(sum, castagnoli, body[it.Off:it.Off+EntryHeaderSize])
	}
	if it.err != nil {
		return it.err
	}
	return h.checkSum(sum)
}

// An AppendBuilder puts an APPEND frame together in memory that the caller
// owns. The batch is built where it will be sent from, or is copied there by
// Add. It allocates nothing.
//
//	b.Reset(buf, align)
//	var batch redo.Builder
//	batch.Reset(b.Next(), vol, pg, epoch, prev)
//	...
//	b.Commit(handle, len(batch.Finish()), vdl, floor)
//	frame := b.Finish(req)
type AppendBuilder struct {
	buf     []byte
	align   int
	n       int
	entries uint32
	sum     uint32
}

// Reset starts a frame in buf, whose length bounds the padded frame: at most
// the node's frame limit. align is what the node's WELCOME asks for.
func (a *AppendBuilder) Reset(buf []byte, align int) {
	if align < HelloAlign || align > MaxAlign || align&(align-1) != 0 {
		invariant.Assert(false, "wire: APPEND frame aligned to %d", align)
	}
	*a = AppendBuilder{buf: buf[:len(buf)&^(align-1)], align: align, n: HeaderSize}
}

// Entries returns how many entries the frame has so far; Len, its bytes.
func (a *AppendBuilder) Entries() int { return int(a.entries) }
func (a *AppendBuilder) Len() int     { return a.n }

// Next returns the room that is left for one more batch, or nil if there is not
// even room for the smallest. It may be called again before Commit.
func (a *AppendBuilder) Next() []byte {
	start := a.n + EntryHeaderSize
	if start+redo.MinBatchSize > len(a.buf) {
		return nil
	}
	end := min(len(a.buf), start+redoubt.MaxBatchBytes)
	return a.buf[start:end:end]
}

// Commit makes the batch of n bytes, which was built at the start of what Next
// returned, an entry for the segment of the handle.
func (a *AppendBuilder) Commit(handle uint32, n int, vdl, floor redoubt.LSN) {
	end := a.n + EntryHeaderSize + n
	if n < redo.MinBatchSize || n > redoubt.MaxBatchBytes || end > len(a.buf) {
		invariant.Assert(false, "wire: APPEND entry of %d bytes", n)
	}
	head := a.buf[a.n : a.n+EntryHeaderSize]
	le := binary.LittleEndian
	le.PutUint32(head, handle)
	le.PutUint32(head[4:], uint32(n))
	le.PutUint64(head[8:], uint64(vdl))
	le.PutUint64(head[16:], uint64(floor))
	a.sum = crc32.Update(a.sum, castagnoli, head)
	a.n = Padded(end, entryAlign)
	clear(a.buf[end:a.n])
	a.entries++
}

// Add copies a finished batch into the frame. It returns false, and adds
// nothing, when there is no room for it.
func (a *AppendBuilder) Add(handle uint32, batch []byte, vdl, floor redoubt.LSN) bool {
	room := a.Next()
	if len(batch) > len(room) {
		return false
	}
	copy(room, batch)
	a.Commit(handle, len(batch), vdl, floor)
	return true
}

// Finish pads the frame, writes its header and returns all of it. There is at
// least one entry.
func (a *AppendBuilder) Finish(req uint64) []byte {
	invariant.Assert(a.entries > 0, "wire: APPEND frame without entries")
	h := Header{Kind: KindAppend, Aux: a.entries, Len: a.n, Req: req, Sum: a.sum}
	h.put(a.buf)
	end := Padded(a.n, a.align)
	clear(a.buf[a.n:end])
	return a.buf[:end]
}
