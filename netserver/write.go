package netserver

import (
	"fmt"
	"net"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/wire"
	"github.com/valyala/bytebufferpool"
)

// An answer is a frame on its way to the client: a buffer of ours and, of a
// PAGES frame, pages of the handler's.
type answer struct {
	buf     *bytebufferpool.ByteBuffer
	pages   [][]byte
	release func() // given back with the pages; may be nil
	pending bool   // counts in Conn.pending until it is written
	isError bool
}

// A writer is what the writer goroutine of a connection knows.
type writer struct {
	acks    []byte   // the ACK frame
	sending []answer // taken from the queue; those before next are written
	next    int
	pieces  [][]byte
	vec     net.Buffers
}

// writeUnit is how many bytes of answers go into one write: enough to make the
// system call cheap, and few enough to time.
const writeUnit = 1 << 20

// frameOf returns a frame in a pooled buffer.
func frameOf(kind wire.Kind, req uint64, m wire.Appender) *bytebufferpool.ByteBuffer {
	b := bytebufferpool.Get()
	b.B = wire.AppendFrame(b.B[:0], kind, 0, req, m)
	return b
}

// Ack says that the handle's segment is complete up to scl on stable storage.
// The client learns it with the next ACK frame, and of several calls the highest
// LSN: so calls may overtake one another. It never blocks and allocates nothing;
// a device's completion thread may call it.
func (c *Conn) Ack(handle uint32, scl redoubt.LSN) {
	c.mu.Lock()
	if uint64(handle) >= uint64(len(c.slots)) {
		c.mu.Unlock()
		invariant.Assert(false, "netserver: ack of handle %d, which connection %d doesn't have", handle, c.id)
	}
	s := &c.slots[handle]
	s.scl = max(s.scl, scl)
	if !s.dirty && c.phase != dead {
		s.dirty = true
		c.dirty = append(c.dirty, handle)
	}
	c.wakeWriter()
	c.mu.Unlock()
}

// wakeWriter is called with c.mu held, and wakes the writer if it sleeps.
func (c *Conn) wakeWriter() {
	if c.writerWaits {
		c.writerWaits = false
		c.work.Signal()
	}
}

// Reply answers a request with a frame of the kind, whose body m appends; nil
// for an empty one.
func (c *Conn) Reply(req uint64, kind wire.Kind, m wire.Appender) {
	c.enqueue(answer{buf: frameOf(kind, req, m)}, true)
}

// ReplyError answers a request with an error.
func (c *Conn) ReplyError(req uint64, err error) {
	c.enqueue(c.errorAnswer(req, wire.NoEntry, err), true)
}

// AppendError tells the client that an entry of an APPEND frame was refused, or
// the whole frame (wire.NoEntry). It may be called any number of times for a
// frame: APPEND has no answer of its own.
func (c *Conn) AppendError(req uint64, entry int, err error) {
	c.mu.Lock()
	c.pending++
	c.mu.Unlock()
	c.enqueue(c.errorAnswer(req, entry, err), true)
}

func (c *Conn) errorAnswer(req uint64, entry int, err error) answer {
	e := wire.ErrorOf(entry, err)
	return answer{buf: frameOf(wire.KindError, req, &e), isError: true}
}

// ReplyPages answers a READ: descs, one for each page asked for, in order, and
// pages, 16 KiB for each of them with wire.CodeOK. The pages are sent from where
// they lie; they and the slice are the server's until it calls release, once,
// written or not, from any goroutine. release may be nil and must not block.
func (c *Conn) ReplyPages(req uint64, descs []wire.PageDesc, pages [][]byte, release func()) {
	b := bytebufferpool.Get()
	b.B = wire.AppendPagesHead(b.B[:0], req, descs)
	checkPages(descs, pages)
	c.enqueue(answer{buf: b, pages: pages, release: release}, true)
}

// checkPages holds the handler to its word: a page too many or too short would
// put the stream out of step.
func checkPages(descs []wire.PageDesc, pages [][]byte) {
	ok := 0
	for i := range descs {
		if descs[i].Code == wire.CodeOK {
			ok++
		}
	}
	if ok != len(pages) {
		invariant.Assert(false, "netserver: %d pages for %d descriptors with code OK", len(pages), ok)
	}
	for i := range pages {
		if len(pages[i]) != redoubt.PageSize {
			invariant.Assert(false, "netserver: page %d of a PAGES frame has %d bytes", i, len(pages[i]))
		}
	}
}

// enqueue hands an answer to the writer, or drops it if the connection is gone.
func (c *Conn) enqueue(a answer, pending bool) {
	a.pending = pending
	c.mu.Lock()
	if pending && c.pending == 0 {
		c.mu.Unlock()
		invariant.Assert(false, "netserver: connection %d: an answer to no request, or a second one", c.id)
	}
	if c.phase == dead {
		if pending {
			c.pending--
		}
		c.mu.Unlock()
		a.done()
		return
	}
	c.queue = append(c.queue, a)
	c.wakeWriter()
	c.mu.Unlock()
}

