package wire

import (
	"encoding/binary"

	"github.com/redoubt-storage/redoubt"
)

const (
	floorSize    = 24
	fenceSize    = 24
	truncateSize = 40
	tailSize     = 16
	tailedSize   = 16
	heldSize     = 16
)

// A Floor tells a segment VDL and PGMRPL when no batch is there to carry them.
// Answered with OK.
type Floor struct {
	Handle uint32
	VDL    redoubt.LSN
	Floor  redoubt.LSN // PGMRPL
}

// Append appends the body of FLOOR to dst.
func (m *Floor) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Handle)
	dst = append(dst, 0, 0, 0, 0)
	dst = le.AppendUint64(dst, uint64(m.VDL))
	return le.AppendUint64(dst, uint64(m.Floor))
}

// Decode reads the body of FLOOR.
func (m *Floor) Decode(b []byte) error {
	if len(b) != floorSize {
		return invalid("FLOOR of %d bytes", len(b))
	}
	le := binary.LittleEndian
	if le.Uint32(b[4:]) != 0 {
		return invalid("FLOOR: reserved bytes %x", b[4:8])
	}
	*m = Floor{Handle: le.Uint32(b), VDL: redoubt.LSN(le.Uint64(b[8:])), Floor: redoubt.LSN(le.Uint64(b[16:]))}
	return nil
}

// A Fence installs a volume epoch on a segment, which refuses every lower one
// from then on. Answered with DESCRIPTION.
type Fence struct {
	Segment redoubt.SegmentID
	Epoch   redoubt.Epoch
}

// Append appends the body of FENCE to dst.
func (m *Fence) Append(dst []byte) []byte {
	dst = append(dst, m.Segment[:]...)
	return binary.LittleEndian.AppendUint64(dst, uint64(m.Epoch))
}

// Decode reads the body of FENCE.
func (m *Fence) Decode(b []byte) error {
	if len(b) != fenceSize {
		return invalid("FENCE of %d bytes", len(b))
	}
	m.Segment = redoubt.SegmentID(b[:16])
	m.Epoch = redoubt.Epoch(binary.LittleEndian.Uint64(b[16:]))
	return nil
}

// A Truncate voids the records of a range that were written under a lower
// epoch. Answered with DESCRIPTION.
type Truncate struct {
	Segment    redoubt.SegmentID
	Truncation redoubt.Truncation
}

// Append appends the body of TRUNCATE to dst.
func (m *Truncate) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, m.Segment[:]...)
	dst = le.AppendUint64(dst, uint64(m.Truncation.Epoch))
	dst = le.AppendUint64(dst, uint64(m.Truncation.From))
	return le.AppendUint64(dst, uint64(m.Truncation.To))
}

// Decode reads the body of TRUNCATE and refuses an empty range.
func (m *Truncate) Decode(b []byte) error {
	if len(b) != truncateSize {
		return invalid("TRUNCATE of %d bytes", len(b))
	}
	le := binary.LittleEndian
	m.Segment = redoubt.SegmentID(b[:16])
	m.Truncation = redoubt.Truncation{
		Epoch: redoubt.Epoch(le.Uint64(b[16:])),
		From:  redoubt.LSN(le.Uint64(b[24:])),
		To:    redoubt.LSN(le.Uint64(b[32:])),
	}
	if t := m.Truncation; t.From >= t.To {
		return invalid("TRUNCATE of the empty range (%d,%d]", t.From, t.To)
	}
	return nil
}

// A Tail asks which records above an LSN a segment holds. Answered with TAILED.
type Tail struct {
	Handle uint32
	Max    uint32 // most records in the answer; the node may send fewer; 0: as it likes
	Above  redoubt.LSN
}

// Append appends the body of TAIL to dst.
func (m *Tail) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, m.Handle)
	dst = le.AppendUint32(dst, m.Max)
	return le.AppendUint64(dst, uint64(m.Above))
}

// Decode reads the body of TAIL.
func (m *Tail) Decode(b []byte) error {
	if len(b) != tailSize {
		return invalid("TAIL of %d bytes", len(b))
	}
	le := binary.LittleEndian
	*m = Tail{Handle: le.Uint32(b), Max: le.Uint32(b[4:]), Above: redoubt.LSN(le.Uint64(b[8:]))}
	return nil
}

// A Held is a record that a segment holds completely.
type Held struct {
	LSN redoubt.LSN
	CPL bool
}

// Tailed is the answer to TAIL: records in the order of their LSNs, of which
// those above the SCL lie behind gaps.
type Tailed struct {
	SCL     redoubt.LSN
	More    bool // there are records above the last one
	Records []Held
}

// MaxTailed returns how many records fit a TAILED of a node whose frame limit
// is maxFrame bytes.
func MaxTailed(maxFrame int) int { return (maxFrame - HeaderSize - tailedSize) / heldSize }

// Append appends the body of TAILED to dst.
func (m *Tailed) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, uint64(m.SCL))
	dst = le.AppendUint32(dst, bit(m.More))
	dst = le.AppendUint32(dst, uint32(len(m.Records)))
	for _, r := range m.Records {
		dst = le.AppendUint64(dst, uint64(r.LSN))
		dst = le.AppendUint32(dst, bit(r.CPL))
		dst = append(dst, 0, 0, 0, 0)
	}
	return dst
}

// Decode reads the body of TAILED.
func (m *Tailed) Decode(b []byte) error {
	more, n, err := decodeCount("TAILED", b, 8, heldSize)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	*m = Tailed{SCL: redoubt.LSN(le.Uint64(b)), More: more, Records: make([]Held, n)}
	for i := range m.Records {
		b := b[tailedSize+i*heldSize:]
		if le.Uint32(b[8:]) > 1 || le.Uint32(b[12:]) != 0 {
			return invalid("TAILED: record %d with flags %x", i, b[8:16])
		}
		m.Records[i] = Held{LSN: redoubt.LSN(le.Uint64(b)), CPL: b[8] == 1}
		if i > 0 && m.Records[i].LSN <= m.Records[i-1].LSN {
			return invalid("TAILED: LSN %d after %d", m.Records[i].LSN, m.Records[i-1].LSN)
		}
	}
	return nil
}
