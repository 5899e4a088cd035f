package guest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
)

// A stand-in record, in whole logical blocks:
//
//	 0       4       8              16      20      24              32      36      40
//	+-------+-------+---------------+-------+-------+---------------+-------+-------+
//	| magic |  crc  |    number     | life  |stream |     seed      | bytes |   0   |
//	+-------+-------+---------------+-------+-------+---------------+-------+-------+
//	| payload: a function of seed, stream, number and life, up to the whole length  |
//	+-------------------------------------------------------------------------------+
//
// crc is CRC-32C of everything from byte 8 on.
const (
	recordMagic  = 0x47504c52
	recordHeader = 40
	maxRecord    = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// source is the randomness that a record is made of.
func source(seed uint64, stream int, n uint64, life int) *rand.Rand {
	return rand.New(rand.NewPCG(seed^uint64(stream)<<56, n^uint64(life)<<48))
}

// encodeRecord appends record n to b; its length is a function of what it is.
func encodeRecord(b []byte, block int, seed uint64, stream int, n uint64, life int) []byte {
	r := source(seed, stream, n, life)
	blocks := 1 + r.IntN(8)
	if r.IntN(8) == 0 {
		blocks = 1 + r.IntN(maxRecord/block) // now and then one that a drive gets in pieces
	}
	start := len(b)
	b = append(b, make([]byte, blocks*block)...)
	p := b[start:]
	binary.LittleEndian.PutUint32(p[0:], recordMagic)
	binary.LittleEndian.PutUint64(p[8:], n)
	binary.LittleEndian.PutUint32(p[16:], uint32(life))
	binary.LittleEndian.PutUint32(p[20:], uint32(stream))
	binary.LittleEndian.PutUint64(p[24:], seed)
	binary.LittleEndian.PutUint32(p[32:], uint32(len(p)))
	for at := recordHeader; at < len(p); at += 8 {
		binary.LittleEndian.PutUint64(p[at:], r.Uint64())
	}
	binary.LittleEndian.PutUint32(p[4:], crc32.Checksum(p[8:], castagnoli))
	return b
}

// A found record is one that was read back whole.
type found struct {
	n     uint64
	life  int
	bytes int
}

// decodeRecord reads the record at the start of p, which may hold anything. The
// checksum decides; that a whole record also holds what its header promises is
// checked by making it again.
func decodeRecord(p []byte, block int, seed uint64, stream int) (found, error) {
	if len(p) < recordHeader || binary.LittleEndian.Uint32(p) != recordMagic {
		return found{}, fmt.Errorf("no record")
	}
	size := binary.LittleEndian.Uint32(p[32:])
	if size < recordHeader || size > maxRecord || uint64(size) > uint64(len(p)) || int(size)%block != 0 {
		return found{}, fmt.Errorf("a record of %d bytes", size)
	}
	p = p[:size]
	if crc := crc32.Checksum(p[8:], castagnoli); crc != binary.LittleEndian.Uint32(p[4:]) {
		return found{}, fmt.Errorf("crc %08x, stored %08x", crc, binary.LittleEndian.Uint32(p[4:]))
	}
	f := found{
		n:     binary.LittleEndian.Uint64(p[8:]),
		life:  int(binary.LittleEndian.Uint32(p[16:])),
		bytes: int(size),
	}
	if !bytes.Equal(p, encodeRecord(nil, block, seed, stream, f.n, f.life)) {
		return found{}, fmt.Errorf("record %d of life %d is whole but not what was written", f.n, f.life)
	}
	return f, nil
}
