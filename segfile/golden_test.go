package segfile

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"

	"github.com/redoubt-storage/redoubt"
)

// The bytes in this file were put together, and their sums computed, by another
// program, for the device 01 02 .. 10. Every byte of every field that may have
// any value is other than zero, and no two fields are alike.
var goldenSeed = newSeed(redoubt.DeviceID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})

// unhex reads hex digits with spaces and line breaks between them.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sameBytes fails unless got is what was written down.
func sameBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s is encoded as\n%swant\n%s", what, hex.Dump(got), hex.Dump(want))
	}
}

// everyFlip fails unless ok reports false for each bit of b's first n bytes that
// is flipped.
func everyFlip(t *testing.T, what string, b []byte, n int, ok func([]byte) bool) {
	t.Helper()
	for i := range 8 * n {
		x := bytes.Clone(b)
		x[i/8] ^= 1 << (i % 8)
		if ok(x) {
			t.Errorf("%s: bit %d of byte %d may be flipped, and nobody sees it", what, i%8, i/8)
		}
	}
}

func TestGoldenRunHeader(t *testing.T) {
	for _, test := range []struct {
		name, want string
		h          runHeader
	}{
		{"run header", "52445231 d53c9050 21222324 25262728 31323334 35363738 41424344 45464748",
			runHeader{used: 0x24232221, gen: 0x28272625, pos: 0x3837363534333231, durable: 0x4847464544434241}},
		{"filler", "52444631 90362489 51525354 55565758 61626364 65666768 71727374 75767778",
			runHeader{filler: true, used: 0x54535251, gen: 0x58575655, pos: 0x6867666564636261, durable: 0x7877767574737271}},
	} {
		want, b := unhex(t, test.want), make([]byte, RunHeaderSize)
		test.h.put(b, goldenSeed)
		sameBytes(t, test.name, b, want)
		if h, ok := parseRunHeader(want, goldenSeed); !ok || h != test.h {
			t.Errorf("%s is decoded as %+v, %v, want %+v", test.name, h, ok, test.h)
		}
		everyFlip(t, test.name, want, RunHeaderSize, func(b []byte) bool { _, ok := parseRunHeader(b, goldenSeed); return ok })
		if _, ok := parseRunHeader(want, newSeed(redoubt.DeviceID{2})); ok {
			t.Errorf("%s of another device is believed", test.name)
		}
	}
}

// goldenBlocks has a block of each kind, and how much of its content the
// header's sum covers: all of it, but of redo the batch's header only, which has
// a sum of its own, and nothing of a void block, whose content nobody reads.
var goldenBlocks = []struct {
	kind    BlockKind
	covered int
	bytes   string
}{
	{BlockRedo, 48, `
		759fecdd 60000001 11121314 15161718 21222324 25262728 81828384 85868788
		898a8b8c 8d8e8f90 91929394 95969798 999a9b9c 9d9e9fa0 a1a2a3a4 a5a6a7a8
		a9aaabac adaeafb0 b1b2b3b4 b5b6b7b8 b9babbbc bdbebfc0 c1c2c3c4 c5c6c7c8
		c9cacbcc cdcecfd0 d1d2d3d4 d5d6d7d8 d9dadbdc dddedfe0`},
	{BlockMap, 20, `
		094deb87 14000002 11121314 15161718 21222324 25262728 92939495 96979899
		9a9b9c9d 9e9fa0a1 a2a3a4a5`},
	{BlockRoot, 20, `
		31fe3ecb 14000003 11121314 15161718 21222324 25262728 93949596 9798999a
		9b9c9d9e 9fa0a1a2 a3a4a5a6`},
	{BlockState, 20, `
		bedd443a 14000004 11121314 15161718 21222324 25262728 94959697 98999a9b
		9c9d9e9f a0a1a2a3 a4a5a6a7`},
	{BlockTombstone, 20, `
		d58a53ab 14000005 11121314 15161718 21222324 25262728 95969798 999a9b9c
		9d9e9fa0 a1a2a3a4 a5a6a7a8`},
	{BlockRestart, 20, `
		021f20eb 14000006 11121314 15161718 21222324 25262728 96979899 9a9b9c9d
		9e9fa0a1 a2a3a4a5 a6a7a8a9`},
	{BlockVoid, 0, `
		d69cfc0e 14000007 11121314 15161718 21222324 25262728 a1a2a3a4 a5a6a7a8
		a9aaabac adaeafb0 b1b2b3b4`},
}

