//go:build giouring

package ioring

import "sync/atomic"

// An inbox carries ops from any goroutine to the one thread that owns the ring.
// It is one word: the newest op, linked to the older ones, or one of two marks
// that are told apart by their address.
//
//	nil       empty, the thread is up
//	asleep    empty, the thread is in the kernel or on its way there
//	op ...    work, newest first
//	shut      no more work is taken
//
//	          push: nobody to wake           push: write the eventfd
//	nil  ------------------------> op ... <------------------------ asleep
//	 ^  <-------------------------                                   ^
//	 |           take                                                |
//	 +---------------------------------------------------------------+
//	             sleep (fails if an op came in)   /   take
//
// Only the thread takes, sleeps and shuts, and a take takes everything, so that
// a push can't mistake a list for an earlier one that began with the same op.
type inbox struct {
	head         atomic.Pointer[Op]
	asleep, shut Op
}

// push adds the ops from first (oldest) to last, already linked from last back
// to first. It reports whether the thread has to be woken, once for each sleep,
// and whether the ops were taken at all: not after close.
func (b *inbox) push(first, last *Op) (wake, ok bool) {
	for {
		h := b.head.Load()
		switch h {
		case &b.shut:
			return false, false
		case &b.asleep:
			first.next = nil
		default:
			first.next = h
		}
		if b.head.CompareAndSwap(h, last) {
			return h == &b.asleep, true
		}
	}
}

// sleep announces that the thread is about to wait. It reports false if there is
// work to take first.
func (b *inbox) sleep() bool { return b.head.CompareAndSwap(nil, &b.asleep) }

// take moves everything to the end of l, oldest first, and returns how many ops
// that were. After a sleep it also reports whether some push has to wake the
// thread, or has done so.
func (b *inbox) take(l *opList, slept bool) (n uint64, woken bool) {
	if b.head.Load() == nil {
		return 0, false // not slept: the mark would be there
	}
	h := b.head.Swap(nil)
	if h == &b.asleep {
		return 0, false
	}
	return b.append(l, h), slept
}

// close refuses all later pushes and moves what was left to the end of l.
func (b *inbox) close(l *opList) (n uint64) {
	return b.append(l, b.head.Swap(&b.shut))
}

// append turns the list h around and adds it to l.
func (b *inbox) append(l *opList, h *Op) (n uint64) {
	if h == nil {
		return 0
	}
	newest := h
	var older *Op
	for h != nil {
		h.next, older, h = older, h, h.next
		n++
	}
	if l.tail == nil {
		l.head = older
	} else {
		l.tail.next = older
	}
	l.tail = newest
	return n
}

// pushFront puts back an op that has to try again, ahead of those that have not
// tried yet.
func (l *opList) pushFront(op *Op) {
	op.next = l.head
	if l.head == nil {
		l.tail = op
	}
	l.head = op
}
