package segfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
)

// frugal runs a decoder and fails if it took memory by a length that it hasn't
// checked: more than a few times its input.
func frugal(t *testing.T, input int, decode func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	decode()
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > uint64(64*input)+1<<20 {
		t.Fatalf("%d bytes of input made the decoder take %d", input, took)
	}
}

// ofKind fails unless an error says which kind it is.
func ofKind(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, redoubt.ErrInvalid) && !errors.Is(err, redoubt.ErrCorrupt) {
		t.Fatalf("an error of no kind: %v", err)
	}
}

// FuzzRunHeader: any bytes are answered, and what is accepted is encoded back to
// the same bytes. With seal the magic and the sum are put right, or the fuzzer
// would never get past them.
func FuzzRunHeader(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte, seal, filler bool) {
		if seal && len(b) >= RunHeaderSize {
			binary.LittleEndian.PutUint32(b, runMagic)
			if filler {
				binary.LittleEndian.PutUint32(b, fillerMagic)
			}
			binary.LittleEndian.PutUint32(b[4:], goldenSeed.sum2(b[0:4], b[8:RunHeaderSize]))
		}
		h, ok := parseRunHeader(b, goldenSeed)
		if !ok {
			if seal && len(b) >= RunHeaderSize {
				t.Fatalf("refused: %+v", h)
			}
			return
		}
		back := make([]byte, RunHeaderSize)
		if h.put(back, goldenSeed); !bytes.Equal(back, b[:RunHeaderSize]) {
			t.Fatalf("%+v is encoded otherwise than it was", h)
		}
	})
}

// FuzzBlockHeader: any bytes are answered, no length leads outside them, and what
// is accepted is encoded back to the same bytes.
func FuzzBlockHeader(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		h, ok := parseBlockHeader(b, goldenSeed)
		if seal && !ok && h.kind.valid() && h.len <= len(b)-BlockHeaderSize {
			if h.kind == BlockRedo && h.len < 48 {
				return // shorter than any batch
			}
			binary.LittleEndian.PutUint32(b, goldenSeed.sum2(b[4:BlockHeaderSize], h.covered(b[BlockHeaderSize:])))
			h, ok = parseBlockHeader(b, goldenSeed)
		}
		if !ok {
			return
		}
		back := bytes.Clone(b)
		clear(back[:BlockHeaderSize])
		if h.put(back, goldenSeed); !bytes.Equal(back, b) {
			t.Fatalf("%+v is encoded otherwise than it was", h)
		}
	})
}

// FuzzState: any bytes are answered as a state and as a root, and what is
// accepted is one that a segment may have and is encoded back to the same bytes.
func FuzzState(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		frugal(t, len(b), func() {
			var s segState
			rest, err := s.parse(b)
			if err != nil {
				ofKind(t, err)
				return
			}
			if len(s.truncs) > maxTruncations || s.check() != nil || s.unknown.Reason > Corrupt {
				t.Fatalf("accepted: %+v", s)
			}
			clear(b[50:52]) // reserved
			clear(b[120:128])
			if back := s.append(nil); !bytes.Equal(back, b[:len(b)-len(rest)]) {
				t.Fatalf("%+v is encoded otherwise than it was", s)
			}
			refs := newPageMap(s.Pages).refs
			if err := parseRoot(rest, refs); err != nil {
				ofKind(t, err)
				return
			}
			if !bytes.Equal(appendRoot(nil, refs), rest) {
				t.Fatalf("root %+v is encoded otherwise than it was", refs)
			}
		})
	})
}

// FuzzMapBlock: any bytes are answered, and no change leads outside the segment.
func FuzzMapBlock(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte, pages uint32) {
		frugal(t, len(b), func() {
			var changes []MapChange
			h, err := parseMapBlock(b, pages, func(c MapChange) {
				if c.Page >= pages || c.Slot == 0 {
					t.Fatalf("accepted: %+v of %d pages", c, pages)
				}
				changes = append(changes, c)
			})
			if err != nil {
				ofKind(t, err)
				return
			}
			for at := mapChangeHead; at < len(b); at += mapChangeSize {
				clear(b[at+12 : at+16]) // reserved
			}
			if !bytes.Equal(appendMapBlock(nil, h, changes), b) {
				t.Fatalf("%+v %+v is encoded otherwise than it was", h, changes)
			}
		})
	})
}

