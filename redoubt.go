// Package redoubt holds the nouns of the whole system: log sequence numbers,
// epochs, pages, volumes, segments, and the kinds of error that decide what a
// caller does next. It imports nothing of ours, and everything of ours imports
// it, so that every package speaks of the same [LSN] and the same [PageNo].
//
// The words are those of docs/glossary.md; each is used for one thing in code,
// flags, metrics and documents.
package redoubt

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
)

// PageSize is the size of a data page in bytes. It is a property of every
// format, so it is a constant and not an option.
const PageSize = 16 << 10

// MaxBatchBytes bounds one batch on the wire and on disk, header included. A
// whole-page image with its headers fits sixteen times.
const MaxBatchBytes = 256 << 10

// Bounds of a protection group, in pages: 16 MiB to 64 GiB.
const (
	MinPGPages = 16 << 20 / PageSize
	MaxPGPages = 64 << 30 / PageSize
)

// An LSN is a log sequence number: dense per volume, from 1, handed out by the
// volume's one writer. Zero means none.
type LSN uint64

// MaxLSN is the highest LSN there can be; as a bound it means "no bound".
const MaxLSN = LSN(1<<64 - 1)

// An Epoch counts the writers of a volume (volume epoch) or the memberships of
// a protection group (membership epoch). A request with a lower epoch than the
// segment has persisted is refused with [ErrFenced].
type Epoch uint64

// A PageNo numbers the 16 KiB pages of a volume from 0.
type PageNo uint64

// A PGNo numbers the protection groups of a volume from 0. Group g of a volume
// with n pages a group holds the pages [g*n, (g+1)*n).
type PGNo uint32

// An ID is 128 random bits, printed as 32 hex digits. The zero ID names nothing.
type ID [16]byte

// The kinds of ID. They are distinct types so that a device can't be passed
// for a segment.
type (
	VolumeID  ID // a volume
	SegmentID ID // one copy of a protection group; a replacement gets a new one
	NodeID    ID // a storage node
	DeviceID  ID // a formatted device
	ClusterID ID // a cluster of nodes
)

// NewID returns a random ID.
func NewID() ID {
	var id ID
	rand.Read(id[:]) // never fails since Go 1.24
	return id
}

// ParseID reads the 32 hex digits that String prints.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("redoubt: %q is not an ID: want 32 hex digits", s)
	}
	copy(id[:], b)
	return id, nil
}

func (id ID) String() string        { return hex.EncodeToString(id[:]) }
func (id VolumeID) String() string  { return ID(id).String() }
func (id SegmentID) String() string { return ID(id).String() }
func (id NodeID) String() string    { return ID(id).String() }
func (id DeviceID) String() string  { return ID(id).String() }
func (id ClusterID) String() string { return ID(id).String() }

// SegmentKind says what a segment keeps.
type SegmentKind uint8

const (
	FullSegment SegmentKind = 1 // log and pages
	TailSegment SegmentKind = 2 // log only
)

func (k SegmentKind) String() string {
	switch k {
	case FullSegment:
		return "full"
	case TailSegment:
		return "tail"
	}
	return fmt.Sprintf("SegmentKind(%d)", uint8(k))
}

// A Truncation voids the records with LSNs in (From, To] that were written
// under a lower epoch than Epoch, however late they appear.
type Truncation struct {
	Epoch    Epoch
	From, To LSN
}

// Voids reports whether a record with this LSN, written under epoch e, is void.
func (t Truncation) Voids(lsn LSN, e Epoch) bool {
	return e < t.Epoch && lsn > t.From && lsn <= t.To
}

// The kinds of error. A caller tells them apart with errors.Is; the message
// around them says where, which LSNs, and what to do.
var (
	// ErrCorrupt: bytes that were acknowledged can't be read back whole. Fetch
	// them from a peer; never take it for the end of the log.
	ErrCorrupt = errors.New("corrupt")
	// ErrFenced: the volume has a newer writer. Stop; do not retry.
	ErrFenced = errors.New("fenced by a newer epoch")
	// ErrBusy: a bounded queue is full. Back off and retry.
	ErrBusy = errors.New("busy")
	// ErrFull: no space that may be used for this. Retry after space was freed.
	ErrFull = errors.New("out of space")
	// ErrNotFound: no such segment, volume or page here.
	ErrNotFound = errors.New("not found")
	// ErrExists: it is there already, with other properties.
	ErrExists = errors.New("exists already")
	// ErrBelowFloor: the read point lies below PGMRPL. Read at a newer one.
	ErrBelowFloor = errors.New("read point below PGMRPL")
	// ErrAboveSCL: this copy is not complete up to the read point. Ask another
	// copy, or this one later.
	ErrAboveSCL = errors.New("read point above SCL")
	// ErrInvalid: the request or the bytes break the format or the protocol.
	ErrInvalid = errors.New("invalid")
	// ErrDeviceFailed: a write or a flush failed, so nothing on this device is
	// trusted any more. Repair its segments elsewhere.
	ErrDeviceFailed = errors.New("device failed")
	// ErrClosed: the thing was closed, or the node is shutting down. Reconnect.
	ErrClosed = errors.New("closed")
	// ErrForeign: a device of another cluster, node, position or format.
	ErrForeign = errors.New("foreign device")
)
