package slab

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/redoubt-storage/redoubt"
	"golang.org/x/sys/unix"
)

// Align is the alignment of every slab in bytes, and the unit of Options.Size.
// It is the page size, which no device's logical block exceeds.
const Align = 4096

// maxRegion bounds Size*Count, so that a slip of the unit in a flag is an error
// and not an attempt to map it: 1 TiB, more than any node's memory.
const maxRegion = 1 << 40

// Options describe a pool. Size and Count have no default: only the caller
// knows its frames and its memory.
type Options struct {
	Size  int    // bytes of one slab, a multiple of Align
	Count int    // slabs, at least 1
	Name  string // for errors, as in "ingest"; default "slab"

	// Reclaim is called, no lock held, when a Get finds no slab free. It drops
	// slabs that a cache can do without and reports whether it dropped any.
	// Default none.
	Reclaim func() bool
}

// A Pool is a fixed number of slabs in one mapping. All methods may be called
// from any goroutine.
type Pool struct {
	// Set by New, never changed.
	opts Options
	bufs []Buf

	mu      sync.Mutex
	region  []byte // nil once closed
	free    []*Buf // a stack: the slab dropped last is the warmest
	first   *waiter
	last    *waiter
	retired *waiter // waiters to use again, so that waiting allocates nothing
}

// A waiter is one Get in the queue. Its channel holds at most one slab.
type waiter struct {
	got        chan *Buf
	prev, next *waiter
}

// New maps and faults in a pool of o.Count slabs of o.Size bytes.
func New(o Options) (*Pool, error) {
	if o.Name == "" {
		o.Name = "slab"
	}
	if o.Size <= 0 || o.Size%Align != 0 {
		return nil, fmt.Errorf("slab: pool %s: size %d: want a positive multiple of %d", o.Name, o.Size, Align)
	}
	if o.Count < 1 || o.Count > maxRegion/o.Size {
		return nil, fmt.Errorf("slab: pool %s: %d slabs of %d bytes: want at least one, and 1 TiB at most in all",
			o.Name, o.Count, o.Size)
	}
	region, err := mapRegion(o.Size * o.Count)
	if err != nil {
		return nil, fmt.Errorf("slab: pool %s: mapping %d bytes (lower -memory?): %w", o.Name, o.Size*o.Count, err)
	}
	p := &Pool{opts: o, region: region, bufs: make([]Buf, o.Count), free: make([]*Buf, o.Count)}
	for i := range p.bufs {
		b := &p.bufs[i]
		b.pool = p
		b.bytes = region[i*o.Size : (i+1)*o.Size : (i+1)*o.Size]
		p.free[o.Count-1-i] = b // slab 0 is handed out first
	}
	return p, nil
}

// Region returns the whole mapping, Cap()*Size() bytes, for registration with a
// ring; nil after Close. Its bytes belong to the holders of the slabs.
func (p *Pool) Region() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.region
}

// Free returns how many slabs nobody holds.
func (p *Pool) Free() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.free)
}

// Cap returns the number of slabs, held or not.
func (p *Pool) Cap() int { return p.opts.Count }

// Size returns the bytes of one slab.
func (p *Pool) Size() int { return p.opts.Size }

// Waiting returns how many calls of Get are waiting.
func (p *Pool) Waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for w := p.first; w != nil; w = w.next {
		n++
	}
	return n
}

// TryGet returns a slab with one holder, or nil if none is free or the pool is
// closed. Its bytes are what the last holder left in them.
func (p *Pool) TryGet() *Buf {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pop()
}

// Get returns a slab with one holder and waits for one if none is free. It
// gives up when ctx is done, with an error that wraps the context's, and on a
// closed pool, with one that wraps redoubt.ErrClosed.
func (p *Pool) Get(ctx context.Context) (*Buf, error) {
	p.mu.Lock()
	if b := p.pop(); b != nil {
		p.mu.Unlock()
		return b, nil
	}
	if p.region == nil {
		p.mu.Unlock()
		return nil, fmt.Errorf("slab: pool %s: %w", p.opts.Name, redoubt.ErrClosed)
	}
	w := p.enqueue()
	p.mu.Unlock()
	return p.wait(ctx, w)
}

