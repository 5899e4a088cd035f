package devtest

import (
	"fmt"
	"io"

	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

// A FaultKind says what a disk does wrong.
type FaultKind uint8

const (
	ReadError        FaultKind = iota + 1 // a read fails
	WriteError                            // a write fails; after a power cut any of it may be found
	SyncError                             // a sync fails; what it covered may be lost for good
	FlipBit                               // a bit of the medium rots just before an operation
	LostWrite                             // a write is acknowledged and the old data stays
	MisdirectedWrite                      // a write is acknowledged and lands elsewhere
	MisdirectedRead                       // a read returns what stands elsewhere
	StuckOp                               // an operation never completes (see Unstick)
	ShortWrite                            // a write ends early, with an error
)

var faultNames = [...]string{ReadError: "read error", WriteError: "write error", SyncError: "sync error", FlipBit: "bit flip",
	LostWrite: "lost write", MisdirectedWrite: "misdirected write", MisdirectedRead: "misdirected read",
	StuckOp: "stuck operation", ShortWrite: "short write"}

func (k FaultKind) String() string { return faultNames[k] }

// A Fault is a fault to come.
type Fault struct {
	Kind FaultKind

	// Off and Len are the range that an operation must touch for the fault to
	// strike. Len 0: any operation does.
	Off, Len int64

	// On is the kind of operation for FlipBit and StuckOp; the other faults know
	// theirs. Default any.
	On ioring.Kind

	// Skip lets so many operations pass that the fault would strike.
	Skip int

	// Times is how many it then strikes. Default 1; negative: all of them.
	Times int

	// By is how far a misdirected read or write goes astray, in bytes.
	By int64

	// At and Bit say which bit of the medium FlipBit flips.
	At  int64
	Bit uint

	// Err is what a failing operation reports. Default EIO.
	Err error
}

// An Injection is an armed fault and the count of what it did.
type Injection struct {
	d *Disk
	f Fault

	// Guarded by d.mu.
	skip, times int
	disarmed    bool
	hits        int // times it struck and made a difference
}

// TB is what the helpers ask of a *testing.T.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Arm arms a fault. Of several that fit an operation the one armed first
// strikes.
func (d *Disk) Arm(f Fault) *Injection {
	invariant.Assert(f.Kind >= ReadError && f.Kind <= ShortWrite, "devtest: unknown fault %d", f.Kind)
	if f.Times == 0 {
		f.Times = 1
	}
	if f.Err == nil {
		f.Err = fmt.Errorf("devtest: %v: %w", f.Kind, unix.EIO)
	}
	in := &Injection{d: d, f: f, skip: f.Skip, times: f.Times}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = append(d.faults, in)
	return in
}

// Disarm ends the fault.
func (in *Injection) Disarm() {
	in.d.mu.Lock()
	defer in.d.mu.Unlock()
	in.disarmed = true
}

// Injected returns how often the fault struck and changed something: an error
// that was reported, or bytes that were other than they should have been. A
// write that is lost where the same bytes stand already does not count.
func (in *Injection) Injected() int {
	in.d.mu.Lock()
	defer in.d.mu.Unlock()
	return in.hits
}

// MustHaveInjected fails the test if the fault changed nothing.
func (in *Injection) MustHaveInjected(t TB) {
	t.Helper()
	if in.Injected() == 0 {
		t.Fatalf("devtest: the %v that was armed changed nothing", in.f.Kind)
	}
}

// MustHaveInjected fails the test if a fault that was armed on this disk
// changed nothing.
func (d *Disk) MustHaveInjected(t TB) {
	t.Helper()
	d.mu.Lock()
	armed := d.faults
	d.mu.Unlock()
	for _, in := range armed {
		in.MustHaveInjected(t)
	}
}

// strike returns the fault that strikes p, if one does.
func (d *Disk) strike(p *pending) *Injection {
	for _, in := range d.faults {
		if in.disarmed || in.times == 0 || !in.f.fits(p) {
			continue
		}
		if in.skip > 0 {
			in.skip--
			continue
		}
		if in.times > 0 {
			in.times--
		}
		return in
	}
	return nil
}

// fits reports whether the fault is one for p.
func (f *Fault) fits(p *pending) bool {
	on := f.On
	switch f.Kind {
	case ReadError, MisdirectedRead:
		on = ioring.OpRead
	case WriteError, LostWrite, MisdirectedWrite, ShortWrite:
		on = ioring.OpWrite
	case SyncError:
		on = ioring.OpSync
	}
	if on != 0 && on != p.op.Kind {
		return false
	}
	end := p.op.Off + int64(p.size)
	return f.Len == 0 || p.op.Kind != ioring.OpSync && p.op.Off < f.Off+f.Len && f.Off < end
}

// misbehave carries p out as its fault will have it. StuckOp never gets here.
func (d *Disk) misbehave(p *pending) error {
	in := p.fault
	f := &in.f
	p.fault = nil
	switch f.Kind {
	case FlipBit:
		in.hits++
		d.flip(f.At, f.Bit)
		return d.perform(p)
	case LostWrite:
		in.countIf(!d.cur.equal(p.w.data, p.w.off))
		d.land(p.w)
		return nil
	case MisdirectedWrite:
		d.misdirect(in, p)
		return nil
	case MisdirectedRead:
		d.misread(in, p)
		return nil
	case ShortWrite:
		in.hits++
		return d.shorten(p)
	}
	in.hits++
	d.fail(p, f.Err)
	return f.Err
}

func (in *Injection) countIf(changed bool) {
	if changed {
		in.hits++
	}
}

// misdirect carries out a write at the wrong place.
func (d *Disk) misdirect(in *Injection, p *pending) {
	stray := &write{id: p.id, off: p.w.off + in.f.By, data: p.w.data}
	invariant.Assert(stray.off >= 0 && stray.end() <= d.size && stray.off%sectorSize == 0, "devtest: a write misdirected to %d", stray.off)
	in.countIf(!d.cur.equal(stray.data, stray.off))
	d.land(p.w)
	if p.op.DSync {
		d.completeDurable(stray)
		return
	}
	d.complete(stray)
}

// misread fills p's buffers from the wrong place.
func (d *Disk) misread(in *Injection, p *pending) {
	from := p.op.Off + in.f.By
	invariant.Assert(from >= 0 && from+int64(p.size) <= d.size, "devtest: a read misdirected to %d", from)
	d.readInto(p.op.Bufs, from)
	off := p.op.Off
	same := true
	for _, b := range p.op.Bufs {
		same = same && d.cur.equal(b, off)
		off += int64(len(b))
	}
	in.countIf(!same)
}

// shorten carries out the first half of a write, in whole sectors.
func (d *Disk) shorten(p *pending) error {
	n := p.w.sectors() / 2 * sectorSize
	d.land(p.w)
	if n > 0 {
		d.complete(&write{id: p.id, off: p.w.off, data: p.w.data[:n]})
	}
	return fmt.Errorf("devtest: write of %d bytes at %d: only %d were taken: %w", p.size, p.op.Off, n, io.ErrShortWrite)
}

// Flip flips a bit of the medium at byte off, now.
func (d *Disk) Flip(off int64, bit uint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flip(off, bit)
}

func (d *Disk) flip(off int64, bit uint) {
	invariant.Assert(off >= 0 && off < d.size && bit < 8, "devtest: flip of bit %d of byte %d of a disk of %d", bit, off, d.size)
	for _, m := range []*image{d.cur, d.dur} {
		m.mutable(off / pageSize)[off%pageSize] ^= 1 << bit
	}
	for _, w := range d.pend {
		if off >= w.off && off < w.end() {
			w.data = append([]byte(nil), w.data...)
			w.data[off-w.off] ^= 1 << bit
		}
	}
}

// Overwrite puts b on the medium at byte off, under the cache, and fails the
// test if that changes nothing.
func (d *Disk) Overwrite(t TB, off int64, b []byte) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cur.equal(b, off) {
		t.Fatalf("devtest: the %d bytes at %d are what they were to be overwritten with", len(b), off)
	}
	d.poke(b, off)
}