// done gives back what the answer borrowed.
func (a *answer) done() {
	bytebufferpool.Put(a.buf)
	if a.release != nil {
		a.release()
	}
	*a = answer{}
}

// write is the writer goroutine. Whatever gathers while a write is under way
// goes out with the next one: acks merge without a timer.
func (c *Conn) write() {
	w := &c.out
	for c.gather() {
		n := w.fillPieces()
		c.writingSince.Store(c.srv.since())
		sent, err := c.send()
		c.writingSince.Store(0)
		c.srv.counters.writes.Add(1)
		c.srv.counters.bytesOut.Add(uint64(sent))
		if err != nil {
			c.kill(fmt.Errorf("writing answers: %w", err))
		}
		c.written(n)
	}
	c.discard()
}

// gather waits for something to write and takes it: acks, and the queue once
// what was taken before is written. It returns false when the writer shall end.
func (c *Conn) gather() bool {
	w := &c.out
	w.acks = w.acks[:0]
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.phase == dead {
			return false
		}
		if len(c.dirty) > 0 || len(c.queue) > 0 || w.next < len(w.sending) {
			break
		}
		if c.phase == flushing || c.phase == draining && c.hasDrained && c.pending == 0 {
			return false
		}
		c.writerWaits = true
		c.work.Wait()
	}
	c.writerWaits = false
	c.gatherAcks()
	if w.next == len(w.sending) {
		w.sending, c.queue = c.queue, w.sending[:0]
		w.next = 0
	}
	return true
}

// gatherAcks builds the ACK frame of the handles that are dirty, as far as one
// frame goes. c.mu is held.
func (c *Conn) gatherAcks() {
	n := min(len(c.dirty), (int(c.srv.opts.Welcome.MaxFrame)-wire.HeaderSize)/wire.AckSize)
	if n == 0 {
		return
	}
	w := &c.out
	w.acks = wire.Begin(w.acks)
	for _, h := range c.dirty[:n] {
		s := &c.slots[h]
		s.dirty = false
		w.acks = wire.AppendAck(w.acks, wire.Ack{Handle: h, SCL: s.scl})
	}
	c.dirty = c.dirty[:copy(c.dirty, c.dirty[n:])]
	wire.Finish(w.acks, wire.KindAck, uint32(n), 0)
	c.srv.counters.ackFrames.Add(1)
	c.srv.counters.acks.Add(uint64(n))
}

// fillPieces lays out the ACK frame and about writeUnit of the answers, and
// returns how many.
func (w *writer) fillPieces() int {
	w.pieces = w.pieces[:0]
	if len(w.acks) > 0 {
		w.pieces = append(w.pieces, w.acks)
	}
	n := 0
	for bytes := 0; w.next+n < len(w.sending) && bytes < writeUnit; n++ {
		a := &w.sending[w.next+n]
		w.pieces = append(w.pieces, a.buf.B)
		w.pieces = append(w.pieces, a.pages...)
		bytes += len(a.buf.B) + len(a.pages)*redoubt.PageSize
	}
	return n
}

// send writes the pieces.
func (c *Conn) send() (int64, error) {
	w := &c.out
	if len(w.pieces) == 1 {
		n, err := c.tcp.Write(w.pieces[0])
		return int64(n), err
	}
	w.vec = w.pieces
	return w.vec.WriteTo(c.tcp)
}

// written gives back what the first n answers borrowed, and their places.
func (c *Conn) written(n int) {
	w := &c.out
	clear(w.pieces)
	if n == 0 {
		return
	}
	places, errors, pages := 0, 0, 0
	for i := w.next; i < w.next+n; i++ {
		a := &w.sending[i]
		if a.pending {
			places++
		}
		if a.isError {
			errors++
		}
		pages += len(a.pages)
		a.done()
	}
	w.next += n
	c.srv.counters.answers.Add(uint64(places))
	c.srv.counters.errors.Add(uint64(errors))
	c.srv.counters.pages.Add(uint64(pages))
	c.mu.Lock()
	c.pending -= places
	c.mu.Unlock()
	c.room.Signal()
}

// discard gives back what will never be written. The connection is at its end,
// so nothing is added to the queue any more.
func (c *Conn) discard() {
	w := &c.out
	c.mu.Lock()
	queue := c.queue
	c.queue, c.dirty = nil, nil
	c.phase = dead
	c.mu.Unlock()
	for i := w.next; i < len(w.sending); i++ {
		w.sending[i].done()
	}
	for i := range queue {
		queue[i].done()
	}
}
