package slab

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"pgregory.net/rapid"
)

func newPool(t testing.TB, o Options) *Pool {
	t.Helper()
	if o.Size == 0 {
		o.Size = Align
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// mustGet takes a slab that the test knows to be free.
func mustGet(t testing.TB, p *Pool) *Buf {
	t.Helper()
	b := p.TryGet()
	if b == nil {
		t.Fatalf("no slab of %d free", p.Cap())
	}
	return b
}

// awaitWaiting returns once n calls of Get are in the queue.
func awaitWaiting(p *Pool, n int) {
	for p.Waiting() != n {
		runtime.Gosched()
	}
}

func TestSlabsAreAlignedAndTileTheRegion(t *testing.T) {
	for _, size := range []int{Align, 3 * Align, 1 << 20} {
		p := newPool(t, Options{Size: size, Count: 5})
		region := p.Region()
		if len(region) != p.Cap()*p.Size() {
			t.Fatalf("region has %d bytes, want %d slabs of %d", len(region), p.Cap(), p.Size())
		}
		seen := make(map[*byte]bool)
		var held []*Buf
		for range p.Cap() {
			b := mustGet(t, p)
			held = append(held, b)
			bytes := b.Bytes()
			start := unsafe.SliceData(bytes)
			off := uintptr(unsafe.Pointer(start)) - uintptr(unsafe.Pointer(&region[0]))
			if len(bytes) != size || cap(bytes) != size || off%uintptr(size) != 0 || off >= uintptr(len(region)) {
				t.Fatalf("slab at %d with len %d cap %d, want len and cap %d", off, len(bytes), cap(bytes), size)
			}
			if uintptr(unsafe.Pointer(start))%Align != 0 || seen[start] {
				t.Fatalf("slab at %p is unaligned or was handed out twice", start)
			}
			seen[start] = true
		}
		if p.TryGet() != nil || p.Free() != 0 {
			t.Fatal("a slab came out of an exhausted pool")
		}
		for _, b := range held {
			b.Drop()
		}
	}
}

func TestOptionsOutOfRangeAreRefused(t *testing.T) {
	for _, o := range []Options{
		{},
		{Size: Align},
		{Count: 1},
		{Size: Align + 512, Count: 1},
		{Size: -Align, Count: 1},
		{Size: Align, Count: -1},
		{Size: 1 << 30, Count: 1025},
		{Size: 1 << 62, Count: 4},
	} {
		if p, err := New(o); err == nil {
			t.Errorf("New(%+v) = pool of %d slabs, want an error", o, p.Cap())
		}
	}
}

func TestALateComerDoesNotOvertake(t *testing.T) {
	p := newPool(t, Options{Count: 1})
	b := mustGet(t, p)

	const n = 5
	order := make(chan int, n)
	turns := make([]chan struct{}, n)
	for i := range n {
		turns[i] = make(chan struct{})
		go func() {
			got, err := p.Get(context.Background())
			if err != nil {
				t.Error(err)
			}
			order <- i
			<-turns[i]
			got.Drop()
		}()
		awaitWaiting(p, i+1)
	}
	b.Drop()
	for want := range n {
		if got := <-order; got != want {
			t.Fatalf("waiter %d got the slab in place of waiter %d", got, want)
		}
		if p.TryGet() != nil {
			t.Fatal("TryGet took a slab that was promised to a waiter")
		}
		close(turns[want])
	}
	last, err := p.Get(context.Background()) // returns once the last waiter dropped
	if err != nil {
		t.Fatal(err)
	}
	last.Drop()
}

func TestAWaiterThatGivesUpLeavesTheQueue(t *testing.T) {
	p := newPool(t, Options{Count: 1, Name: "ingest"})
	b := mustGet(t, p)

	ctx, cancel := context.WithCancel(context.Background())
	gaveUp := make(chan error)
	for range 3 {
		go func() {
			_, err := p.Get(ctx)
			gaveUp <- err
		}()
	}
	awaitWaiting(p, 3)
	patient := make(chan *Buf)
	go func() {
		b, err := p.Get(context.Background())
		if err != nil {
			t.Error(err)
		}
		patient <- b
	}()
	awaitWaiting(p, 4)
	cancel()
	for range 3 {
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want context.Canceled", err)
		}
	}
	b.Drop()
	(<-patient).Drop()
}

func TestGiveUpAndHandOverAtTheSameMomentLoseNoSlab(t *testing.T) {
	p := newPool(t, Options{Count: 1})
	for range 2000 {
		b := mustGet(t, p)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if got, err := p.Get(ctx); err == nil {
				got.Drop()
			}
		}()
		awaitWaiting(p, 1)
		go cancel()
		b.Drop()
		<-done
		if p.Free() != 1 {
			t.Fatal("a slab got lost")
		}
	}
}

