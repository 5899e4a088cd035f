package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/redoubt-storage/redoubt"
)

const (
	descriptionSize = 192
	listSize        = 24
	listedSize      = 8
	summarySize     = 48
)

// A State is a set of flags. Bits that this version doesn't know survive.
type State uint8

const (
	// StateFailed: the segment's device failed. It serves nothing any more.
	StateFailed State = 1 << 0
	// StateFull: appends are refused for lack of space.
	StateFull State = 1 << 1
)

// An UnknownReason says why a segment can't give a definite no.
type UnknownReason uint8

const (
	UnknownNone    UnknownReason = 0 // it can
	UnknownTorn    UnknownReason = 1 // a write that may have been acknowledged is torn
	UnknownCorrupt UnknownReason = 2 // acknowledged bytes can't be read back
)

func (r UnknownReason) String() string {
	switch r {
	case UnknownNone:
		return "none"
	case UnknownTorn:
		return "torn"
	case UnknownCorrupt:
		return "corrupt"
	}
	return fmt.Sprintf("UnknownReason(%d)", uint8(r))
}

// A Description is all that a segment says of itself.
type Description struct {
	Segment redoubt.SegmentID
	Volume  redoubt.VolumeID
	Device  redoubt.DeviceID
	PG      redoubt.PGNo
	Pages   uint32 // of the protection group
	Kind    redoubt.SegmentKind
	Lane    uint8
	State   State

	// With a reason, LSNs above UnknownAbove that the segment doesn't hold are
	// UNKNOWN: it may have acknowledged them. Without one, what it doesn't hold
	// it never had.
	Unknown      UnknownReason
	UnknownAbove redoubt.LSN

	VolumeEpoch     redoubt.Epoch
	MembershipEpoch redoubt.Epoch
	GeometryEpoch   redoubt.Epoch

	SCL       redoubt.LSN
	Highest   redoubt.LSN // highest LSN held, behind gaps too
	VDL       redoubt.LSN // as the client told
	Floor     redoubt.LSN // PGMRPL, as the client told
	Coalesced redoubt.LSN // every record at or below is in the pages
	Trimmed   redoubt.LSN // every record at or below may be gone from the log

	LogBytes   uint64 // live bytes of the hot log
	DirtyPages uint64 // pages with records that are not coalesced yet
	PageCount  uint64 // pages that have a version

	Truncation redoubt.Truncation // the current one; zero: none
}

// Append appends the body of DESCRIPTION to dst.
func (m *Description) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, m.Segment[:]...)
	dst = append(dst, m.Volume[:]...)
	dst = append(dst, m.Device[:]...)
	dst = le.AppendUint32(dst, uint32(m.PG))
	dst = le.AppendUint32(dst, m.Pages)
	dst = append(dst, byte(m.Kind), m.Lane, byte(m.State), byte(m.Unknown), 0, 0, 0, 0)
	for _, v := range [...]uint64{
		uint64(m.VolumeEpoch), uint64(m.MembershipEpoch), uint64(m.GeometryEpoch),
		uint64(m.SCL), uint64(m.Highest), uint64(m.VDL), uint64(m.Floor),
		uint64(m.Coalesced), uint64(m.Trimmed), uint64(m.UnknownAbove),
		m.LogBytes, m.DirtyPages, m.PageCount,
		uint64(m.Truncation.Epoch), uint64(m.Truncation.From), uint64(m.Truncation.To),
	} {
		dst = le.AppendUint64(dst, v)
	}
	return dst
}

// Decode reads the body of DESCRIPTION.
func (m *Description) Decode(b []byte) error {
	if len(b) != descriptionSize {
		return invalid("DESCRIPTION of %d bytes", len(b))
	}
	le := binary.LittleEndian
	if le.Uint32(b[60:]) != 0 {
		return invalid("DESCRIPTION: reserved bytes %x", b[60:64])
	}
	lsn := func(off int) redoubt.LSN { return redoubt.LSN(le.Uint64(b[off:])) }
	epoch := func(off int) redoubt.Epoch { return redoubt.Epoch(le.Uint64(b[off:])) }
	*m = Description{
		Segment:         redoubt.SegmentID(b[:16]),
		Volume:          redoubt.VolumeID(b[16:32]),
		Device:          redoubt.DeviceID(b[32:48]),
		PG:              redoubt.PGNo(le.Uint32(b[48:])),
		Pages:           le.Uint32(b[52:]),
		Kind:            redoubt.SegmentKind(b[56]),
		Lane:            b[57],
		State:           State(b[58]),
		Unknown:         UnknownReason(b[59]),
		VolumeEpoch:     epoch(64),
		MembershipEpoch: epoch(72),
		GeometryEpoch:   epoch(80),
		SCL:             lsn(88),
		Highest:         lsn(96),
		VDL:             lsn(104),
		Floor:           lsn(112),
		Coalesced:       lsn(120),
		Trimmed:         lsn(128),
		UnknownAbove:    lsn(136),
		LogBytes:        le.Uint64(b[144:]),
		DirtyPages:      le.Uint64(b[152:]),
		PageCount:       le.Uint64(b[160:]),
		Truncation:      redoubt.Truncation{Epoch: epoch(168), From: lsn(176), To: lsn(184)},
	}
	return nil
}

