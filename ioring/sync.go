package ioring

import (
	"context"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syncEngine performs each op as one blocking system call on one of a bounded
// number of goroutines. It serves kernels and containers that forbid io_uring.
//
// Workers start when there is work and none is idle, and stay until Close.
type syncEngine struct {
	// Set by newSyncEngine, never changed.
	fd  int
	max int

	mu      sync.Mutex
	work    sync.Cond // signalled once for each idle worker that is to get up
	queue   opList
	workers int  // started
	idle    int  // of these, waiting and not yet signalled
	closed  bool // no further op is taken

	running sync.WaitGroup

	submitted, completed, failed, retried, syscalls, wakeups atomic.Uint64
}

func newSyncEngine(fd, workers int) *syncEngine {
	e := &syncEngine{fd: fd, max: workers}
	e.work.L = &e.mu
	return e
}

func (e *syncEngine) Name() string { return Sync }

func (e *syncEngine) Stats() Stats {
	s := Stats{
		Completed: e.completed.Load(), // first, so that it is never above Submitted
		Failed:    e.failed.Load(),
		Retried:   e.retried.Load(),
		Syscalls:  e.syscalls.Load(),
		Wakeups:   e.wakeups.Load(),
	}
	s.Submitted = e.submitted.Load()
	return s
}

func (e *syncEngine) Submit(ops ...*Op) {
	for _, op := range ops {
		e.submitted.Add(1)
		err := accept(op)
		if err == nil && !e.enqueue(op) {
			err = errClosed
		}
		if err != nil {
			e.finish(op, err)
		}
	}
}

// enqueue queues op and sees to it that a worker will take it. It reports false
// after Close.
func (e *syncEngine) enqueue(op *Op) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.queue.pushBack(op)
	switch {
	case e.idle > 0:
		e.idle-- // here and not in the worker: the next enqueue wakes another
		e.wakeups.Add(1)
		e.work.Signal()
	case e.workers < e.max:
		e.workers++
		e.running.Add(1)
		go e.worker()
	}
	return true
}

// Close lets the workers empty the queue and waits for them.
func (e *syncEngine) Close() error {
	e.mu.Lock()
	e.closed = true
	e.idle = 0
	e.work.Broadcast()
	e.mu.Unlock()
	e.running.Wait()
	return nil
}

func (e *syncEngine) worker() {
	defer e.running.Done()
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels("ioring", "sync worker")))
	var iov []unix.Iovec
	for op := e.take(); op != nil; op = e.take() {
		iov = e.perform(op, iov[:0])
	}
}

// take waits for an op; nil says that the engine was closed and the queue is
// empty.
func (e *syncEngine) take() *Op {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.queue.empty() {
		if e.closed {
			return nil
		}
		e.idle++
		e.work.Wait()
	}
	return e.queue.popFront()
}

// perform runs op to its end. iov is room that the worker keeps between ops.
func (e *syncEngine) perform(op *Op, iov []unix.Iovec) []unix.Iovec {
	for _, b := range op.Bufs {
		v := unix.Iovec{Base: unsafe.SliceData(b)}
		v.SetLen(len(b))
		iov = append(iov, v)
	}
	n, errno := e.call(op, iov)
	for errno != 0 && op.retryable(errno) {
		e.retried.Add(1)
		runtime.Gosched()
		n, errno = e.call(op, iov)
	}
	e.finish(op, op.result(n, errno))
	clear(iov) // keeps no buffer alive
	return iov
}

// call is one preadv2, pwritev2 or fdatasync. The wrappers of x/sys would build
// the vector anew for every call.
func (e *syncEngine) call(op *Op, iov []unix.Iovec) (int, unix.Errno) {
	e.syscalls.Add(1)
	var trap, flags uintptr
	switch op.Kind {
	case OpRead:
		trap = unix.SYS_PREADV2
	case OpWrite:
		trap = unix.SYS_PWRITEV2
		if op.DSync {
			flags = unix.RWF_DSYNC
		}
	case OpSync:
		_, _, errno := unix.Syscall(unix.SYS_FDATASYNC, uintptr(e.fd), 0, 0)
		return 0, errno
	}
	n, _, errno := unix.Syscall6(trap, uintptr(e.fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))),
		uintptr(len(iov)), uintptr(op.Off), uintptr(op.Off>>32), flags)
	runtime.KeepAlive(op)
	return int(n), errno
}

func (e *syncEngine) finish(op *Op, err error) {
	if err != nil {
		e.failed.Add(1)
	}
	e.completed.Add(1)
	op.finish(err)
}
