package redo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/redoubt-storage/redoubt"
)

const (
	// BatchHeaderSize is the size of a batch's header in bytes.
	BatchHeaderSize = 48
	// MaxCount is the largest number of records in a batch.
	MaxCount = 1<<16 - 1
	// MinBatchSize is the smallest batch there is: one fill.
	MinBatchSize = BatchHeaderSize + RecordHeaderSize + 1

	batchVersion = 1
)

// A batch runs out of bytes before it runs out of count.
const _ = uint(MaxCount - (redoubt.MaxBatchBytes-BatchHeaderSize)/(RecordHeaderSize+1))

// A Header is a batch's header, decoded.
type Header struct {
	CRC   uint32
	Len   int // of the whole batch, bytes
	First redoubt.LSN
	Last  redoubt.LSN
	Prev  redoubt.LSN
	Epoch redoubt.Epoch
	PG    redoubt.PGNo
	Count int
}

// ParseHeader decodes the header at the start of b and checks what can be
// checked without the rest. b may be longer or shorter than the batch.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < BatchHeaderSize {
		return Header{}, invalid("batch of %d bytes is shorter than its header", len(b))
	}
	le := binary.LittleEndian
	h := Header{
		CRC:   le.Uint32(b),
		Len:   int(le.Uint32(b[4:])),
		First: redoubt.LSN(le.Uint64(b[8:])),
		Last:  redoubt.LSN(le.Uint64(b[16:])),
		Prev:  redoubt.LSN(le.Uint64(b[24:])),
		Epoch: redoubt.Epoch(le.Uint64(b[32:])),
		PG:    redoubt.PGNo(le.Uint32(b[40:])),
		Count: int(le.Uint16(b[44:])),
	}
	switch {
	case b[46] != batchVersion || b[47] != 0:
		return h, invalid("batch version %d, flags %#x: this program reads version %d", b[46], b[47], batchVersion)
	case h.Len < MinBatchSize || h.Len > redoubt.MaxBatchBytes:
		return h, invalid("batch length %d outside %d to %d", h.Len, MinBatchSize, redoubt.MaxBatchBytes)
	case h.Count == 0 || h.Count > (h.Len-BatchHeaderSize)/(RecordHeaderSize+1):
		return h, invalid("batch of %d bytes says it holds %d records", h.Len, h.Count)
	case h.First == 0 || h.Last < h.First || h.Prev >= h.First:
		return h, invalid("batch with LSNs prev %d, first %d, last %d", h.Prev, h.First, h.Last)
	case uint64(h.Last-h.First) < uint64(h.Count-1):
		return h, invalid("batch LSNs %d to %d can't hold %d records", h.First, h.Last, h.Count)
	}
	return h, nil
}

// put is ParseHeader's mirror image; it leaves the sum alone.
func (h *Header) put(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[4:], uint32(h.Len))
	le.PutUint64(b[8:], uint64(h.First))
	le.PutUint64(b[16:], uint64(h.Last))
	le.PutUint64(b[24:], uint64(h.Prev))
	le.PutUint64(b[32:], uint64(h.Epoch))
	le.PutUint32(b[40:], uint32(h.PG))
	le.PutUint16(b[44:], uint16(h.Count))
	b[46], b[47] = batchVersion, 0
}

// Sum returns what the crc field of a whole batch of the volume should be.
func Sum(vol redoubt.VolumeID, batch []byte) uint32 {
	return Key(vol) ^ crc32.Checksum(batch[4:], castagnoli)
}

// Key returns the part of a batch's crc field that binds it to its volume.
func Key(vol redoubt.VolumeID) uint32 { return ^volumeState(vol) }

// FoundKey returns the key of the volume that a batch must belong to if its
// bytes are whole: recovery reads batches before it knows whose they are.
func FoundKey(h Header, batch []byte) uint32 {
	return h.CRC ^ crc32.Checksum(batch[4:h.Len], castagnoli)
}

// Verify checks the batch at the start of b completely: sum, header and the
// structure of every record. After it returned nil nothing in the batch can
// lead outside the batch, or outside a page.
func Verify(vol redoubt.VolumeID, b []byte) (Header, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return h, err
	}
	if h.Len > len(b) {
		return h, invalid("batch of %d bytes in %d", h.Len, len(b))
	}
	if sum := Sum(vol, b[:h.Len]); sum != h.CRC {
		return h, fmt.Errorf("redo: batch LSNs %d to %d of volume %v: crc %08x, stored %08x: %w",
			h.First, h.Last, vol, sum, h.CRC, redoubt.ErrCorrupt)
	}
	it := Records(b[:h.Len], h)
	for it.Next() {
	}
	return h, it.Err()
}

