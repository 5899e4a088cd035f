package logqueue

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// Device is what the queue asks of the device. *blockdev.Device provides it.
type Device interface {
	// WriteDurable writes w and calls its Done when it is on stable storage,
	// perhaps before it returns.
	WriteDurable(w *blockdev.Write)
}

// Options tune a Queue. A field left zero takes the default in its comment.
type Options struct {
	// Depth is the number of log writes in flight. Default 2: one on the device
	// and one right behind it; more only cuts the same bytes into smaller writes.
	Depth int
	// MaxWriteBytes bounds one write. Default 1 MiB, from which on a drive is
	// limited by its bandwidth.
	MaxWriteBytes int
	// EagerBytes is what must have gathered before another write is begun while
	// one is in flight. Default 128 KiB.
	EagerBytes int
	// MaxQueueBytes bounds what waits for the device. Default 16 MiB.
	MaxQueueBytes int64
	// SoftDebt is the share of the log from which on appends are slowed down.
	// Default 0.5.
	SoftDebt float64
	// ReserveExtents are kept for what the node writes to make room. Default 3.
	ReserveExtents int
	// FullTimeout is how long an append waits for a full log. Default 10 s.
	FullTimeout time.Duration
	// Moved is told whose SCL moved. It runs on the device's completion thread
	// and must not block. Required.
	Moved func([]segfile.Moved)
	// Hungry is called when the log wants room: the coalescer should hurry. It
	// must not block. Default: nothing.
	Hungry func()
}

func (o *Options) setDefaults() error {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.Depth, 2)
	def(&o.MaxWriteBytes, 1<<20)
	def(&o.EagerBytes, 128<<10)
	def(&o.ReserveExtents, 3)
	if o.MaxQueueBytes == 0 {
		o.MaxQueueBytes = 16 << 20
	}
	if o.SoftDebt == 0 {
		o.SoftDebt = 0.5
	}
	if o.FullTimeout == 0 {
		o.FullTimeout = 10 * time.Second
	}
	if o.Hungry == nil {
		o.Hungry = func() {}
	}
	switch {
	case o.Depth < 1 || o.Depth > 64:
		return fmt.Errorf("logqueue: depth %d outside 1 to 64: %w", o.Depth, redoubt.ErrInvalid)
	case o.MaxWriteBytes < 4096 || o.MaxWriteBytes > 64<<20:
		return fmt.Errorf("logqueue: writes of %d bytes outside 4 KiB to 64 MiB: %w", o.MaxWriteBytes, redoubt.ErrInvalid)
	case o.SoftDebt <= 0 || o.SoftDebt >= 1:
		return fmt.Errorf("logqueue: soft debt %v outside 0 to 1: %w", o.SoftDebt, redoubt.ErrInvalid)
	case o.Moved == nil:
		return fmt.Errorf("logqueue: nobody to acknowledge to: %w", redoubt.ErrInvalid)
	}
	return nil
}

// Stats are counters since the start.
type Stats struct {
	Writes, Bytes, Runs uint64 // to the device: how many, how large, of what
	Seals               uint64
	Throttled           uint64        // appends that waited
	ThrottledFor        time.Duration // in all
	QueuedBytes         int64         // now
	Refused             uint64        // because the log was full
}

// A Queue is the way into one device's log. Its methods may be called from any
// goroutine.
type Queue struct {
	// Set by New, never changed.
	store *segfile.Store
	dev   Device
	opts  Options

	mu       sync.Mutex
	room     *sync.Cond // signalled when pending shrinks or the log gains room
	pending  []*segfile.Run
	bytes    int64 // pending
	urgent   int   // pending runs of the node's own
	inflight int
	free     []*segfile.LogWrite
	closing  bool // no append is taken any more
	closed   error

	want  chan struct{} // the extender should look
	done  chan struct{} // closed when the extender has gone
	pacer pacer

	writes, written, runs, seals, throttled, refused atomic.Uint64
	throttledNS                                      atomic.Int64
}

