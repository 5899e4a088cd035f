package devtest

import (
	"fmt"
	"os"
	"slices"

	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/ioring"
)

// What says what an Event is about.
type What string

const (
	Submitted What = "submit"
	Completed What = "complete"
)

// An Event is an entry of the log of operations.
type Event struct {
	What  What
	ID    int // of the operation: number of its submission, from 1
	Kind  ioring.Kind
	DSync bool
	Off   int64
	Len   int
	Err   error // of a completion
}

func (e Event) String() string {
	s := fmt.Sprintf("%s %d %v", e.What, e.ID, e.Kind)
	if e.Kind != ioring.OpSync {
		s += fmt.Sprintf(" [%d, +%d)", e.Off, e.Len)
	}
	if e.DSync {
		s += " dsync"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Record begins a new log of operations.
func (d *Disk) Record() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.logging, d.log = true, nil
}

// Ops returns the events since Record, in order.
func (d *Disk) Ops() []Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

func (d *Disk) note(what What, p *pending, err error) {
	if d.logging {
		d.log = append(d.log, Event{What: what, ID: p.id, Kind: p.op.Kind, DSync: p.op.DSync, Off: p.op.Off, Len: p.size, Err: err})
	}
}

// Bytes returns what a reader of the whole disk would see. It costs the size of
// the disk.
func (d *Disk) Bytes() []byte {
	b := make([]byte, d.size)
	d.Peek(b, 0)
	return b
}

// Peek fills b with what a reader at byte off would see, whatever the mode and
// the faults.
func (d *Disk) Peek(b []byte, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cur.read(b, off)
}

// FromBytes returns a disk with the content b, whose length is a multiple of
// 4096, and logical blocks of 512 bytes.
func FromBytes(b []byte) *Disk {
	m := newImage(int64(len(b)))
	for off := 0; off < len(b); off += pageSize {
		if page := b[off:min(off+pageSize, len(b))]; !m.equal(page, int64(off)) {
			m.write(page, int64(off))
		}
	}
	return newDisk(m, DefaultBlockSize, nil)
}

// WriteFile writes what a reader would see to a new file, leaving holes for
// pages of zeros: for tests of programs that read devices offline.
func (d *Disk) WriteFile(path string) error {
	d.mu.Lock()
	m := d.cur.clone()
	d.mu.Unlock()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("devtest: %w", err)
	}
	err = f.Truncate(m.size)
	for off := int64(0); off < m.size && err == nil; off += pageSize {
		if p := m.page(off / pageSize); !slices.Equal(p, zeroPage[:]) {
			_, err = f.WriteAt(p, off)
		}
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("devtest: %s: %w", path, err)
	}
	return nil
}

// Clone returns an independent disk that holds what a reader would see, all of
// it on the medium.
func (d *Disk) Clone() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return newDisk(d.cur.clone(), d.blockSize, d.label)
}

// SwapWith exchanges the media of two disks of one size on which nothing is in
// flight, as if somebody had pulled two drives and put each into the other's
// slot.
func (d *Disk) SwapWith(e *Disk) {
	invariant.Assert(d != e && d.size == e.size && d.blockSize == e.blockSize, "devtest: swap of disks of %d and %d bytes", d.size, e.size)
	a, b := d.Clone(), e.Clone()
	d.replug(b)
	e.replug(a)
}

// replug makes the medium of from this disk's.
func (d *Disk) replug(from *Disk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	invariant.Assert(len(d.flight) == 0 && len(d.held) == 0, "devtest: swap with operations in flight")
	d.cache = cache{cur: from.cur, dur: from.dur}
}