// FuzzRestart: any bytes are answered, and what is accepted is encoded back to
// the same bytes.
func FuzzRestart(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		frugal(t, len(b), func() {
			var r restart
			if err := r.parse(b); err != nil {
				ofKind(t, err)
				return
			}
			for _, h := range r.holes {
				if h.To < h.From || h.Class != Torn && h.Class != Corrupt {
					t.Fatalf("accepted: hole %+v", h)
				}
			}
			clear(b[20:24]) // reserved
			if !bytes.Equal(r.append(nil), b) || len(r.holes) > maxHoles {
				t.Fatalf("%+v is encoded otherwise than it was", r)
			}
		})
	})
}

// FuzzMapPage: any bytes are answered, and what is accepted is encoded back to
// the same entries. The input stands at the start of a page of zeros; seal
// puts the magic and the sum right.
func FuzzMapPage(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte, tag uint32, chunk uint16, seal bool) {
		b := make([]byte, redoubt.PageSize)
		copy(b, data)
		if seal {
			binary.LittleEndian.PutUint32(b, mapMagic)
			binary.LittleEndian.PutUint32(b[4:], goldenSeed.sum2(b[0:4], b[8:]))
		}
		var entries [MapChunk]pageEntry
		err := parseMapPage(b, goldenSeed, tag, int(chunk), &entries)
		if err != nil {
			ofKind(t, err)
			return
		}
		back := make([]byte, redoubt.PageSize)
		putMapPage(back, goldenSeed, tag, int(chunk), &entries)
		if !bytes.Equal(back[mapHeaderSize:], b[mapHeaderSize:]) || !bytes.Equal(back[8:20], b[8:20]) {
			t.Fatal("a map page is encoded otherwise than it was")
		}
		if parseMapPage(data, goldenSeed, tag, int(chunk), &entries) == nil && len(data) < redoubt.PageSize {
			t.Fatalf("a map page of %d bytes is believed", len(data))
		}
	})
}

// sampleExtent returns an extent of 8 KiB with runs of several blocks and a
// filler, as place writes them.
func sampleExtent() (blockdev.Extent, uint64, []byte) {
	e := blockdev.Extent{Index: 1, Gen: 0x18171615, Role: blockdev.RoleLog, Seq: 3}
	b := make([]byte, 8<<10)
	base, off := e.Seq*uint64(len(b)), 0
	for i := range 6 {
		r := &Run{Used: RunHeaderSize}
		mem := b[off:]
		for j := range i + 1 {
			kind := []BlockKind{BlockState, BlockMap, BlockVoid, BlockTombstone}[(i+j)%4]
			content := bytes.Repeat([]byte{byte(i + 1)}, 20+90*j)
			if kind == BlockVoid {
				clear(content) // no sum covers it
			}
			if err := r.append(mem, nil, kind, func(dst []byte) []byte { return append(dst, content...) }); err != nil {
				panic(err)
			}
		}
		r.pad(mem, 512)
		r.stamp(goldenSeed, e.Gen, base+uint64(off), base+uint64(off))
		off += len(r.Bytes)
	}
	h := runHeader{filler: true, used: uint32(len(b) - off), gen: e.Gen, pos: base + uint64(off), durable: base}
	h.put(b[off:], goldenSeed)
	return e, base, b
}

// FuzzScan: whatever stands in an extent of the log, the scan ends, every block
// it takes lies in the extent, and the holes are apart, ascending and inside. The
// input overwrites a part of a good extent, or makes the whole of one.
func FuzzScan(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte, at uint16, over bool) {
		e, base, b := sampleExtent()
		if !over {
			clear(b)
		}
		copy(b[int(at)%len(b):], data)
		frugal(t, len(b), func() { checkScan(t, e, base, b) })
	})
}