// New starts a queue. fillers is aligned memory of one logical block for each
// write in flight (Depth; the default when that is zero).
func New(store *segfile.Store, dev Device, fillers [][]byte, opts Options) (*Queue, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	if len(fillers) < opts.Depth {
		return nil, fmt.Errorf("logqueue: %d blocks for fillers, want %d: %w", len(fillers), opts.Depth, redoubt.ErrInvalid)
	}
	q := &Queue{store: store, dev: dev, opts: opts, want: make(chan struct{}, 1), done: make(chan struct{})}
	q.room = sync.NewCond(&q.mu)
	q.pacer.init()
	for i := range opts.Depth {
		lw := segfile.NewLogWrite(fillers[i])
		lw.Ctx = lw
		lw.Done = q.landed
		q.free = append(q.free, lw)
	}
	go q.extend()
	q.kick()
	return q, nil
}

// Append queues a run of redo that came off the wire. It waits while the log is
// busy beyond its bounds. told gives VDL and PGMRPL as they came with each
// block. A refused batch has its block's Err set; the run's Done is called
// when what is left is durable. An error means that the run was not taken at
// all and Done is not called.
func (q *Queue) Append(r *segfile.Run, told func(i int) (vdl, floor redoubt.LSN)) error {
	q.store.Hear(r, told)
	if err := q.throttle(int64(len(r.Bytes))); err != nil {
		return err
	}
	q.mu.Lock()
	if err := q.endedLocked(); err != nil {
		q.mu.Unlock()
		return err
	}
	live := q.store.Admit(r, told)
	if live {
		q.push(r)
	}
	q.mu.Unlock()
	if !live {
		q.opts.Moved(q.store.Acknowledged(r, nil))
		r.Done(r, nil)
		return nil
	}
	q.pump()
	return nil
}

// AppendOwn queues a run that the node writes for its own purposes and waits
// until it is durable. It is let in even when the log is full, and refused when
// a segment of its blocks was deleted: behind the tombstone it would rise again.
func (q *Queue) AppendOwn(r *segfile.Run) error {
	_, err := q.own(func() (*segfile.Run, error) {
		for i := range r.Blocks {
			if g := r.Blocks[i].Seg; g != nil && !q.store.Ready(g) {
				return nil, fmt.Errorf("logqueue: segment %v was deleted: %w", g.ID, redoubt.ErrNotFound)
			}
		}
		return r, nil
	})
	return err
}

// Change prepares a change of a segment's state and makes it durable: nothing
// that prepare forbids gets into the log behind it. It waits for the device.
func (q *Queue) Change(prepare func(mem *slab.Buf) (*segfile.Change, error)) error {
	mem, err := q.store.Small()
	if err != nil {
		return err
	}
	var c *segfile.Change
	queued, err := q.own(func() (*segfile.Run, error) {
		var err error
		if c, err = prepare(mem); err != nil || c == nil {
			return nil, err
		}
		return c.Run, nil
	})
	mem.Drop()
	if err == nil && queued {
		q.store.Commit(c)
	} else if c != nil {
		q.store.Abandon(c)
	}
	return err
}

// own queues the run that build returns and waits for it; no run is no wait.
func (q *Queue) own(build func() (*segfile.Run, error)) (queued bool, err error) {
	done := make(chan error, 1)
	q.mu.Lock()
	if err := q.closed; err != nil {
		q.mu.Unlock()
		return false, err
	}
	r, err := build()
	if err != nil || r == nil {
		q.mu.Unlock()
		return false, err
	}
	r.Done = func(_ *segfile.Run, err error) { done <- err }
	q.urgent++
	r.Ctx = q // marks it as the node's own
	q.push(r)
	q.mu.Unlock()
	q.pump()
	return true, <-done
}

// push adds a run to what waits. The caller holds mu.
func (q *Queue) push(r *segfile.Run) {
	q.pending = append(q.pending, r)
	q.bytes += int64(len(r.Bytes))
}

