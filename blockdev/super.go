package blockdev

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/redoubt-storage/redoubt"
)

// Version is the version of the on-device format that this program writes, and
// the only one it reads.
const Version = 1

// The feature flags this program knows. None has been needed yet.
const (
	knownCompat   = 0
	knownROCompat = 0
	knownIncompat = 0
)

var superMagic = []byte("RDBTSUPR")

// superUsed is where the fields of a superblock end.
const superUsed = 148

// A Superblock says what a device is. Its fields are specified in the package
// documentation.
type Superblock struct {
	Path string // where it was read or written; not stored

	Version  uint32
	Compat   uint32 // feature flags
	ROCompat uint32
	Incompat uint32

	Cluster  redoubt.ClusterID
	Node     redoubt.NodeID
	Device   redoubt.DeviceID
	Position int // among the node's devices, from 0
	Count    int // of the node's devices

	Size        int64 // bytes when it was formatted
	BlockSize   int   // bytes of a logical block
	ExtentSize  int64 // bytes
	ExtentCount int
	TableOff    int64 // byte offset of the extent table
	DataOff     int64 // byte offset of extent 0

	Generation uint64    // of the superblock
	Created    time.Time // to the second
	Clean      uint64    // log position of a clean shutdown; 0: not clean
	TableSum   uint64    // sum of the table pages' sequences at a clean shutdown
}

// end returns the first byte behind the last extent.
func (s *Superblock) end() int64 { return s.DataOff + int64(s.ExtentCount)*s.ExtentSize }

// put encodes s into the superSize bytes of b. What stands behind the fields is
// left: it belongs to features that this program doesn't know.
func (s *Superblock) put(b []byte) {
	le := binary.LittleEndian
	copy(b, superMagic)
	le.PutUint32(b[12:], s.Version)
	le.PutUint32(b[16:], s.Compat)
	le.PutUint32(b[20:], s.ROCompat)
	le.PutUint32(b[24:], s.Incompat)
	le.PutUint16(b[28:], uint16(s.Position))
	le.PutUint16(b[30:], uint16(s.Count))
	copy(b[32:], s.Cluster[:])
	copy(b[48:], s.Node[:])
	copy(b[64:], s.Device[:])
	le.PutUint64(b[80:], s.Generation)
	le.PutUint64(b[88:], uint64(s.Created.Unix()))
	le.PutUint64(b[96:], s.Clean)
	le.PutUint64(b[104:], s.TableSum)
	le.PutUint64(b[112:], uint64(s.Size))
	le.PutUint64(b[120:], uint64(s.TableOff))
	le.PutUint64(b[128:], uint64(s.DataOff))
	le.PutUint32(b[136:], uint32(s.BlockSize))
	le.PutUint32(b[140:], uint32(s.ExtentSize))
	le.PutUint32(b[144:], uint32(s.ExtentCount))
	le.PutUint32(b[8:], crc32.Checksum(b[12:superSize], castagnoli))
}

// get is put's mirror image; it leaves the sum alone.
func (s *Superblock) get(b []byte) {
	le := binary.LittleEndian
	s.Version = le.Uint32(b[12:])
	s.Compat = le.Uint32(b[16:])
	s.ROCompat = le.Uint32(b[20:])
	s.Incompat = le.Uint32(b[24:])
	s.Position = int(le.Uint16(b[28:]))
	s.Count = int(le.Uint16(b[30:]))
	copy(s.Cluster[:], b[32:])
	copy(s.Node[:], b[48:])
	copy(s.Device[:], b[64:])
	s.Generation = le.Uint64(b[80:])
	s.Created = time.Unix(int64(le.Uint64(b[88:])), 0).UTC()
	s.Clean = le.Uint64(b[96:])
	s.TableSum = le.Uint64(b[104:])
	s.Size = int64(le.Uint64(b[112:]))
	s.TableOff = int64(le.Uint64(b[120:]))
	s.DataOff = int64(le.Uint64(b[128:]))
	s.BlockSize = int(le.Uint32(b[136:]))
	s.ExtentSize = int64(le.Uint32(b[140:]))
	s.ExtentCount = int(le.Uint32(b[144:]))
}

// parseSuper decodes and checks the superSize bytes of b, which may be any: its
// errors match redoubt.ErrForeign if this is no superblock or one of another
// version, redoubt.ErrCorrupt if it is a damaged one, and redoubt.ErrInvalid if
// its fields contradict one another. The features that allow reading only are
// the caller's to judge.
func parseSuper(b []byte) (Superblock, error) {
	if !bytes.Equal(b[:8], superMagic) {
		return Superblock{}, fmt.Errorf("%w: %s: %w", errNoMagic, describe(b), redoubt.ErrForeign)
	}
	if sum, stored := crc32.Checksum(b[12:superSize], castagnoli), binary.LittleEndian.Uint32(b[8:]); sum != stored {
		return Superblock{}, fmt.Errorf("crc %08x, stored %08x: %w", sum, stored, redoubt.ErrCorrupt)
	}
	var s Superblock
	s.get(b)
	if s.Version != Version {
		return s, fmt.Errorf("format version %d, this program reads version %d: use a newer redoubt: %w",
			s.Version, Version, redoubt.ErrForeign)
	}
	if unknown := s.Incompat &^ knownIncompat; unknown != 0 {
		return s, fmt.Errorf("incompatible features %#x that this program doesn't know: use a newer redoubt: %w",
			unknown, redoubt.ErrForeign)
	}
	return s, s.check(b)
}

// check finds contradictions in a superblock with a right sum. Only a bug, or
// somebody who forges sums, makes them; but everything computed from the fields
// later relies on what is checked here.
func (s *Superblock) check(b []byte) error {
	extras := s.Compat&^knownCompat | s.ROCompat&^knownROCompat
	tableEnd := s.TableOff + int64(tablePages(s.ExtentCount))*2*slotSize
	var what string
	switch {
	case s.Device == redoubt.DeviceID{} || s.Node == redoubt.NodeID{} || s.Cluster == redoubt.ClusterID{}:
		what = "an identity is zero"
	case s.Count < 1 || s.Count > MaxDevices || s.Position >= s.Count:
		what = fmt.Sprintf("position %d of %d devices", s.Position, s.Count)
	case s.Generation == 0:
		what = "generation 0"
	case !goodBlockSize(s.BlockSize):
		what = fmt.Sprintf("logical blocks of %d bytes", s.BlockSize)
	case s.ExtentSize < MinExtentSize || s.ExtentSize > MaxExtentSize || s.ExtentSize&(s.ExtentSize-1) != 0:
		what = fmt.Sprintf("extents of %d bytes", s.ExtentSize)
	case s.ExtentCount < MinExtents || s.ExtentCount > MaxExtents:
		what = fmt.Sprintf("%d extents", s.ExtentCount)
	case s.TableOff != tableOff || s.DataOff%dataAlign != 0 || tableEnd > s.DataOff || s.DataOff > s.Size || s.end() > s.Size:
		what = fmt.Sprintf("table at %d, data at %d, end at %d of %d bytes", s.TableOff, s.DataOff, s.end(), s.Size)
	case extras == 0 && !allZero(b[superUsed:superSize]):
		what = "reserved bytes are not zero"
	default:
		return nil
	}
	return fmt.Errorf("superblock with a right sum is wrong: %s: %w", what, redoubt.ErrInvalid)
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
