package redo

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/crc32"
	"github.com/redoubt-storage/redoubt"
)

// The golden volume and its batch, with one record of each kind. Within the
// header, and within a record, every field has bytes of its own, none of them
// zero where the field's range allows that, so that no field can pass for
// another.
var (
	goldenVolume = redoubt.VolumeID{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf}

	goldenHeader = Header{
		CRC:   0xe23baa6c,
		Len:   139,
		First: 0x1817161514131211,
		Last:  0x181716151413211d,
		Prev:  0x0807060504030201,
		Epoch: 0x2827262524232221,
		PG:    0x34333231,
		Count: 4,
	}
	goldenRecords = []Record{
		{LSN: 0x1817161514131211, Page: 0x353433, Off: 0x2736, Len: 8, Kind: Write, CPL: true, Link: 0x3b3a3938,
			Data: []byte{0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58}},
		{LSN: 0x1817161514131513, Page: 0x364142, Off: 0x1743, Len: 0x1844, Kind: Fill, Link: 0xffffffff, Data: []byte{0x59}},
		{LSN: 0x1817161514131a17, Page: 0x376162, Off: 0x1963, Len: 0x1a64, Kind: Move, CPL: true, Link: 0x68676665,
			Data: []byte{0x5a, 0x1b}},
		{LSN: 0x181716151413211d, Page: MarkPage, Kind: Mark,
			Data: []byte{0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98}},
	}
	goldenBatch = unhex(`
		6caa3be2 8b000000
		1112131415161718 1d21131415161718 0102030405060708 2122232425262728
		31323334 0400 01 00

		33343500 3627 0800 01 01 0000 38393a3b   5152535455565758
		42413600 4317 4418 02 00 0203 ffffffff   59
		62613700 6319 641a 03 01 0405 65666768   5a1b
		ffffffff 0000 0000 04 00 0607 00000000   8182838485868788 9192939495969798`)
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// buildGolden calls the builder as a driver would.
func buildGolden(t *testing.T, b *Builder) []byte {
	t.Helper()
	h := goldenHeader
	b.Reset(make([]byte, h.Len), goldenVolume, h.PG, h.Epoch, h.Prev)
	r := goldenRecords
	ok := b.Write(r[0].LSN, r[0].Page, r[0].LSN-0x3b3a3938, int(r[0].Off), r[0].Data, true) &&
		b.Fill(r[1].LSN, r[1].Page, 1, int(r[1].Off), int(r[1].Len), 0x59, false) &&
		b.Move(r[2].LSN, r[2].Page, r[2].LSN-0x68676665, int(r[2].Off), 0x1b5a, int(r[2].Len), true) &&
		b.Mark(r[3].LSN, -0x7778797a7b7c7d7f, 0x9897969594939291)
	if !ok || b.Count() != 4 || b.Len() != h.Len || b.Last() != h.Last {
		t.Fatalf("builder: ok %v, %d records, %d bytes, last LSN %d", ok, b.Count(), b.Len(), b.Last())
	}
	return b.Finish()
}

// bitwise is CRC-32C from its definition, one bit after the other.
func bitwise(pieces ...[]byte) uint32 {
	crc := ^uint32(0)
	for _, p := range pieces {
		for _, v := range p {
			crc ^= uint32(v)
			for range 8 {
				crc = crc>>1 ^ 0x82f63b78&-(crc&1)
			}
		}
	}
	return ^crc
}

func TestGoldenBatch(t *testing.T) {
	var b Builder
	got := buildGolden(t, &b)
	if !bytes.Equal(got, goldenBatch) {
		t.Fatalf("built\n%swant\n%s", hex.Dump(got), hex.Dump(goldenBatch))
	}
	if crc := bitwise(got[4:]) ^ bitwise(goldenVolume[:]); crc != goldenHeader.CRC {
		t.Errorf("crc by definition is %08x, want %08x", crc, goldenHeader.CRC)
	}
	h, err := Verify(goldenVolume, goldenBatch)
	if err != nil || h != goldenHeader {
		t.Fatalf("verify: %+v, %v; want %+v", h, err, goldenHeader)
	}
	if FoundKey(h, got) != Key(goldenVolume) {
		t.Errorf("the batch's key is %08x, the volume's %08x", FoundKey(h, got), Key(goldenVolume))
	}
	it := Records(got, h)
	for i := 0; it.Next(); i++ {
		if !reflect.DeepEqual(it.Record, goldenRecords[i]) {
			t.Errorf("record %d is %+v, want %+v", i, it.Record, goldenRecords[i])
		}
		if r, err := RecordAt(got, it.Offset(), it.LSN); err != nil || !reflect.DeepEqual(r, it.Record) {
			t.Errorf("record %d at byte %d is %+v, %v", i, it.Offset(), r, err)
		}
	}
	if it.Err() != nil {
		t.Error(it.Err())
	}
	if nanos, vdl := goldenRecords[3].MarkTime(); nanos != -0x7778797a7b7c7d7f || vdl != 0x9897969594939291 {
		t.Errorf("mark says %#x and VDL %#x", nanos, vdl)
	}
}

// TestForeignVolume: the same bytes are another volume's corruption.
func TestForeignVolume(t *testing.T) {
	var b Builder
	got := buildGolden(t, &b)
	for i := range goldenVolume {
		vol := goldenVolume
		vol[i] ^= 1
		if _, err := Verify(vol, got); !errors.Is(err, redoubt.ErrCorrupt) || errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("volume ID with another byte %d: %v", i, err)
		}
	}
}

// TestGoldenPageSum holds the order of what a page sum covers, against the
// definition and against the second implementation.
func TestGoldenPageSum(t *testing.T) {
	page := make([]byte, redoubt.PageSize)
	for i := range page {
		page[i] = byte(i*7 + i>>8)
	}
	const (
		no  = redoubt.PageNo(0xc7c6c5c4c3c2c1c0)
		lsn = redoubt.LSN(0xd7d6d5d4d3d2d1d0)
	)
	head := append(goldenVolume[:len(goldenVolume):len(goldenVolume)], unhex("c0c1c2c3c4c5c6c7 d0d1d2d3d4d5d6d7")...)
	got := PageSum(goldenVolume, no, lsn, page)
	if want := uint32(0x9802f7d3); got != want {
		t.Errorf("page sum %08x, want %08x", got, want)
	}
	if want := bitwise(head, page); got != want {
		t.Errorf("page sum %08x, by definition %08x", got, want)
	}
	tab := crc32.MakeTable(crc32.Castagnoli)
	if want := crc32.Update(crc32.Checksum(head, tab), tab, page); got != want {
		t.Errorf("page sum %08x, klauspost/crc32 says %08x", got, want)
	}
	for i := range head {
		v, p, l := goldenVolume, no, lsn
		switch {
		case i < 16:
			v[i] ^= 0x10
		case i < 24:
			p ^= 0x10 << (8 * (i - 16))
		default:
			l ^= 0x10 << (8 * (i - 24))
		}
		if PageSum(v, p, l, page) == got {
			t.Errorf("page sum doesn't depend on byte %d of what it binds", i)
		}
	}
}
