package segfile

import (
	"encoding/binary"

	"github.com/redoubt-storage/redoubt"
)

const (
	stateSize      = 128
	truncationSize = 24
	// maxTruncations bounds how many truncations a segment remembers: one for
	// each writer whose voided records may still be in its log.
	maxTruncations = 128
)

// UnknownReason says why a segment can't tell whether it once had a record.
type UnknownReason uint8

const (
	Known   UnknownReason = 0
	Torn    UnknownReason = 1 // a write without a witness is damaged
	Corrupt UnknownReason = 2 // a write that was acknowledged is damaged
)

func (r UnknownReason) String() string {
	switch r {
	case Known:
		return "known"
	case Torn:
		return "torn"
	}
	return "corrupt"
}

// An Unknown says which LSNs a segment must answer for with UNKNOWN: those it
// doesn't hold in (Above, To].
type Unknown struct {
	Reason    UnknownReason
	Above, To redoubt.LSN
}

// A SegmentSpec is what a segment is created with.
type SegmentSpec struct {
	ID         redoubt.SegmentID
	Volume     redoubt.VolumeID
	PG         redoubt.PGNo
	Pages      uint32
	Kind       redoubt.SegmentKind
	Epoch      redoubt.Epoch // volume epoch
	Membership redoubt.Epoch
	Geometry   redoubt.Epoch
}

// A segState is what a state or root block says of a segment.
type segState struct {
	SegmentSpec
	version   uint64
	coalesced redoubt.LSN
	vdl       redoubt.LSN
	floor     redoubt.LSN
	unknown   Unknown
	truncs    []redoubt.Truncation
}

func (s *segState) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, s.version)
	b = append(b, s.ID[:]...)
	b = append(b, s.Volume[:]...)
	b = le.AppendUint32(b, uint32(s.PG))
	b = le.AppendUint32(b, s.Pages)
	b = append(b, byte(s.Kind), byte(s.unknown.Reason), 0, 0)
	b = le.AppendUint32(b, uint32(len(s.truncs)))
	for _, v := range []uint64{uint64(s.Epoch), uint64(s.Membership), uint64(s.Geometry), uint64(s.coalesced),
		uint64(s.vdl), uint64(s.floor), uint64(s.unknown.Above), uint64(s.unknown.To), 0} {
		b = le.AppendUint64(b, v)
	}
	for _, t := range s.truncs {
		b = le.AppendUint64(b, uint64(t.Epoch))
		b = le.AppendUint64(b, uint64(t.From))
		b = le.AppendUint64(b, uint64(t.To))
	}
	return b
}

// parse is append's mirror image; it returns what follows the state.
func (s *segState) parse(b []byte) ([]byte, error) {
	if len(b) < stateSize {
		return nil, invalidf("segment state of %d bytes", len(b))
	}
	le := binary.LittleEndian
	s.version = le.Uint64(b)
	copy(s.ID[:], b[8:])
	copy(s.Volume[:], b[24:])
	s.PG = redoubt.PGNo(le.Uint32(b[40:]))
	s.Pages = le.Uint32(b[44:])
	s.Kind, s.unknown.Reason = redoubt.SegmentKind(b[48]), UnknownReason(b[49])
	n := int(le.Uint32(b[52:]))
	lsn := func(at int) redoubt.LSN { return redoubt.LSN(le.Uint64(b[at:])) }
	s.Epoch, s.Membership, s.Geometry = redoubt.Epoch(lsn(56)), redoubt.Epoch(lsn(64)), redoubt.Epoch(lsn(72))
	s.coalesced, s.vdl, s.floor = lsn(80), lsn(88), lsn(96)
	s.unknown.Above, s.unknown.To = lsn(104), lsn(112)
	if err := s.check(); err != nil {
		return nil, err
	}
	rest := b[stateSize:]
	if s.unknown.Reason > Corrupt || n > maxTruncations || len(rest) < n*truncationSize {
		return nil, invalidf("segment state with %d truncations in %d bytes", n, len(rest))
	}
	s.truncs = make([]redoubt.Truncation, n)
	for i := range s.truncs {
		t := rest[i*truncationSize:]
		s.truncs[i] = redoubt.Truncation{Epoch: redoubt.Epoch(le.Uint64(t)), From: redoubt.LSN(le.Uint64(t[8:])), To: redoubt.LSN(le.Uint64(t[16:]))}
	}
	return rest[n*truncationSize:], nil
}

