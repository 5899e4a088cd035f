package redo

import (
	"encoding/binary"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
)

// A Builder puts a batch together in memory that the caller owns. It allocates
// nothing. The zero Builder is ready for Reset.
//
//	b.Reset(buf, vol, pg, epoch, prev)
//	ok := b.Write(lsn, page, pagePrev, off, data, cpl)  // false: no room, finish first
//	batch := b.Finish()
type Builder struct {
	buf []byte
	n   int
	h   Header
	vol redoubt.VolumeID
}

// Reset starts a batch in buf, which bounds its length (and so does
// redoubt.MaxBatchBytes). prev is the LSN of the group's record before it.
func (b *Builder) Reset(buf []byte, vol redoubt.VolumeID, pg redoubt.PGNo, epoch redoubt.Epoch, prev redoubt.LSN) {
	b.buf = buf[:min(len(buf), redoubt.MaxBatchBytes)]
	b.n = BatchHeaderSize
	b.vol = vol
	b.h = Header{Prev: prev, Last: prev, PG: pg, Epoch: epoch}
}

// Len returns the bytes of the batch so far; Count, its records; Last, the LSN
// of its newest record.
func (b *Builder) Len() int          { return b.n }
func (b *Builder) Count() int        { return b.h.Count }
func (b *Builder) Last() redoubt.LSN { return b.h.Last }

// Write adds a record that puts data, of 1 to 16384 bytes, at off of the page.
// prev is the LSN of the page's record before, 0 for none. It returns false,
// and adds nothing, when the batch has no room for it or its LSN is more than
// 65535 past the newest.
func (b *Builder) Write(lsn redoubt.LSN, page uint32, prev redoubt.LSN, off int, data []byte, cpl bool) bool {
	p := b.add(Write, lsn, page, prev, off, len(data), cpl)
	copy(p, data)
	return p != nil
}

// Fill adds a record that sets n bytes at off of the page to v; otherwise as
// Write.
func (b *Builder) Fill(lsn redoubt.LSN, page uint32, prev redoubt.LSN, off, n int, v byte, cpl bool) bool {
	p := b.add(Fill, lsn, page, prev, off, n, cpl)
	if p != nil {
		p[0] = v
	}
	return p != nil
}

// Move adds a record that copies n bytes of the page from one offset to
// another; otherwise as Write.
func (b *Builder) Move(lsn redoubt.LSN, page uint32, prev redoubt.LSN, to, from, n int, cpl bool) bool {
	if from < 0 || from+n > redoubt.PageSize {
		invariant.Assert(false, "redo: move from %d+%d", from, n)
	}
	p := b.add(Move, lsn, page, prev, to, n, cpl)
	if p != nil {
		binary.LittleEndian.PutUint16(p, uint16(from))
	}
	return p != nil
}

// Mark adds a mark with the wall clock in Unix nanoseconds and the VDL;
// otherwise as Write.
func (b *Builder) Mark(lsn redoubt.LSN, nanos int64, vdl redoubt.LSN) bool {
	p := b.add(Mark, lsn, MarkPage, 0, 0, 0, false)
	if p != nil {
		binary.LittleEndian.PutUint64(p, uint64(nanos))
		binary.LittleEndian.PutUint64(p[8:], uint64(vdl))
	}
	return p != nil
}

// add writes a record's header and returns where its payload goes, or nil.
func (b *Builder) add(k Kind, lsn redoubt.LSN, page uint32, prev redoubt.LSN, off, n int, cpl bool) []byte {
	// The conditions stand outside Assert because its arguments would be boxed
	// on the heap, four allocations a record, even when all is well.
	if k != Mark && (off < 0 || n <= 0 || off+n > redoubt.PageSize) {
		invariant.Assert(false, "redo: record of bytes %d+%d", off, n)
	}
	if lsn <= b.h.Last || prev >= lsn {
		invariant.Assert(false, "redo: LSN %d after %d, page link to %d", lsn, b.h.Last, prev)
	}
	delta := lsn - b.h.Last
	if b.h.Count == 0 {
		delta = 0
	}
	end := b.n + RecordHeaderSize + payloadLen(k, uint16(n))
	if end > len(b.buf) || delta > 1<<16-1 {
		return nil
	}
	r := b.buf[b.n:end]
	le := binary.LittleEndian
	le.PutUint32(r, page)
	le.PutUint16(r[4:], uint16(off))
	le.PutUint16(r[6:], uint16(n))
	r[8], r[9] = byte(k), 0
	if cpl {
		r[9] = flagCPL
	}
	le.PutUint16(r[10:], uint16(delta))
	le.PutUint32(r[12:], LinkTo(lsn, prev))
	if b.h.Count == 0 {
		b.h.First = lsn
	}
	b.h.Last = lsn
	b.h.Count++
	b.n = end
	return r[RecordHeaderSize:]
}

// Finish writes the header and the sum and returns the batch, which lies in
// the memory that Reset was given. There is at least one record.
func (b *Builder) Finish() []byte {
	invariant.Assert(b.h.Count > 0, "redo: empty batch")
	b.h.Len = b.n
	out := b.buf[:b.n]
	b.h.put(out)
	b.h.CRC = Sum(b.vol, out)
	binary.LittleEndian.PutUint32(out, b.h.CRC)
	return out
}
