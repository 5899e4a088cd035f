package blockdev

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
)

// unhex reads hex digits with spaces and line breaks between them.
func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// goldenSuper is a superblock in which every byte of every field is another
// than zero and no two fields are alike. Its sum was computed by another program.
const goldenSuper = `
	52444254 53555052 190c8510 a1a2a3a4  a5a6a7a8 a9aaabac adaeafb1 b2b3b4b5
	01020304 05060708 090a0b0c 0d0e0f10  11121314 15161718 191a1b1c 1d1e1f20
	21222324 25262728 292a2b2c 2d2e2f30  31323334 35363738 41424344 45464701
	51525354 55565758 61626364 65666768  71727374 75767778 81828384 85868788
	91929394 95969798 b6b7b8b9 babbbcbd  bebfc1c2 00000000 00000000 00000000`

func signed(u uint64) int64 { return int64(u) }

func TestGoldenSuperblock(t *testing.T) {
	want := unhex(t, goldenSuper)
	s := Superblock{
		Version: 0xa4a3a2a1, Compat: 0xa8a7a6a5, ROCompat: 0xacabaaa9, Incompat: 0xb1afaead, Position: 0xb3b2, Count: 0xb5b4,
		Generation: 0x3837363534333231, Created: time.Unix(0x0147464544434241, 0).UTC(), Clean: 0x5857565554535251,
		TableSum: 0x6867666564636261, Size: 0x7877767574737271, TableOff: signed(0x8887868584838281), DataOff: signed(0x9897969594939291),
		BlockSize: 0xb9b8b7b6, ExtentSize: 0xbdbcbbba, ExtentCount: 0xc2c1bfbe,
		Cluster: redoubt.ClusterID(want[32:48]), Node: redoubt.NodeID(want[48:64]), Device: redoubt.DeviceID(want[64:80]),
	}
	b := make([]byte, superSize)
	s.put(b)
	if !bytes.Equal(b[:len(want)], want) || !allZero(b[len(want):]) {
		t.Errorf("encoded\n%swant\n%s", hex.Dump(b[:len(want)]), hex.Dump(want))
	}
	var back Superblock
	back.get(b)
	if !reflect.DeepEqual(back, s) {
		t.Errorf("decoded\n%+v\nwant\n%+v", back, s)
	}
	// Behind the fields is room for features of later versions; put leaves it.
	b[superUsed] = 0x77
	s.put(b)
	if b[superUsed] != 0x77 {
		t.Error("the bytes behind the fields were changed")
	}
}

// goldenSector is sector 5 of page 0x14131211 of device 01 02 .. 10; of its
// entries the first, the second and the last are set. Its sums were
// computed by another program.
const goldenSector = `
	c106fe44 11121314 21222324 25262728  31323334 35363738 05000000 40eb141e
	41424344 01000000 51525354 00000000  61626364 65666768 00000000 00000000
	71727374 00000000 00000000 00000000  00000000 00000000 00000000 00000000`

const goldenLastEntry = `
	81828384 02000000 91929394 00000000  a1a2a3a4 a5a6a7a8 00000000 00000000`

func TestGoldenTableSector(t *testing.T) {
	page := uint32(0x14131211)
	first := page*pageEntries + 5*sectorEntries
	entries := make([]Extent, pageEntries)
	for i := range entries {
		entries[i].Index = page*pageEntries + uint32(i)
	}
	entries[5*sectorEntries] = Extent{Index: first, Gen: 0x44434241, Role: RoleLog, Owner: 0x54535251, Seq: 0x6867666564636261}
	entries[5*sectorEntries+1] = Extent{Index: first + 1, Gen: 0x74737271}
	entries[5*sectorEntries+14] = Extent{Index: first + 14, Gen: 0x84838281, Role: RolePages, Owner: 0x94939291, Seq: 0xa8a7a6a5a4a3a2a1}
	dev := redoubt.DeviceID(unhex(t, "01020304 05060708 090a0b0c 0d0e0f10"))
	h := slotHeader{page: page, sequence: 0x2827262524232221, super: 0x3837363534333231}
	b := make([]byte, slotSize)
	putSlot(b, tableSeed(dev), h, entries)

	want := make([]byte, sectorSize)
	copy(want, unhex(t, goldenSector))
	copy(want[sectorSize-entrySize:], unhex(t, goldenLastEntry))
	if got := b[5*sectorSize : 6*sectorSize]; !bytes.Equal(got, want) {
		t.Errorf("encoded\n%swant\n%s", hex.Dump(got), hex.Dump(want))
	}
	back := make([]Extent, pageEntries)
	st := parseSlot(b, tableSeed(dev), page, 1, back)
	h.whole = binary.LittleEndian.Uint32(want[28:])
	if st.err != nil || st.slotHeader != h || !reflect.DeepEqual(back, entries) {
		t.Errorf("decoded %+v, %v", st, back)
	}
}

// The places on the device are part of the format.
func TestGoldenLayout(t *testing.T) {
	for _, test := range []struct{ got, want int64 }{
		{superOff(0), 0}, {superOff(1), 65536}, {pageEntries, 120},
		{slotOff(3, 0, 0), 131072}, {slotOff(3, 2, 0), 131072 + 2*4096},
		{slotOff(3, 0, 1), 131072 + 3*4096}, {slotOff(3, 2, 1), 131072 + 5*4096},
	} {
		if test.got != test.want {
			t.Errorf("%d, want %d", test.got, test.want)
		}
	}
	extents, dataOff, err := geometry(512<<20, DefaultExtentSize)
	if err != nil || extents != 127 || dataOff != 1<<20 {
		t.Errorf("512 MiB: %d extents from %d, %v; want 127 from 1 MiB", extents, dataOff, err)
	}
	extents, dataOff, err = geometry(8<<40, DefaultExtentSize)
	if err != nil || extents != 2<<20-35 || dataOff != 137<<20 {
		t.Errorf("8 TiB: %d extents from %d, %v", extents, dataOff, err)
	}
}
