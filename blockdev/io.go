package blockdev

import (
	"fmt"
	"unsafe"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/ioring"
)

// A Write is one write to extents. The caller fills in the exported fields and
// leaves it and the buffers alone until Done; then it may be used again.
type Write struct {
	Bufs [][]byte // aligned pieces, 1 to ioring.MaxPieces, consecutive on the device
	Off  int64    // byte offset on the device
	// Done is called once, with nil when the bytes are on stable storage. It
	// runs on a thread of the engine, or inside WriteDurable: it must not block,
	// and no lock may be held that it takes.
	Done func(w *Write, err error)
	Ctx  any // the caller's

	op   ioring.Op
	dev  *Device
	next *Write // in a list of the flusher
}

// WriteDurable writes w and reports when it would survive a power cut, by the
// device's durability. It never blocks on the device.
func (d *Device) WriteDurable(w *Write) {
	n := d.checkWrite(w)
	if err := d.refused(); err != nil {
		w.Done(w, err)
		return
	}
	d.count.writes.Add(1)
	d.count.writeBytes.Add(uint64(n))
	d.submit(w)
}

// checkWrite asserts what a write must satisfy so that no bug of a caller ever
// reaches table or superblock, and returns its length.
func (d *Device) checkWrite(w *Write) int {
	n := 0
	for _, b := range w.Bufs {
		n += len(b)
		if invariant.Checked {
			d.checkPiece(b)
		}
	}
	ok := w.Done != nil && len(w.Bufs) > 0 && len(w.Bufs) <= ioring.MaxPieces && n > 0 &&
		(w.Off|int64(n))&int64(d.geo.blockSize-1) == 0 && w.Off >= d.geo.dataOff && w.Off+int64(n) <= d.geo.end
	if !ok {
		invariant.Assert(false, "blockdev: %s: write of %d bytes in %d pieces at %d: extents lie in [%d, %d), blocks have %d bytes",
			d.path, n, len(w.Bufs), w.Off, d.geo.dataOff, d.geo.end, d.geo.blockSize)
	}
	if invariant.Checked {
		d.checkAssigned(w.Off, n)
	}
	return n
}

func (d *Device) checkPiece(b []byte) {
	mask := d.geo.blockSize - 1
	if len(b) == 0 || len(b)&mask != 0 || uintptr(unsafe.Pointer(&b[0]))&uintptr(mask) != 0 {
		invariant.Assert(false, "blockdev: %s: a piece of %d bytes at address %p: blocks have %d bytes", d.path, len(b), b, d.geo.blockSize)
	}
}

// checkAssigned asserts that nobody writes into an extent that is free.
func (d *Device) checkAssigned(off int64, n int) {
	first := (off - d.geo.dataOff) / d.geo.extentSize
	last := (off + int64(n) - 1 - d.geo.dataOff) / d.geo.extentSize
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := first; i <= last; i++ {
		if d.extents[i].Role == RoleFree {
			invariant.Assert(false, "blockdev: %s: write of %d bytes at %d into extent %d, which is free", d.path, n, off, i)
		}
	}
}

// submit hands w to the engine, wherever it goes and whoever allowed it.
func (d *Device) submit(w *Write) {
	w.dev = d
	w.op.Kind, w.op.DSync = ioring.OpWrite, d.mode == modeFUA
	w.op.Off, w.op.Bufs = w.Off, w.Bufs
	w.op.Done, w.op.Ctx = writeCompleted, w
	w.op.SubmitTo(d.engine)
}

// writeCompleted is the Done of a Write's op.
func writeCompleted(op *ioring.Op, err error) {
	w := op.Ctx.(*Write)
	d := w.dev
	d.settle(err)
	if err = d.broken(); err == nil && d.mode == modeFlush {
		d.flush.add(w)
		return
	}
	w.Done(w, err)
}