func TestGoldenBlockHeader(t *testing.T) {
	for _, test := range goldenBlocks {
		want := unhex(t, test.bytes)
		h := blockHeader{len: len(want) - BlockHeaderSize, kind: test.kind, tag: 0x14131211, gen: 0x18171615, pos: 0x2827262524232221}
		b := bytes.Clone(want)
		clear(b[:BlockHeaderSize])
		h.put(b, goldenSeed)
		sameBytes(t, test.kind.String()+" block", b, want)
		parse := func(b []byte) bool { _, ok := parseBlockHeader(b, goldenSeed); return ok }
		if got, ok := parseBlockHeader(want, goldenSeed); !ok || got != h {
			t.Errorf("%v block is decoded as %+v, %v, want %+v", test.kind, got, ok, h)
		}
		everyFlip(t, test.kind.String()+" block", want, BlockHeaderSize+test.covered, parse)
		for i := BlockHeaderSize + test.covered; i < len(want); i++ {
			if b[i] ^= 1; !parse(b) {
				t.Errorf("%v block: the sum covers byte %d, which the format leaves to others", test.kind, i)
			}
			b[i] ^= 1
		}
		if parse(want[:len(want)-1]) {
			t.Errorf("%v block: a cut one is believed", test.kind)
		}
	}
}

func TestGoldenMapBlock(t *testing.T) {
	want := unhex(t, `
		11121314 15161718 191a1b1c 1d1e1f20 21222324 25262728 31320000 35363738
		393a3b3c 00000000 41424344 45464748 51520000 55565758 595a5b5c 00000000
		61626364 65666768`)
	head := mapHead{coalesced: 0x1817161514131211, vdl: 0x201f1e1d1c1b1a19, floor: 0x2827262524232221}
	changes := []MapChange{
		{Page: 0x3231, Slot: 0x38373635, Sum: 0x3c3b3a39, LSN: 0x4847464544434241},
		{Page: 0x5251, Slot: 0x58575655, Sum: 0x5c5b5a59, LSN: 0x6867666564636261},
	}
	sameBytes(t, "map block", appendMapBlock(nil, head, changes), want)
	var got []MapChange
	h, err := parseMapBlock(want, redoubt.MaxPGPages, func(c MapChange) { got = append(got, c) })
	if err != nil || h != head || !reflect.DeepEqual(got, changes) {
		t.Errorf("map block is decoded as %+v %+v, %v", h, got, err)
	}
}

// goldenState is a state with two truncations.
const goldenState = `
	11121314 15161718 21222324 25262728 292a2b2c 2d2e2f30 31323334 35363738
	393a3b3c 3d3e3f40 41420300 45462700 02010000 02000000 51525354 55565758
	595a5b5c 5d5e5f60 61626364 65666768 696a6b6c 6d6e6f70 71727374 75767778
	797a7b7c 7d7e7f80 81828384 85868788 898a8b8c 8d8e8f90 00000000 00000000
	91929394 95969798 999a9b9c 9d9e9fa0 a1a2a3a4 a5a6a7a8 b1b2b3b4 b5b6b7b8
	b9babbbc bdbebfc0 c1c2c3c4 c5c6c7c8`

const goldenRoot = "03000000 c9cacbcc cdcecfd0 d1d2d3d4 d5d6d7d8 d9dadbdc dddedfe0"

