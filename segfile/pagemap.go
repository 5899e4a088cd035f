package segfile

import (
	"encoding/binary"

	"github.com/redoubt-storage/redoubt"
)

const (
	mapMagic      = uint32('R') | 'D'<<8 | 'M'<<16 | '1'<<24
	mapHeaderSize = 64
	mapEntrySize  = 16
	// MapChunk is the number of pages that one map page describes.
	MapChunk = (redoubt.PageSize - mapHeaderSize) / mapEntrySize

	mapChangeHead = 24
	mapChangeSize = 24
)

// A slot names 16 KiB of the device: extent index * slots per extent + number
// in the extent. It is stored as slot + 1, so that 0 is none.
type slot uint32

// A pageEntry is what a segment knows of one page: 24 bytes in memory, of
// which 16 are on disk.
type pageEntry struct {
	lsn   redoubt.LSN // of the last record in the version on disk; 0 with no slot: a page of zeros
	slot  slot        // + 1
	sum   uint32
	head  uint32 // newest record that isn't in the version, as arena index + 1
	count uint16 // records in the chain, saturating
	flags uint16
}

const (
	entryLong = 1 // on the list of pages with long chains
	entryBusy = 2 // in a map block that isn't committed yet
)

// A pageMap is the map of a segment's pages, in chunks that come into being
// when one of their pages is touched first.
type pageMap struct {
	chunks []*[MapChunk]pageEntry
	refs   []chunkRef // where each chunk's map page lies
	pages  int        // that have a slot
}

// A chunkRef says where a map page lies; dirty: memory is ahead of it.
type chunkRef struct {
	slot  slot // + 1
	sum   uint32
	dirty bool
}

func newPageMap(pages uint32) pageMap {
	n := (int(pages) + MapChunk - 1) / MapChunk
	return pageMap{chunks: make([]*[MapChunk]pageEntry, n), refs: make([]chunkRef, n)}
}

// peek returns the entry of a page, or nil if it was never touched.
func (m *pageMap) peek(page uint32) *pageEntry {
	if c := m.chunks[page/MapChunk]; c != nil {
		return &c[page%MapChunk]
	}
	return nil
}

// touch returns the entry of a page and makes it where there is none.
func (m *pageMap) touch(page uint32) *pageEntry {
	c := m.chunks[page/MapChunk]
	if c == nil {
		c = new([MapChunk]pageEntry)
		m.chunks[page/MapChunk] = c
	}
	return &c[page%MapChunk]
}

// set installs a version and returns the slot it replaces, + 1.
func (m *pageMap) set(c MapChange) slot {
	e := m.touch(c.Page)
	old := e.slot
	if old == 0 && c.Slot != 0 {
		m.pages++
	}
	e.slot, e.sum, e.lsn = slot(c.Slot), c.Sum, c.LSN
	m.refs[c.Page/MapChunk].dirty = true
	return old
}

// A MapChange is one entry of a map block: the page's new version.
type MapChange struct {
	Page uint32
	Slot uint32 // + 1
	Sum  uint32
	LSN  redoubt.LSN
}

// A mapHead is the start of a map block.
type mapHead struct {
	coalesced, vdl, floor redoubt.LSN
}

// appendMapBlock appends the content of a map block.
func appendMapBlock(b []byte, h mapHead, changes []MapChange) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(h.coalesced))
	b = le.AppendUint64(b, uint64(h.vdl))
	b = le.AppendUint64(b, uint64(h.floor))
	for _, c := range changes {
		b = le.AppendUint32(b, c.Page)
		b = le.AppendUint32(b, c.Slot)
		b = le.AppendUint32(b, c.Sum)
		b = le.AppendUint32(b, 0)
		b = le.AppendUint64(b, uint64(c.LSN))
	}
	return b
}