// wait lets the Reclaim hook work for w, then waits for a Drop.
func (p *Pool) wait(ctx context.Context, w *waiter) (*Buf, error) {
	for p.opts.Reclaim != nil && len(w.got) == 0 && ctx.Err() == nil && p.opts.Reclaim() {
	}
	select {
	case b := <-w.got:
		p.retire(w)
		return b, nil
	case <-ctx.Done():
		return p.giveUp(ctx, w)
	}
}

// giveUp leaves the queue. If a slab arrived at the same moment it is taken
// after all: handing it on would cost the next one a turn and win nothing.
func (p *Pool) giveUp(ctx context.Context, w *waiter) (*Buf, error) {
	p.mu.Lock()
	queued := p.unlink(w)
	p.mu.Unlock()
	if !queued {
		b := <-w.got
		p.retire(w)
		return b, nil
	}
	p.retire(w)
	return nil, fmt.Errorf("slab: pool %s: all %d slabs are held: %w", p.opts.Name, p.opts.Count, context.Cause(ctx))
}

// Close unmaps the region. While slabs are held it changes nothing and returns
// an error that says how many, because their holders' memory would vanish.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.region == nil {
		return nil
	}
	if held := p.opts.Count - len(p.free); held != 0 {
		return fmt.Errorf("slab: pool %s: close: %d of %d slabs are still held", p.opts.Name, held, p.opts.Count)
	}
	region := p.region
	p.region, p.free = nil, nil
	for i := range p.bufs {
		p.bufs[i].bytes = nil
	}
	if err := unix.Munmap(region); err != nil {
		return fmt.Errorf("slab: pool %s: unmapping: %w", p.opts.Name, err)
	}
	return nil
}

// put takes back a slab nobody holds: to the first who waits, or to the stack.
func (p *Pool) put(b *Buf) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.first; w != nil {
		p.unlink(w)
		b.holders.Store(1)
		w.got <- b // never blocks: one place, and w gets one slab
		return
	}
	p.free = append(p.free, b)
}

// pop takes a free slab. Waiters exist only while none is free, because put
// serves them first; so a free slab is nobody's turn.
func (p *Pool) pop() *Buf {
	n := len(p.free)
	if n == 0 {
		return nil
	}
	b := p.free[n-1]
	p.free = p.free[:n-1]
	b.holders.Store(1)
	return b
}

func (p *Pool) enqueue() *waiter {
	w := p.retired
	if w == nil {
		w = &waiter{got: make(chan *Buf, 1)}
	} else {
		p.retired = w.next
	}
	w.prev, w.next = p.last, nil
	if p.last == nil {
		p.first = w
	} else {
		p.last.next = w
	}
	p.last = w
	return w
}

// unlink takes w out of the queue and reports whether it was in it.
func (p *Pool) unlink(w *waiter) bool {
	if w.prev == nil && p.first != w {
		return false
	}
	if w.prev == nil {
		p.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		p.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next = nil, nil
	return true
}

// retire keeps w, which is in no queue and whose channel is empty, for later.
func (p *Pool) retire(w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.next = p.retired
	p.retired = w
}

// mapRegion maps n zero bytes, on huge pages where it can, and faults them in.
// A region on huge pages is a few hundred pieces to the ring and the device
// where 4 KiB pages make a quarter of a million.
func mapRegion(n int) ([]byte, error) {
	m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE) // a wish: kernels without huge pages refuse it
	err = populate(m)
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(m))
	}
	return m, nil
}

// populate faults m in. MADV_POPULATE_WRITE does after the wish for huge pages
// what MAP_POPULATE would have done before it. Kernels before 5.14 answer EINVAL;
// there every page is touched.
func populate(m []byte) error {
	for {
		err := unix.Madvise(m, unix.MADV_POPULATE_WRITE)
		switch err {
		case unix.EINTR, unix.EAGAIN:
			continue
		case unix.EINVAL:
			for i := 0; i < len(m); i += Align {
				m[i] = 0
			}
			return nil
		}
		return err
	}
}
