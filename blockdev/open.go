package blockdev

import (
	"fmt"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

// Options say how to open a device. The zero value is what production runs.
type Options struct {
	// IOEngine is "auto", "uring" or "sync". Default "auto". See ioring.Options.
	IOEngine string

	// Durability is "auto", "fua", "flush" or "plp". Default "auto": fua on
	// files and loop devices; on others what their write cache asks for. plp,
	// the operator's word that the power may go at any time, is never chosen.
	Durability string

	// Depth is the depth of the engine's queue. Default 256.
	Depth int

	// Regions are registered with the engine. They stay mapped until Close.
	Regions [][]byte

	// ReadOnly changes nothing on the device, shares the lock with other
	// readers, and goes on as long as one copy of everything is whole.
	ReadOnly bool

	// LockWait is how long to ask again while another process has the device: a
	// process that was killed may hold it a moment longer. Default 5 s;
	// negative: ask once.
	LockWait time.Duration

	// ReserveExtents is how many free extents class Normal leaves. Default 2 %
	// of all, and at least 2.
	ReserveExtents int
}

// Open opens the device or file at path, and checks that it is a whole device
// of ours; CheckSet then checks that it is the right one. It writes nothing.
// The error matches redoubt.ErrForeign if this is another's device or of
// another format, redoubt.ErrCorrupt if it is damaged, redoubt.ErrBusy if
// somebody has it open.
func Open(path string, o Options) (*Device, error) {
	d, err := openPath(path, o)
	if err != nil {
		return nil, wrap(path, err)
	}
	return d, nil
}

func openPath(path string, o Options) (*Device, error) {
	if o.LockWait == 0 {
		o.LockWait = 5 * time.Second
	}
	m, auto, err := parseMode(o.Durability)
	if err != nil {
		return nil, err
	}
	f, err := openFile(path, o.ReadOnly, o.LockWait)
	if err != nil {
		return nil, err
	}
	e, engineWhy, err := ioring.Open(f.fd, ioring.Options{Engine: o.IOEngine, Depth: o.Depth, Regions: o.Regions})
	if err != nil {
		f.close()
		return nil, err
	}
	d := &Device{path: path, file: f, engine: e, engineWhy: engineWhy, mode: m, modeWhy: "as asked for"}
	if auto {
		d.mode, d.modeWhy = chooseMode(&f.st, "/sys")
	}
	if err := d.load(f.size, f.blockSize, o); err != nil {
		e.Close()
		f.close()
		return nil, err
	}
	return d, nil
}

// OpenEngine is Open on an engine, of a device of size bytes with logical
// blocks of blockSize bytes: a simulated disk, which has no path and no lock.
// The engine stays the caller's to close. Options.IOEngine, Depth, Regions and
// LockWait are ignored; Durability auto means fua.
func OpenEngine(e ioring.Engine, size int64, blockSize int, o Options) (*Device, error) {
	m, auto, err := parseMode(o.Durability)
	if err != nil {
		return nil, wrap(e.Name(), err)
	}
	d := &Device{path: e.Name(), engine: e, engineWhy: "handed over by the caller", mode: m, modeWhy: "as asked for"}
	if auto {
		d.mode, d.modeWhy = modeFUA, "an engine without a file"
	}
	if err := d.load(size, blockSize, o); err != nil {
		return nil, wrap(d.path, err)
	}
	return d, nil
}

// load reads superblock and table and checks everything. After an error the
// device holds nothing but its engine.
func (d *Device) load(size int64, blockSize int, o Options) error {
	buf, err := newScratch(inspectorBuf)
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	d.readOnly = o.ReadOnly
	if !o.ReadOnly {
		// What a dead process wrote may be in the device's cache only. Whatever is
		// read from here on is built upon, so it must not vanish any more.
		if err := engineSync(d.engine); err != nil {
			return fmt.Errorf("flushing what an earlier process wrote: %w", err)
		}
	}
	copies := readSupers(d.rawRead, buf)
	newest, found, err := chooseSuper(&copies)
	if err != nil {
		return err
	}
	sb := copies[newest].sb
	sb.Path = d.path
	if err := fits(&sb, size, blockSize, o.ReadOnly); err != nil {
		return err
	}
	lone := copies[1-newest].err != nil
	in := inspector{read: d.rawRead, sb: &sb, lone: lone, buf: buf, found: found}
	in.run()
	if err := verdict(in.found, in.lost, o.ReadOnly); err != nil {
		return err
	}
	if err := d.adopt(&in, &copies[newest], o); err != nil {
		return err
	}
	d.scratch, err = newScratch(2 * slotSize)
	return err
}

// adopt takes over what the inspector found.
func (d *Device) adopt(in *inspector, c *superCopy, o Options) error {
	sb := *in.sb
	if sb.Clean != 0 {
		d.gate.Or(gateClean)
	}
	if in.lone {
		sb.Clean, sb.TableSum = 0, 0
	}
	if d.readOnly {
		d.gate.Or(gateReadOnly)
	}
	d.reserve = o.ReserveExtents
	if d.reserve == 0 {
		d.reserve = max(2, sb.ExtentCount/50)
	}
	if d.reserve < 0 || d.reserve >= sb.ExtentCount {
		return fmt.Errorf("a reserve of %d of %d extents: want 1 to %d: %w", d.reserve, sb.ExtentCount, sb.ExtentCount-1, redoubt.ErrInvalid)
	}
	d.raw = c.raw
	d.super, d.extents, d.sequences, d.found = sb, in.extents, in.sequences, in.found
	d.free = newFreeMap(d.extents)
	d.geo = geo{blockSize: sb.BlockSize, extentSize: sb.ExtentSize, extents: sb.ExtentCount, dataOff: sb.DataOff, end: sb.end()}
	d.flush.dev = d
	return nil
}

// fits checks the superblock against the device that it was found on, and
// against what may be done with it.
func fits(sb *Superblock, size int64, blockSize int, readOnly bool) error {
	switch unknown := sb.ROCompat &^ knownROCompat; {
	case unknown != 0 && !readOnly:
		return fmt.Errorf("features %#x that this program doesn't know allow reading only: use a newer redoubt: %w", unknown, redoubt.ErrForeign)
	case size < sb.Size:
		return fmt.Errorf("it has %d bytes, and had %d when it was formatted: truncated, or copied in part: %w", size, sb.Size, redoubt.ErrCorrupt)
	case blockSize > sb.BlockSize:
		return fmt.Errorf("its logical blocks have %d bytes, and had %d when it was formatted: move its segments and format it again: %w",
			blockSize, sb.BlockSize, redoubt.ErrForeign)
	}
	return nil
}

// rawRead reads anywhere on the device.
func (d *Device) rawRead(b []byte, off int64) error { return engineRead(d.engine, b, off) }

func engineRead(e ioring.Engine, b []byte, off int64) error {
	return engineDo(e, ioring.Op{Kind: ioring.OpRead, Off: off, Bufs: [][]byte{b}})
}

// engineSync flushes the device behind e.
func engineSync(e ioring.Engine) error { return engineDo(e, ioring.Op{Kind: ioring.OpSync}) }

// engineDo performs one op and waits for it.
func engineDo(e ioring.Engine, op ioring.Op) error {
	done := make(chan error, 1)
	op.Done = func(_ *ioring.Op, err error) { done <- err }
	op.SubmitTo(e)
	return <-done
}

// CheckTable reads superblocks and extent table again and lists every place
// that is not as it should be: for offline checks, but right at any time.
func (d *Device) CheckTable() ([]Damage, error) {
	d.change.Lock()
	defer d.change.Unlock()
	if d.scratch == nil {
		return nil, wrap(d.path, redoubt.ErrClosed)
	}
	buf, err := newScratch(inspectorBuf)
	if err != nil {
		return nil, wrap(d.path, err)
	}
	defer unix.Munmap(buf)
	copies := readSupers(d.rawRead, buf)
	newest, found, err := chooseSuper(&copies)
	if err != nil {
		return nil, wrap(d.path, err)
	}
	in := inspector{read: d.rawRead, sb: &copies[newest].sb, lone: copies[1-newest].err != nil, buf: buf, found: found}
	in.run()
	return in.found, nil
}
