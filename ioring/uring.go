//go:build giouring

package ioring

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/pawelgaczynski/giouring"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"golang.org/x/sys/unix"
)

const uringInside = true

const (
	file     = 0 // index of the device among the ring's registered files
	fileWake = 1 // index of the eventfd

	wakeTag = 1<<64 - 1 // user data of the read on the eventfd; ops carry their slot

	maxVectors = 4 * MaxPieces // pieces in one submission of vectored ops
)

// An iovec is struct iovec without a Go pointer in it: it lives outside of the
// heap, and the op in its slot keeps the buffer alive.
type iovec struct {
	base, size uintptr
}

// A kernelArea is what the kernel reads and writes besides the buffers. It is
// mapped, so that it can neither move nor be collected.
type kernelArea struct {
	wakes   uint64 // writes to the eventfd since it was last read
	vectors [maxVectors]iovec
}

// uring performs ops through a ring that one locked thread owns from its set-up
// to its end. The methods of Engine hand ops to that thread; all others run on
// it.
type uring struct {
	// Set by openUring, never changed.
	fd      int
	eventFD int
	one     [8]byte       // the number 1, as an eventfd wants it
	stopped chan struct{} // closed by the thread on its way out
	stop    Op            // the op behind which no other is performed
	closing sync.Once

	inbox inbox // any goroutine -> thread

	// Written by the thread (wakeups by whoever wakes), read by anyone.
	submitted, completed, failed, retried, syscalls, wakeups atomic.Uint64
	refused                                                  atomic.Uint64 // never reached the thread

	// Owned by the thread.
	ring        *giouring.Ring
	regions     []region
	vectorFixed bool // the kernel takes vectors of registered buffers
	slots       []*Op
	free        []uint32 // slots that are empty; a stack, so that few are in use
	pending     opList   // taken, not yet in a slot
	area        *kernelArea
	vectors     int  // in use in area, until all entries are submitted
	slept       bool // the inbox carries our mark, or did until a push
	armed       bool // a read on the eventfd is in the ring
	stopping    bool // stop was met
	saidStop    bool // we have woken ourselves for the last time

	// Every push that replaced the mark writes the eventfd once. The thread may
	// be up before that write comes, so both sides are counted: the eventfd
	// must not be closed while a writer is still on its way to it.
	owed, heard uint64
}

func openUring(fd int, o Options) (Engine, string, error) {
	eventFD, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, "", fmt.Errorf("eventfd: %w", err)
	}
	e := &uring{fd: fd, eventFD: eventFD, stopped: make(chan struct{})}
	binary.NativeEndian.PutUint64(e.one[:], 1)
	type started struct {
		how string
		err error
	}
	up := make(chan started)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and what the
		// kernel ties to the thread ends with it.
		runtime.LockOSThread()
		pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels("ioring", "uring thread")))
		defer close(e.stopped)
		mem, err := unix.Mmap(-1, 0, int(unsafe.Sizeof(kernelArea{})), unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			up <- started{err: fmt.Errorf("mapping the vectors: %w", err)}
			return
		}
		defer unix.Munmap(mem)
		e.area = (*kernelArea)(unsafe.Pointer(unsafe.SliceData(mem)))
		how, err := e.setUp(o)
		up <- started{how, err}
		if err == nil {
			e.run()
			e.tearDown()
		}
	}()
	s := <-up
	if s.err != nil {
		<-e.stopped
		return nil, "", errors.Join(s.err, unix.Close(eventFD))
	}
	return e, s.how, nil
}

func (e *uring) Name() string { return Uring }

func (e *uring) Stats() Stats {
	refused := e.refused.Load()
	s := Stats{
		Completed: e.completed.Load() + refused, // first, so that it is never above Submitted
		Failed:    e.failed.Load() + refused,
		Retried:   e.retried.Load(),
		Syscalls:  e.syscalls.Load(),
		Wakeups:   e.wakeups.Load(),
	}
	s.Submitted = e.submitted.Load() + refused
	return s
}

// Submit links the ops and pushes them in one step, so that several cost one
// wake-up at most.
func (e *uring) Submit(ops ...*Op) {
	var first, last *Op
	for _, op := range ops {
		if err := accept(op); err != nil {
			e.refuse(op, err)
			continue
		}
		if op.next = last; first == nil {
			first = op
		}
		last = op
	}
	if first == nil {
		return
	}
	wake, ok := e.inbox.push(first, last)
	if wake {
		e.wakeups.Add(1)
		e.wakeThread()
	}
	for op := last; !ok && op != nil; {
		older := op.next
		if op == first {
			older = nil
		}
		e.refuse(op, errClosed)
		op = older
	}
}

// refuse completes an op that doesn't reach the thread.
func (e *uring) refuse(op *Op, err error) {
	e.refused.Add(1)
	op.finish(err)
}

// wakeThread writes the eventfd. It blocks only past 2^64-2 unread writes.
func (e *uring) wakeThread() {
	for {
		_, err := unix.Write(e.eventFD, e.one[:])
		if err == nil {
			return
		}
		invariant.Assert(err == unix.EINTR, "ioring: eventfd of a living engine: %v", err)
	}
}

