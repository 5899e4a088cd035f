package redo

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"reflect"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"pgregory.net/rapid"
)

// A change is a record as the engine that writes it sees it.
type change struct {
	kind   Kind
	lsn    redoubt.LSN
	page   uint32
	prev   redoubt.LSN
	off, n int
	from   int
	data   []byte
	cpl    bool
	nanos  int64
	vdl    redoubt.LSN
}

// drawChange draws a change of one of four pages that follows last, by distances
// that are short more often than not and now and then too long for a batch.
func drawChange(t *rapid.T, last redoubt.LSN, pages map[uint32]redoubt.LSN) change {
	c := change{
		kind: rapid.SampledFrom([]Kind{Write, Write, Fill, Move, Mark}).Draw(t, "kind"),
		page: rapid.Uint32Range(0, 3).Draw(t, "page"),
		cpl:  rapid.Bool().Draw(t, "cpl"),
	}
	gap := rapid.OneOf(rapid.Uint64Range(1, 3), rapid.Uint64Range(65534, 65537), rapid.Uint64Range(1<<32-2, 1<<32+2)).Draw(t, "gap")
	c.lsn = last + redoubt.LSN(gap)
	c.prev = pages[c.page]
	c.n = 1 + rapid.IntRange(0, 40).Draw(t, "n")
	if rapid.IntRange(0, 9).Draw(t, "large") == 0 {
		c.n = rapid.IntRange(1, redoubt.PageSize).Draw(t, "n")
	}
	c.off = rapid.IntRange(0, redoubt.PageSize-c.n).Draw(t, "off")
	c.from = rapid.IntRange(0, redoubt.PageSize-c.n).Draw(t, "from")
	switch c.kind {
	case Write:
		c.data = rapid.SliceOfN(rapid.Byte(), 1, 16).Draw(t, "data")
		c.data = bytes.Repeat(c.data, c.n/len(c.data)+1)[:c.n]
	case Fill:
		c.data = []byte{rapid.Byte().Draw(t, "byte")}
	case Mark:
		c.page, c.prev, c.cpl = MarkPage, 0, false
		c.nanos, c.vdl = rapid.Int64().Draw(t, "nanos"), redoubt.LSN(rapid.Uint64().Draw(t, "vdl"))
	}
	return c
}

func (c *change) addTo(b *Builder) bool {
	switch c.kind {
	case Write:
		return b.Write(c.lsn, c.page, c.prev, c.off, c.data, c.cpl)
	case Fill:
		return b.Fill(c.lsn, c.page, c.prev, c.off, c.n, c.data[0], c.cpl)
	case Move:
		return b.Move(c.lsn, c.page, c.prev, c.off, c.from, c.n, c.cpl)
	}
	return b.Mark(c.lsn, c.nanos, c.vdl)
}

// naive is what the change does, byte by byte and by a copy of the page.
func (c *change) naive(page []byte) {
	before := bytes.Clone(page)
	for i := 0; c.kind != Mark && i < c.n; i++ {
		switch c.kind {
		case Write:
			page[c.off+i] = c.data[i]
		case Fill:
			page[c.off+i] = c.data[0]
		case Move:
			page[c.off+i] = before[c.from+i]
		}
	}
}

// matches reports how the decoded record differs from the change, "" for not.
func (c *change) matches(r *Record) string {
	if r.LSN != c.lsn || r.Kind != c.kind || r.Page != c.page || r.CPL != c.cpl {
		return fmt.Sprintf("record %+v of change %+v", *r, *c)
	}
	if c.kind == Mark {
		if nanos, vdl := r.MarkTime(); nanos != c.nanos || vdl != c.vdl {
			return fmt.Sprintf("mark %d, %d of change %+v", nanos, vdl, *c)
		}
		return ""
	}
	if !r.FollowsPage(c.prev) || c.lsn-c.prev < farLink && c.prev > 0 && (r.FollowsPage(c.prev-1) || r.FollowsPage(c.prev+1)) {
		return fmt.Sprintf("link %d of change %+v", r.Link, *c)
	}
	if covers := c.n == redoubt.PageSize && c.kind != Move; int(r.Off) != c.off || int(r.Len) != c.n || r.Covers() != covers {
		return fmt.Sprintf("bytes %d+%d (covers: %v) of change %+v", r.Off, r.Len, r.Covers(), *c)
	}
	return ""
}