// parseMapBlock is appendMapBlock's mirror image; changes come one by one.
func parseMapBlock(b []byte, pages uint32, each func(MapChange)) (h mapHead, err error) {
	if len(b) < mapChangeHead || (len(b)-mapChangeHead)%mapChangeSize != 0 {
		return h, invalidf("map block of %d bytes", len(b))
	}
	le := binary.LittleEndian
	h = mapHead{redoubt.LSN(le.Uint64(b)), redoubt.LSN(le.Uint64(b[8:])), redoubt.LSN(le.Uint64(b[16:]))}
	for b = b[mapChangeHead:]; len(b) > 0; b = b[mapChangeSize:] {
		c := MapChange{Page: le.Uint32(b), Slot: le.Uint32(b[4:]), Sum: le.Uint32(b[8:]), LSN: redoubt.LSN(le.Uint64(b[16:]))}
		if c.Page >= pages || c.Slot == 0 {
			return h, invalidf("map block names page %d of %d, slot %d", c.Page, pages, c.Slot)
		}
		each(c)
	}
	return h, nil
}

// A mapPage's header binds it to the device, the segment's tag and the chunk.
//
//	 0       4     8     12      16      20     24        64
//	+-------+-----+-----+-------+-------+------+---------+---------+
//	| magic | crc | tag | chunk | count |  0   | zeros   | entries |
//	+-------+-----+-----+-------+-------+------+---------+---------+
//
// crc covers the device ID, bytes 0..4 and 8..16384.
func putMapPage(b []byte, s seed, tag uint32, chunk int, entries *[MapChunk]pageEntry) uint32 {
	le := binary.LittleEndian
	clear(b[:mapHeaderSize])
	le.PutUint32(b, mapMagic)
	le.PutUint32(b[8:], tag)
	le.PutUint32(b[12:], uint32(chunk))
	le.PutUint32(b[16:], MapChunk)
	for i := range entries {
		e, p := &entries[i], b[mapHeaderSize+i*mapEntrySize:]
		le.PutUint32(p, uint32(e.slot))
		le.PutUint32(p[4:], e.sum)
		le.PutUint64(p[8:], uint64(e.lsn))
	}
	sum := s.sum2(b[0:4], b[8:redoubt.PageSize])
	le.PutUint32(b[4:], sum)
	return sum
}

// parseMapPage is putMapPage's mirror image.
func parseMapPage(b []byte, s seed, tag uint32, chunk int, entries *[MapChunk]pageEntry) error {
	if err := checkMapPage(b, s, tag, chunk); err != nil {
		return err
	}
	le := binary.LittleEndian
	for i := range entries {
		p := b[mapHeaderSize+i*mapEntrySize:]
		entries[i] = pageEntry{slot: slot(le.Uint32(p)), sum: le.Uint32(p[4:]), lsn: redoubt.LSN(le.Uint64(p[8:]))}
	}
	return nil
}

// checkMapPage verifies a map page's sum and whose it is.
func checkMapPage(b []byte, s seed, tag uint32, chunk int) error {
	le := binary.LittleEndian
	if len(b) < redoubt.PageSize {
		return invalidf("map page of %d bytes", len(b))
	}
	sum := s.sum2(b[0:4], b[8:redoubt.PageSize])
	switch {
	case le.Uint32(b) != mapMagic || le.Uint32(b[4:]) != sum:
		return corruptf("map page %d of segment tag %d: crc %08x, stored %08x", chunk, tag, sum, le.Uint32(b[4:]))
	case le.Uint32(b[8:]) != tag || le.Uint32(b[12:]) != uint32(chunk) || le.Uint32(b[16:]) != MapChunk:
		return corruptf("map page %d of segment tag %d: it is page %d of tag %d with %d entries",
			chunk, tag, le.Uint32(b[12:]), le.Uint32(b[8:]), le.Uint32(b[16:]))
	}
	return nil
}

// mapPageSum returns the sum that a map page carries.
func mapPageSum(b []byte) uint32 { return binary.LittleEndian.Uint32(b[4:]) }
