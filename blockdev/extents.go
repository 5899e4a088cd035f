package blockdev

import (
	"fmt"
	"math"
	"math/bits"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
)

// A Class says who asks for an extent.
type Class uint8

const (
	// Normal may not take the last ones, which are kept back so that repair and
	// garbage collection always have room.
	Normal Class = iota
	// Reserve may take any.
	Reserve
)

// Assign gives out a free extent, in a new generation, and returns once that is
// on stable storage. It matches redoubt.ErrFull when class has none left. It
// must not be called from a Done.
func (d *Device) Assign(role Role, owner uint32, seq uint64, class Class) (Extent, error) {
	invariant.Assert(role == RoleLog || role == RolePages, "blockdev: Assign of role %v", role)
	d.change.Lock()
	defer d.change.Unlock()
	if err := d.refused(); err != nil {
		return Extent{}, err
	}
	e, err := d.pick(class)
	if err != nil {
		return Extent{}, wrap(d.path, err)
	}
	e.Gen++
	e.Role, e.Owner, e.Seq = role, owner, seq
	if err := d.commit(e); err != nil {
		return Extent{}, err
	}
	return e, nil
}

// Release takes an extent back and returns once that is on stable storage.
// Nobody may be writing to it. It must not be called from a Done.
func (d *Device) Release(index uint32) error {
	d.change.Lock()
	defer d.change.Unlock()
	if err := d.refused(); err != nil {
		return err
	}
	if int64(index) >= int64(d.geo.extents) || d.extents[index].Role == RoleFree {
		return wrap(d.path, fmt.Errorf("release of extent %d of %d, which is not in use: %w", index, d.geo.extents, redoubt.ErrInvalid))
	}
	return d.commit(Extent{Index: index, Gen: d.extents[index].Gen})
}

// FreeExtents returns how many extents class can still take.
func (d *Device) FreeExtents(class Class) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.available(class)
}

func (d *Device) available(class Class) int {
	if class == Reserve {
		return d.free.count
	}
	return max(0, d.free.count-d.reserve)
}

// pick chooses the next free extent.
func (d *Device) pick(class Class) (Extent, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.available(class) == 0 {
		return Extent{}, fmt.Errorf("%d of %d extents are free, %d are kept in reserve: %w",
			d.free.count, d.geo.extents, d.reserve, redoubt.ErrFull)
	}
	return d.extents[d.free.next()], nil
}

// commit writes the table page of e with e in it, and then lets e be seen. The
// caller holds change, so nobody else changes the table.
func (d *Device) commit(e Extent) error {
	page := e.Index / pageEntries
	first := int(page) * pageEntries
	var entries [pageEntries]Extent
	n := copy(entries[:], d.extents[first:])
	entries[e.Index%pageEntries] = e
	h := slotHeader{page: page, sequence: d.sequences[page] + 1, super: d.super.Generation}
	slot := d.scratch[:slotSize]
	putSlot(slot, tableSeed(d.super.Device), h, entries[:n])
	if err := d.writeMeta(slot, slotOff(len(d.sequences), page, h.slot())); err != nil {
		return err
	}
	d.count.tableWrites.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.extents[e.Index] = e
	d.sequences[page] = h.sequence
	d.free.set(int(e.Index), usable(e))
	return nil
}

// usable reports whether e may be given out. One that has used up its
// generations is retired.
func usable(e Extent) bool { return e.Role == RoleFree && e.Gen < math.MaxUint32 }

// MarkClean notes a clean shutdown at log position pos, which is not 0, and
// refuses writes from then on. Nothing may be in flight.
func (d *Device) MarkClean(pos uint64) error {
	d.change.Lock()
	defer d.change.Unlock()
	if err := d.refused(); err != nil {
		return err
	}
	if pos == 0 {
		return wrap(d.path, fmt.Errorf("clean at position 0, which means not clean: %w", redoubt.ErrInvalid))
	}
	d.gate.Or(gateClean)
	return d.writeSuper(pos, d.sequenceSum())
}

// ClearClean notes that the device is in use: from now on a crash finds it not
// clean, and writes are allowed. Whoever opens a device for writing calls it
// once the device has been accepted, clean or not: it also replaces a damaged
// superblock copy.
func (d *Device) ClearClean() error {
	d.change.Lock()
	defer d.change.Unlock()
	if g := d.gate.Load() &^ gateClean; g != 0 {
		return d.refusal(g)
	}
	if err := d.writeSuper(0, 0); err != nil {
		return err
	}
	d.gate.And(^gateClean)
	return nil
}

// writeSuper writes the next generation of the superblock over the older copy.
// The caller holds change.
func (d *Device) writeSuper(clean, sum uint64) error {
	next := d.super
	next.Generation++
	next.Clean, next.TableSum = clean, sum
	b := d.scratch[:superSize]
	copy(b, d.raw[:])
	next.put(b)
	if err := d.writeMeta(b, superOff(next.Generation%2)); err != nil {
		return err
	}
	d.count.superWrites.Add(1)
	copy(d.raw[:], b)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.super = next
	return nil
}

// sequenceSum is the table sum of a clean superblock.
func (d *Device) sequenceSum() uint64 {
	var sum uint64
	for _, s := range d.sequences {
		sum += s
	}
	return sum
}

// A freeMap knows which extents may be given out, and walks through them in
// turn so that an extent rests as long as possible before it is used again.
type freeMap struct {
	words  []uint64
	count  int
	cursor int // the extent behind the one given out last
}

func newFreeMap(extents []Extent) freeMap {
	m := freeMap{words: make([]uint64, (len(extents)+63)/64)}
	for _, e := range extents {
		m.set(int(e.Index), usable(e))
	}
	return m
}

// set notes whether extent i is free.
func (m *freeMap) set(i int, free bool) {
	w, bit := &m.words[i/64], uint64(1)<<(i%64)
	switch was := *w&bit != 0; {
	case free && !was:
		m.count++
	case !free && was:
		m.count--
		m.cursor = i + 1
	}
	*w &^= bit
	if free {
		*w |= bit
	}
}

// next returns the first free extent at or behind the cursor, or from the
// start. There is one.
func (m *freeMap) next() int {
	n := len(m.words)
	start := m.cursor / 64 % n
	for i := range n + 1 {
		at := (start + i) % n
		w := m.words[at]
		if i == 0 {
			w &^= 1<<(m.cursor%64) - 1
		}
		if w != 0 {
			return at*64 + bits.TrailingZeros64(w)
		}
	}
	invariant.Assert(false, "blockdev: no free extent among %d", m.count)
	return 0
}
