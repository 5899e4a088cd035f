package devtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"unsafe"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

// ErrPowerCut is what operations end with that a power cut interrupted, or that
// came after it.
var ErrPowerCut = errors.New("devtest: power cut")

// DefaultBlockSize is the logical block size of a disk made by New.
const DefaultBlockSize = 512

// A Disk is a simulated disk. All methods may be called from any goroutine.
type Disk struct {
	// Set by the constructors, never changed.
	size      int64
	blockSize int
	label     func() string

	mu      sync.Mutex
	changed sync.Cond // the list of held operations, and running
	cache
	holding bool
	held    []*pending // in order of submission
	stuck   []*pending
	ready   []*pending // to be completed by whoever is running
	running bool
	busy    map[*ioring.Op]bool

	submitted int // operations so far; the last one's id
	faults    []*Injection
	cutWrites int // writes to go until the power cut, 0: none planned
	cutOps    int // the same in writes and syncs
	dead      error
	log       []Event
	logging   bool
	stats     ioring.Stats
}

// A pending operation is between Submit and Done.
type pending struct {
	op    *ioring.Op
	id    int
	size  int
	w     *write     // of a write
	upTo  int        // of a sync: covers completions up to here
	fault *Injection // strikes it
	err   error      // ends it, whatever it is
}

var _ ioring.Engine = (*Disk)(nil)

// New returns a disk of size bytes, a multiple of 4096, that is all zeros and
// has logical blocks of 512 bytes.
func New(size int64) *Disk { return newDisk(newImage(size), DefaultBlockSize, nil) }

// NewBlockSize is New with logical blocks of 512 to 4096 bytes.
func NewBlockSize(size int64, blockSize int) *Disk { return newDisk(newImage(size), blockSize, nil) }

func newDisk(m *image, blockSize int, label func() string) *Disk {
	invariant.Assert(m.size > 0 && m.size%pageSize == 0, "devtest: disk of %d bytes: want a multiple of %d", m.size, pageSize)
	d := &Disk{size: m.size, blockSize: blockSize, label: label, busy: make(map[*ioring.Op]bool)}
	d.cur, d.dur = m, m.clone()
	d.changed.L = &d.mu
	return d
}

// Name returns "sim".
func (d *Disk) Name() string { return "sim" }

// Size returns the size of the disk in bytes.
func (d *Disk) Size() int64 { return d.size }

// BlockSize returns the size of a logical block in bytes.
func (d *Disk) BlockSize() int { return d.blockSize }

// Label says, of a disk from CrashStates, what the power cut did to which write.
func (d *Disk) Label() string {
	if d.label == nil {
		return "no power cut"
	}
	return d.label()
}

// Stats counts operations as the engines do.
func (d *Disk) Stats() ioring.Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Submit takes operations over. See the package documentation for when they
// complete.
func (d *Disk) Submit(ops ...*ioring.Op) {
	d.mu.Lock()
	for _, op := range ops {
		d.admit(op)
	}
	d.run()
}

// admit decides what will become of op.
func (d *Disk) admit(op *ioring.Op) {
	invariant.Assert(op.Done != nil && !d.busy[op], "devtest: %v submitted without Done or before its Done", op.Kind)
	d.busy[op] = true
	d.submitted++
	d.stats.Submitted++
	p := &pending{op: op, id: d.submitted}
	for _, b := range op.Bufs {
		p.size += len(b)
	}
	d.note(Submitted, p, nil)
	if p.err = d.refusal(p); p.err != nil {
		d.ready = append(d.ready, p)
		return
	}
	switch op.Kind {
	case ioring.OpWrite:
		p.w = &write{id: p.id, off: op.Off, data: slices.Concat(op.Bufs...)}
		d.launch(p.w)
	case ioring.OpSync:
		p.upTo = d.clock
	}
	p.fault = d.strike(p)
	switch {
	case d.cutNow(op.Kind):
		d.held = append(d.held, p)
		d.cut()
	case p.fault != nil && p.fault.f.Kind == StuckOp:
		p.fault.hits++
		d.stuck = append(d.stuck, p)
	case d.holding:
		d.held = append(d.held, p)
		d.changed.Broadcast()
	default:
		d.ready = append(d.ready, p)
	}
}

// refusal says why an operation is not even begun.
func (d *Disk) refusal(p *pending) error {
	if d.dead != nil {
		return d.dead
	}
	if what := malformed(p.op); what != "" {
		return p.errorf("%s: %w", what, redoubt.ErrInvalid)
	}
	if p.op.Kind == ioring.OpSync {
		return nil
	}
	if what := d.misaligned(p.op); what != "" {
		return p.errorf("%s, not aligned to %d: %w", what, d.blockSize, unix.EINVAL)
	}
	switch {
	case p.op.Off+int64(p.size) <= d.size:
		return nil
	case p.op.Kind == ioring.OpRead:
		return p.errorf("the disk ends at %d: %w", d.size, io.ErrUnexpectedEOF)
	}
	return p.errorf("the disk ends at %d: %w", d.size, unix.ENOSPC)
}