// check reports a specification that no segment may have.
func (s *SegmentSpec) check() error {
	switch {
	case s.Pages == 0 || s.Pages > redoubt.MaxPGPages:
		return invalidf("segment of %d pages, want 1 to %d", s.Pages, redoubt.MaxPGPages)
	case s.Kind != redoubt.FullSegment && s.Kind != redoubt.TailSegment:
		return invalidf("segment of kind %d", s.Kind)
	case s.ID == redoubt.SegmentID{} || s.Volume == redoubt.VolumeID{}:
		return invalidf("segment %v of volume %v: an ID is zero", s.ID, s.Volume)
	case uint64(s.PG)*uint64(s.Pages) > 1<<40:
		return invalidf("segment of PG %d with %d pages each: past the largest volume", s.PG, s.Pages)
	}
	return nil
}

// PageNo returns the volume's number of a page of the segment.
func (s *SegmentSpec) PageNo(page uint32) redoubt.PageNo {
	return redoubt.PageNo(uint64(s.PG)*uint64(s.Pages) + uint64(page))
}

// appendRoot appends what follows the state in a root block.
func appendRoot(b []byte, refs []chunkRef) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(refs)))
	for _, r := range refs {
		b = le.AppendUint32(b, uint32(r.slot))
		b = le.AppendUint32(b, r.sum)
	}
	return b
}

// parseRoot is appendRoot's mirror image; refs has the length it must have.
func parseRoot(b []byte, refs []chunkRef) error {
	le := binary.LittleEndian
	if len(b) != 4+8*len(refs) || int(le.Uint32(b)) != len(refs) {
		return invalidf("root of %d bytes for %d map pages", len(b), len(refs))
	}
	for i := range refs {
		p := b[4+8*i:]
		refs[i] = chunkRef{slot: slot(le.Uint32(p)), sum: le.Uint32(p[4:])}
	}
	return nil
}

// A Hole is a stretch of the log that should hold something and doesn't.
type Hole struct {
	From, To uint64 // positions
	Class    UnknownReason
}

// maxHoles bounds a restart block; neighbouring holes are joined before more
// would be needed. 2048 of them take 48 KiB, which a small slab holds.
const maxHoles = 2048

// A restart is what a recovery decided, so that the next doesn't judge again.
type restart struct {
	witness uint64
	end     uint64 // where the log ended; from here to the restart block there is nothing
	holes   []Hole
}

const restartHead = 24

// append appends the content of a restart block: u64 witness, u64 end, u32 n,
// u32 0, then n times u64 from, u64 to, u64 class.
func (r *restart) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, r.witness)
	b = le.AppendUint64(b, r.end)
	b = le.AppendUint32(b, uint32(len(r.holes)))
	b = le.AppendUint32(b, 0)
	for _, h := range r.holes {
		b = le.AppendUint64(b, h.From)
		b = le.AppendUint64(b, h.To)
		b = le.AppendUint64(b, uint64(h.Class))
	}
	return b
}

// parse is append's mirror image.
func (r *restart) parse(b []byte) error {
	le := binary.LittleEndian
	if len(b) < restartHead || int(le.Uint32(b[16:])) > maxHoles || len(b) != restartHead+24*int(le.Uint32(b[16:])) {
		return invalidf("restart block of %d bytes", len(b))
	}
	r.witness, r.end = le.Uint64(b), le.Uint64(b[8:])
	for b = b[restartHead:]; len(b) > 0; b = b[24:] {
		h, class := Hole{From: le.Uint64(b), To: le.Uint64(b[8:])}, le.Uint64(b[16:])
		if h.To < h.From || class != uint64(Torn) && class != uint64(Corrupt) {
			return invalidf("restart block with hole [%d, %d) of class %d", h.From, h.To, class)
		}
		h.Class = UnknownReason(class)
		r.holes = append(r.holes, h)
	}
	return nil
}
