package blockdev

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

// A Device is an open device. All methods may be called from any goroutine.
type Device struct {
	// Set by Open, never changed.
	path      string
	file      *file // nil with OpenEngine
	engine    ioring.Engine
	engineWhy string
	mode      mode
	modeWhy   string
	readOnly  bool
	reserve   int // extents for class Reserve alone
	geo       geo
	found     []Damage
	scratch   []byte // two slots: one to write, one to read it back into

	// Why writes are refused, as bits, so that the hot path loads one word.
	gate    atomic.Uint32
	failure atomic.Pointer[error] // set once, before gateFailed

	flush   flusher
	count   counters
	waiters sync.Pool // of *waiter
	closing sync.Once

	// change is held by whoever changes table or superblock, also while the
	// device works on it. No Done takes it. It guards scratch and raw, and comes
	// before mu.
	change sync.Mutex
	raw    [superSize]byte // the newest superblock as it stands on the device

	mu        sync.Mutex // guards what follows; changed under change as well
	super     Superblock
	extents   []Extent
	sequences []uint64 // of each table page
	free      freeMap
}

// geo is what the hot path needs of the superblock.
type geo struct {
	blockSize  int
	extentSize int64
	extents    int
	dataOff    int64
	end        int64 // behind the last extent
}

// The reasons to refuse a write.
const (
	gateFailed uint32 = 1 << iota
	gateClosed
	gateReadOnly
	gateClean
)

// Path returns the path that the device was opened with.
func (d *Device) Path() string { return d.path }

// Super returns the superblock. Its Clean field is what this device was opened
// with until MarkClean or ClearClean succeeds.
func (d *Device) Super() Superblock {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.super
}

// BlockSize returns the logical block size in bytes: offsets, lengths and
// memory of all reads and writes are multiples of it.
func (d *Device) BlockSize() int { return d.geo.blockSize }

// ExtentSize returns the size of an extent in bytes.
func (d *Device) ExtentSize() int64 { return d.geo.extentSize }

// ExtentCount returns the number of extents, free ones included.
func (d *Device) ExtentCount() int { return d.geo.extents }

// Offset returns the byte offset of an extent.
func (d *Device) Offset(index uint32) int64 { return d.geo.dataOff + int64(index)*d.geo.extentSize }

// Extents returns a copy of the extent table, by index.
func (d *Device) Extents() []Extent {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.extents)
}

// Durability returns how writes become durable, "fua", "flush" or "plp", and
// why in this way.
func (d *Device) Durability() (name, why string) { return d.mode.String(), d.modeWhy }

// Engine returns the I/O engine's name and why it was taken.
func (d *Device) Engine() (name, why string) { return d.engine.Name(), d.engineWhy }

// Found returns what was wrong with superblocks and table when the device was
// opened, and did not stand in the way.
func (d *Device) Found() []Damage { return slices.Clone(d.found) }

// Failed returns nil, or the error that every write gets since the first one
// that failed. It matches redoubt.ErrDeviceFailed and the first cause.
func (d *Device) Failed() error {
	if p := d.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// fail fails the device for good. The first cause stays.
func (d *Device) fail(cause error) {
	err := fmt.Errorf("blockdev: %s: %w and is not trusted any more, repair its segments elsewhere; first cause: %w",
		d.path, redoubt.ErrDeviceFailed, cause)
	d.failure.CompareAndSwap(nil, &err)
	d.gate.Or(gateFailed)
}

// settle takes note of the end of a write or flush. The end of the engine is
// not a failure of the device.
func (d *Device) settle(err error) {
	switch {
	case err == nil:
	case errors.Is(err, redoubt.ErrClosed):
		d.gate.Or(gateClosed)
	default:
		d.fail(err)
	}
}

// refused returns why no write may begin, or nil.
func (d *Device) refused() error {
	g := d.gate.Load()
	if g == 0 {
		return nil
	}
	return d.refusal(g)
}

// broken returns why no write may be reported durable, or nil.
func (d *Device) broken() error {
	g := d.gate.Load() & (gateFailed | gateClosed)
	if g == 0 {
		return nil
	}
	return d.refusal(g)
}

func (d *Device) refusal(g uint32) error {
	switch {
	case g&gateFailed != 0:
		return d.Failed()
	case g&gateClosed != 0:
		return wrap(d.path, redoubt.ErrClosed)
	case g&gateReadOnly != 0:
		return wrap(d.path, fmt.Errorf("opened for reading only: %w", redoubt.ErrInvalid))
	}
	return wrap(d.path, fmt.Errorf("it is marked clean, call ClearClean before writing: %w", redoubt.ErrInvalid))
}

// Close waits for what is in flight and gives the device back. It does not mark it
// clean. With OpenEngine the engine stays open: it is the caller's.
func (d *Device) Close() error {
	var err error
	d.closing.Do(func() { err = d.close() })
	return wrap(d.path, err)
}

func (d *Device) close() error {
	var errs []error
	if d.file != nil {
		errs = append(errs, d.engine.Close())
	}
	d.gate.Or(gateClosed)
	d.change.Lock()
	defer d.change.Unlock()
	errs = append(errs, unix.Munmap(d.scratch))
	d.scratch = nil
	if d.file != nil {
		errs = append(errs, d.file.close())
	}
	return errors.Join(errs...)
}

// Stats counts what a device has done since it was opened.
type Stats struct {
	Reads, ReadBytes   uint64 // by Read and ReadAt
	Writes, WriteBytes uint64 // by WriteDurable and WriteAt
	Flushes            uint64 // with durability flush
	Flushed            uint64 // writes that these covered
	TableWrites        uint64 // changes of the extent table
	SuperWrites        uint64 // changes of the superblock
	Engine             ioring.Stats
}

type counters struct {
	reads, readBytes, writes, writeBytes, flushes, flushed, tableWrites, superWrites atomic.Uint64
}

// Stats may be called at any time; its figures are not of one instant.
func (d *Device) Stats() Stats {
	c := &d.count
	return Stats{
		Reads: c.reads.Load(), ReadBytes: c.readBytes.Load(),
		Writes: c.writes.Load(), WriteBytes: c.writeBytes.Load(),
		Flushes: c.flushes.Load(), Flushed: c.flushed.Load(),
		TableWrites: c.tableWrites.Load(), SuperWrites: c.superWrites.Load(),
		Engine: d.engine.Stats(),
	}
}

// newScratch maps n bytes of aligned memory that doesn't move.
func newScratch(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes: %w", n, err)
	}
	return b, nil
}
