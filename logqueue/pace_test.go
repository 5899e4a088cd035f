package logqueue

import (
	"errors"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/segfile"
)

// near reports whether two durations are the same but for rounding.
func near(a, b time.Duration) bool { return (a - b).Abs() < time.Microsecond }

// The pacer lets in what has left the log lately, at a debt of 1; twice that
// half-way; everything up to SoftDebt. The clock is the test's.
func TestPace(t *testing.T) {
	const soft = 0.5
	const drain = 100 << 20
	t0 := time.Unix(1000, 0)
	for _, test := range []struct {
		debt float64
		want time.Duration // between two appends of 1 MiB
	}{
		{0, 0}, {0.5, 0}, {0.625, 2500 * time.Microsecond}, {0.75, 5 * time.Millisecond}, {1, 10 * time.Millisecond}, {1.5, 10 * time.Millisecond},
	} {
		p := pacer{drain: drain, debt: test.debt}
		if wait := p.reserve(t0, 1<<20, soft); wait != 0 {
			t.Errorf("debt %v: the first append waits %v", test.debt, wait)
		}
		for i := range 5 {
			if wait := p.reserve(t0, 1<<20, soft); !near(wait, time.Duration(i+1)*test.want) {
				t.Errorf("debt %v: append %d waits %v, want %v", test.debt, i+1, wait, time.Duration(i+1)*test.want)
			}
		}
		// Whoever comes late has nothing to wait for, and saves nothing up.
		later := t0.Add(time.Minute)
		if first, second := p.reserve(later, 1<<20, soft), p.reserve(later, 1<<20, soft); first != 0 || !near(second, test.want) {
			t.Errorf("debt %v: after a pause %v and %v, want none and %v", test.debt, first, second, test.want)
		}
	}
}

// Once the debt is paid nobody waits for what was reserved before.
func TestPaceEndsWithTheDebt(t *testing.T) {
	t0 := time.Unix(1000, 0)
	p := pacer{drain: 1 << 20, debt: 1}
	for range 10 {
		p.reserve(t0, 1<<20, 0.5)
	}
	p.observe(t0, 0.4, 0)
	if wait := p.reserve(t0, 1<<20, 0.5); wait != 0 {
		t.Fatalf("waits %v without debt", wait)
	}
	p.observe(t0, 1, 0)
	if wait := p.reserve(t0, 1<<20, 0.5); wait != 0 {
		t.Fatalf("the first in new debt pays %v of the old", wait)
	}
}

// The drain is what left the log, smoothed, and never less than what keeps
// appends moving.
func TestPaceLearnsTheDrain(t *testing.T) {
	var p pacer
	p.init()
	now, gone := time.Unix(1000, 0), uint64(0)
	look := func(n int, rate uint64) {
		for range n {
			now = now.Add(100 * time.Millisecond)
			gone += rate / 10
			p.observe(now, 1, gone)
		}
	}
	look(1, 1<<30) // the first look has nothing to compare with
	if p.drain != minDrain {
		t.Fatalf("drain %v after one look", p.drain)
	}
	look(200, 64<<20)
	if p.drain < 63<<20 || p.drain > 65<<20 {
		t.Fatalf("drain %v of 64 MiB/s", p.drain)
	}
	before := p.drain
	look(1, 128<<20)
	if p.drain <= before || p.drain > 100<<20 {
		t.Fatalf("one burst makes the drain %v of %v", p.drain, before)
	}
	look(400, 0)
	if p.drain != minDrain {
		t.Fatalf("drain %v of nothing, want the least", p.drain)
	}
	// Two looks at one moment teach nothing.
	p.observe(now, 1, gone+1<<40)
	if p.drain != minDrain {
		t.Fatalf("drain %v out of no time", p.drain)
	}
}

func TestOptionsOutOfRange(t *testing.T) {
	r := newRig(t, nil)
	moved := func([]segfile.Moved) {}
	for name, o := range map[string]Options{
		"depth": {Depth: 65, Moved: moved}, "negative depth": {Depth: -1, Moved: moved}, "small writes": {MaxWriteBytes: 512, Moved: moved},
		"large writes": {MaxWriteBytes: 128 << 20, Moved: moved}, "soft debt": {SoftDebt: 1, Moved: moved}, "nobody to tell": {},
	} {
		if _, err := New(r.store, r.dev, make([][]byte, 64), o); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(r.store, r.dev, nil, Options{Moved: moved}); !errors.Is(err, redoubt.ErrInvalid) {
		t.Error("no fillers, and no error")
	}
	r.close()
}

// An instant device is done as soon as it is asked.
type instant struct{}

func (instant) WriteDurable(w *blockdev.Write) { w.Done(w, nil) }

// nobody holds memory for ever.
type nobody struct{}

func (nobody) Hold() {}
func (nobody) Drop() {}

// TestNoAllocations counts what an append allocates on its way through the queue
// and the store to the acknowledgement.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations can't be counted under the race detector")
	}
	r := newRig(t, func(r *rig) { r.wrap = func(*blockdev.Device) Device { return instant{} } })
	w := r.create(1)
	run, ended := segfile.Run{}, make(chan error, 1)
	done := func(_ *segfile.Run, err error) { ended <- err }
	buf := r.in.TryGet().Bytes()
	one := func() {
		run.Reset()
		run.Mem, run.Done = nobody{}, done
		w.fill(&run, buf)
		if err := r.q.Append(&run, nothingNew); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil { // the log may have waited for an extent
			t.Fatal(err)
		}
	}
	for range 2000 {
		one()
	}
	if n := testing.AllocsPerRun(2000, one); n != 0 {
		t.Errorf("%v allocations for each append", n)
	}
	r.wantAcked(w, 4001)
}