// A Read is one read. The caller fills in the exported fields and leaves it and
// the buffers alone until Done; then it may be used again.
type Read struct {
	Bufs [][]byte // aligned pieces, 1 to ioring.MaxPieces, consecutive on the device
	Off  int64    // byte offset on the device
	// Done is called once, like that of a Write, with nil when Bufs are filled.
	Done func(r *Read, err error)
	Ctx  any // the caller's

	op  ioring.Op
	dev *Device
}

// Read reads r. It never blocks on the device, and works on a failed one. A
// range that no device of this size has is answered with redoubt.ErrInvalid:
// offsets may come from damaged bytes.
func (d *Device) Read(r *Read) {
	n := 0
	for _, b := range r.Bufs {
		n += len(b)
	}
	if err := d.readable(r.Off, n); err != nil {
		r.Done(r, err)
		return
	}
	d.count.reads.Add(1)
	d.count.readBytes.Add(uint64(n))
	r.dev = d
	r.op.Kind, r.op.Off, r.op.Bufs = ioring.OpRead, r.Off, r.Bufs
	r.op.Done, r.op.Ctx = readCompleted, r
	r.op.SubmitTo(d.engine)
}

func (d *Device) readable(off int64, n int) error {
	if n == 0 || off < 0 || off > d.geo.end-int64(n) || (off|int64(n))&int64(d.geo.blockSize-1) != 0 {
		return wrap(d.path, fmt.Errorf("read of %d bytes at %d: the last extent ends at %d, blocks have %d bytes: %w",
			n, off, d.geo.end, d.geo.blockSize, redoubt.ErrInvalid))
	}
	if d.gate.Load()&gateClosed != 0 {
		return wrap(d.path, redoubt.ErrClosed)
	}
	return nil
}

// readCompleted is the Done of a Read's op.
func readCompleted(op *ioring.Op, err error) {
	r := op.Ctx.(*Read)
	r.Done(r, wrap(r.dev.path, err))
}

// A waiter turns Read and WriteDurable into calls that block.
type waiter struct {
	r    Read
	w    Write
	bufs [1][]byte
	done chan error
}

func (d *Device) newWaiter(p []byte, off int64) *waiter {
	x, _ := d.waiters.Get().(*waiter)
	if x == nil {
		x = &waiter{done: make(chan error, 1)}
		x.r.Done = func(_ *Read, err error) { x.done <- err }
		x.w.Done = func(_ *Write, err error) { x.done <- err }
	}
	x.bufs[0] = p
	x.r.Bufs, x.r.Off = x.bufs[:], off
	x.w.Bufs, x.w.Off = x.bufs[:], off
	return x
}

// wait returns what came of the operation and puts the waiter back.
func (d *Device) wait(x *waiter) error {
	err := <-x.done
	x.bufs[0] = nil
	d.waiters.Put(x)
	return err
}

// ReadAt fills p, aligned memory, from byte off of the device. It must not be
// called from a Done.
func (d *Device) ReadAt(p []byte, off int64) error {
	x := d.newWaiter(p, off)
	d.Read(&x.r)
	return d.wait(x)
}

// WriteAt writes p, aligned memory, to byte off of the device, in extents, and
// returns when it is on stable storage. It must not be called from a Done.
func (d *Device) WriteAt(p []byte, off int64) error {
	x := d.newWaiter(p, off)
	d.WriteDurable(&x.w)
	return d.wait(x)
}

// writeMeta writes p to table or superblock and reads it back: a device that
// acknowledges and does not write, or writes elsewhere, is found out here
// before anything was built on it. The caller holds change.
func (d *Device) writeMeta(p []byte, off int64) error {
	x := d.newWaiter(p, off)
	d.submit(&x.w)
	if err := d.wait(x); err != nil {
		return err
	}
	back := d.scratch[slotSize : 2*slotSize]
	if err := d.ReadAt(back, off); err != nil {
		d.fail(fmt.Errorf("reading back what was written to the table or a superblock: %w", err))
		return d.broken()
	}
	if string(back) != string(p) {
		d.fail(fmt.Errorf("%d bytes at %d read back otherwise than they were acknowledged: the write was lost or went elsewhere", len(p), off))
		return d.broken()
	}
	return nil
}
