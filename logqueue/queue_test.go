package logqueue

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
	"golang.org/x/sys/unix"
)

// An idle device takes the first run at once; what arrives while that is on its
// way goes out as one write.
func TestWhatArrivesDuringAWriteGathers(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1)
	r.disk.Hold()
	before := r.q.Stats()
	first := w.send()
	r.wantHeld(512)
	var rest []*sent
	for range 9 {
		rest = append(rest, w.send())
	}
	r.wantHeld(512)
	if s := r.q.Stats(); s.QueuedBytes != 9*512 {
		t.Fatalf("%d bytes wait, want %d", s.QueuedBytes, 9*512)
	}
	r.disk.Complete(0, nil)
	first.want(t, 1, nil)
	r.wantAcked(w, 1)
	r.wantHeld(9 * 512)
	for _, s := range rest {
		s.want(t, 0, nil)
	}
	r.disk.Complete(0, nil)
	for _, s := range rest {
		s.want(t, 1, nil)
	}
	r.wantAcked(w, 10)
	if s := r.q.Stats(); s.Writes-before.Writes != 2 || s.Runs-before.Runs != 10 || s.Bytes-before.Bytes != 10*512 || s.QueuedBytes != 0 {
		t.Fatalf("%+v, before %+v", s, before)
	}
	r.close()
}

// A second write goes beside the first only when enough has gathered, and never
// more than Depth.
func TestASecondWriteWhenEnoughHasGathered(t *testing.T) {
	r := newRig(t, func(r *rig) { r.opts = Options{Depth: 2, EagerBytes: 4 * 512, MaxWriteBytes: 4096} })
	w := r.create(1)
	r.disk.Hold()
	for range 4 {
		w.send()
	}
	r.wantHeld(512)
	w.send()
	r.wantHeld(512, 4*512)
	for range 20 {
		w.send()
	}
	r.wantHeld(512, 4*512)
	r.disk.Complete(1, nil) // the younger first
	r.wantAcked(w, 0)
	r.wantHeld(512, 4096)
	r.disk.Complete(0, nil)
	r.wantAcked(w, 5)
	r.wantHeld(4096, 4096)
	r.disk.Drain()
	r.wantAcked(w, 25)
	r.close()
}

// Whatever the order in which the device answers, nobody is told of a record that
// a power cut at that moment could take away.
func TestNothingIsAcknowledgedBeforeItIsDurable(t *testing.T) {
	for _, mode := range []string{"fua", "flush"} {
		t.Run(mode, func(t *testing.T) {
			moves := 0
			for seed := range uint64(8) {
				moves += acksOverRandomOrder(t, mode, seed)
			}
			if moves < 40 {
				t.Fatalf("SCL moved %d times: the test checked nothing", moves)
			}
		})
	}
}

func acksOverRandomOrder(t *testing.T, mode string, seed uint64) (moves int) {
	r := newRig(t, func(r *rig) {
		r.mode = mode
		r.opts = Options{Depth: 4, EagerBytes: 1}
	})
	w := r.create(1)
	r.disk.Hold()
	rnd := rand.New(rand.NewPCG(seed, 1))
	var runs []*sent
	told := redoubt.LSN(0)
	for range 60 {
		if held := r.disk.Held(); len(held) > 0 && rnd.IntN(2) == 0 {
			r.disk.Complete(rnd.IntN(len(held)), nil)
		} else {
			runs = append(runs, w.send())
		}
		if scl := r.scl(w); scl != told {
			told = scl
			moves++
			if safe := r.stored(r.worst(), w); safe < told {
				t.Fatalf("seed %d: %d was acknowledged, and a power cut leaves %d", seed, told, safe)
			}
		}
	}
	r.disk.Drain()
	r.wantAcked(w, w.prev)
	for _, s := range runs {
		s.want(t, 1, nil)
	}
	r.close()
	return moves
}

// barrier queues an empty run that waits for everything before it.
func (r *rig) barrier() *sent {
	r.t.Helper()
	mem, err := r.store.Small()
	if err != nil {
		r.t.Fatal(err)
	}
	s := &sent{ended: make(chan struct{})}
	s.Run = *r.store.NewSeal(mem)
	s.Barrier, s.Done = true, s.end
	r.q.mu.Lock()
	r.q.push(&s.Run)
	r.q.mu.Unlock()
	r.q.pump()
	return s
}