// TestBatchesAgainstModel builds batches one after the other into memory of all
// sizes, reads them back and applies them; the model is a list of changes and
// four pages that are changed byte by byte.
func TestBatchesAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			last  = redoubt.LSN(rapid.OneOf(rapid.Uint64Range(0, 3), rapid.Uint64Range(1<<32-3, 1<<33)).Draw(t, "start"))
			pages = map[uint32]redoubt.LSN{}
			model = map[uint32][]byte{}
			got   = map[uint32][]byte{}
			b     Builder
		)
		for p := range uint32(4) {
			model[p], got[p] = make([]byte, redoubt.PageSize), make([]byte, redoubt.PageSize)
		}
		for range rapid.IntRange(1, 3).Draw(t, "batches") {
			room := rapid.OneOf(rapid.IntRange(MinBatchSize, 400), rapid.IntRange(17000, 70000)).Draw(t, "room")
			pg, epoch, prev := redoubt.PGNo(rapid.Uint32().Draw(t, "pg")), redoubt.Epoch(rapid.Uint64().Draw(t, "epoch")), last
			b.Reset(make([]byte, room), goldenVolume, pg, epoch, prev)
			var in []change
			for range rapid.IntRange(1, 20).Draw(t, "changes") {
				c := drawChange(t, last, pages)
				if !c.addTo(&b) {
					if fits := b.Len()+RecordHeaderSize+payloadLen(c.kind, uint16(c.n)) <= room; fits && (b.Count() == 0 || c.lsn-last <= 65535) {
						t.Fatalf("refused %+v with %d of %d bytes used", c, b.Len(), room)
					}
					continue
				}
				in = append(in, c)
				last = c.lsn
				if c.kind != Mark {
					pages[c.page] = c.lsn
					c.naive(model[c.page])
				}
			}
			if len(in) == 0 {
				continue
			}
			checkBatch(t, b.Finish(), Header{PG: pg, Epoch: epoch, Prev: prev, First: in[0].lsn, Last: last, Count: len(in), Len: b.Len()}, in, got)
		}
		for p := range model {
			if !bytes.Equal(model[p], got[p]) {
				t.Fatalf("page %d differs from the model's", p)
			}
		}
	})
}

func checkBatch(t *rapid.T, batch []byte, want Header, in []change, pages map[uint32][]byte) {
	h, err := Verify(goldenVolume, batch)
	want.CRC = binary.LittleEndian.Uint32(batch)
	if err != nil || h != want {
		t.Fatalf("header %+v (%v), want %+v", h, err, want)
	}
	it := Records(batch, h)
	n := 0
	for ; it.Next(); n++ {
		if diff := in[n].matches(&it.Record); diff != "" {
			t.Fatalf("record %d: %s", n, diff)
		}
		if r, err := RecordAt(batch, it.Offset(), it.LSN); err != nil || !reflect.DeepEqual(r, it.Record) {
			t.Fatalf("record %d alone is %+v, %v", n, r, err)
		}
		if it.Kind != Mark {
			it.Apply(pages[it.Page])
		}
	}
	if it.Err() != nil || n != len(in) {
		t.Fatalf("%d records of %d: %v", n, len(in), it.Err())
	}
}

// TestDamageIsFound flips one bit anywhere in a batch, or cuts it, and expects
// the reader to notice.
func TestDamageIsFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := bytes.Clone(goldenBatch)
		bit := rapid.IntRange(0, len(b)*8-1).Draw(t, "bit")
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := Verify(goldenVolume, b); err == nil {
			t.Fatalf("bit %d flipped, and nobody noticed", bit)
		}
		if _, err := Verify(goldenVolume, goldenBatch[:rapid.IntRange(0, len(goldenBatch)-1).Draw(t, "cut")]); err == nil {
			t.Fatal("cut, and nobody noticed")
		}
	})
}

// TestWordContinuesASum holds word against the definition, for any state.
func TestWordContinuesASum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := rapid.SliceOf(rapid.Byte()).Draw(t, "before")
		v := rapid.Uint64().Draw(t, "word")
		if got, want := ^word(^bitwise(before), v), bitwise(before, binary.LittleEndian.AppendUint64(nil, v)); got != want {
			t.Fatalf("%08x, by definition %08x", got, want)
		}
	})
}

// TestBatchIsBounded: a batch ends at redoubt.MaxBatchBytes, however much memory
// the caller has.
func TestBatchIsBounded(t *testing.T) {
	var b Builder
	b.Reset(make([]byte, redoubt.MaxBatchBytes+1000), goldenVolume, 1, 1, 0)
	lsn := redoubt.LSN(1)
	for b.Fill(lsn, 0, 0, 0, 1, 1, false) {
		lsn++
	}
	if got := b.Len(); got > redoubt.MaxBatchBytes || got+RecordHeaderSize+1 <= redoubt.MaxBatchBytes {
		t.Errorf("ended at %d bytes, the bound is %d", got, redoubt.MaxBatchBytes)
	}
	if h, err := Verify(goldenVolume, b.Finish()); err != nil || h.Count != int(lsn-1) {
		t.Errorf("%d records: %+v, %v", lsn-1, h, err)
	}
}
