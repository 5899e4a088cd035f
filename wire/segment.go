package wire

import (
	"encoding/binary"

	"github.com/redoubt-storage/redoubt"
)

const (
	createSize   = 72
	deleteSize   = 32
	attachSize   = 48
	describeSize = 16
	attachedSize = 8 + descriptionSize

	// AnyLane in a CREATE lets the node choose.
	AnyLane = 255
)

// A Create asks for a new segment. It is answered with DESCRIPTION; of a
// segment that exists with the same properties too.
type Create struct {
	Segment         redoubt.SegmentID
	Volume          redoubt.VolumeID
	PG              redoubt.PGNo
	Pages           uint32 // of the protection group
	Kind            redoubt.SegmentKind
	Lane            uint8 // or AnyLane
	VolumeEpoch     redoubt.Epoch
	MembershipEpoch redoubt.Epoch
	GeometryEpoch   redoubt.Epoch
}

// Append appends the body of CREATE to dst.
func (m *Create) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, m.Segment[:]...)
	dst = append(dst, m.Volume[:]...)
	dst = le.AppendUint32(dst, uint32(m.PG))
	dst = le.AppendUint32(dst, m.Pages)
	dst = append(dst, byte(m.Kind), m.Lane, 0, 0, 0, 0, 0, 0)
	dst = le.AppendUint64(dst, uint64(m.VolumeEpoch))
	dst = le.AppendUint64(dst, uint64(m.MembershipEpoch))
	return le.AppendUint64(dst, uint64(m.GeometryEpoch))
}

// Decode reads the body of CREATE and refuses what no segment can be.
func (m *Create) Decode(b []byte) error {
	if len(b) != createSize {
		return invalid("CREATE of %d bytes", len(b))
	}
	le := binary.LittleEndian
	*m = Create{
		Segment:         redoubt.SegmentID(b[:16]),
		Volume:          redoubt.VolumeID(b[16:32]),
		PG:              redoubt.PGNo(le.Uint32(b[32:])),
		Pages:           le.Uint32(b[36:]),
		Kind:            redoubt.SegmentKind(b[40]),
		Lane:            b[41],
		VolumeEpoch:     redoubt.Epoch(le.Uint64(b[48:])),
		MembershipEpoch: redoubt.Epoch(le.Uint64(b[56:])),
		GeometryEpoch:   redoubt.Epoch(le.Uint64(b[64:])),
	}
	switch {
	case m.Segment == (redoubt.SegmentID{}) || m.Volume == (redoubt.VolumeID{}):
		return invalid("CREATE of segment %v of volume %v: the zero ID names nothing", m.Segment, m.Volume)
	case m.Pages < redoubt.MinPGPages || m.Pages > redoubt.MaxPGPages:
		return invalid("CREATE: %d pages in a protection group, want %d to %d", m.Pages, redoubt.MinPGPages, redoubt.MaxPGPages)
	case m.Kind != redoubt.FullSegment && m.Kind != redoubt.TailSegment:
		return invalid("CREATE: %v", m.Kind)
	case le.Uint16(b[42:]) != 0 || le.Uint32(b[44:]) != 0:
		return invalid("CREATE: reserved bytes %x", b[42:48])
	}
	return nil
}

// A Delete asks to forget a segment and to free its space. Answered with OK.
type Delete struct {
	Segment         redoubt.SegmentID
	VolumeEpoch     redoubt.Epoch
	MembershipEpoch redoubt.Epoch
}

// Append appends the body of DELETE to dst.
func (m *Delete) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, m.Segment[:]...)
	dst = le.AppendUint64(dst, uint64(m.VolumeEpoch))
	return le.AppendUint64(dst, uint64(m.MembershipEpoch))
}

// Decode reads the body of DELETE.
func (m *Delete) Decode(b []byte) error {
	if len(b) != deleteSize {
		return invalid("DELETE of %d bytes", len(b))
	}
	le := binary.LittleEndian
	*m = Delete{
		Segment:         redoubt.SegmentID(b[:16]),
		VolumeEpoch:     redoubt.Epoch(le.Uint64(b[16:])),
		MembershipEpoch: redoubt.Epoch(le.Uint64(b[24:])),
	}
	return nil
}

// An Attach asks for a handle by which this connection names a segment in
// APPEND, READ, FLOOR and TAIL. Answered with ATTACHED.
type Attach struct {
	Segment         redoubt.SegmentID
	Volume          redoubt.VolumeID
	VolumeEpoch     redoubt.Epoch
	MembershipEpoch redoubt.Epoch
}

// Append appends the body of ATTACH to dst.
func (m *Attach) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, m.Segment[:]...)
	dst = append(dst, m.Volume[:]...)
	dst = le.AppendUint64(dst, uint64(m.VolumeEpoch))
	return le.AppendUint64(dst, uint64(m.MembershipEpoch))
}

// Decode reads the body of ATTACH.
func (m *Attach) Decode(b []byte) error {
	if len(b) != attachSize {
		return invalid("ATTACH of %d bytes", len(b))
	}
	le := binary.LittleEndian
	*m = Attach{
		Segment:         redoubt.SegmentID(b[:16]),
		Volume:          redoubt.VolumeID(b[16:32]),
		VolumeEpoch:     redoubt.Epoch(le.Uint64(b[32:])),
		MembershipEpoch: redoubt.Epoch(le.Uint64(b[40:])),
	}
	return nil
}

// Attached is the answer to ATTACH. Handles are dense, from 0, and hold for the
// life of the connection.
type Attached struct {
	Handle      uint32
	Lane        uint8 // whose frames the segment's batches go into
	Description Description
}

// Append appends the body of ATTACHED to dst.
func (m *Attached) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, m.Handle)
	dst = append(dst, m.Lane, 0, 0, 0)
	return m.Description.Append(dst)
}

// Decode reads the body of ATTACHED.
func (m *Attached) Decode(b []byte) error {
	if len(b) != attachedSize {
		return invalid("ATTACHED of %d bytes", len(b))
	}
	if b[5] != 0 || b[6] != 0 || b[7] != 0 {
		return invalid("ATTACHED: reserved bytes %x", b[5:8])
	}
	m.Handle, m.Lane = binary.LittleEndian.Uint32(b), b[4]
	return m.Description.Decode(b[8:])
}

// A Describe asks for a segment's DESCRIPTION.
type Describe struct {
	Segment redoubt.SegmentID
}

// Append appends the body of DESCRIBE to dst.
func (m *Describe) Append(dst []byte) []byte { return append(dst, m.Segment[:]...) }

// Decode reads the body of DESCRIBE.
func (m *Describe) Decode(b []byte) error {
	if len(b) != describeSize {
		return invalid("DESCRIBE of %d bytes", len(b))
	}
	m.Segment = redoubt.SegmentID(b)
	return nil
}