// A barrier that is written isn't done until all before it is durable too; a run
// that is none doesn't wait.
func TestABarrierWaitsForWhatIsBeforeIt(t *testing.T) {
	r := newRig(t, func(r *rig) { r.opts = Options{Depth: 4, EagerBytes: 1} })
	w := r.create(1)
	r.disk.Hold()
	older := []*sent{w.send(), w.send()}
	bar := r.barrier()
	younger := w.send()
	r.wantHeld(512, 512, 512, 512)
	r.disk.Complete(3, nil)
	younger.want(t, 1, nil)
	r.disk.Complete(2, nil)
	bar.want(t, 0, nil)
	r.disk.Complete(1, nil)
	older[1].want(t, 1, nil)
	bar.want(t, 0, nil)
	r.wantAcked(w, 0)
	r.disk.Complete(0, nil)
	bar.want(t, 1, nil)
	r.wantAcked(w, 3)
	r.close()
}

// A manual device holds writes for the test and answers from whatever goroutine
// and at whatever moment the test chooses: within another answer, for one.
type manual struct {
	*blockdev.Device
	mu     sync.Mutex
	on     bool
	writes []*blockdev.Write
}

func (m *manual) WriteDurable(w *blockdev.Write) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.on {
		m.Device.WriteDurable(w)
		return
	}
	m.writes = append(m.writes, w)
}

// The device has two completion threads: the answer to the older write overtakes
// the acknowledgement of the younger one, which has a barrier in it. Each run
// ends once.
func TestTwoAnswersAtOnceEndEachRunOnce(t *testing.T) {
	for _, older := range []error{nil, unix.EIO} {
		m := &manual{}
		r := newRig(t, func(r *rig) {
			r.opts = Options{Depth: 2, EagerBytes: 1}
			r.wrap = func(d *blockdev.Device) Device { m.Device = d; return m }
		})
		w := r.create(1)
		m.on = true
		first := w.send()
		second := w.run()
		second.Barrier = true
		if err := r.q.Append(&second.Run, nothingNew); err != nil {
			t.Fatal(err)
		}
		if len(m.writes) != 2 {
			t.Fatalf("%d writes are on the device", len(m.writes))
		}
		r.moved = func([]segfile.Moved) {
			r.moved = nil
			m.writes[0].Done(m.writes[0], older)
		}
		m.writes[1].Done(m.writes[1], nil)
		if r.moved != nil {
			t.Fatal("the younger write told nobody: the test provoked nothing")
		}
		first.want(t, 1, older)
		second.want(t, 1, older)
		if older == nil {
			r.wantAcked(w, 2)
		} else {
			r.wantAcked(w, 0)
		}
	}
}

// From the moment an epoch is installed no older batch gets into the queue; those
// that were in it stand before the epoch's block and are durable when its writer
// is told.
func TestAFenceStandsBehindOlderBatches(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1)
	r.disk.Hold()
	a, b := w.send(), w.run() // one on the device, one queued
	heard := 0
	if err := r.q.Append(&b.Run, func(int) (vdl, floor redoubt.LSN) {
		// The first time it is heard before it waits for room, the second time
		// it is admitted.
		if heard++; heard == 2 && r.q.mu.TryLock() {
			t.Error("a batch is admitted outside the queue's lock: a fence could slip between that and its place in the queue")
			r.q.mu.Unlock()
		}
		return 0, 0
	}); err != nil || heard != 2 {
		t.Fatalf("append: %v, heard %d times", err, heard)
	}
	installed, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- r.q.Change(func(mem *slab.Buf) (*segfile.Change, error) {
			c, err := r.store.PrepareEpoch(mem, w.seg, 2)
			close(installed)
			return c, err
		})
	}()
	<-installed
	late := w.run()
	if err := r.q.Append(&late.Run, func(int) (vdl, floor redoubt.LSN) {
		t.Error("a fenced batch had its say")
		return 0, 0
	}); err != nil {
		t.Fatal(err)
	}
	late.want(t, 1, nil)
	if err := late.Blocks[0].Err; !errors.Is(err, redoubt.ErrFenced) {
		t.Fatalf("a batch of the old epoch behind the new one: %v", err)
	}
	r.disk.Complete(0, nil)
	a.want(t, 1, nil)
	r.wantHeld(1024) // the older batch and the epoch's block, side by side
	r.disk.Complete(0, nil)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.want(t, 1, nil)
	if i := r.store.Info(w.seg); i.SCL != 2 || i.Epoch != 2 {
		t.Fatalf("SCL %d, epoch %d", i.SCL, i.Epoch)
	}
	r.close()
}

// The same while appends and a fence race: what the fence's writer is told of is
// final.
func TestNothingOldFollowsAFence(t *testing.T) {
	for seed := range uint64(20) {
		r := newRig(t, func(r *rig) { r.opts = Options{Depth: 3, EagerBytes: 1} })
		w := r.create(1)
		stop := r.disk.Shuffle(seed)
		some, refused := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(refused)
			for i := range 500 {
				s := w.run()
				if err := r.q.Append(&s.Run, nothingNew); err != nil {
					t.Error(err)
					return
				}
				if i == int(seed)*3 {
					close(some)
				}
				<-s.ended
				if s.Blocks[0].Err != nil {
					return
				}
			}
			t.Error("500 batches, and no fence")
		}()
		<-some
		if err := r.q.Change(func(mem *slab.Buf) (*segfile.Change, error) { return r.store.PrepareEpoch(mem, w.seg, 2) }); err != nil {
			t.Fatal(err)
		}
		final := r.store.Info(w.seg)
		<-refused
		stop()
		if now := r.store.Info(w.seg); now.Highest != final.Highest || now.SCL != final.SCL {
			t.Fatalf("seed %d: at the fence SCL %d and highest %d, later %d and %d", seed, final.SCL, final.Highest, now.SCL, now.Highest)
		}
		r.close()
	}
}