// pump begins as many writes as the device should have.
func (q *Queue) pump() {
	for {
		q.mu.Lock()
		if len(q.pending) == 0 || len(q.free) == 0 || q.closed != nil || q.inflight > 0 && q.bytes < int64(q.opts.EagerBytes) {
			q.mu.Unlock()
			return
		}
		lw := q.free[len(q.free)-1]
		n, ok := q.store.Place(lw, q.pending, q.opts.MaxWriteBytes)
		if !ok {
			q.mu.Unlock()
			q.kick()
			return
		}
		q.free = q.free[:len(q.free)-1]
		for _, r := range q.pending[:n] {
			q.bytes -= int64(len(r.Bytes))
			if r.Ctx == q {
				q.urgent--
			}
		}
		rest := copy(q.pending, q.pending[n:])
		clear(q.pending[rest:])
		q.pending = q.pending[:rest]
		q.inflight++
		q.room.Broadcast()
		q.mu.Unlock()
		q.writes.Add(1)
		q.written.Add(uint64(lw.Bytes))
		q.runs.Add(uint64(n))
		if q.store.WantsExtent() {
			q.kick()
		}
		q.dev.WriteDurable(&lw.Write)
	}
}

// landed takes the end of a write: it acknowledges and begins the next. It runs
// on the device's completion thread.
func (q *Queue) landed(w *blockdev.Write, err error) {
	lw := w.Ctx.(*segfile.LogWrite)
	err = q.store.Complete(lw, err)
	if err == nil && len(lw.Moved) > 0 {
		q.opts.Moved(lw.Moved)
	}
	done := lw.Released
	if err != nil {
		done = lw.Runs
	}
	for _, r := range done {
		r.Done(r, err)
	}
	if err != nil {
		q.fail(err)
	}
	q.mu.Lock()
	q.inflight--
	q.free = append(q.free, lw)
	q.room.Broadcast()
	q.mu.Unlock()
	q.pump()
}

// fail ends the queue: nothing more is taken, and what waits is told so.
func (q *Queue) fail(err error) {
	q.mu.Lock()
	if q.closed == nil {
		q.closed = err
	}
	pending := q.pending
	q.pending, q.bytes, q.urgent = nil, 0, 0
	q.room.Broadcast()
	q.mu.Unlock()
	for _, r := range pending {
		r.Done(r, err)
	}
	for _, r := range q.store.FailWaiting() {
		r.Done(r, err)
	}
	q.kick()
}

// Stats returns the counters.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	queued := q.bytes
	q.mu.Unlock()
	return Stats{Writes: q.writes.Load(), Bytes: q.written.Load(), Runs: q.runs.Load(), Seals: q.seals.Load(),
		Throttled: q.throttled.Load(), ThrottledFor: time.Duration(q.throttledNS.Load()), QueuedBytes: queued, Refused: q.refused.Load()}
}

// Close lets what is queued become durable, seals the log and stops. Appends
// from now on fail with ErrClosed. No append may be waiting for room that only
// the coalescer can make.
func (q *Queue) Close() error {
	q.mu.Lock()
	q.closing = true // or an append could get in behind the seal, and wait for ever
	q.room.Broadcast()
	q.drainLocked()
	q.mu.Unlock()
	err := q.Seal()
	q.mu.Lock()
	q.drainLocked()
	if q.closed != nil && err == nil {
		err = q.closed
	}
	if q.closed == nil {
		q.closed = fmt.Errorf("logqueue: %w", redoubt.ErrClosed)
	}
	for q.inflight > 0 {
		q.room.Wait()
	}
	q.room.Broadcast()
	q.mu.Unlock()
	close(q.want)
	<-q.done
	return err
}

// drainLocked waits until nothing is queued or in flight. It lets go of mu.
func (q *Queue) drainLocked() {
	for q.closed == nil && (len(q.pending) > 0 || q.inflight > 0) {
		q.room.Wait()
	}
}

// endedLocked returns why no append is taken any more, or nil.
func (q *Queue) endedLocked() error {
	if q.closed == nil && q.closing {
		return fmt.Errorf("logqueue: %w", redoubt.ErrClosed)
	}
	return q.closed
}

// Drain waits until nothing is queued or in flight, or ctx is done.
func (q *Queue) Drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, q.wakeAll)
	defer stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.closed == nil && (len(q.pending) > 0 || q.inflight > 0) && ctx.Err() == nil {
		q.room.Wait()
	}
}
