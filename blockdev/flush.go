package blockdev

import (
	"sync"

	"github.com/redoubt-storage/redoubt/ioring"
)

// A flusher makes completed writes durable in groups: one flush at a time, for
// exactly the writes that completed before it was submitted. It has no
// goroutine; completions drive it.
//
//	idle --- a write completes ---------> submitting --- Submit returned ---> running
//	submitting --- the flush completes before Submit returned --------------> early
//	running, early --- nobody waits --> idle; somebody does --> submitting
//
// Whoever leaves idle, running or early drives: it submits and reports, without
// the lock. The state early keeps an engine that completes inside Submit from
// recursing.
type flusher struct {
	dev *Device // set by Open
	op  ioring.Op

	mu      sync.Mutex
	state   flushState
	waiting writeList // completed, not covered yet
	covered writeList // by the flush that is on its way
}

type flushState uint8

const (
	flushIdle flushState = iota
	flushSubmitting
	flushRunning
	flushEarly
)

// add takes a write that has completed and reports it when a flush submitted
// from now on has completed.
func (f *flusher) add(w *Write) {
	f.mu.Lock()
	f.waiting.push(w)
	if f.state != flushIdle {
		f.mu.Unlock()
		return
	}
	f.next()
	f.mu.Unlock()
	f.drive(writeList{})
}

// next ends a flush, under the lock. It returns the writes to report and whether
// another flush is to be submitted for those that came meanwhile.
func (f *flusher) next() (done writeList, more bool) {
	done = f.covered
	f.covered, f.waiting = f.waiting, writeList{}
	if f.dev.broken() != nil {
		done.join(f.covered)
		f.covered = writeList{}
	}
	if f.covered.head == nil {
		f.state = flushIdle
		return done, false
	}
	f.state = flushSubmitting
	return done, true
}

// drive submits a flush, and reports the writes of the one before while it
// runs.
func (f *flusher) drive(done writeList) {
	for {
		f.submit()
		f.mu.Lock()
		if f.state == flushSubmitting {
			f.state = flushRunning
			f.mu.Unlock()
			f.report(done)
			return
		}
		covered, more := f.next()
		f.mu.Unlock()
		f.report(done)
		if !more {
			f.report(covered)
			return
		}
		done = covered
	}
}

func (f *flusher) submit() {
	f.dev.count.flushes.Add(1)
	f.op.Kind, f.op.Done, f.op.Ctx = ioring.OpSync, flushCompleted, f
	f.op.SubmitTo(f.dev.engine)
}

// flushCompleted is the Done of the flusher's op.
func flushCompleted(op *ioring.Op, err error) {
	f := op.Ctx.(*flusher)
	f.dev.settle(err)
	f.mu.Lock()
	if f.state == flushSubmitting {
		f.state = flushEarly
		f.mu.Unlock()
		return
	}
	done, more := f.next()
	f.mu.Unlock()
	if more {
		f.drive(done)
		return
	}
	f.report(done)
}

// report calls the Done of writes that were covered, or can't be any more. If
// the device has failed meanwhile none is reported durable, even if it is: the
// safe answer is that nobody knows.
func (f *flusher) report(l writeList) {
	n := uint64(0)
	for w := l.head; w != nil; n++ {
		next := w.next
		w.next = nil
		w.Done(w, f.dev.broken())
		w = next
	}
	f.dev.count.flushed.Add(n)
}

// A writeList is a queue of writes, linked through themselves.
type writeList struct {
	head, tail *Write
}

func (l *writeList) push(w *Write) { l.join(writeList{w, w}) }

func (l *writeList) join(m writeList) {
	switch {
	case m.head == nil:
	case l.head == nil:
		*l = m
	default:
		l.tail.next = m.head
		l.tail = m.tail
	}
}