// One failed write ends the queue: what was on its way, what was queued, whoever
// waited, and everything from then on gets the error, and nothing more is
// acknowledged, not even a younger write that succeeded.
func TestAFailedWriteFailsEverybody(t *testing.T) {
	r := newRig(t, func(r *rig) { r.opts = Options{Depth: 2, EagerBytes: 1024, MaxQueueBytes: 4 * 512} })
	w := r.create(1)
	r.disk.Hold()
	runs := []*sent{w.send(), w.send(), w.send()} // two writes
	r.wantHeld(512, 1024)
	for range 4 {
		runs = append(runs, w.send()) // queued
	}
	change, stuck := make(chan error, 1), make(chan error, 1)
	go func() {
		change <- r.q.Change(func(mem *slab.Buf) (*segfile.Change, error) { return r.store.PrepareEpoch(mem, w.seg, 1) })
	}()
	waiting := w.run() // there is no room for it
	go func() { stuck <- r.q.Append(&waiting.Run, nothingNew) }()
	r.disk.Complete(0, unix.EIO)
	for _, c := range []chan error{change, stuck} {
		if err := <-c; err == nil {
			t.Fatal("a failed device, and somebody is told that all is well")
		}
	}
	waiting.Mem.Drop() // it was not taken
	r.disk.Inline()
	for _, s := range runs {
		s.want(t, 1, unix.EIO)
	}
	r.wantAcked(w, 0)
	after := w.run()
	if err := r.q.Append(&after.Run, nothingNew); !errors.Is(err, redoubt.ErrDeviceFailed) {
		t.Fatalf("append after the failure: %v", err)
	}
	after.Mem.Drop()
	if err := r.q.Close(); !errors.Is(err, redoubt.ErrDeviceFailed) || r.store.Failed() == nil {
		t.Fatalf("close after the failure: %v", err)
	}
	r.wantAcked(w, 0)
	r.noLeaks()
}

// An idle log whose newest write nothing vouches for gets an empty run, once, and
// never while something is on its way.
func TestAnIdleLogIsSealed(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1)
	now := time.Unix(1000, 0)
	r.q.Tick(now)
	seals := r.q.Stats().Seals
	r.disk.Hold()
	w.send()
	r.q.Tick(now)
	r.wantHeld(512)
	if s := r.q.Stats(); s.Seals != seals {
		t.Fatalf("a busy log was sealed: %+v", s)
	}
	r.disk.Inline()
	if !r.store.NeedsSeal() {
		t.Fatal("the newest write has a witness already")
	}
	for range 3 {
		r.q.Tick(now)
	}
	if s := r.q.Stats(); s.Seals != seals+1 || r.store.NeedsSeal() {
		t.Fatalf("after three ticks of an idle log: %d seals, want one", s.Seals-seals)
	}
	r.close()
}

// Close makes durable what was taken, seals, and refuses the rest: nothing that
// was taken is forgotten.
func TestCloseDrains(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1)
	r.disk.Hold()
	runs := []*sent{w.send(), w.send(), w.send()}
	closed := make(chan error, 1)
	go func() { closed <- r.q.Close() }()
	r.disk.Complete(0, nil)
	r.disk.WaitHeld(1)
	r.disk.Complete(0, nil)
	r.disk.WaitHeld(1) // the seal
	for _, s := range runs {
		s.want(t, 1, nil)
	}
	late := w.run()
	if err := r.q.Append(&late.Run, nothingNew); !errors.Is(err, redoubt.ErrClosed) {
		t.Fatalf("append behind the seal of a queue that closes: %v", err)
	}
	late.Mem.Drop()
	r.disk.Complete(0, nil)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	r.wantAcked(w, 3)
	if r.store.NeedsSeal() || r.stored(r.worst(), w) != 3 {
		t.Fatal("closed without a seal, or with something in flight")
	}
	r.noLeaks()
}

// Drain waits for what is on its way, and no longer than its context.
func TestDrain(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1)
	r.disk.Hold()
	w.send()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.q.Drain(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.q.Drain(t.Context())
	}()
	r.disk.Complete(0, nil)
	<-done
	r.wantAcked(w, 1)
	r.close()
}
