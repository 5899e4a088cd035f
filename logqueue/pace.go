package logqueue

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/segfile"
)

// A pacer turns the log's debt into a rate at which appends are let in.
type pacer struct {
	mu    sync.Mutex
	debt  float64   // share of the log in use
	drain float64   // bytes a second that left it lately
	next  time.Time // when the next append may go
	seen  time.Time
	gone  uint64 // bytes that had left it by then
}

// minDrain keeps appends moving while nothing is known of the drain.
const minDrain = 4 << 20

func (p *pacer) init() { p.drain = minDrain }

// observe takes what the store says at a moment.
func (p *pacer) observe(now time.Time, debt float64, gone uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.debt = debt
	if !p.seen.IsZero() {
		if dt := now.Sub(p.seen).Seconds(); dt > 0 {
			const weight = 0.05 // about two seconds at ten looks a second: log leaves in bursts
			p.drain = max(minDrain, (1-weight)*p.drain+weight*float64(gone-p.gone)/dt)
		}
	}
	p.seen, p.gone = now, gone
}

// reserve returns how long an append of n bytes has to wait.
func (p *pacer) reserve(now time.Time, n int64, soft float64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := (p.debt - soft) / (1 - soft)
	if x <= 0 {
		p.next = now
		return 0
	}
	rate := p.drain / min(x, 1)
	if p.next.Before(now) {
		p.next = now
	}
	wait := p.next.Sub(now)
	p.next = p.next.Add(time.Duration(float64(n) / rate * float64(time.Second)))
	return wait
}

// throttle makes an append of n bytes wait for as long as the log asks for.
func (q *Queue) throttle(n int64) error {
	wait := q.pacer.reserve(time.Now(), n, q.opts.SoftDebt)
	start := time.Now()
	// A pause below the timer's grain would only cost; the debt it leaves
	// behind is in the pacer's next.
	if wait > time.Millisecond {
		time.Sleep(min(wait, time.Second))
	}
	err := q.awaitRoom(n)
	if d := time.Since(start); d > time.Millisecond {
		q.throttled.Add(1)
		q.throttledNS.Add(int64(d))
	}
	return err
}

// awaitRoom waits until the queue and the log have room for n bytes of redo.
func (q *Queue) awaitRoom(n int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	var deadline time.Time
	for q.endedLocked() == nil {
		full := q.store.Room(q.opts.ReserveExtents)-q.bytes < n
		if !full && (q.bytes+n <= q.opts.MaxQueueBytes || q.bytes == 0) {
			return nil
		}
		now := time.Now()
		switch {
		case !full:
			deadline = time.Time{}
		case deadline.IsZero():
			deadline = now.Add(q.opts.FullTimeout)
			q.opts.Hungry()
			// Under mu, or it could fire before we wait, and nobody would wake us.
			defer time.AfterFunc(q.opts.FullTimeout, q.wakeAll).Stop()
		case now.After(deadline):
			q.refused.Add(1)
			return fmt.Errorf("logqueue: the hot log is full and nothing was freed for %v; "+
				"is PGMRPL moving, and is there space for pages? %w", q.opts.FullTimeout, redoubt.ErrFull)
		}
		q.room.Wait()
	}
	return q.endedLocked()
}

// Tick is to be called a few times a second. It keeps the pacer informed and
// seals an idle log, so that its newest write has a witness.
func (q *Queue) Tick(now time.Time) {
	u := q.store.Usage()
	q.pacer.observe(now, u.Debt(), u.DroppedBytes)
	if u.Debt() > q.opts.SoftDebt {
		q.opts.Hungry()
	}
	if q.store.NeedsSeal() {
		// A failure has failed the queue, which tells everybody.
		_ = q.Seal()
	}
}

// Seal appends an empty run if the newest write has no witness.
func (q *Queue) Seal() error {
	mem, err := q.store.Small()
	if err != nil {
		return err
	}
	defer mem.Drop()
	queued, err := q.own(func() (*segfile.Run, error) {
		if len(q.pending) > 0 || q.inflight > 0 || !q.store.NeedsSeal() {
			return nil, nil
		}
		return q.store.NewSeal(mem), nil
	})
	if queued && err == nil {
		q.seals.Add(1)
	}
	return err
}

// Kick says that space was freed: whoever waits for it should look again.
func (q *Queue) Kick() {
	q.wakeAll()
	q.kick()
}

// wakeAll makes everybody who waits for room look again.
func (q *Queue) wakeAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.room.Broadcast()
}

func (q *Queue) kick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return
	}
	select {
	case q.want <- struct{}{}:
	default:
	}
}

// extend keeps extents ahead of the log's head. It is the queue's one
// goroutine: assigning an extent waits for the device, and nobody on the way of
// a record should.
func (q *Queue) extend() {
	defer close(q.done)
	for range q.want {
		for q.store.WantsExtent() {
			err := q.store.AddExtent(blockdev.Normal)
			if errors.Is(err, redoubt.ErrFull) && q.starving() {
				err = q.store.AddExtent(blockdev.Reserve)
			}
			if errors.Is(err, redoubt.ErrFull) {
				q.opts.Hungry()
				break
			}
			if err != nil {
				q.fail(err)
				break
			}
		}
		q.mu.Lock()
		q.room.Broadcast()
		q.mu.Unlock()
		q.pump()
	}
}

// starving reports that the node's own runs wait: they may use the reserve.
func (q *Queue) starving() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.urgent > 0
}
