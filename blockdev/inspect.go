package blockdev

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redoubt-storage/redoubt"
)

// A Damage is a place on the device that is not as it should be.
type Damage struct {
	Off, Len int64  // bytes on the device
	What     string // which superblock copy, table slot or relation
	Err      error  // what is wrong

	// Harmless: a write that a power cut tore before it was acknowledged, or
	// something a later write replaces. The truth is known all the same.
	Harmless bool
}

func (d Damage) String() string {
	s := fmt.Sprintf("%s at byte %d: %v", d.What, d.Off, d.Err)
	if d.Harmless {
		s += " (harmless)"
	}
	return s
}

// readFunc fills b, aligned memory, from a byte offset of the device.
type readFunc func(b []byte, off int64) error

// A superCopy is what was found where a superblock copy belongs.
type superCopy struct {
	raw [superSize]byte
	sb  Superblock
	err error // why it doesn't count
}

// errNoMagic tells a place without a superblock from a damaged one.
var errNoMagic = errors.New("no superblock")

// readSupers reads both copies. buf is aligned memory for one.
func readSupers(read readFunc, buf []byte) (copies [2]superCopy) {
	for i := range copies {
		c := &copies[i]
		if err := read(buf[:superSize], superOff(uint64(i))); err != nil {
			c.err = fmt.Errorf("unreadable (%w): %w", err, redoubt.ErrCorrupt)
			continue
		}
		copy(c.raw[:], buf)
		c.sb, c.err = parseSuper(c.raw[:])
		if c.err == nil && c.sb.Generation%2 != uint64(i) {
			c.err = fmt.Errorf("generation %d doesn't belong into copy %s: %w", c.sb.Generation, copyName(i), redoubt.ErrCorrupt)
		}
	}
	return copies
}

// chooseSuper returns which copy counts and what is wrong with the other. An
// error says why this can't be taken for a device of ours at all.
func chooseSuper(copies *[2]superCopy) (newest int, found []Damage, err error) {
	a, b := &copies[0], &copies[1]
	for i := range copies {
		// Its sum is right and it is of another format, or no program of ours
		// writes such a thing: whatever the other copy says, this program doesn't
		// know enough.
		c := &copies[i]
		if errors.Is(c.err, redoubt.ErrForeign) && !errors.Is(c.err, errNoMagic) || errors.Is(c.err, redoubt.ErrInvalid) {
			return 0, nil, fmt.Errorf("superblock copy %s at byte %d: %w", copyName(i), superOff(uint64(i)), c.err)
		}
	}
	switch {
	case errors.Is(a.err, errNoMagic) && errors.Is(b.err, errNoMagic):
		return 0, nil, fmt.Errorf("not a redoubt device: no superblock at byte %d or %d (%s); format it first: %w",
			superOff(0), superOff(1), describe(a.raw[:]), redoubt.ErrForeign)
	case a.err != nil && b.err != nil:
		return 0, nil, fmt.Errorf("both superblock copies are damaged: A at byte %d: %v; B at byte %d: %v; repair its segments elsewhere and format it again: %w",
			superOff(0), a.err, superOff(1), b.err, redoubt.ErrCorrupt)
	case a.err != nil:
		return 1, []Damage{superDamage(0, a.err)}, nil
	case b.err != nil:
		return 0, []Damage{superDamage(1, b.err)}, nil
	case a.sb.Device != b.sb.Device:
		return 0, nil, fmt.Errorf("superblock copy A is of device %v, copy B of %v: %w", a.sb.Device, b.sb.Device, redoubt.ErrForeign)
	}
	newest, older := 0, 1
	if b.sb.Generation > a.sb.Generation {
		newest, older = 1, 0
	}
	if n, o := copies[newest].sb.Generation, copies[older].sb.Generation; n != o+1 {
		found = append(found, Damage{Off: superOff(uint64(older)), Len: superSize, What: "superblock copy " + copyName(older),
			Err: fmt.Errorf("generation %d beside %d: an acknowledged write was lost, or an old superblock put back: %w", o, n, redoubt.ErrCorrupt)})
	}
	return newest, found, nil
}

// superDamage describes a damaged copy. It is harmless: identity and geometry
// are in the other one, and the clean field is not believed.
func superDamage(i int, err error) Damage {
	return Damage{Off: superOff(uint64(i)), Len: superSize, What: "superblock copy " + copyName(i), Err: err, Harmless: true}
}

// describe says what stands where a superblock should.
func describe(b []byte) string {
	if allZero(b) {
		return "it is blank"
	}
	return fmt.Sprintf("it begins with %q", b[:8])
}

// An inspector reads the table and judges it.
type inspector struct {
	read readFunc
	sb   *Superblock
	lone bool // the other superblock copy is damaged
	buf  []byte

	extents   []Extent
	sequences []uint64
	found     []Damage
	newest    uint64 // highest superblock generation that a page knows of
	lost      int    // pages of which no slot is whole
}

// chunkPages is how many pages are read at once: 512 KiB of either slot.
const chunkPages = 128

// inspectorBuf is the size of an inspector's aligned buffer.
const inspectorBuf = 2 * chunkPages * slotSize

// run reads the whole table.
func (in *inspector) run() {
	pages := tablePages(in.sb.ExtentCount)
	in.extents = make([]Extent, in.sb.ExtentCount)
	in.sequences = make([]uint64, pages)
	for p := 0; p < pages; p += chunkPages {
		n := min(chunkPages, pages-p)
		var errs [2][]error
		for slot := range 2 {
			errs[slot] = in.readSlots(in.half(slot)[:n*slotSize], slotOff(pages, uint32(p), slot))
		}
		for i := range n {
			in.page(uint32(p+i), i, [2]error{at(errs[0], i), at(errs[1], i)})
		}
	}
	in.relate()
}