func TestReclaimIsAskedUntilTheWaiterIsServed(t *testing.T) {
	var cache []*Buf
	asked := 0
	o := Options{Count: 3, Reclaim: func() bool {
		asked++
		if len(cache) == 0 {
			return false
		}
		cache[0].Drop()
		cache = cache[1:]
		return true
	}}
	p := newPool(t, o)
	for range 3 {
		cache = append(cache, mustGet(t, p))
	}
	var held []*Buf
	for range 3 {
		b, err := p.Get(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, b)
	}
	if asked != 3 || len(cache) != 0 {
		t.Fatalf("hook asked %d times, %d slabs left in the cache; want 3 and 0", asked, len(cache))
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		_, err := p.Get(ctx)
		done <- err
	}()
	awaitWaiting(p, 1) // the hook says no: the Get waits like any other
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want context.Canceled", err)
	}
	for _, b := range held {
		b.Drop()
	}
}

func TestReclaimServesWhoWaitedFirst(t *testing.T) {
	var p *Pool
	gate := make(chan struct{})
	var calls atomic.Int32
	var cached atomic.Pointer[Buf]
	p = newPool(t, Options{Count: 1, Reclaim: func() bool {
		if calls.Add(1) == 1 {
			<-gate // the first waiter's hook is slow
			return false
		}
		if b := cached.Swap(nil); b != nil {
			b.Drop()
			return true
		}
		return false
	}})
	cached.Store(mustGet(t, p))
	order := make(chan int, 2)
	wait := func(i int) {
		b, err := p.Get(context.Background())
		if err != nil {
			t.Error(err)
			return
		}
		order <- i
		b.Drop()
	}
	go wait(1)
	awaitWaiting(p, 1)
	go wait(2) // its hook frees the slab, which belongs to the first in the queue
	for cached.Load() != nil {
		runtime.Gosched()
	}
	close(gate)
	if a, b := <-order, <-order; a != 1 || b != 2 {
		t.Fatalf("served %d before %d", a, b)
	}
	last, _ := p.Get(context.Background())
	last.Drop()
}

func TestTheLastHolderReturnsTheSlab(t *testing.T) {
	p := newPool(t, Options{Count: 1})
	b := mustGet(t, p)
	b.Hold()
	b.Hold()
	for range 2 {
		if b.Drop(); p.Free() != 0 {
			t.Fatal("the slab went back while somebody held it")
		}
	}
	if b.Drop(); p.Free() != 1 {
		t.Fatal("the last Drop did not return the slab")
	}
}

