package blockdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/redoubt-storage/redoubt"
)

// FuzzDecodeSuperblock: any bytes are answered, what is accepted stays on its
// device and is encoded back to the same bytes. The sum is put right, or the fuzzer
// would never get past it.
func FuzzDecodeSuperblock(f *testing.F) {
	sb := Superblock{Version: Version, Cluster: redoubt.ClusterID(id(1)), Node: redoubt.NodeID(id(2)), Device: redoubt.DeviceID(id(3)),
		Count: 8, Position: 3, Size: smallSize, BlockSize: 512, ExtentSize: smallExtent, ExtentCount: 16, TableOff: tableOff, DataOff: 1 << 20,
		Generation: 5, Clean: 77, TableSum: 3}
	b := make([]byte, superSize)
	sb.put(b)
	f.Add(b[:superUsed], true)
	f.Add(b[:superUsed], false)
	f.Add([]byte("not a superblock"), false)
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		b := make([]byte, superSize)
		copy(b, data)
		if seal {
			copy(b, superMagic)
			binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[12:], castagnoli))
		}
		s, err := parseSuper(b)
		if err != nil {
			if !errors.Is(err, redoubt.ErrForeign) && !errors.Is(err, redoubt.ErrCorrupt) && !errors.Is(err, redoubt.ErrInvalid) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if s.end() > s.Size || slotOff(tablePages(s.ExtentCount), uint32(tablePages(s.ExtentCount)), 1) > s.DataOff || s.DataOff < tableOff {
			t.Fatalf("accepted, and leads outside: %+v", s)
		}
		back := bytes.Clone(b)
		if s.put(back); !bytes.Equal(back, b) {
			t.Fatalf("%+v is encoded otherwise than it was", s)
		}
	})
}

// FuzzDecodeTablePage: any bytes are answered, and what is accepted is encoded
// back to the same bytes. The input is one sector, so that the fuzzer's inputs stay
// small: it stands where the bits of where say, in an otherwise whole page of
// n entries, with right numbers and sums if mend is set.
func FuzzDecodeTablePage(f *testing.F) {
	seed := tableSeed(redoubt.DeviceID(id(3)))
	page := func(n int, sequence uint64) []byte {
		entries := make([]Extent, n)
		for i := range entries {
			entries[i] = Extent{Index: uint32(pageEntries + i), Gen: 7, Role: RoleLog, Seq: uint64(i)}
		}
		b := make([]byte, slotSize)
		putSlot(b, seed, slotHeader{page: 1, sequence: sequence, super: 2}, entries)
		return b
	}
	f.Add(page(pageEntries, 8)[:sectorSize], uint8(1), true, uint8(pageEntries))
	f.Add(page(pageEntries, 6)[:sectorSize], uint8(1), false, uint8(pageEntries))
	f.Add(page(16, 8)[sectorSize:2*sectorSize], uint8(2), true, uint8(16))
	f.Add([]byte("not a sector"), uint8(255), true, uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, where uint8, mend bool, n uint8) {
		b := page(min(int(n), pageEntries), 8)
		for i := range slotSectors {
			if s := b[i*sectorSize : (i+1)*sectorSize]; where>>i&1 == 1 {
				clear(s[copy(s, data):])
			}
		}
		if mend {
			whole := entriesSum(b)
			for i := range slotSectors {
				s := b[i*sectorSize : (i+1)*sectorSize]
				s[24] = byte(i)
				binary.LittleEndian.PutUint32(s[28:], whole)
				binary.LittleEndian.PutUint32(s, crc32.Update(seed, castagnoli, s[4:]))
			}
		}
		entries := make([]Extent, min(int(n), pageEntries))
		st := parseSlot(b, seed, 1, 0, entries)
		if st.err != nil {
			if !errors.Is(st.err, redoubt.ErrCorrupt) && !errors.Is(st.err, redoubt.ErrInvalid) {
				t.Fatalf("an error of no kind: %v", st.err)
			}
			return
		}
		if st.oldest != st.newest || st.sequence != st.oldest || st.slot() != 0 || st.page != 1 {
			t.Fatalf("accepted: %+v", st)
		}
		back := make([]byte, slotSize)
		if putSlot(back, seed, st.slotHeader, entries); !bytes.Equal(back, b) {
			t.Fatalf("%+v is encoded otherwise than it was", st)
		}
	})
}
