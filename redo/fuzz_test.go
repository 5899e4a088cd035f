package redo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"

	"github.com/redoubt-storage/redoubt"
)

// FuzzVerify gives any bytes to the reader of batches, and again with the sum
// made right, because hardly any input would get past it. What is accepted must
// come out of the builder as the same bytes, and apply to a page.
func FuzzVerify(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Verify(goldenVolume, b); err != nil && !errors.Is(err, redoubt.ErrInvalid) && !errors.Is(err, redoubt.ErrCorrupt) {
			t.Fatalf("an error of no kind: %v", err)
		}
		h, err := ParseHeader(b)
		if err != nil || h.Len > len(b) {
			return
		}
		b = bytes.Clone(b[:h.Len])
		binary.LittleEndian.PutUint32(b, Sum(goldenVolume, b))
		h, err = Verify(goldenVolume, b)
		if err != nil {
			if !errors.Is(err, redoubt.ErrInvalid) {
				t.Fatalf("the sum is right, but: %v", err)
			}
			return
		}
		if again, ok := rebuild(t, h, b); ok && !bytes.Equal(again, b) {
			t.Fatalf("accepted\n%x\nbuilt\n%x", b, again)
		}
	})
}

// rebuild applies the batch's records and builds the batch anew from them. It
// reports false for what a reader accepts and no builder makes: a mark that is
// a CPL.
func rebuild(t *testing.T, h Header, b []byte) ([]byte, bool) {
	t.Helper()
	var n Builder
	page := make([]byte, redoubt.PageSize)
	n.Reset(make([]byte, h.Len), goldenVolume, h.PG, h.Epoch, h.Prev)
	it := Records(b, h)
	for it.Next() {
		if r, err := RecordAt(b, it.Offset(), it.LSN); err != nil || !reflect.DeepEqual(r, it.Record) {
			t.Fatalf("record at byte %d is %+v (%v), the walk says %+v", it.Offset(), r, err, it.Record)
		}
		it.Apply(page)
		if it.Kind == Mark && it.CPL {
			return nil, false
		}
		if !add(&n, &it.Record) {
			t.Fatalf("no room for LSN %d in as many bytes as it came from", it.LSN)
		}
	}
	return n.Finish(), it.Err() == nil
}

// add gives a decoded record to a builder.
func add(b *Builder, r *Record) bool {
	var prev redoubt.LSN
	if r.Link != 0 {
		prev = r.LSN - redoubt.LSN(r.Link)
	}
	switch r.Kind {
	case Write:
		return b.Write(r.LSN, r.Page, prev, int(r.Off), r.Data, r.CPL)
	case Fill:
		return b.Fill(r.LSN, r.Page, prev, int(r.Off), int(r.Len), r.Data[0], r.CPL)
	case Move:
		return b.Move(r.LSN, r.Page, prev, int(r.Off), int(binary.LittleEndian.Uint16(r.Data)), int(r.Len), r.CPL)
	}
	nanos, vdl := r.MarkTime()
	return b.Mark(r.LSN, nanos, vdl)
}

// FuzzParseHeader: what is accepted is written back as the same bytes.
func FuzzParseHeader(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil {
			if !errors.Is(err, redoubt.ErrInvalid) {
				t.Fatalf("not ErrInvalid: %v", err)
			}
			return
		}
		again := make([]byte, BatchHeaderSize)
		binary.LittleEndian.PutUint32(again, h.CRC)
		h.put(again)
		if !bytes.Equal(again, b[:BatchHeaderSize]) {
			t.Fatalf("accepted %x, written back as %x", b[:BatchHeaderSize], again)
		}
	})
}

// FuzzRecordAt: any bytes at any offset are a record that applies to a page, or
// an error.
func FuzzRecordAt(f *testing.F) {
	page := make([]byte, redoubt.PageSize)
	f.Fuzz(func(t *testing.T, b []byte, off int, lsn uint64) {
		r, err := RecordAt(b, off, redoubt.LSN(lsn))
		if err != nil {
			if !errors.Is(err, redoubt.ErrInvalid) {
				t.Fatalf("not ErrInvalid: %v", err)
			}
			return
		}
		r.Apply(page)
		r.Covers()
		r.FollowsPage(redoubt.LSN(lsn - 1))
	})
}