func TestGoldenState(t *testing.T) {
	state, root := unhex(t, goldenState), unhex(t, goldenRoot)
	s := segState{
		SegmentSpec: SegmentSpec{ID: redoubt.SegmentID(state[8:24]), Volume: redoubt.VolumeID(state[24:40]), PG: 0x00034241, Pages: 0x00274645,
			Kind: redoubt.TailSegment, Epoch: 0x5857565554535251, Membership: 0x605f5e5d5c5b5a59, Geometry: 0x6867666564636261},
		version: 0x1817161514131211, coalesced: 0x706f6e6d6c6b6a69, vdl: 0x7877767574737271, floor: 0x807f7e7d7c7b7a79,
		unknown: Unknown{Reason: Torn, Above: 0x8887868584838281, To: 0x908f8e8d8c8b8a89},
		truncs: []redoubt.Truncation{{Epoch: 0x9897969594939291, From: 0xa09f9e9d9c9b9a99, To: 0xa8a7a6a5a4a3a2a1},
			{Epoch: 0xb8b7b6b5b4b3b2b1, From: 0xc0bfbebdbcbbbab9, To: 0xc8c7c6c5c4c3c2c1}},
	}
	refs := []chunkRef{{slot: 0xcccbcac9, sum: 0xd0cfcecd}, {slot: 0xd4d3d2d1, sum: 0xd8d7d6d5}, {slot: 0xdcdbdad9, sum: 0xe0dfdedd}}
	sameBytes(t, "state", s.append(nil), state)
	sameBytes(t, "root", appendRoot(nil, refs), root)
	var back segState
	rest, err := back.parse(append(bytes.Clone(state), root...))
	if err != nil || !reflect.DeepEqual(back, s) || !bytes.Equal(rest, root) {
		t.Fatalf("state is decoded as\n%+v, %d bytes left, %v, want\n%+v", back, len(rest), err, s)
	}
	got := make([]chunkRef, 3)
	if err := parseRoot(rest, got); err != nil || !reflect.DeepEqual(got, refs) {
		t.Fatalf("root is decoded as %+v, %v", got, err)
	}
}

func TestGoldenRestart(t *testing.T) {
	want := unhex(t, `
		11121314 15161718 191a1b1c 1d1e1f20 02000000 00000000 21222324 25262728
		292a2b2c 2d2e2f30 01000000 00000000 41424344 45464748 494a4b4c 4d4e4f50
		02000000 00000000`)
	r := restart{witness: 0x1817161514131211, end: 0x201f1e1d1c1b1a19, holes: []Hole{
		{From: 0x2827262524232221, To: 0x302f2e2d2c2b2a29, Class: Torn}, {From: 0x4847464544434241, To: 0x504f4e4d4c4b4a49, Class: Corrupt}}}
	sameBytes(t, "restart block", r.append(nil), want)
	var back restart
	if err := back.parse(want); err != nil || !reflect.DeepEqual(back, r) {
		t.Fatalf("restart block is decoded as %+v, %v", back, err)
	}
}

func TestGoldenMapPage(t *testing.T) {
	head := unhex(t, `
		52444d31 757c3b4a 11121314 15161718 fc030000 00000000 00000000 00000000
		00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
		41424344 45464748 494a4b4c 4d4e4f50 51525354 55565758 595a5b5c 5d5e5f60`)
	want := make([]byte, redoubt.PageSize)
	copy(want, head)
	copy(want[redoubt.PageSize-mapEntrySize:], unhex(t, "61626364 65666768 696a6b6c 6d6e6f70"))
	const tag, chunk = 0x14131211, 0x18171615
	var entries, back [MapChunk]pageEntry
	entries[0] = pageEntry{slot: 0x44434241, sum: 0x48474645, lsn: 0x504f4e4d4c4b4a49}
	entries[1] = pageEntry{slot: 0x54535251, sum: 0x58575655, lsn: 0x605f5e5d5c5b5a59}
	entries[MapChunk-1] = pageEntry{slot: 0x64636261, sum: 0x68676665, lsn: 0x706f6e6d6c6b6a69}
	b := bytes.Repeat([]byte{0xee}, redoubt.PageSize) // what the slab held before
	sum := putMapPage(b, goldenSeed, tag, chunk, &entries)
	sameBytes(t, "map page", b, want)
	if err := parseMapPage(want, goldenSeed, tag, chunk, &back); err != nil || back != entries || mapPageSum(want) != sum {
		t.Errorf("map page is not decoded as it was encoded: %v, sum %08x", err, sum)
	}
	for i := 0; i < len(want); i += 61 {
		want[i] ^= 0x10
		if parseMapPage(want, goldenSeed, tag, chunk, &back) == nil {
			t.Errorf("a flipped bit in byte %d of a map page goes unnoticed", i)
		}
		want[i] ^= 0x10
	}
	if parseMapPage(want, goldenSeed, tag+1, chunk, &back) == nil || parseMapPage(want, goldenSeed, tag, chunk+1, &back) == nil {
		t.Error("a map page of another segment or chunk is believed")
	}
}
