package netserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/slab"
	"github.com/redoubt-storage/redoubt/wire"
)

// A phase is how far a connection has come. It only ever grows.
type phase uint8

const (
	running  phase = iota
	draining       // nothing is read any more; what was taken is answered, then it ends
	flushing       // what is queued is written, then it ends
	dead           // the socket is closed; everything is dropped
)

// A Conn is one client's connection. Its exported methods may be called from
// any goroutine.
type Conn struct {
	// State is the handler's own. Netserver doesn't touch it.
	State any

	// Set before the first frame, never changed.
	srv    *Server
	id     uint64
	tcp    *net.TCPConn
	raw    syscall.RawConn
	client string // the name in HELLO
	ctx    context.Context
	cancel context.CancelFunc

	// Shared, each with its own rule.
	parked       atomic.Pointer[slab.Buf] // the reader's slab while it waits and anybody may take it
	partialSince atomic.Int64             // coarse time since when a frame is incomplete, 0: none is
	writingSince atomic.Int64             // the same for a write
	handles      atomic.Pointer[[]any]    // grown under mu, read by anyone

	// Owned by the reader goroutine.
	in reader

	// Owned by the writer goroutine.
	out writer

	mu          sync.Mutex
	work        sync.Cond // the writer waits for something to do
	room        sync.Cond // the reader waits for pending to fall
	phase       phase
	stopping    bool // the reader shall stop
	hasDrained  bool // nothing but the pending answers is to come
	writerWaits bool
	reason      error    // why the connection ended; the first one stands
	pending     int      // requests without an answer, and answers not yet written
	queue       []answer // to be written, in order
	slots       []slot   // by handle
	dirty       []uint32 // handles whose ack is to be sent
}

// A slot is what is known of a handle's ack.
type slot struct {
	scl   redoubt.LSN
	dirty bool
}

// errCut is the reason of a connection that Shutdown had to close.
var errCut = errors.New("the node is shutting down and waits no longer")

// errStopped ends the reader when the server shuts down.
var errStopped = errors.New("the node is shutting down")

// A protocolError is a frame that no client may send, or none that we accept.
type protocolError struct {
	req    uint64
	tell   bool // the sender can be told: the header was whole
	reason error
}

func (e *protocolError) Error() string { return e.reason.Error() }
func (e *protocolError) Unwrap() error { return e.reason }

func newConn(s *Server, tcp *net.TCPConn, raw syscall.RawConn) *Conn {
	c := &Conn{srv: s, tcp: tcp, raw: raw}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.work.L, c.room.L = &c.mu, &c.mu
	c.handles.Store(new([]any))
	c.in.init(c)
	return c
}

// ID returns a number that no other connection of the server has had.
func (c *Conn) ID() uint64 { return c.id }

// Remote returns the client's address.
func (c *Conn) Remote() string { return c.tcp.RemoteAddr().String() }

// Client returns the name that the client gave itself.
func (c *Conn) Client() string { return c.client }

// Done is closed when the connection is gone: nothing that is given to it any
// more arrives.
func (c *Conn) Done() <-chan struct{} { return c.ctx.Done() }

// run is the reader goroutine, from accept to the end.
func (c *Conn) run() {
	defer c.srv.remove(c)
	err := c.hello()
	if err != nil {
		c.srv.readers.Done()
		c.refuse(err)
		return
	}
	writing := make(chan struct{})
	go labelled("netserver writer", func() {
		c.write()
		close(writing)
	})
	err = c.read()
	c.in.drop()
	c.srv.readers.Done()
	c.endRead(err)
	<-writing
	c.linger()
	c.kill(nil)
	c.logEnd()
	c.srv.opts.Handler.Closed(c)
}

// endRead decides what becomes of the connection once the reader has ended.
func (c *Conn) endRead(err error) {
	var broken *protocolError
	switch {
	case errors.Is(err, errStopped):
		c.advance(draining)
	case errors.As(err, &broken):
		c.srv.counters.badFrames.Add(1)
		if broken.tell {
			c.enqueue(c.errorAnswer(broken.req, wire.NoEntry, broken), false)
		}
		c.mu.Lock()
		c.setReason(err)
		c.mu.Unlock()
		c.advance(flushing)
	case errors.Is(err, io.EOF):
		c.kill(nil)
	default:
		c.kill(err)
	}
}