func (p *pending) errorf(format string, args ...any) error {
	return fmt.Errorf("devtest: %v of %d bytes at %d: %w", p.op.Kind, p.size, p.op.Off, fmt.Errorf(format, args...))
}

// malformed says what no engine accepts.
func malformed(op *ioring.Op) string {
	data := op.Kind == ioring.OpRead || op.Kind == ioring.OpWrite
	switch {
	case !data && op.Kind != ioring.OpSync:
		return "unknown kind"
	case !data && len(op.Bufs) != 0:
		return "a sync takes no buffers"
	case op.DSync && op.Kind != ioring.OpWrite:
		return "DSync is for writes"
	case data && (len(op.Bufs) == 0 || len(op.Bufs) > ioring.MaxPieces):
		return fmt.Sprintf("%d pieces", len(op.Bufs))
	case slices.ContainsFunc(op.Bufs, func(b []byte) bool { return len(b) == 0 }):
		return "an empty piece"
	case op.Off < 0 || op.Off > 1<<62:
		return "offset out of range"
	}
	return ""
}

// misaligned says what a device with O_DIRECT does not accept.
func (d *Disk) misaligned(op *ioring.Op) string {
	if op.Off%int64(d.blockSize) != 0 {
		return "offset"
	}
	for i, b := range op.Bufs {
		if len(b)%d.blockSize != 0 || uintptr(unsafe.Pointer(&b[0]))%uintptr(d.blockSize) != 0 {
			return fmt.Sprintf("piece %d of %d bytes at address %p", i, len(b), b)
		}
	}
	return ""
}

// run completes what is ready, unless somebody is at it already. It is called
// with the lock held and releases it.
func (d *Disk) run() {
	if d.running {
		d.mu.Unlock()
		return
	}
	d.running = true
	for len(d.ready) > 0 {
		p := d.ready[0]
		d.ready = d.ready[1:]
		d.finish(p)
	}
	d.running = false
	d.changed.Broadcast()
	d.mu.Unlock()
}

// finish carries p out and calls its Done without the lock. A Done that does
// not return (it failed the test) must not leave the disk stopped.
func (d *Disk) finish(p *pending) {
	err := p.err
	if err == nil {
		err = d.perform(p)
	}
	d.note(Completed, p, err)
	d.stats.Completed++
	if err != nil {
		d.stats.Failed++
	}
	delete(d.busy, p.op)
	returned := false
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		if !returned {
			d.running = false
			d.changed.Broadcast()
			d.mu.Unlock()
		}
	}()
	p.op.Done(p.op, err)
	returned = true
}

// perform is the operation itself, as its fault will have it.
func (d *Disk) perform(p *pending) error {
	if p.fault != nil {
		return d.misbehave(p)
	}
	switch p.op.Kind {
	case ioring.OpRead:
		d.readInto(p.op.Bufs, p.op.Off)
	case ioring.OpWrite:
		d.checkUntouched(p)
		if p.op.DSync {
			d.completeDurable(p.w)
		} else {
			d.complete(p.w)
		}
	case ioring.OpSync:
		d.flush(p.upTo)
	}
	return nil
}

func (d *Disk) readInto(bufs [][]byte, off int64) {
	for _, b := range bufs {
		d.cur.read(b, off)
		off += int64(len(b))
	}
}

// checkUntouched panics if the caller changed a buffer that was in flight: a
// real device may have read either version of it.
func (d *Disk) checkUntouched(p *pending) {
	at := 0
	for _, b := range p.op.Bufs {
		invariant.Assert(bytes.Equal(b, p.w.data[at:at+len(b)]), "devtest: a buffer of the write of %d bytes at %d was changed in flight", p.size, p.op.Off)
		at += len(b)
	}
}

// Close completes what is held, ends what is stuck with redoubt.ErrClosed, and
// refuses everything from then on. The content stays: see Restart.
func (d *Disk) Close() error {
	d.mu.Lock()
	d.holding = false
	d.ready = append(d.ready, d.held...)
	d.held = nil
	d.changed.Broadcast()
	closed := fmt.Errorf("devtest: submit after Close: %w", redoubt.ErrClosed)
	for _, p := range d.stuck {
		p.err = closed
		d.ready = append(d.ready, p)
	}
	d.stuck = nil
	if d.dead == nil {
		d.dead = closed
	}
	d.run()
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.running {
		d.changed.Wait()
	}
	return nil
}
