package redo

import (
	"encoding/binary"
	"fmt"

	"github.com/redoubt-storage/redoubt"
)

// Kind says what a record does.
type Kind uint8

const (
	Write Kind = 1 // bytes replace a range of the page
	Fill  Kind = 2 // one byte fills a range of the page
	Move  Kind = 3 // a range of the page is copied within it
	Mark  Kind = 4 // wall clock and VDL; touches no page
)

func (k Kind) String() string {
	switch k {
	case Write:
		return "write"
	case Fill:
		return "fill"
	case Move:
		return "move"
	case Mark:
		return "mark"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

const (
	// RecordHeaderSize is the size of a record without its payload, in bytes.
	RecordHeaderSize = 16
	// MarkPage is the page index that a mark carries.
	MarkPage = 1<<32 - 1
	// farLink is a link that reaches back this many LSNs or more.
	farLink = 1<<32 - 1

	flagCPL = 1

	moveBytes = 2
	markBytes = 16
)

// A Record is one decoded record. Data points into the batch it was read from
// and lives as long as that.
type Record struct {
	LSN  redoubt.LSN
	Page uint32 // index inside the protection group
	Off  uint16
	Len  uint16
	Kind Kind
	CPL  bool
	// Link is the distance to the page's record before, see the package
	// comment; PrevOf checks it.
	Link uint32
	Data []byte // the payload as stored
}

// payloadLen returns the payload bytes of a record, or -1 for a kind that
// does not exist.
func payloadLen(k Kind, n uint16) int {
	switch k {
	case Write:
		return int(n)
	case Fill:
		return 1
	case Move:
		return moveBytes
	case Mark:
		return markBytes
	}
	return -1
}

// FollowsPage reports whether the record's page link names prev as the page's
// record before it (0: none).
func (r *Record) FollowsPage(prev redoubt.LSN) bool {
	switch r.Link {
	case 0:
		return prev == 0
	case farLink:
		return prev != 0 && prev < r.LSN && r.LSN-prev >= farLink
	}
	return prev == r.LSN-redoubt.LSN(r.Link)
}

// LinkTo returns the link of a record at lsn to the page's record at prev.
func LinkTo(lsn, prev redoubt.LSN) uint32 {
	if prev == 0 {
		return 0
	}
	return uint32(min(uint64(lsn-prev), farLink))
}

// Covers reports whether the record sets every byte of the page, so that no
// earlier version is needed to apply it.
func (r *Record) Covers() bool {
	return r.Len == redoubt.PageSize && (r.Kind == Write || r.Kind == Fill)
}

// MarkTime returns the wall clock in Unix nanoseconds and the VDL of a mark.
func (r *Record) MarkTime() (nanos int64, vdl redoubt.LSN) {
	return int64(binary.LittleEndian.Uint64(r.Data)), redoubt.LSN(binary.LittleEndian.Uint64(r.Data[8:]))
}

// Apply changes page, of 16 KiB, as the record says. The record has passed
// [Verify] or [Records], so it can't reach outside the page.
func (r *Record) Apply(page []byte) {
	_ = page[redoubt.PageSize-1]
	to := page[r.Off : int(r.Off)+int(r.Len)]
	switch r.Kind {
	case Write:
		copy(to, r.Data)
	case Fill:
		fill(to, r.Data[0])
	case Move:
		from := int(binary.LittleEndian.Uint16(r.Data))
		copy(to, page[from:from+int(r.Len)])
	}
}

func fill(b []byte, v byte) {
	if v == 0 {
		clear(b)
		return
	}
	for i := range b {
		b[i] = v
	}
}

// check reports what is wrong with a decoded record on its own.
func (r *Record) check() error {
	if r.Kind == Mark {
		if r.Page != MarkPage || r.Off != 0 || r.Len != 0 || r.Link != 0 {
			return fmt.Errorf("mark at LSN %d names a page", r.LSN)
		}
		return nil
	}
	if r.Len == 0 || int(r.Off)+int(r.Len) > redoubt.PageSize {
		return fmt.Errorf("record at LSN %d: bytes %d+%d of a page of %d", r.LSN, r.Off, r.Len, redoubt.PageSize)
	}
	if r.Page >= redoubt.MaxPGPages {
		return fmt.Errorf("record at LSN %d: page index %d is past the largest protection group", r.LSN, r.Page)
	}
	if r.Kind == Move {
		from := binary.LittleEndian.Uint16(r.Data)
		if int(from)+int(r.Len) > redoubt.PageSize {
			return fmt.Errorf("record at LSN %d: moves bytes %d+%d of a page of %d", r.LSN, from, r.Len, redoubt.PageSize)
		}
	}
	if r.Link != 0 && redoubt.LSN(r.Link) >= r.LSN {
		return fmt.Errorf("record at LSN %d: page link %d reaches below LSN 1", r.LSN, r.Link)
	}
	return nil
}
