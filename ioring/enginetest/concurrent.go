package enginetest

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/ioring"
)

// manyGoroutines lets each of many goroutines write, sync and read its own part
// of the file with several ops in flight, and checks every byte.
func manyGoroutines(t *testing.T, b *bench) {
	const (
		goroutines = 32
		rounds     = 40
		depth      = 4 // ops of a goroutine in flight
	)
	const share = memory / goroutines // bytes of buffer, half of it to write from
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			w := worker{engine: b.engine, rnd: rand.New(rand.NewPCG(3, uint64(g)))}
			w.mem = b.region[g*share:][:share]
			if g%2 == 1 {
				w.mem = b.other[g*share:][:share]
			}
			w.base = int64(g) * (fileSize / goroutines)
			for range rounds {
				if err := w.round(depth); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A worker is one goroutine of manyGoroutines.
type worker struct {
	engine ioring.Engine
	rnd    *rand.Rand
	mem    []byte // half to write from, half to read into
	base   int64  // its part of the file
	ops    []*ioring.Op
}

var errWrongBytes = errors.New("read back other bytes than were written")

// round writes depth pieces of random sizes side by side, all at once, and
// reads them back, all at once.
func (w *worker) round(depth int) error {
	half := len(w.mem) / 2
	piece := half / depth
	from, to := w.mem[:half], w.mem[half:]
	for i := 0; i < half; i += 8 {
		binary.LittleEndian.PutUint64(from[i:], w.rnd.Uint64())
	}
	off := w.base + int64(w.rnd.IntN(8))*sector
	var ops []ioring.Op
	for i := range depth {
		n := sector * (1 + w.rnd.IntN(piece/sector))
		op := ioring.Op{Kind: ioring.OpWrite, DSync: w.rnd.IntN(4) == 0, Off: off + int64(i*piece), Bufs: [][]byte{from[i*piece:][:n]}}
		if w.rnd.IntN(2) == 0 {
			op.Bufs = cut(op.Bufs[0], 1, 2)
		}
		ops = append(ops, op)
	}
	if err := w.all(append(ops, ioring.Op{Kind: ioring.OpSync})); err != nil {
		return err
	}
	var want [][]byte
	for i := range ops {
		n := 0
		for _, p := range ops[i].Bufs {
			n += len(p)
		}
		want = append(want, from[i*piece:][:n])
		ops[i] = ioring.Op{Kind: ioring.OpRead, Off: ops[i].Off, Bufs: [][]byte{to[i*piece:][:n]}}
	}
	if err := w.all(ops); err != nil {
		return err
	}
	for i := range ops {
		if string(ops[i].Bufs[0]) != string(want[i]) {
			return errWrongBytes
		}
	}
	return nil
}

// all performs ops at once and returns the first error.
func (w *worker) all(ops []ioring.Op) error {
	done := make(chan error, len(ops))
	w.ops = w.ops[:0]
	for i := range ops {
		ops[i].Done = func(_ *ioring.Op, err error) { done <- err }
		w.ops = append(w.ops, &ops[i])
	}
	w.engine.Submit(w.ops...)
	var first error
	for range ops {
		if err := <-done; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// moreThanFit submits far more ops than an engine can have in flight, in one
// call, single and vectored, and reads all of it back the same way.
func moreThanFit(t *testing.T, b *bench) {
	const n = 4096
	b.fill(b.other)
	w := worker{engine: b.engine}
	ops := make([]ioring.Op, n)
	for i := range ops {
		p := b.other[i*sector:][:sector]
		ops[i] = ioring.Op{Kind: ioring.OpWrite, Off: int64(i) * sector, Bufs: [][]byte{p}}
	}
	for i := 0; i+4 <= n; i += 64 { // now and then four pieces in place of four ops
		p := b.other[i*sector:][:4*sector]
		ops[i].Bufs = cut(p, 1)
	}
	if err := w.all(ops); err != nil {
		t.Fatal(err)
	}
	for i := range ops {
		ops[i] = ioring.Op{Kind: ioring.OpRead, Off: int64(i) * sector, Bufs: [][]byte{b.region[i*sector:][:sector]}}
	}
	if err := w.all(ops); err != nil {
		t.Fatal(err)
	}
	mustMatch(t, b.region, b.other)
}

// submitFromDone runs chains of ops, each link submitted from the Done of the
// one before, some with company.
func submitFromDone(t *testing.T, b *bench) {
	const (
		chains = 8
		links  = 200
	)
	var left, extra atomic.Int64
	left.Store(chains * links)
	finished := make(chan struct{})
	count := func(err error) {
		if err != nil {
			t.Error(err)
		}
		if left.Add(-1) == 0 {
			close(finished)
		}
	}
	for c := range chains {
		link := 0
		op := &ioring.Op{Kind: ioring.OpWrite, Off: int64(c) * 4096, Bufs: [][]byte{b.region[c*4096:][:4096]}}
		op.Done = func(op *ioring.Op, err error) {
			if link++; link < links {
				if link%16 == 0 {
					left.Add(1)
					extra.Add(1)
					op.SubmitTo(b.engine)
					b.engine.Submit(&ioring.Op{Kind: ioring.OpSync, Done: func(_ *ioring.Op, err error) { count(err) }})
				} else {
					op.SubmitTo(b.engine)
				}
			}
			count(err)
		}
		op.SubmitTo(b.engine)
	}
	<-finished
	if got := extra.Load(); got != chains*(links/16) {
		t.Fatalf("%d ops besides the chains, want %d", got, chains*(links/16))
	}
}

// closeCompletesEverything closes the engine right behind a Submit of many ops.
func closeCompletesEverything(t *testing.T, b *bench) {
	const n = 2000
	calls := make([]atomic.Int32, n)
	ops := make([]*ioring.Op, n)
	b.fill(b.other[:sector])
	for i := range ops {
		ops[i] = &ioring.Op{Kind: ioring.OpWrite, Off: int64(i) * sector, Bufs: [][]byte{b.other[:sector]}}
		ops[i].Done = func(_ *ioring.Op, err error) {
			if calls[i].Add(1); err != nil {
				t.Error(err)
			}
		}
	}
	b.engine.Submit(ops...)
	if err := b.engine.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range calls {
		if got := calls[i].Load(); got != 1 {
			t.Fatalf("op %d completed %d times by the end of Close, want once", i, got)
		}
	}
	if s := b.engine.Stats(); s.InFlight() != 0 {
		t.Fatalf("%d ops in flight after Close", s.InFlight())
	}
}

// closeAgainstSubmit closes the engine from two goroutines while others submit.
// Every op completes once, performed or refused, and once one was refused
// no later one of the same goroutine is performed.
func closeAgainstSubmit(t *testing.T, b *bench) {
	const goroutines = 8
	var wg sync.WaitGroup
	var performed atomic.Int64
	enough := make(chan struct{})
	for g := range goroutines {
		wg.Go(func() {
			w := worker{engine: b.engine}
			buf := b.region[g*4096:][:4096]
			for {
				err := w.all([]ioring.Op{{Kind: ioring.OpWrite, Off: int64(g) * 4096, Bufs: [][]byte{buf}}})
				if err == nil {
					if performed.Add(1) == 200 {
						close(enough)
					}
					continue
				}
				if !errors.Is(err, redoubt.ErrClosed) {
					t.Error(err)
				}
				if err := w.all([]ioring.Op{{Kind: ioring.OpSync}}); !errors.Is(err, redoubt.ErrClosed) {
					t.Errorf("an op after a refused one: %v, want ErrClosed", err)
				}
				return
			}
		})
	}
	<-enough
	for range 2 {
		wg.Go(func() {
			if err := b.engine.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func submitAfterClose(t *testing.T, b *bench) {
	if err := b.engine.Close(); err != nil {
		t.Fatal(err)
	}
	w := worker{engine: b.engine}
	buf := [][]byte{b.region[:4096]}
	for _, op := range []ioring.Op{{Kind: ioring.OpSync}, {Kind: ioring.OpWrite, Bufs: buf}, {Kind: ioring.OpRead, Bufs: buf}} {
		if err := w.all([]ioring.Op{op, op, op}); !errors.Is(err, redoubt.ErrClosed) {
			t.Errorf("%v after Close: %v, want ErrClosed", op.Kind, err)
		}
	}
	if err := b.engine.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func statsAddUp(t *testing.T, b *bench) {
	buf := [][]byte{b.region[:4096]}
	for i := range 20 {
		b.mustDo(t, ioring.Op{Kind: ioring.OpWrite, Off: int64(i) * 4096, Bufs: buf})
	}
	for range 5 {
		if b.do(ioring.Op{Kind: ioring.OpRead, Off: fileSize, Bufs: buf}) == nil {
			t.Fatal("a read past the end succeeded")
		}
	}
	if b.do(ioring.Op{Kind: ioring.OpWrite}) == nil {
		t.Fatal("a write of nothing succeeded")
	}
	s := b.engine.Stats()
	if s.Submitted != 26 || s.Completed != 26 || s.Failed != 6 || s.InFlight() != 0 {
		t.Fatalf("%+v, want 26 submitted and completed, 6 of them failed", s)
	}
	if name := b.engine.Name(); name != "sim" && s.Syscalls == 0 {
		t.Fatalf("engine %s did 25 ops without a system call", name)
	}
}

// allocatesNothing measures whole round trips: one op, and several at once.
func allocatesNothing(t *testing.T, b *bench) {
	if b.engine.Name() == "sim" {
		t.Skip("a simulated disk may allocate")
	}
	done := make(chan error, 64)
	newOp := func(op ioring.Op) *ioring.Op {
		op.Done = func(_ *ioring.Op, err error) { done <- err }
		return &op
	}
	single := newOp(ioring.Op{Kind: ioring.OpWrite, DSync: true, Bufs: [][]byte{b.region[:4096]}})
	var several []*ioring.Op
	for i := range 8 {
		p := b.other[i*16384:][:16384]
		several = append(several,
			newOp(ioring.Op{Kind: ioring.OpWrite, Off: int64(i) * 16384, Bufs: cut(p, 1)}),
			newOp(ioring.Op{Kind: ioring.OpRead, Off: int64(i) * 16384, Bufs: [][]byte{b.region[i*16384:][:16384]}}))
	}
	several = append(several, newOp(ioring.Op{Kind: ioring.OpSync}))
	await := func(n int) {
		for range n {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	round := func() {
		single.SubmitTo(b.engine)
		await(1)
		b.engine.Submit(several...)
		await(len(several))
	}
	// The first attempts may still start threads and grow tables.
	n := testing.AllocsPerRun(100, round)
	for attempt := 0; n != 0 && attempt < 10; attempt++ {
		n = testing.AllocsPerRun(100, round)
	}
	if n != 0 {
		t.Fatalf("%v allocations in a round of %d ops", n, 1+len(several))
	}
}
