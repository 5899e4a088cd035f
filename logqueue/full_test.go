package logqueue

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// newFullRig returns a rig with a small log of two segments, filled until an
// append was refused, and the writer that filled it.
func newFullRig(t *testing.T, hungry *atomic.Int64) (r *rig, w, other *writer) {
	t.Helper()
	r = newRig(t, func(r *rig) {
		r.sopts.LogExtents = 6
		r.opts = Options{FullTimeout: time.Millisecond, Hungry: func() { hungry.Add(1) }}
	})
	w, other = r.create(1), r.create(2)
	for range 6 * rigExtent / 512 {
		s := w.run()
		err := r.q.Append(&s.Run, nothingNew)
		if err == nil {
			continue
		}
		s.Mem.Drop()
		w.prev-- // it was not taken
		w.last--
		if !errors.Is(err, redoubt.ErrFull) {
			t.Fatal(err)
		}
		return r, w, other
	}
	t.Fatal("a log of six extents took more than six extents")
	return nil, nil, nil
}

// A full log refuses appends, after it has waited and called for help; what was
// taken is durable and acknowledged. The node's own runs go through, more than
// fit what is left of the extent.
func TestAFullLogRefusesAppendsAndTakesTheNodesOwn(t *testing.T) {
	var hungry atomic.Int64
	r, w, _ := newFullRig(t, &hungry)
	r.wantAcked(w, w.prev)
	if s := r.q.Stats(); s.Refused != 1 || hungry.Load() == 0 {
		t.Fatalf("%d refusals, %d calls for help", s.Refused, hungry.Load())
	}
	head := r.store.Usage().Head
	for e := redoubt.Epoch(2); e < 2+3*rigExtent/512/2; e++ {
		if err := r.q.Change(func(mem *slab.Buf) (*segfile.Change, error) { return r.store.PrepareEpoch(mem, w.seg, e) }); err != nil {
			t.Fatalf("the node's own run %d into a full log: %v", e, err)
		}
	}
	if grown := r.store.Usage().Head - head; grown < rigExtent {
		t.Fatalf("the node's own runs took %d bytes: they fit what was left", grown)
	}
	r.close()
}

// free makes room: segment 1 is deleted, and the root of the other moves on.
func (r *rig) free(w, other *writer) {
	r.t.Helper()
	if err := r.q.Change(func(mem *slab.Buf) (*segfile.Change, error) { return r.store.PrepareDelete(mem, w.seg, 1) }); err != nil {
		r.t.Fatal(err)
	}
	if err := r.q.Change(func(mem *slab.Buf) (*segfile.Change, error) {
		p, err := r.store.PrepareRoot(mem, other.seg)
		if err != nil {
			return nil, err
		}
		return &p.Change, nil
	}); err != nil {
		r.t.Fatal(err)
	}
	if n, err := r.store.TrimLog(); err != nil || n < 2 {
		r.t.Fatalf("%d extents came free, %v", n, err)
	}
	r.q.Kick()
}

// An append that waits for room goes on when space was freed, and so do all
// after it.
func TestAnAppendWaitsForRoomAndGoesOn(t *testing.T) {
	var hungry atomic.Int64
	r, w, other := newFullRig(t, &hungry)
	r.q.opts.FullTimeout = time.Hour
	asked := make(chan struct{})
	r.q.opts.Hungry = func() {
		select {
		case asked <- struct{}{}:
		default:
		}
	}
	s, done := other.run(), make(chan error, 1)
	go func() { done <- r.q.Append(&s.Run, nothingNew) }()
	<-asked // it has seen that the log is full, and waits
	r.free(w, other)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	<-s.ended
	s.want(t, 1, nil)
	r.wantAcked(other, 1)
	for range 100 {
		<-other.send().ended
	}
	r.wantAcked(other, 101)
	r.close()
}

// Whoever waits for room is let go when the queue closes.
func TestCloseReleasesWhoWaitsForRoom(t *testing.T) {
	var hungry atomic.Int64
	r, _, other := newFullRig(t, &hungry)
	r.q.opts.FullTimeout = time.Hour
	asked := make(chan struct{}, 64)
	r.q.opts.Hungry = func() { asked <- struct{}{} }
	s, done := other.run(), make(chan error, 1)
	go func() { done <- r.q.Append(&s.Run, nothingNew) }()
	<-asked
	if err := r.q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, redoubt.ErrClosed) {
		t.Fatalf("an append that waited for room when the queue closed: %v", err)
	}
	s.Mem.Drop()
	r.noLeaks()
}

// The queue holds at most MaxQueueBytes; one run is let in whatever its size.
func TestTheQueueIsBounded(t *testing.T) {
	r := newRig(t, func(r *rig) { r.opts = Options{Depth: 1, MaxQueueBytes: 3 * 512} })
	w := r.create(1)
	r.disk.Hold()
	w.send()
	for range 3 {
		w.send()
	}
	s, done := w.run(), make(chan error, 1)
	go func() { done <- r.q.Append(&s.Run, nothingNew) }()
	if q := r.q.Stats().QueuedBytes; q != 3*512 {
		t.Fatalf("%d bytes are queued", q)
	}
	r.wantHeld(512)
	r.disk.Complete(0, nil) // the three that waited go out together, without the fourth or with it waiting
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.disk.Drain()
	r.wantAcked(w, 5)
	r.close()
}