// half is where one of the two slots of a chunk's pages goes.
func (in *inspector) half(slot int) []byte {
	return in.buf[slot*chunkPages*slotSize:][:chunkPages*slotSize]
}

// readSlots reads neighbouring slots. If that fails it reads them one by one, to
// find the bad ones, and returns an error or nil for each.
func (in *inspector) readSlots(b []byte, off int64) []error {
	if in.read(b, off) == nil {
		return nil
	}
	errs := make([]error, len(b)/slotSize)
	for i := range errs {
		errs[i] = in.read(b[i*slotSize:(i+1)*slotSize], off+int64(i)*slotSize)
	}
	return errs
}

// at is errs[i], of a list that is nil if there were none.
func at(errs []error, i int) error {
	if errs == nil {
		return nil
	}
	return errs[i]
}

// page judges page p, which is the i-th of its chunk.
func (in *inspector) page(p uint32, i int, unreadable [2]error) {
	first := int(p) * pageEntries
	entries := in.extents[first:min(first+pageEntries, len(in.extents))]
	var both [2]slotState
	var decoded [2][pageEntries]Extent
	for slot := range both {
		if err := unreadable[slot]; err != nil {
			both[slot] = slotState{err: fmt.Errorf("unreadable (%w): %w", err, redoubt.ErrCorrupt)}
			continue
		}
		b := in.half(slot)[i*slotSize : (i+1)*slotSize]
		both[slot] = parseSlot(b, tableSeed(in.sb.Device), p, slot, decoded[slot][:len(entries)])
	}
	newest, bad, verdict := judge(&both)
	if verdict != nil {
		in.found = append(in.found, in.damage(p, bad, verdict, provenOld(&both, bad)))
	}
	if newest < 0 {
		in.found = append(in.found, in.damage(p, 1-bad, both[1-bad].err, false))
		in.lost++
		return
	}
	copy(entries, decoded[newest][:])
	in.sequences[p] = both[newest].sequence
	in.newest = max(in.newest, both[newest].super)
}

func (in *inspector) damage(p uint32, slot int, err error, harmless bool) Damage {
	return Damage{Off: slotOff(len(in.sequences), p, slot), Len: slotSize, Err: err, Harmless: harmless,
		What: fmt.Sprintf("extent table page %d, slot %d", p, slot)}
}

// judge decides which slot of a page counts (-1: none) and what is wrong with
// which.
func judge(both *[2]slotState) (newest, bad int, verdict error) {
	a, b := &both[0], &both[1]
	switch {
	case a.err != nil && b.err != nil:
		return -1, 0, a.err
	case a.err != nil:
		return 1, 0, a.err
	case b.err != nil:
		return 0, 1, b.err
	}
	newest, older := 0, 1
	if b.sequence > a.sequence {
		newest, older = 1, 0
	}
	if n, o := both[newest].sequence, both[older].sequence; n != o+1 {
		return newest, older, fmt.Errorf("sequence %d beside %d: an acknowledged write was lost, or an old slot put back: %w", o, n, redoubt.ErrCorrupt)
	}
	return newest, 0, nil
}

// provenOld reports whether the bad slot is known to hold no version that was
// acknowledged and is newer than the other slot's: a whole sector of it is of the
// version before that, or its sectors are of two attempts at the version after.
// Nothing may be there that can't be.
func provenOld(both *[2]slotState, bad int) bool {
	b, good := &both[bad], &both[1-bad]
	if b.err == nil || good.err != nil || b.newest > good.sequence+1 {
		return false
	}
	return b.oldest+1 == good.sequence || b.mixed && b.oldest == good.sequence+1
}

// relate compares table and superblock with each other.
func (in *inspector) relate() {
	known := in.sb.Generation
	if in.lone {
		known++ // the damaged copy may have been the newer one
	}
	complain := func(format string, args ...any) {
		in.found = append(in.found, Damage{Off: superOff(in.sb.Generation % 2), Len: superSize, What: "superblock and extent table",
			Err: fmt.Errorf(format, args...)})
	}
	if in.newest > known {
		complain("the superblock has generation %d, but the table was written under %d: an old superblock was put back: %w", known, in.newest, redoubt.ErrCorrupt)
	}
	if in.lost > 0 || in.lone || in.sb.Clean == 0 {
		return
	}
	var sum uint64
	for _, s := range in.sequences {
		sum += s
	}
	if sum != in.sb.TableSum {
		complain("the table's sequences sum up to %d, at the clean shutdown it was %d: one of the two is not of that moment: %w", sum, in.sb.TableSum, redoubt.ErrCorrupt)
	}
}

// verdict returns why the device is refused, if it is.
func verdict(found []Damage, lost int, readOnly bool) error {
	var bad []string
	for _, d := range found {
		if !d.Harmless {
			bad = append(bad, d.String())
		}
	}
	if len(bad) == 0 || readOnly && lost == 0 {
		return nil
	}
	more := ""
	if len(bad) > 4 {
		bad, more = bad[:4], fmt.Sprintf("; and %d places more", len(bad)-4)
	}
	return fmt.Errorf("what was acknowledged may be gone: %s%s; repair its segments elsewhere and format it again: %w",
		strings.Join(bad, "; "), more, redoubt.ErrCorrupt)
}