// An Iter walks the records of a batch in LSN order.
//
//	for it := redo.Records(batch, header); it.Next(); { use it.Record }
type Iter struct {
	Record        // the current record
	b      []byte // the batch
	off    int    // where the current record starts in the batch
	next   int
	left   int
	last   redoubt.LSN // the batch's
	err    error
}

// Records starts a walk over batch, which is as long as its header h says.
func Records(batch []byte, h Header) Iter {
	return Iter{Record: Record{LSN: h.First}, b: batch, next: BatchHeaderSize, left: h.Count, last: h.Last}
}

// Next decodes the next record and reports whether there is one. It stops at
// the first that breaks the format; Err then says why.
func (it *Iter) Next() bool {
	if it.left == 0 || it.err != nil {
		if it.err == nil && (it.next != len(it.b) || it.LSN != it.last) {
			it.err = invalid("batch ends at byte %d of %d, LSN %d of %d", it.next, len(it.b), it.LSN, it.last)
		}
		return false
	}
	it.left--
	lsn, err := it.Record.decode(it.b[it.next:], it.LSN)
	if err == nil && it.next == BatchHeaderSize && lsn != it.LSN {
		err = fmt.Errorf("first record is at LSN %d of a batch from %d", lsn, it.LSN)
	}
	if err == nil && it.next != BatchHeaderSize && lsn == it.LSN {
		err = fmt.Errorf("two records at LSN %d", lsn)
	}
	if err != nil {
		it.err = invalid("%w", err)
		return false
	}
	it.LSN = lsn
	it.off = it.next
	it.next += RecordHeaderSize + len(it.Data)
	if err := it.Record.check(); err != nil {
		it.err = invalid("%w", err)
		return false
	}
	return true
}

// Offset returns where the current record starts in the batch, in bytes.
func (it *Iter) Offset() int { return it.off }

// Err returns what ended the walk early, or nil.
func (it *Iter) Err() error { return it.err }

// decode reads the record at the start of b, whose predecessor in the batch is
// at prev. Its LSN is returned apart: the caller judges it first.
func (r *Record) decode(b []byte, prev redoubt.LSN) (redoubt.LSN, error) {
	if len(b) < RecordHeaderSize {
		return 0, fmt.Errorf("record after LSN %d: %d bytes left of a header of %d", prev, len(b), RecordHeaderSize)
	}
	le := binary.LittleEndian
	r.Page = le.Uint32(b)
	r.Off = le.Uint16(b[4:])
	r.Len = le.Uint16(b[6:])
	r.Kind = Kind(b[8])
	r.CPL = b[9]&flagCPL != 0
	r.Link = le.Uint32(b[12:])
	n := payloadLen(r.Kind, r.Len)
	if n < 0 || b[9]&^flagCPL != 0 {
		return 0, fmt.Errorf("record after LSN %d: kind %d, flags %#x", prev, b[8], b[9])
	}
	if len(b)-RecordHeaderSize < n {
		return 0, fmt.Errorf("record after LSN %d: payload of %d bytes in %d", prev, n, len(b)-RecordHeaderSize)
	}
	r.Data = b[RecordHeaderSize : RecordHeaderSize+n : RecordHeaderSize+n]
	lsn := prev + redoubt.LSN(le.Uint16(b[10:]))
	if lsn < prev {
		return 0, fmt.Errorf("LSN after %d wraps", prev)
	}
	return lsn, nil
}

// RecordAt decodes the one record that starts at byte off of a verified batch
// and has this LSN.
func RecordAt(batch []byte, off int, lsn redoubt.LSN) (Record, error) {
	var r Record
	if off < BatchHeaderSize || off > len(batch) {
		return r, invalid("record at byte %d of a batch of %d", off, len(batch))
	}
	if _, err := r.decode(batch[off:], 0); err != nil {
		return r, invalid("%w", err)
	}
	r.LSN = lsn
	if err := r.check(); err != nil {
		return r, invalid("%w", err)
	}
	return r, nil
}

func invalid(format string, args ...any) error {
	return &formatError{fmt.Errorf("redo: "+format, args...)}
}

// A formatError is an error in the bytes. It matches redoubt.ErrInvalid.
type formatError struct{ error }

func (e *formatError) Unwrap() []error { return []error{redoubt.ErrInvalid, errors.Unwrap(e.error)} }
