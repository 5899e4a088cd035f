package bench

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/redoubt-storage/redoubt"
)

// A layout is the geometry of a replay's volume, and the identities that follow
// from its name and that.
type layout struct {
	name    string
	pages   uint64 // of the trace; page number pages is the control page
	pgPages uint32
	pgs     int
	volume  redoubt.VolumeID
}

// maxPGs bounds the protection groups of a volume, each of which costs the
// writer a few hundred bytes.
const maxPGs = 1 << 20

func newLayout(name string, pages uint64, pgSize int64) (layout, error) {
	if err := checkPG(pgSize, 1); err != nil {
		return layout{}, fmt.Errorf("bench: replay: %w: %w", err, redoubt.ErrInvalid)
	}
	l := layout{name: name, pages: pages, pgPages: uint32(pgSize / redoubt.PageSize)}
	n := pages/uint64(l.pgPages) + 1 // the control page always needs one page more
	if n > maxPGs {
		return l, fmt.Errorf("bench: replay: %d protection groups of %d bytes, want %d at most: choose larger ones (-pg-size): %w", n, pgSize, maxPGs, redoubt.ErrInvalid)
	}
	l.pgs = int(n)
	copy(l.volume[:], l.hash("volume", 0))
	return l, nil
}

// hash returns bytes that are as good as random and always the same for this
// volume: SHA-256 of the kind of identity, the geometry, and the name.
func (l *layout) hash(kind string, n uint64) []byte {
	h := sha256.New()
	var b [24]byte
	le := binary.LittleEndian
	le.PutUint64(b[:], l.pages)
	le.PutUint64(b[8:], uint64(l.pgPages))
	le.PutUint64(b[16:], n)
	fmt.Fprintf(h, "redoubt replay %s\x00", kind)
	h.Write(b[:])
	h.Write([]byte(l.name))
	return h.Sum(nil)
}

// segment returns the identity of the one copy of a protection group.
func (l *layout) segment(pg int) (id redoubt.SegmentID) {
	copy(id[:], l.hash("segment", uint64(pg)))
	return id
}

// place returns where a page of the volume is.
func (l *layout) place(page uint64) (pg int, index uint32) {
	return int(page / uint64(l.pgPages)), uint32(page % uint64(l.pgPages))
}

// control returns the number of the control page.
func (l *layout) control() uint64 { return l.pages }

// used returns how many pages of a protection group are pages of the trace.
func (l *layout) used(pg int) int {
	first := uint64(pg) * uint64(l.pgPages)
	if first >= l.pages {
		return 0
	}
	return int(min(uint64(l.pgPages), l.pages-first))
}

// A controlRecord is what stands in the control page: how far the trace is in
// the volume.
type controlRecord struct {
	next    uint64 // index of the first event that isn't
	commits uint64
}

const (
	controlMagic = "RDREPLAY"
	controlSize  = 24
)

func (c controlRecord) put(b []byte) {
	copy(b, controlMagic)
	binary.LittleEndian.PutUint64(b[8:], c.next)
	binary.LittleEndian.PutUint64(b[16:], c.commits)
}

// parseControl is put's mirror image. A page of zeros is the beginning.
func parseControl(page []byte) (controlRecord, error) {
	le := binary.LittleEndian
	if le.Uint64(page) == 0 && le.Uint64(page[8:]) == 0 && le.Uint64(page[16:]) == 0 {
		return controlRecord{}, nil
	}
	if string(page[:8]) != controlMagic {
		return controlRecord{}, fmt.Errorf("bench: replay: the control page begins with %x: %w", page[:8], redoubt.ErrCorrupt)
	}
	return controlRecord{next: le.Uint64(page[8:]), commits: le.Uint64(page[16:])}, nil
}