func checkScan(t *testing.T, e blockdev.Extent, base uint64, b []byte) *scanner {
	t.Helper()
	next, end := base, base+uint64(len(b))
	s := &scanner{seed: goldenSeed, blockSize: 512}
	s.visit = func(f foundBlock) {
		if f.pos < next || f.pos+BlockHeaderSize+uint64(len(f.content)) > end || len(f.content) != f.len || f.gen != e.Gen {
			t.Fatalf("block %+v, after %d, in [%d, %d)", f.blockHeader, next, base, end)
		}
		next = f.pos + uint64(blockSize(f.len))
	}
	alive := s.extent(e, base, b)
	last := base
	for _, h := range s.holes {
		if h.From < last || h.To <= h.From || h.To > end {
			t.Fatalf("holes %v in [%d, %d)", s.holes, base, end)
		}
		last = h.To
	}
	if len(s.holes) > maxHoles || s.end > end || alive != (s.end > base) || !alive && (s.blocks > 0 || len(s.holes) > 0) {
		t.Fatalf("alive %v, end %d of [%d, %d), %d blocks, holes %v", alive, s.end, base, end, s.blocks, s.holes)
	}
	return s
}

// The sample that the fuzzer starts from is a good one.
func TestScanOfAGoodExtent(t *testing.T) {
	e, base, b := sampleExtent()
	s := checkScan(t, e, base, b)
	if s.runs != 7 || s.blocks != 1+2+3+4+5+6 || len(s.holes) != 0 || s.end != base+uint64(len(b)) {
		t.Fatalf("%d runs, %d blocks, end %d, holes %v", s.runs, s.blocks, s.end-base, s.holes)
	}
	// Each sector lost in turn costs what stood in it and is a hole.
	const filler = 6 << 10
	for off := 0; off < filler; off += 512 {
		x := bytes.Clone(b)
		clear(x[off : off+512])
		if bytes.Equal(x, b) {
			continue // padding
		}
		if s := checkScan(t, e, base, x); len(s.holes) == 0 || s.blocks > 20 || s.blocks < 13 {
			t.Fatalf("without the sector at %d: %d blocks, holes %v", off, s.blocks, s.holes)
		}
	}
	// The filler's loss looks like the end of the log, until a later extent is found.
	clear(b[filler : filler+512])
	if s := checkScan(t, e, base, b); s.end != base+filler || s.blocks != 21 {
		t.Fatalf("without the filler: end %d, %d blocks", s.end-base, s.blocks)
	}
}

// Bytes of an earlier life of the extent, of another place and of another device
// are no blocks of this life.
func TestScanBelievesOnlyThisLife(t *testing.T) {
	e, base, b := sampleExtent()
	older := e
	older.Gen--
	for _, test := range []struct {
		name string
		e    blockdev.Extent
		base uint64
		seed seed
	}{
		{"generation", older, base, goldenSeed}, {"position", e, base + uint64(len(b)), goldenSeed}, {"device", e, base, goldenSeed + 1},
	} {
		s := &scanner{seed: test.seed, blockSize: 512, visit: func(f foundBlock) {
			t.Errorf("block at %d of another %s is believed", f.pos, test.name)
		}}
		s.extent(test.e, test.base, b)
		if s.runs > 0 || s.witness > 0 {
			t.Errorf("%d runs of another %s are believed, witness %d", s.runs, test.name, s.witness)
		}
		// A torn write leaves its header before blocks of an earlier life.
		torn := bytes.Clone(b)
		h, _ := parseRunHeader(torn, goldenSeed)
		h.gen, h.pos = test.e.Gen, test.base
		h.put(torn, test.seed)
		if s.extent(test.e, test.base, torn); s.runs != 1 {
			t.Errorf("%s: %d runs where one was put", test.name, s.runs)
		}
	}
}
