package coalescer

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
)

// shell returns a coalescer on its own goroutines over the rig's store.
func (r *rig) shell(tune func(*Options)) *Coalescer {
	r.t.Helper()
	o := r.opts
	o.MaxAge, o.Survey, o.ScrubRate, o.ScrubPause = 20*time.Millisecond, time.Millisecond, 1<<40, time.Millisecond
	if tune != nil {
		tune(&o)
	}
	c, err := New(r.store, r.hook, r.log, o)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// soon is a context for what must happen, though nobody knows how fast.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Writers append, readers read at any point there is, the scrub goes round, and
// all the while pages are folded and the log is trimmed, on a device that
// completes in any order.
func TestEverythingAtOnce(t *testing.T) {
	r := newRig(t, func(r *rig) { r.opts.RunPages, r.opts.SoftDebt = 16, 0.05 })
	tapes := []*tape{r.create(1, redoubt.FullSegment), r.create(2, redoubt.FullSegment)}
	stop := r.disk.Shuffle(1)
	c := r.shell(nil)
	c.Start()
	var crowd sync.WaitGroup
	var done atomic.Int32
	locks := make([]sync.RWMutex, len(tapes))
	const batches = 250
	for i, w := range tapes {
		crowd.Go(func() {
			defer done.Add(1)
			rnd := rand.New(rand.NewPCG(uint64(i), 5))
			for n := range batches {
				change := fat(rnd)
				if n%2 == 0 {
					change = randomChange(rnd, rigPages)
				}
				locks[i].Lock()
				err := r.append(w, change)
				if n%8 == 7 {
					r.tell(w, w.lsn, max(w.floor, w.lsn-min(w.lsn, 20)))
				}
				locks[i].Unlock()
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
				c.Wake()
			}
		})
		crowd.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 6))
			for int(done.Load()) < len(tapes) {
				locks[i].RLock()
				page, point := rnd.Uint32N(rigPages), w.floor+redoubt.LSN(rnd.Uint64N(uint64(w.lsn-w.floor)+1))
				got, err := r.readPage(r.seg(w), page, point)
				if err != nil {
					t.Errorf("page %d at %d: %v", page, point, err)
				} else if !bytes.Equal(got, w.page(page, point)) {
					t.Errorf("page %d at %d is not as the reference has it", page, point)
				}
				locks[i].RUnlock()
			}
		})
	}
	crowd.Wait()
	for _, w := range tapes {
		r.tell(w, w.lsn, w.lsn)
	}
	if err := c.Flush(soon(t)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	stop()
	st := c.Stats()
	if st.Pages == 0 || st.ScrubbedBytes == 0 || st.Errors != 0 || st.Damage != 0 || c.Err() != nil {
		t.Fatalf("%+v, %v", st, c.Err())
	}
	for _, w := range tapes {
		r.check(w, 1)
		if i := r.store.Info(r.seg(w)); i.Coalesced != w.lsn || i.Blocks != 0 {
			t.Fatalf("segment %d is coalesced to %d of %d", w.id[0], i.Coalesced, w.lsn)
		}
	}
	again := r.reopen(r.disk.Restart())
	for _, w := range tapes {
		again.check(w, 1)
	}
}

// A device that fails ends the folding: the reason is there for who asks, and
// nobody waits for ever.
func TestTheShellSaysWhyItEnded(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1, redoubt.FullSegment)
	r.write(rand.New(rand.NewPCG(1, 1)), w, 10)
	r.tell(w, w.lsn, w.lsn)
	in := r.disk.Arm(devtest.Fault{Kind: devtest.WriteError})
	c := r.shell(nil)
	c.Start()
	defer c.Close()
	if err := c.Flush(soon(t)); !errors.Is(err, redoubt.ErrDeviceFailed) {
		t.Fatalf("flush: %v", err)
	}
	in.MustHaveInjected(t)
	if err := c.Flush(soon(t)); !errors.Is(err, redoubt.ErrDeviceFailed) {
		t.Fatalf("and another: %v", err)
	}
	if err := c.Err(); !errors.Is(err, redoubt.ErrDeviceFailed) {
		t.Fatalf("Err: %v", err)
	}
}

// A flush can be given up, and ends with the coalescer.
func TestAFlushEndsWithItsContextAndWithTheCoalescer(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1, redoubt.FullSegment)
	r.write(rand.New(rand.NewPCG(1, 1)), w, 10)
	r.tell(w, w.lsn, w.lsn)
	c := r.shell(nil)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("with a context that is done, before Start: %v", err)
	}
	r.disk.Hold()
	c.Start()
	flushed := make(chan error)
	ctx, cancel = context.WithCancel(context.Background())
	go func() { flushed <- c.Flush(ctx) }()
	r.disk.WaitHeld(1) // the folder, or the scrub, is in the middle of something
	cancel()
	if err := <-flushed; !errors.Is(err, context.Canceled) {
		t.Fatalf("given up: %v", err)
	}
	r.disk.Inline()
	c.Close()
	if err := c.Flush(soon(t)); !errors.Is(err, redoubt.ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
	if c.Err() != nil {
		t.Fatalf("to be closed is a failure: %v", c.Err())
	}
	c.Close() // and again does no harm
}

// Close does not wait for memory that nobody gives back.
func TestCloseDoesNotWaitForMemory(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1, redoubt.FullSegment)
	r.write(rand.New(rand.NewPCG(1, 1)), w, 10)
	r.tell(w, w.lsn, w.lsn)
	for b := r.pages.TryGet(); b != nil; b = r.pages.TryGet() {
		defer b.Drop()
	}
	c := r.shell(nil)
	c.Start()
	for ctx := soon(t); r.pages.Waiting() == 0 && ctx.Err() == nil; {
		runtime.Gosched()
	}
	if r.pages.Waiting() == 0 {
		t.Fatal("nobody asks for memory")
	}
	c.Close()
}

// Options out of range are refused, and say so.
func TestOptions(t *testing.T) {
	r := newRig(t, nil)
	for name, tune := range map[string]func(*Options){
		"run pages":   func(o *Options) { o.RunPages = 257 },
		"run slabs":   func(o *Options) { o.RunSlabs = 17 },
		"debts":       func(o *Options) { o.SoftDebt = 0.6 },
		"rates":       func(o *Options) { o.IdleRate, o.MaxRate = 10, 5 },
		"no pages":    func(o *Options) { o.Pages = nil },
		"small pages": func(o *Options) { o.RunPages = 256 },
		"small ahead": func(o *Options) { o.Ahead = r.small },
		"ahead slabs": func(o *Options) { o.AheadSlabs = 65 },
		"age":         func(o *Options) { o.MaxAge = -1 },
	} {
		o := r.opts
		tune(&o)
		if _, err := New(r.store, r.dev, r.log, o); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