func TestCountingErrorsPanic(t *testing.T) {
	mustPanic := func(what string, f func()) {
		t.Helper()
		defer func() {
			t.Helper()
			if recover() == nil {
				t.Errorf("%s did not panic", what)
			}
		}()
		f()
	}
	p, err := New(Options{Size: Align, Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	a, b := mustGet(t, p), mustGet(t, p)
	a.Drop()
	b.Drop()
	mustPanic("a Drop too many", a.Drop)
	mustPanic("a Hold without a holder", b.Hold)
}

func TestTheLastDropSpoilsInCheckedBuilds(t *testing.T) {
	p := newPool(t, Options{Count: 1})
	b := mustGet(t, p)
	kept := b.Bytes()
	for i := range kept {
		kept[i] = 1
	}
	b.Drop()
	want := byte(1)
	if invariant.Checked {
		want = Spoil
	}
	for i, got := range kept {
		if got != want {
			t.Fatalf("byte %d is %#x after the last Drop, want %#x", i, got, want)
		}
	}
}

func TestCloseRefusesWhileSlabsAreHeld(t *testing.T) {
	p, err := New(Options{Size: Align, Count: 2, Name: "ingest"})
	if err != nil {
		t.Fatal(err)
	}
	b := mustGet(t, p)
	if err := p.Close(); err == nil {
		t.Fatal("Close took the memory from under a holder")
	}
	b.Bytes()[0] = 1 // still mapped
	b.Drop()
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Get(context.Background()); !errors.Is(err, redoubt.ErrClosed) {
		t.Fatalf("Get on a closed pool: %v, want ErrClosed", err)
	}
	if p.TryGet() != nil || p.Region() != nil {
		t.Fatal("a closed pool handed out memory")
	}
}

// TestPoolAgainstModel compares random sequences of operations with a list of
// counts.
func TestPoolAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.IntRange(1, 6).Draw(t, "count")
		p, err := New(Options{Size: Align, Count: count})
		if err != nil {
			t.Fatal(err)
		}
		holders := make(map[*Buf]int)
		var held []*Buf // one entry per hold
		t.Repeat(map[string]func(*rapid.T){
			"get": func(t *rapid.T) {
				b := p.TryGet()
				if (b == nil) != (len(holders) == count) {
					t.Fatalf("got %v with %d of %d held", b, len(holders), count)
				}
				if b == nil {
					return
				}
				if holders[b] != 0 {
					t.Fatal("handed out a slab that is held")
				}
				holders[b] = 1
				held = append(held, b)
			},
			"hold": func(t *rapid.T) {
				if len(held) == 0 {
					t.Skip("nothing held")
				}
				b := rapid.SampledFrom(held).Draw(t, "slab")
				b.Hold()
				holders[b]++
				held = append(held, b)
			},
			"drop": func(t *rapid.T) {
				if len(held) == 0 {
					t.Skip("nothing held")
				}
				i := rapid.IntRange(0, len(held)-1).Draw(t, "hold")
				b := held[i]
				held = append(held[:i], held[i+1:]...)
				if holders[b]--; holders[b] == 0 {
					delete(holders, b)
				}
				b.Drop()
			},
			"": func(t *rapid.T) {
				if p.Free() != count-len(holders) {
					t.Fatalf("%d free, want %d", p.Free(), count-len(holders))
				}
			},
		})
		for _, b := range held {
			b.Drop()
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestManyGoroutinesShareAFewSlabs(t *testing.T) {
	p := newPool(t, Options{Count: 4})
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 300 {
				b, err := p.Get(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				// Two holders write to one slab in turn; the race detector sees
				// it if anybody else holds it too.
				b.Bytes()[0] = byte(g)
				b.Hold()
				b.Drop()
				b.Bytes()[i%Align] = byte(g)
				b.Drop()
			}
		})
	}
	wg.Wait()
	if p.Free() != p.Cap() {
		t.Fatalf("%d of %d slabs came back", p.Free(), p.Cap())
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	p := newPool(t, Options{Count: 2})
	ctx := context.Background()
	if n := testing.AllocsPerRun(200, func() {
		b, _ := p.Get(ctx)
		b.Hold()
		b.Drop()
		b.Drop()
		mustGet(t, p).Drop()
	}); n != 0 {
		t.Fatalf("%v allocations for a Get that finds a slab", n)
	}

	// And one that has to wait.
	a, b := mustGet(t, p), mustGet(t, p)
	drop := make(chan *Buf)
	go func() {
		for b := range drop {
			awaitWaiting(p, 1)
			b.Drop()
		}
	}()
	if n := testing.AllocsPerRun(200, func() {
		drop <- a
		a, _ = p.Get(ctx)
	}); n != 0 {
		t.Fatalf("%v allocations for a Get that waits", n)
	}
	close(drop)
	a.Drop()
	b.Drop()
}

func BenchmarkGetDrop(b *testing.B) {
	p := newPool(b, Options{Count: 64})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			buf, err := p.Get(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			buf.Drop()
		}
	})
}