// Close puts stop behind everything that was submitted and waits for the
// thread to get there.
func (e *uring) Close() error {
	var err error
	e.closing.Do(func() {
		if wake, ok := e.inbox.push(&e.stop, &e.stop); ok && wake {
			e.wakeThread()
		}
		<-e.stopped
		if err = unix.Close(e.eventFD); err != nil {
			err = fmt.Errorf("ioring: close: eventfd: %w", err)
		}
	})
	<-e.stopped
	return err
}

// run is the thread's life: take what has come, put it into the ring, enter the
// kernel once for all of it, hand back what is complete.
func (e *uring) run() {
	for !e.finished() {
		e.take()
		switch e.fill() {
		case stopMet:
			continue
		case burstFull:
			e.enter(0)
		case slotsFull:
			e.enter(1) // a push could not help: no need to be woken by one
		case filled:
			if !e.stopping {
				if e.slept = e.inbox.sleep(); !e.slept {
					continue // more came while we filled; it goes along
				}
			}
			e.enter(1)
		}
		e.take() // before reap: a Done that submits must not find us asleep and wake us
		e.reap()
	}
}

// take moves what was pushed to pending.
func (e *uring) take() {
	if e.stopping {
		return // the inbox is shut
	}
	n, woken := e.inbox.take(&e.pending, e.slept)
	e.slept = false
	if woken {
		e.owed++
	}
	if n > 0 {
		e.submitted.Add(n)
	}
}

// enter submits what is in the ring and waits for wait completions. It is a
// system call that the scheduler knows of (syscall.Syscall6), so neither a
// garbage collection nor another goroutine waits for it.
func (e *uring) enter(wait uint32) {
	e.syscalls.Add(1)
	var err error
	if wait > 0 {
		_, err = e.ring.SubmitAndWait(wait)
	} else {
		_, err = e.ring.SubmitAndGetEvents()
	}
	switch err {
	case nil, unix.EINTR:
	case unix.EAGAIN, unix.EBUSY:
		// Out of memory for requests: what is in the ring stays there and goes
		// in with the next call.
		e.retried.Add(1)
		time.Sleep(50 * time.Microsecond)
	default:
		invariant.Assert(false, "ioring: io_uring_enter: %v", err)
	}
}

// reap hands back everything that is complete. Under DEFER_TASKRUN one entry
// into the kernel delivers some twenty completions; run comes back for more.
func (e *uring) reap() {
	for n := e.ring.CQReady(); n > 0; n = e.ring.CQReady() {
		for ; n > 0; n-- {
			cqe, err := e.ring.PeekCQE()
			invariant.Assert(err == nil, "ioring: completion queue said it was not empty")
			tag, res := cqe.UserData, cqe.Res
			e.ring.CQESeen(cqe)
			if tag == wakeTag {
				e.woke(res)
			} else {
				e.complete(tag, res)
			}
		}
	}
}

// complete empties a slot and finishes its op, or lets it try again.
func (e *uring) complete(slot uint64, res int32) {
	if slot >= uint64(len(e.slots)) || e.slots[slot] == nil {
		invariant.Assert(false, "ioring: completion %d of slot %d, which is empty", res, slot)
	}
	op := e.slots[slot]
	e.slots[slot] = nil
	e.free = append(e.free, uint32(slot))
	var errno unix.Errno
	if res < 0 {
		errno = unix.Errno(-res)
		if op.retryable(errno) {
			e.retried.Add(1)
			e.pending.pushFront(op)
			return
		}
	}
	e.finish(op, op.result(int(res), errno))
}

// woke is the completion of the read on the eventfd.
func (e *uring) woke(res int32) {
	e.armed = false
	if res == int32(unsafe.Sizeof(e.area.wakes)) {
		e.heard += e.area.wakes
		return
	}
	if res >= 0 || !transient(unix.Errno(-res)) {
		invariant.Assert(false, "ioring: read of the eventfd: %d", res)
	}
}

func (e *uring) finish(op *Op, err error) {
	if err != nil {
		e.failed.Add(1)
	}
	e.completed.Add(1)
	op.finish(err)
}

// beginStop refuses what comes after Close, and what came between Close and
// now.
func (e *uring) beginStop() {
	e.stopping = true
	e.submitted.Add(e.inbox.close(&e.pending) - 1) // stop itself was counted and is no op
	for !e.pending.empty() {
		e.finish(e.pending.popFront(), errClosed)
	}
}

// finished reports whether the thread may end: Close was called, no op is in
// flight, and every write to the eventfd that anybody owed has come. The last
// one is our own; it makes sure that no read stays behind in the ring.
func (e *uring) finished() bool {
	if !e.stopping || !e.pending.empty() || len(e.free) != len(e.slots) {
		return false
	}
	if !e.saidStop {
		e.saidStop = true
		e.owed++
		e.wakeThread()
	}
	return e.owed == e.heard
}
