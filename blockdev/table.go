package blockdev

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/redoubt-storage/redoubt"
)

const (
	slotSize      = 4096
	slotSectors   = slotSize / sectorSize
	sectorHeader  = 32
	entrySize     = 32
	sectorEntries = (sectorSize - sectorHeader) / entrySize
	pageEntries   = slotSectors * sectorEntries

	firstSequence = 2 // of a table page, in its first slot
)

// Role says what an extent is for.
type Role uint8

const (
	RoleFree  Role = 0
	RoleLog   Role = 1 // hot log, common to the segments of the device
	RolePages Role = 2 // page versions and map pages of one segment
)

func (r Role) String() string {
	switch r {
	case RoleFree:
		return "free"
	case RoleLog:
		return "log"
	case RolePages:
		return "pages"
	}
	return fmt.Sprintf("Role(%d)", uint8(r))
}

// An Extent is one entry of the extent table.
type Extent struct {
	Index uint32 // place on the device, from 0
	Gen   uint32 // how many times it was given out; never reused
	Role  Role
	Owner uint32 // tag of a segment, 0: common
	Seq   uint64 // order among log extents
}

// put encodes the entry; its index follows from where it stands.
func (e *Extent) put(b []byte) {
	le := binary.LittleEndian
	clear(b[:entrySize])
	le.PutUint32(b, e.Gen)
	b[4] = byte(e.Role)
	le.PutUint32(b[8:], e.Owner)
	le.PutUint64(b[16:], e.Seq)
}

// parseEntry is put's mirror image.
func parseEntry(b []byte, index uint32) (Extent, error) {
	le := binary.LittleEndian
	e := Extent{Index: index, Gen: le.Uint32(b), Role: Role(b[4]), Owner: le.Uint32(b[8:]), Seq: le.Uint64(b[16:])}
	switch {
	case e.Role > RolePages:
		return e, fmt.Errorf("extent %d has the unknown role %d: %w", index, e.Role, redoubt.ErrInvalid)
	case e.Role == RoleFree && (e.Owner != 0 || e.Seq != 0):
		return e, fmt.Errorf("extent %d is free and has owner %d, sequence %d: %w", index, e.Owner, e.Seq, redoubt.ErrInvalid)
	case e.Role != RoleFree && e.Gen == 0:
		return e, fmt.Errorf("extent %d is in use in generation 0: %w", index, redoubt.ErrInvalid)
	case !allZero(b[5:8]) || !allZero(b[12:16]) || !allZero(b[24:entrySize]):
		return e, fmt.Errorf("extent %d: reserved bytes are not zero: %w", index, redoubt.ErrInvalid)
	}
	return e, nil
}

// A slotHeader is what the sectors of one version of a table page share.
type slotHeader struct {
	page     uint32
	sequence uint64
	super    uint64 // generation of the superblock when it was written
	whole    uint32 // sum of all entries; putSlot fills it in
}

// slotOf returns which slot of its page a version stands in.
func (h slotHeader) slot() int { return int(h.sequence % 2) }

// slotOff returns the byte offset of a slot of a page.
func slotOff(pages int, page uint32, slot int) int64 {
	return tableOff + (int64(slot)*int64(pages)+int64(page))*slotSize
}

// tableSeed starts every sum of a device's table, so that another device's
// bytes don't pass.
func tableSeed(id redoubt.DeviceID) uint32 { return crc32.Checksum(id[:], castagnoli) }

// putSlot encodes a version of a page into the slotSize bytes of b. entries are
// those of the page, fewer on the last one.
func putSlot(b []byte, seed uint32, h slotHeader, entries []Extent) {
	clear(b[:slotSize])
	le := binary.LittleEndian
	for i := range entries {
		off := i/sectorEntries*sectorSize + sectorHeader + i%sectorEntries*entrySize
		entries[i].put(b[off:])
	}
	whole := entriesSum(b)
	for i := range slotSectors {
		s := b[i*sectorSize : (i+1)*sectorSize]
		le.PutUint32(s[4:], h.page)
		le.PutUint64(s[8:], h.sequence)
		le.PutUint64(s[16:], h.super)
		s[24] = byte(i)
		le.PutUint32(s[28:], whole)
		le.PutUint32(s, crc32.Update(seed, castagnoli, s[4:]))
	}
}

