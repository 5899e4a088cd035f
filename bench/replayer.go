package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
)

// A replayer is a running replay.
//
//	goroutine   what it does                        ends when
//	run         reads the trace, adds records       END is durable, or it failed
//	sender      one for each lane of the session:   the session is dead
//	            what gathered, in one frame
//	reader      peer's: acks move VDL               the connection is closed
//	supervisor  a dead session: a new one           run says so, or it gave up
type replayer struct {
	opts   ReplayOptions
	layout layout
	sum    TraceSummary

	resumed redoubt.LSN
	skip    controlRecord // where the trace goes on
	start   time.Time

	mu      sync.Mutex
	w       *volumeWriter
	room    *sync.Cond   // of whoever waits for acks: the run
	lanes   []*sync.Cond // of the senders
	live    *liveSession
	err     error // why it can't go on
	awayFor time.Time
	retries int
	sent    uint64 // records
	bytes   uint64
	elapsed time.Duration

	telling    sync.Mutex // one call of Moved at a time
	told       redoubt.LSN
	supervised chan struct{}
	cancel     context.CancelFunc
}

// A liveSession is a session with its senders.
type liveSession struct {
	*session
	byHandle [][]*group // by lane and handle; set before the first append
	dead     bool       // guarded by replayer.mu
	down     chan error // the first reason
	senders  sync.WaitGroup
}

func newReplayer(o ReplayOptions, l layout, sum TraceSummary) *replayer {
	r := &replayer{opts: o, layout: l, sum: sum}
	r.room = sync.NewCond(&r.mu)
	return r
}

// run opens the volume, feeds it and waits until all of it is durable.
func (r *replayer) run(ctx context.Context) error {
	err := r.open(ctx)
	if err == nil {
		err = r.feedAll(ctx)
	}
	r.elapsed = time.Since(r.start)
	if err == nil {
		err = r.finish(ctx)
	}
	r.opts.Progress.Done()
	return err
}

// open opens the volume and makes the first session.
func (r *replayer) open(ctx context.Context) error {
	var o *opened
	err := r.opts.retry(ctx, func() (err error) {
		o, err = openVolume(ctx, r.opts.Node, &r.layout, redoubt.LSN(r.opts.LAL))
		return err
	})
	if err != nil {
		return err
	}
	for _, w := range o.warnings {
		r.opts.Progress.Say("%s", w)
	}
	if o.control.next > r.sum.Events || o.control.commits > r.sum.Commits {
		return fmt.Errorf("bench: replay: volume %s is at event %d of its trace, this one has %d: another trace? (-volume): %w",
			r.layout.name, o.control.next, r.sum.Events, redoubt.ErrInvalid)
	}
	w := newVolumeWriter(r.layout, o.epoch)
	w.last, w.base, w.vdl, w.lastCPL, w.durable = o.start, o.start, o.vdl, o.vdl, o.control
	for pg := range w.groups {
		w.groups[pg].last, w.groups[pg].scl = o.last[pg], o.last[pg]
	}
	r.w, r.resumed, r.skip = w, o.vdl, o.control
	if o.vdl > 0 {
		r.opts.Progress.Say("volume %s is there up to LSN %d (commit %d of %d); going on from LSN %d", r.layout.name, o.vdl, o.control.commits, r.sum.Commits, o.start+1)
	}
	s, err := r.connect(ctx)
	if err != nil {
		return err
	}
	if err := r.prepareLinks(ctx, s, o); err != nil {
		return err
	}
	ctx, r.cancel = context.WithCancel(ctx)
	r.supervised = make(chan struct{})
	r.start = time.Now()
	go r.supervise(ctx, s)
	return nil
}

