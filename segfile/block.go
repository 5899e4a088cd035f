package segfile

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/redo"
)

const (
	// RunHeaderSize and BlockHeaderSize are the sizes of the headers on disk
	// and, since they replace each other in place, of the frame header and the
	// entry header of an append frame on the wire.
	RunHeaderSize   = 32
	BlockHeaderSize = 24

	// BlockAlign is the boundary on which blocks begin within a run.
	BlockAlign = 8

	runMagic    = uint32('R') | 'D'<<8 | 'R'<<16 | '1'<<24
	fillerMagic = uint32('R') | 'D'<<8 | 'F'<<16 | '1'<<24
)

// BlockKind says what a block holds.
type BlockKind uint8

const (
	BlockRedo      BlockKind = 1
	BlockMap       BlockKind = 2
	BlockRoot      BlockKind = 3
	BlockState     BlockKind = 4
	BlockTombstone BlockKind = 5
	BlockRestart   BlockKind = 6
	BlockVoid      BlockKind = 7
)

var blockKindNames = [...]string{BlockRedo: "redo", BlockMap: "map", BlockRoot: "root", BlockState: "state",
	BlockTombstone: "tombstone", BlockRestart: "restart", BlockVoid: "void"}

func (k BlockKind) String() string {
	if int(k) < len(blockKindNames) && blockKindNames[k] != "" {
		return blockKindNames[k]
	}
	return "unknown kind"
}

func (k BlockKind) valid() bool { return k >= BlockRedo && k <= BlockVoid }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A seed starts every sum of a device's log, so that no other device's bytes
// pass.
type seed uint32

func newSeed(id redoubt.DeviceID) seed { return seed(crc32.Checksum(id[:], castagnoli)) }

// A runHeader is the header of a run or of a filler.
type runHeader struct {
	filler  bool
	used    uint32
	gen     uint32
	pos     uint64
	durable uint64
}

func (h *runHeader) put(b []byte, s seed) {
	le := binary.LittleEndian
	le.PutUint32(b, runMagic)
	if h.filler {
		le.PutUint32(b, fillerMagic)
	}
	le.PutUint32(b[8:], h.used)
	le.PutUint32(b[12:], h.gen)
	le.PutUint64(b[16:], h.pos)
	le.PutUint64(b[24:], h.durable)
	le.PutUint32(b[4:], s.sum2(b[0:4], b[8:RunHeaderSize]))
}

// parseRunHeader returns the header at the start of b, and whether its sum is
// right.
func parseRunHeader(b []byte, s seed) (h runHeader, ok bool) {
	if len(b) < RunHeaderSize {
		return h, false
	}
	le := binary.LittleEndian
	magic := le.Uint32(b)
	h = runHeader{
		filler:  magic == fillerMagic,
		used:    le.Uint32(b[8:]),
		gen:     le.Uint32(b[12:]),
		pos:     le.Uint64(b[16:]),
		durable: le.Uint64(b[24:]),
	}
	ok = (magic == runMagic || h.filler) && le.Uint32(b[4:]) == s.sum2(b[0:4], b[8:RunHeaderSize])
	return h, ok
}

// sum2 sums two stretches, one behind the other.
func (s seed) sum2(a, b []byte) uint32 {
	return crc32.Update(crc32.Update(uint32(s), castagnoli, a), castagnoli, b)
}

// A blockHeader is the header of a block.
type blockHeader struct {
	len  int
	kind BlockKind
	tag  uint32
	gen  uint32
	pos  uint64
}

// covered returns the part of the content that the header's sum covers.
func (h *blockHeader) covered(content []byte) []byte {
	switch h.kind {
	case BlockRedo:
		return content[:redo.BatchHeaderSize]
	case BlockVoid:
		return nil
	}
	return content[:h.len]
}

// put writes the header in front of its content, which stands at b[24:].
func (h *blockHeader) put(b []byte, s seed) {
	if h.len >= 1<<24 {
		invariant.Assert(false, "segfile: block of %d bytes", h.len)
	}
	le := binary.LittleEndian
	le.PutUint32(b[4:], uint32(h.len)|uint32(h.kind)<<24)
	le.PutUint32(b[8:], h.tag)
	le.PutUint32(b[12:], h.gen)
	le.PutUint64(b[16:], h.pos)
	le.PutUint32(b, s.sum2(b[4:BlockHeaderSize], h.covered(b[BlockHeaderSize:])))
}

// parseBlockHeader returns the header at the start of b, and whether it and
// its content lie in b and pass the sum. The content of a redo block still has
// its own sum to pass.
func parseBlockHeader(b []byte, s seed) (h blockHeader, ok bool) {
	if len(b) < BlockHeaderSize {
		return h, false
	}
	le := binary.LittleEndian
	h = blockHeader{
		len:  int(le.Uint32(b[4:]) & (1<<24 - 1)),
		kind: BlockKind(b[7]),
		tag:  le.Uint32(b[8:]),
		gen:  le.Uint32(b[12:]),
		pos:  le.Uint64(b[16:]),
	}
	content := b[BlockHeaderSize:]
	if !h.kind.valid() || h.len > len(content) || h.kind == BlockRedo && h.len < redo.MinBatchSize {
		return h, false
	}
	return h, le.Uint32(b) == s.sum2(b[4:BlockHeaderSize], h.covered(content))
}

// blockSize returns the bytes that a block with a content of n takes in a run.
func blockSize(n int) int {
	return (BlockHeaderSize + n + BlockAlign - 1) &^ (BlockAlign - 1)
}

// BlockSize returns the bytes that a block with a content of n bytes takes
// within a run, its header and padding included.
func BlockSize(n int) int { return blockSize(n) }

func alignUp(n, to int64) int64 { return (n + to - 1) / to * to }