// entriesSum sums the entries of all sectors of a slot.
func entriesSum(b []byte) uint32 {
	var sum uint32
	for i := range slotSectors {
		sum = crc32.Update(sum, castagnoli, b[i*sectorSize+sectorHeader:(i+1)*sectorSize])
	}
	return sum
}

// parseSector returns the header of sector i of a slot of a page, if the sector
// is whole and belongs there.
func parseSector(s []byte, seed uint32, page uint32, slot, i int) (slotHeader, error) {
	le := binary.LittleEndian
	if sum, stored := crc32.Update(seed, castagnoli, s[4:sectorSize]), le.Uint32(s); sum != stored {
		return slotHeader{}, fmt.Errorf("sector %d: crc %08x, stored %08x: %w", i, sum, stored, redoubt.ErrCorrupt)
	}
	h := slotHeader{page: le.Uint32(s[4:]), sequence: le.Uint64(s[8:]), super: le.Uint64(s[16:]), whole: le.Uint32(s[28:])}
	switch {
	case h.page != page || int(s[24]) != i:
		return h, fmt.Errorf("sector %d: holds sector %d of page %d: %w", i, s[24], h.page, redoubt.ErrCorrupt)
	case h.sequence < firstSequence || h.slot() != slot:
		return h, fmt.Errorf("sector %d: sequence %d doesn't belong into slot %d: %w", i, h.sequence, slot, redoubt.ErrCorrupt)
	case !allZero(s[25:28]):
		return h, fmt.Errorf("sector %d: reserved bytes are not zero: %w", i, redoubt.ErrInvalid)
	}
	return h, nil
}

// A slotState is what was found in one slot of a table page.
type slotState struct {
	slotHeader        // of the whole version, if err is nil
	err        error  // why there is no whole version
	oldest     uint64 // lowest sequence of a whole sector, 0 if there is none
	newest     uint64 // highest
	mixed      bool   // whole sectors of two writes of one sequence
}

// parseSlot decodes the slotSize bytes of b, a slot of a page, and its entries
// into the page's entries. It answers any bytes. After an error the entries mean
// nothing.
func parseSlot(b []byte, seed uint32, page uint32, slot int, entries []Extent) slotState {
	var st slotState
	for i := range slotSectors {
		h, err := parseSector(b[i*sectorSize:(i+1)*sectorSize], seed, page, slot, i)
		switch {
		case err != nil:
			st.fail(err)
			continue
		case st.newest == 0:
			st.slotHeader, st.oldest, st.newest = h, h.sequence, h.sequence
			continue
		}
		st.oldest, st.newest = min(st.oldest, h.sequence), max(st.newest, h.sequence)
		if h.sequence == st.sequence && h != st.slotHeader {
			st.mixed = true
			st.fail(fmt.Errorf("torn: sectors of two writes of sequence %d: %w", h.sequence, redoubt.ErrCorrupt))
		}
	}
	if st.oldest != st.newest {
		st.fail(fmt.Errorf("torn: sectors of sequence %d and %d: %w", st.oldest, st.newest, redoubt.ErrCorrupt))
	}
	if st.err == nil && entriesSum(b) != st.whole {
		st.fail(fmt.Errorf("sum of all entries %08x, stored %08x: %w", entriesSum(b), st.whole, redoubt.ErrInvalid))
	}
	if st.err == nil {
		st.fail(parseEntries(b, page, entries))
	}
	return st
}

// fail keeps the first error.
func (st *slotState) fail(err error) {
	if st.err == nil {
		st.err = err
	}
}

// parseEntries decodes the entries of a slot whose sectors are whole.
func parseEntries(b []byte, page uint32, entries []Extent) error {
	for i := range pageEntries {
		off := i/sectorEntries*sectorSize + sectorHeader + i%sectorEntries*entrySize
		if i >= len(entries) {
			if !allZero(b[off : off+entrySize]) {
				return fmt.Errorf("entry %d lies behind the last extent and isn't zero: %w", i, redoubt.ErrInvalid)
			}
			continue
		}
		e, err := parseEntry(b[off:off+entrySize], page*pageEntries+uint32(i))
		if err != nil {
			return err
		}
		entries[i] = e
	}
	return nil
}