// refuse ends a connection that never said a proper HELLO.
func (c *Conn) refuse(err error) {
	var broken *protocolError
	if !errors.Is(err, errStopped) {
		c.srv.counters.badHellos.Add(1)
	}
	if errors.As(err, &broken) && broken.tell {
		e := wire.ErrorOf(wire.NoEntry, broken)
		e.A, e.B = wire.Version, wire.Version
		c.tcp.SetWriteDeadline(time.Now().Add(c.srv.opts.LingerTimeout))
		c.tcp.Write(wire.AppendFrame(nil, wire.KindError, 0, broken.req, &e))
		c.linger()
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, errStopped) {
		c.mu.Lock()
		c.setReason(err)
		c.mu.Unlock()
	}
	c.kill(nil)
	c.logEnd()
}

// linger closes our side of the connection and reads on, to nowhere, until the
// client has closed its own or its time is up.
func (c *Conn) linger() {
	if c.ctx.Err() != nil || c.tcp.CloseWrite() != nil {
		return
	}
	c.tcp.SetReadDeadline(time.Now().Add(c.srv.opts.LingerTimeout))
	io.Copy(io.Discard, c.tcp)
}

// advance moves the connection to a later phase and wakes who waits.
func (c *Conn) advance(to phase) {
	c.mu.Lock()
	c.phase = max(c.phase, to)
	c.mu.Unlock()
	c.work.Broadcast()
	c.room.Broadcast()
}

// kill closes the socket at once, and reports whether it was the first to do
// so. A nil reason is no reason to mention.
func (c *Conn) kill(reason error) bool {
	c.mu.Lock()
	c.setReason(reason)
	first := c.phase != dead
	c.mu.Unlock()
	c.advance(dead)
	c.tcp.Close()
	c.cancel()
	return first
}

// setReason keeps the first reason; the others follow from it. c.mu is held.
func (c *Conn) setReason(reason error) {
	if c.reason == nil && c.phase != dead {
		c.reason = reason
	}
}

// Close drops the connection, for a reason that goes into the log.
func (c *Conn) Close(reason error) { c.kill(reason) }

func (c *Conn) logEnd() {
	c.mu.Lock()
	reason := c.reason
	c.mu.Unlock()
	if reason != nil {
		c.srv.logf("connection closed", "remote", c.Remote(), "client", c.client, "reason", reason)
	}
}

// stopReading begins the orderly end of the connection, for Shutdown.
func (c *Conn) stopReading() {
	c.enqueue(answer{buf: frameOf(wire.KindBye, 0, nil)}, false)
	c.mu.Lock()
	c.stopping = true
	c.mu.Unlock()
	c.room.Broadcast()
	c.in.stop()
	c.tcp.SetReadDeadline(time.Unix(1, 0)) // after stopping is set: see isStopping
}

// isStopping reports whether the reader shall stop. Whoever changes the read
// deadline asks afterwards, or the deadline that stopReading sets were lost.
func (c *Conn) isStopping() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopping
}

// drained says that no answer or ack follows but for the pending requests.
func (c *Conn) drained() {
	c.mu.Lock()
	c.hasDrained = true
	c.mu.Unlock()
	c.work.Broadcast()
}

// NewHandle gives the client a handle for v: the next free number, up to
// MaxHandles of the WELCOME.
func (c *Conn) NewHandle(v any) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := *c.handles.Load()
	if limit := c.srv.opts.Welcome.MaxHandles; len(old) >= int(limit) {
		return 0, fmt.Errorf("netserver: connection %d has %d handles, which is the limit: %w", c.id, limit, redoubt.ErrBusy)
	}
	// Readers of the old slice don't look past its length, so the two may share
	// memory.
	grown := append(old, v)
	c.handles.Store(&grown)
	c.slots = append(c.slots, slot{})
	if cap(c.dirty) < len(c.slots) {
		dirty := make([]uint32, len(c.dirty), cap(c.slots))
		copy(dirty, c.dirty)
		c.dirty = dirty
	}
	return uint32(len(old)), nil
}

// Handle returns what NewHandle was given for the handle, or nil.
func (c *Conn) Handle(h uint32) any {
	if t := *c.handles.Load(); uint64(h) < uint64(len(t)) {
		return t[h]
	}
	return nil
}
