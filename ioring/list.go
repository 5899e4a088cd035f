package ioring

// An opList is a queue of ops, linked through the ops themselves. It is for one
// goroutine, or for one mutex.
type opList struct {
	head, tail *Op
}

func (l *opList) empty() bool { return l.head == nil }

func (l *opList) pushBack(op *Op) {
	op.next = nil
	if l.tail == nil {
		l.head = op
	} else {
		l.tail.next = op
	}
	l.tail = op
}

// popFront takes the oldest op; the list must not be empty.
func (l *opList) popFront() *Op {
	op := l.head
	l.head = op.next
	if l.head == nil {
		l.tail = nil
	}
	op.next = nil
	return op
}