// prepareLinks asks for the last LSN of the pages that the rest of the trace
// touches.
func (r *replayer) prepareLinks(ctx context.Context, s *liveSession, o *opened) error {
	if o.vdl == 0 {
		return nil
	}
	pages := map[uint64]struct{}{r.layout.control(): {}}
	before, err := r.events(func(_, _ uint64, e *TraceEvent) error {
		if e.Kind == TraceWrite || e.Kind == TraceZero {
			pages[e.Page] = struct{}{}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.w.records = before
	r.mu.Unlock()
	return readLinks(ctx, s.session, o, pages, r.w.links)
}

// events calls f for each event that isn't in the volume yet, with the index of
// the one behind it and the number of records up to it. It returns how many
// records there are before the first.
func (r *replayer) events(f func(next, records uint64, e *TraceEvent) error) (before uint64, err error) {
	file, err := r.opts.Trace()
	if err != nil {
		return 0, fmt.Errorf("bench: replay: %w", err)
	}
	defer file.Close()
	t, err := NewTraceReader(file)
	if err != nil {
		return 0, err
	}
	for records := uint64(0); ; {
		e, err := t.Next()
		if err == io.EOF {
			return before, nil
		}
		if err != nil {
			return before, err
		}
		if e.Kind == TraceWrite || e.Kind == TraceZero {
			records++
		}
		if t.Index() <= r.skip.next {
			before = records
			continue
		}
		if err := f(t.Index(), records, e); err != nil {
			return before, err
		}
	}
}

// feedAll adds the trace to the volume, and waits for the last ack.
func (r *replayer) feedAll(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { r.fail(context.Cause(ctx)) })
	defer stop()
	pace := newRatePacer(r.opts.Rate)
	commits, openMTR := r.skip.commits, false
	_, err := r.events(func(next, records uint64, e *TraceEvent) error {
		switch e.Kind {
		case TraceWrite, TraceZero:
			openMTR = true
			pace.wait(ctx)
			return r.add(e)
		case TraceCommit:
			commits++
		case TraceEnd:
			// What stands behind the last COMMIT becomes visible with the end.
			if !openMTR {
				return nil
			}
		}
		openMTR = false
		return r.commit(controlRecord{next: next, commits: commits}, records)
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.err == nil && !r.w.settled() {
		r.room.Wait()
	}
	return r.err
}

// add adds a record when the window has room for it.
func (r *replayer) add(e *TraceEvent) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.awaitRoom(); err != nil {
		return err
	}
	r.signal(r.w.write(e.Page, e.Off, e.Len, e.Data, false))
	r.sent++
	r.bytes += uint64(e.Len)
	return nil
}

func (r *replayer) commit(c controlRecord, records uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.awaitRoom(); err != nil {
		return err
	}
	r.signal(r.w.commit(c, records, time.Now()))
	return nil
}

// awaitRoom waits until a record may be added. r.mu is held.
func (r *replayer) awaitRoom() error {
	for r.err == nil {
		w := r.w
		limit := max(w.vdl, w.base) + redoubt.LSN(r.opts.LAL)
		switch {
		case w.unacked < r.opts.Window && w.last < limit:
			return nil
		case w.last >= limit && w.settled():
			return fmt.Errorf("bench: replay: a mini-transaction of more than %d records: raise LAL (-lal): %w", r.opts.LAL, redoubt.ErrInvalid)
		}
		r.room.Wait()
	}
	return r.err
}

// signal wakes the sender of a lane. r.mu is held.
func (r *replayer) signal(lane int) {
	if lane < len(r.lanes) {
		r.lanes[lane].Signal()
	}
}

// fail ends the replay.
func (r *replayer) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = fmt.Errorf("bench: replay: volume %s: %w", r.layout.name, err)
	}
	r.room.Broadcast()
}

// finish tells every segment the last VDL, so that all of its log can become
// pages, and waits for that if it was asked to.
func (r *replayer) finish(ctx context.Context) error {
	return r.opts.retry(ctx, func() error {
		s, err := openSession(ctx, r.opts.Node, &r.layout, r.w.epoch, func(int) peer.Options { return peer.Options{Name: "redoubt bench replay"} })
		if err != nil {
			return err
		}
		defer s.close()
		var waits []settling
		for pg, a := range s.groups {
			last := r.w.groups[pg].last
			if err := a.conn.SetFloor(ctx, a.handle, r.w.vdl, floorOf(r.w.vdl, last)); err != nil {
				return err
			}
			waits = append(waits, settling{a.conn, r.layout.segment(pg), last})
		}
		if !r.opts.Settle {
			return nil
		}
		return awaitCoalesced(ctx, waits, r.opts.Progress)
	})
}

// retry calls f again while it fails and may yet succeed, for as long as the node
// may be away.
func (o *ReplayOptions) retry(ctx context.Context, f func() error) error {
	deadline := time.Now().Add(o.Retry)
	for said := false; ; said = true {
		err := f()
		if err == nil || permanent(err) || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		if !said {
			o.Progress.Say("%v; trying again for %v", err, o.Retry)
		}
		if err := pause(ctx, redialEvery); err != nil {
			return err
		}
	}
}

// readPoint returns where the volume is to be read: at VDL, for which each group
// needs its last LSN. The replay has ended.
func (r *replayer) readPoint() (point redoubt.LSN, need []redoubt.LSN) {
	for pg := range r.w.groups {
		need = append(need, r.w.groups[pg].last)
	}
	return r.w.vdl, need
}

// fill adds what the replay did to its result.
func (r *replayer) fill(res ReplayResult, cpu time.Duration) ReplayResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.w == nil {
		return res
	}
	w, s := r.w, r.elapsed.Seconds()
	res.Records, res.Commits = w.records, w.durable.commits
	res.Sent, res.Bytes, res.Retries = r.sent, r.bytes, r.retries
	res.AckedLSN, res.ResumedFrom, res.ElapsedS = uint64(w.vdl), uint64(r.resumed), s
	if s > 0 {
		res.RecordsPerS, res.BytesPerS = float64(r.sent)/s, float64(r.bytes)/s
		res.CommitsPerS = float64(w.commits.Count()) / s
	}
	res.CommitP50us, res.CommitP99us = us(&w.commits, 50), us(&w.commits, 99)
	res.P50us, res.P99us, res.P999us = res.CommitP50us, res.CommitP99us, us(&w.commits, 99.9)
	res.Ops, res.OpsPerS, res.CPUOf = w.commits.Count(), res.CommitsPerS, cpuOfThis
	if res.Ops > 0 {
		res.CPUusPerOp = float64(cpu.Nanoseconds()) / 1e3 / float64(res.Ops)
	}
	return res
}

// close ends the replay's session.
func (r *replayer) close() {
	if r.cancel == nil {
		if r.live != nil {
			r.live.end(r)
		}
		return
	}
	r.cancel()
	<-r.supervised
}

var errStopped = errors.New("stopped")
