package devtest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/ioring"
)

// A HeldOp describes an operation that waits for the test to complete it.
type HeldOp struct {
	ID    int // number of its submission, from 1
	Kind  ioring.Kind
	DSync bool
	Off   int64
	Len   int
}

// Hold makes operations wait, from the next Submit on, until they are picked
// with Complete.
func (d *Disk) Hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.holding = true
}

// Inline completes what is held, in order, and makes operations complete inside
// Submit again.
func (d *Disk) Inline() {
	d.mu.Lock()
	d.holding = false
	d.ready = append(d.ready, d.held...)
	d.held = nil
	d.changed.Broadcast()
	d.run()
}

// Held lists the operations that wait, in order of submission.
func (d *Disk) Held() []HeldOp {
	d.mu.Lock()
	defer d.mu.Unlock()
	ops := make([]HeldOp, len(d.held))
	for i, p := range d.held {
		ops[i] = HeldOp{ID: p.id, Kind: p.op.Kind, DSync: p.op.DSync, Off: p.op.Off, Len: p.size}
	}
	return ops
}

// WaitHeld blocks until at least n operations wait, and returns how many do.
func (d *Disk) WaitHeld(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.held) < n && d.holding && d.dead == nil {
		d.changed.Wait()
	}
	return len(d.held)
}

// Complete carries out the i-th held operation, or, given an error, fails it
// with that. Its Done has run when Complete returns, unless another goroutine
// is completing operations.
func (d *Disk) Complete(i int, err error) {
	d.mu.Lock()
	invariant.Assert(i >= 0 && i < len(d.held), "devtest: Complete(%d) of %d held operations", i, len(d.held))
	p := d.held[i]
	d.held = slices.Delete(d.held, i, i+1)
	if err != nil {
		d.fail(p, err)
	}
	d.changed.Broadcast()
	d.ready = append(d.ready, p)
	d.run()
}

// fail ends p with err, and leaves behind what a failed operation leaves.
func (d *Disk) fail(p *pending, err error) {
	p.err = err
	switch p.op.Kind {
	case ioring.OpWrite:
		d.abandon(p.w)
	case ioring.OpSync:
		d.failFlush(p.upTo)
	}
}

// CompleteAll carries out the operations that are held at the moment, in order,
// and returns their number.
func (d *Disk) CompleteAll() int {
	d.mu.Lock()
	n := len(d.held)
	d.ready = append(d.ready, d.held...)
	d.held = nil
	d.changed.Broadcast()
	d.run()
	return n
}

// Drain carries out held operations, in order, until none is left: those too
// that their completions submit.
func (d *Disk) Drain() {
	for d.CompleteAll() > 0 {
	}
}

// Shuffle holds operations and completes them on a goroutine of its own in an
// order drawn from the seed, until stop is called, which carries out the rest
// and returns to completing inside Submit.
func (d *Disk) Shuffle(seed uint64) (stop func()) {
	d.Hold()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := rand.New(rand.NewPCG(seed, 0))
		for d.completeOne(r) {
		}
	}()
	return func() {
		d.Inline()
		<-done
	}
}

// completeOne waits for a held operation and carries out one at random. It
// reports false when holding has ended.
func (d *Disk) completeOne(r *rand.Rand) bool {
	d.mu.Lock()
	for len(d.held) == 0 && d.holding && d.dead == nil {
		d.changed.Wait()
	}
	if !d.holding || d.dead != nil {
		d.mu.Unlock()
		return false
	}
	i := r.IntN(len(d.held))
	d.ready = append(d.ready, d.held[i])
	d.held = slices.Delete(d.held, i, i+1)
	d.run()
	return true
}

// Unstick lets stuck operations go on.
func (d *Disk) Unstick() {
	d.mu.Lock()
	for _, p := range d.stuck {
		p.fault = nil
	}
	d.ready = append(d.ready, d.stuck...)
	d.stuck = nil
	d.run()
}

// CutAfter plans a power cut: the n-th write from now, counted from 1, will be
// in flight when it happens. That write, whatever is in flight beside it and
// everything submitted later ends with ErrPowerCut.
func (d *Disk) CutAfter(n int) {
	invariant.Assert(n >= 1, "devtest: CutAfter(%d)", n)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutWrites = n
}

// CutAtOp is CutAfter counted in writes and syncs together.
func (d *Disk) CutAtOp(n int) {
	invariant.Assert(n >= 1, "devtest: CutAtOp(%d)", n)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutOps = n
}

// Cut cuts the power now.
func (d *Disk) Cut() {
	d.mu.Lock()
	d.cut()
	d.run()
}

// IsCut reports whether the power was cut: a planned cut that no operation
// reached is a test that tested nothing.
func (d *Disk) IsCut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead == ErrPowerCut
}

// cutNow counts down to the planned cut.
func (d *Disk) cutNow(k ioring.Kind) bool {
	write := k == ioring.OpWrite
	sync := k == ioring.OpSync
	hit := write && d.cutWrites == 1 || (write || sync) && d.cutOps == 1
	if write && d.cutWrites > 0 {
		d.cutWrites--
	}
	if (write || sync) && d.cutOps > 0 {
		d.cutOps--
	}
	return hit
}

func (d *Disk) cut() { d.kill(ErrPowerCut) }

// kill ends everything that is not complete with err, and everything to come.
func (d *Disk) kill(err error) {
	d.dead = err
	d.ready = slices.Concat(d.ready, d.held, d.stuck)
	d.held, d.stuck = nil, nil
	for _, p := range d.ready {
		if p.err == nil {
			p.err = err
		}
	}
	d.changed.Broadcast()
}

// Restart returns the disk as the next process finds it when this one is killed
// while the power stays on: the cache lives on, and the kernel carries out what
// was in flight. Operations of this disk end with redoubt.ErrClosed.
func (d *Disk) Restart() *Disk {
	d.mu.Lock()
	c := d.cache.clone()
	if d.dead == nil {
		d.kill(fmt.Errorf("devtest: the process was killed: %w", redoubt.ErrClosed))
	}
	d.run()
	for len(c.flight) > 0 {
		c.complete(c.flight[0])
	}
	n := newDisk(c.cur, d.blockSize, d.label)
	n.cache = c
	return n
}
