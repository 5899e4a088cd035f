package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/wire"
)

// redialEvery is the pause between two attempts to reach a node that is away.
const redialEvery = 50 * time.Millisecond

// pause waits, unless ctx is done first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// connect makes a session: segments attached, what they have taken for
// acknowledged, and a sender for each lane, which sends the rest again.
func (r *replayer) connect(ctx context.Context) (*liveSession, error) {
	s := &liveSession{down: make(chan error, 1)}
	acks := &ackSink{r: r, s: s}
	var err error
	if s.session, err = openSession(ctx, r.opts.Node, &r.layout, r.w.epoch, acks.options); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.w.rejoin(s.groups); err != nil {
		s.abort()
		return nil, err
	}
	s.byHandle = make([][]*group, len(s.lanes))
	for pg, a := range s.groups {
		s.byHandle[a.lane] = append(s.byHandle[a.lane], &r.w.groups[pg])
	}
	r.live = s
	for len(r.lanes) < len(s.lanes) {
		r.lanes = append(r.lanes, sync.NewCond(&r.mu))
	}
	for lane, c := range s.lanes {
		if c != nil {
			s.senders.Go(func() { r.send(s, lane, c) })
		}
	}
	r.moved(false)
	return s, nil
}

// send is a lane's sender: it sends what has gathered while the frame before was
// being written.
func (r *replayer) send(s *liveSession, lane int, c *peer.Conn) {
	buf, align := make([]byte, c.Welcome().MaxFrame), int(c.Welcome().Align)
	var fb wire.AppendBuilder
	for {
		r.mu.Lock()
		for !s.dead && !r.w.hasWork(lane) {
			r.lanes[lane].Wait()
		}
		if s.dead {
			r.mu.Unlock()
			return
		}
		fb.Reset(buf, align)
		r.w.fill(lane, &fb)
		r.mu.Unlock()
		if err := c.Append(fb.Finish(0)); err != nil {
			s.fail(r, err)
			return
		}
	}
}

// fail notes why the session is of no use any more.
func (s *liveSession) fail(r *replayer, err error) {
	r.mu.Lock()
	s.dead = true
	for _, c := range r.lanes {
		c.Broadcast()
	}
	r.mu.Unlock()
	select {
	case s.down <- err:
	default: // the first reason stands
	}
}

// end closes the session and waits for everything that it runs.
func (s *liveSession) end(r *replayer) {
	s.fail(r, errStopped)
	s.abort()
	s.close()
	s.senders.Wait()
}

// supervise replaces sessions that die, until the replay is over or the node was
// away for too long.
func (r *replayer) supervise(ctx context.Context, s *liveSession) {
	defer close(r.supervised)
	for {
		var err error
		select {
		case err = <-s.down:
		case <-ctx.Done():
			s.end(r)
			return
		}
		s.end(r)
		if s, err = r.reconnect(ctx, err); err != nil {
			r.fail(err)
			return
		}
	}
}

// reconnect makes a new session after cause ended the one before.
func (r *replayer) reconnect(ctx context.Context, cause error) (*liveSession, error) {
	r.mu.Lock()
	if r.awayFor.IsZero() {
		r.awayFor = time.Now()
	}
	r.retries++
	r.mu.Unlock()
	if !permanent(cause) {
		r.opts.Progress.Say("the node is away (%v); trying again for %v", cause, r.opts.Retry)
	}
	for {
		if permanent(cause) || ctx.Err() != nil {
			return nil, cause
		}
		r.mu.Lock()
		since := r.awayFor
		r.mu.Unlock()
		if !since.IsZero() && time.Since(since) > r.opts.Retry {
			return nil, fmt.Errorf("the node is away for more than %v: %w", r.opts.Retry, cause)
		}
		s, err := r.connect(ctx)
		if err == nil {
			r.opts.Progress.Say("the node is back; sending again what had no ack")
			return s, nil
		}
		cause = err
		if err := pause(ctx, redialEvery); err != nil {
			return nil, err
		}
	}
}

// moved takes note of acks: VDL, the window, who waits for them. It returns the
// state to tell, if VDL moved. A node that acknowledges something isn't away.
// r.mu is held.
func (r *replayer) moved(released bool) (state ReplayState, tell bool) {
	tell = r.w.advance(time.Now())
	if released || r.w.unacked == 0 {
		r.awayFor = time.Time{}
	}
	r.room.Broadcast()
	return ReplayState{Durable: r.w.records, Total: r.sum.Records, VDL: r.w.vdl, Bytes: r.bytes}, tell
}

// An ackSink takes what a session's connections say.
type ackSink struct {
	r *replayer
	s *liveSession
}

// options returns the callbacks of one lane's connection.
func (a *ackSink) options(lane int) peer.Options {
	var acks []wire.Ack // of the frame that is being read
	return peer.Options{
		Name:  "redoubt bench replay",
		OnAck: func(handle uint32, scl redoubt.LSN) { acks = append(acks, wire.Ack{Handle: handle, SCL: scl}) },
		OnAckFrame: func() {
			a.take(lane, acks)
			acks = acks[:0]
		},
		OnError: func(_ uint64, entry int, err error) {
			a.s.fail(a.r, fmt.Errorf("the node refused entry %d of a frame: %w", entry, err))
		},
		OnDown: func(err error) { a.s.fail(a.r, err) },
	}
}

// take takes the acks of one frame.
func (a *ackSink) take(lane int, acks []wire.Ack) {
	r := a.r
	r.mu.Lock()
	if a.s.byHandle == nil {
		r.mu.Unlock()
		return // what ATTACHED says is as new
	}
	released := false
	for _, k := range acks {
		if list := a.s.byHandle[lane]; int(k.Handle) < len(list) && r.w.acked(list[k.Handle], k.SCL) {
			released = true
		}
	}
	state, tell := r.moved(released)
	r.mu.Unlock()
	if tell {
		r.tell(state)
	}
}

// tell passes on that VDL has moved.
func (r *replayer) tell(state ReplayState) {
	r.telling.Lock()
	defer r.telling.Unlock()
	if state.VDL <= r.told {
		return // another lane's acks came later and were quicker
	}
	r.told = state.VDL
	r.opts.Moved(state)
	rate := ""
	if s := time.Since(r.start).Seconds(); s > 0 {
		rate = fmt.Sprintf(", %s/s", sizeText(float64(state.Bytes)/s))
	}
	r.opts.Progress.Show(state.Durable, state.Total, fmt.Sprintf("%d of %d records durable, VDL %d%s", state.Durable, state.Total, state.VDL, rate))
}