// A List asks for the segments of the node whose IDs are above After, in the
// order of their IDs. Answered with LISTED.
type List struct {
	After redoubt.SegmentID
	Max   uint32 // most segments in the answer; the node may send fewer; 0: as it likes
}

// Append appends the body of LIST to dst.
func (m *List) Append(dst []byte) []byte {
	dst = append(dst, m.After[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, m.Max)
	return append(dst, 0, 0, 0, 0)
}

// Decode reads the body of LIST.
func (m *List) Decode(b []byte) error {
	if len(b) != listSize {
		return invalid("LIST of %d bytes", len(b))
	}
	if binary.LittleEndian.Uint32(b[20:]) != 0 {
		return invalid("LIST: reserved bytes %x", b[20:24])
	}
	m.After = redoubt.SegmentID(b[:16])
	m.Max = binary.LittleEndian.Uint32(b[16:])
	return nil
}

// A Summary is the short description of a segment in a LISTED.
type Summary struct {
	Segment redoubt.SegmentID
	Volume  redoubt.VolumeID
	PG      redoubt.PGNo
	Kind    redoubt.SegmentKind
	Lane    uint8
	State   State
	Unknown UnknownReason
	SCL     redoubt.LSN
}

// Listed is the answer to LIST.
type Listed struct {
	More     bool // there are segments above the last one
	Segments []Summary
}

// MaxListed returns how many segments fit a LISTED of a node whose frame limit
// is maxFrame bytes.
func MaxListed(maxFrame int) int { return (maxFrame - HeaderSize - listedSize) / summarySize }

// Append appends the body of LISTED to dst.
func (m *Listed) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, bit(m.More))
	dst = le.AppendUint32(dst, uint32(len(m.Segments)))
	for i := range m.Segments {
		s := &m.Segments[i]
		dst = append(dst, s.Segment[:]...)
		dst = append(dst, s.Volume[:]...)
		dst = le.AppendUint32(dst, uint32(s.PG))
		dst = append(dst, byte(s.Kind), s.Lane, byte(s.State), byte(s.Unknown))
		dst = le.AppendUint64(dst, uint64(s.SCL))
	}
	return dst
}

// Decode reads the body of LISTED.
func (m *Listed) Decode(b []byte) error {
	more, n, err := decodeCount("LISTED", b, 0, summarySize)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	*m = Listed{More: more, Segments: make([]Summary, n)}
	for i := range m.Segments {
		b := b[listedSize+i*summarySize:]
		m.Segments[i] = Summary{
			Segment: redoubt.SegmentID(b[:16]),
			Volume:  redoubt.VolumeID(b[16:32]),
			PG:      redoubt.PGNo(le.Uint32(b[32:])),
			Kind:    redoubt.SegmentKind(b[36]),
			Lane:    b[37],
			State:   State(b[38]),
			Unknown: UnknownReason(b[39]),
			SCL:     redoubt.LSN(le.Uint64(b[40:])),
		}
	}
	return nil
}

// decodeCount reads the more flag and the count, both u32, at byte off of a
// list whose items follow, and checks that they are as long as b.
func decodeCount(name string, b []byte, off, item int) (more bool, n int, err error) {
	if len(b) < off+8 {
		return false, 0, invalid("%s of %d bytes", name, len(b))
	}
	le := binary.LittleEndian
	flag, count := le.Uint32(b[off:]), le.Uint32(b[off+4:])
	if flag > 1 || uint64(count)*uint64(item) != uint64(len(b)-off-8) {
		return false, 0, invalid("%s of %d bytes says it holds %d items, more %d", name, len(b), count, flag)
	}
	return flag == 1, int(count), nil
}

func bit(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}
