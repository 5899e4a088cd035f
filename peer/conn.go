package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/pprof"
	"sync"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/wire"
)

// Options describe a connection. The callbacks may be nil. A field left zero
// takes the default in its comment; one out of range is an error from Dial.
type Options struct {
	// Name is what the node's log calls us. Default "peer".
	Name string

	// InFlight bounds the requests without an answer, appends not counted.
	// Default, and at most, what the node allows.
	InFlight int

	// ReadBuffer and WriteBuffer are the sizes of the socket's buffers in bytes.
	// Default: what the kernel finds fit.
	ReadBuffer, WriteBuffer int

	// OnAck says that a segment is complete up to scl. SCLs of a handle only grow.
	OnAck func(handle uint32, scl redoubt.LSN)

	// OnAckFrame follows the acks of one frame, for who wants to react once.
	OnAckFrame func()

	// OnError says that the node refused an entry of the APPEND frame with this
	// request ID, or the whole frame (wire.NoEntry). The error holds a *wire.Error.
	OnError func(req uint64, entry int, err error)

	// OnDown says why the connection ended, an error that matches
	// redoubt.ErrClosed. It is the last callback.
	OnDown func(err error)
}

// ownReq is set in the request IDs that this package chooses; the caller's, in
// APPEND frames, don't have it.
const ownReq = 1 << 63

// A Conn is one connection to a node. Its methods may be called from any
// goroutine, but see the package comment on Append.
type Conn struct {
	// Set by Dial, never changed.
	opts    Options
	addr    string
	tcp     *net.TCPConn
	welcome wire.Welcome
	done    chan struct{} // closed after OnDown
	freed   chan struct{} // one place: a slot was freed and somebody waits for one

	// Owned by the reader goroutine.
	in reader

	mu      sync.Mutex
	slots   []slot
	free    []uint32
	waiters int   // calls that wait for a slot
	bye     bool  // the node takes no more requests
	down    error // why the connection ended, once it has

	// Requests on their way out.
	writing bool
	corked  bool   // the reader goroutine is busy, and flushes before it waits
	queue   []byte // frames, each padded, written next
	spare   []byte
}

// A slot is a request in flight.
type slot struct {
	gen  uint32 // so that a late answer to an earlier request is known
	busy bool
	call *call        // either: nil once it was given up
	read *ReadRequest // or
}

// Dial connects to the node at addr and says HELLO.
func Dial(ctx context.Context, addr string, o Options) (*Conn, error) {
	if o.Name == "" {
		o.Name = "peer"
	}
	if o.InFlight < 0 || o.ReadBuffer < 0 || o.WriteBuffer < 0 {
		return nil, fmt.Errorf("peer: %d requests in flight, socket buffers of %d and %d bytes: %w",
			o.InFlight, o.ReadBuffer, o.WriteBuffer, redoubt.ErrInvalid)
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	c := &Conn{opts: o, addr: addr, tcp: nc.(*net.TCPConn), done: make(chan struct{}), freed: make(chan struct{}, 1)}
	if err := c.open(ctx); err != nil {
		nc.Close()
		return nil, fmt.Errorf("peer: node %s: %w", addr, err)
	}
	go pprof.Do(context.Background(), pprof.Labels("goroutine", "peer reader"), func(context.Context) { c.run() })
	return c, nil
}

// open tunes the socket, says HELLO and makes the slots.
func (c *Conn) open(ctx context.Context) error {
	for size, set := range map[int]func(int) error{c.opts.ReadBuffer: c.tcp.SetReadBuffer, c.opts.WriteBuffer: c.tcp.SetWriteBuffer} {
		if size > 0 {
			if err := set(size); err != nil {
				return err
			}
		}
	}
	stop := context.AfterFunc(ctx, func() { c.tcp.SetDeadline(time.Unix(1, 0)) })
	err := c.hello()
	if !stop() {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	n := int(c.welcome.MaxInFlight)
	if c.opts.InFlight > n {
		return fmt.Errorf("%d requests in flight, the node allows %d: %w", c.opts.InFlight, n, redoubt.ErrInvalid)
	}
	if c.opts.InFlight > 0 {
		n = c.opts.InFlight
	}
	c.slots = make([]slot, n)
	c.free = make([]uint32, n)
	for i := range c.free {
		c.free[i] = uint32(n - 1 - i)
	}
	return nil
}

// hello is the first exchange.
func (c *Conn) hello() error {
	m := wire.Hello{MinVersion: wire.Version, MaxVersion: wire.Version, Name: c.opts.Name}
	if _, err := c.tcp.Write(wire.Pad(wire.AppendFrame(nil, wire.KindHello, 0, ownReq, &m), wire.HelloAlign)); err != nil {
		return err
	}
	c.in.init(c.tcp)
	h, body, err := c.in.frame()
	if err != nil {
		return err
	}
	switch h.Kind {
	case wire.KindWelcome:
		return c.welcome.Decode(body)
	case wire.KindError:
		e := new(wire.Error)
		if err := e.Decode(body); err != nil {
			return err
		}
		return e
	}
	return fmt.Errorf("%v in answer to HELLO: %w", h.Kind, redoubt.ErrInvalid)
}

// Welcome returns what the node said of itself and its limits.
func (c *Conn) Welcome() wire.Welcome { return c.welcome }

// Addr returns the node's address as it was given to Dial.
func (c *Conn) Addr() string { return c.addr }

// Done is closed when the connection has ended and the last callback returned.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, or nil.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

// Abort ends the connection and doesn't wait for its callbacks.
func (c *Conn) Abort() { c.abort(errAborted) }

// Close ends the connection and waits for the last callback.
func (c *Conn) Close() {
	c.Abort()
	<-c.done
}

var errAborted = errors.New("closed on this side")

// abort makes the reader goroutine end the connection for this reason.
func (c *Conn) abort(cause error) {
	c.mu.Lock()
	c.setDown(cause)
	c.mu.Unlock()
	c.tcp.Close()
}

// setDown keeps the first reason; the others follow from it. c.mu is held.
func (c *Conn) setDown(cause error) {
	if c.down == nil {
		c.down = &downError{addr: c.addr, cause: cause}
	}
}

// A downError says why a connection ended. It matches redoubt.ErrClosed.
type downError struct {
	addr  string
	cause error
}

func (e *downError) Error() string {
	return fmt.Sprintf("peer: connection to node %s is down: %v", e.addr, e.cause)
}

func (e *downError) Unwrap() []error { return []error{redoubt.ErrClosed, e.cause} }

// Append sends an APPEND frame, padded, as wire.AppendBuilder makes it. It
// borrows the frame until it returns, which may take until the node has room.
// The frame's request ID is the caller's, below 2^63.
func (c *Conn) Append(frame []byte) error {
	if len(frame) == 0 || len(frame)%int(c.welcome.Align) != 0 || len(frame) > int(c.welcome.MaxFrame) {
		return fmt.Errorf("peer: APPEND frame of %d bytes, want a multiple of %d up to %d: %w",
			len(frame), c.welcome.Align, c.welcome.MaxFrame, redoubt.ErrInvalid)
	}
	if _, err := c.tcp.Write(frame); err != nil {
		c.abort(err)
		return c.Err()
	}
	return nil
}

// take reserves a slot for a call or a read, or says why not. c.mu is held.
func (c *Conn) take(cl *call, rd *ReadRequest) (req uint64, err error) {
	switch {
	case c.down != nil:
		return 0, c.down
	case c.bye:
		return 0, fmt.Errorf("peer: node %s is shutting down: %w", c.addr, redoubt.ErrClosed)
	case len(c.free) == 0:
		return 0, errBusy
	}
	i := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	s := &c.slots[i]
	s.gen = (s.gen + 1) & (1<<31 - 1)
	s.busy, s.call, s.read = true, cl, rd
	return ownReq | uint64(s.gen)<<32 | uint64(i), nil
}

var errBusy = fmt.Errorf("peer: as many requests are in flight as may be: %w", redoubt.ErrBusy)

// claim frees the slot of a request that is being answered, and returns what
// waits for it: one of the two, or neither if it was given up. It reports false
// if there is no such request.
func (c *Conn) claim(req uint64) (cl *call, rd *ReadRequest, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := uint32(req)
	if req&ownReq == 0 || uint64(i) >= uint64(len(c.slots)) {
		return nil, nil, false
	}
	s := &c.slots[i]
	if !s.busy || uint64(s.gen) != req&^ownReq>>32 {
		return nil, nil, false
	}
	cl, rd = s.call, s.read
	s.busy, s.call, s.read = false, nil, nil
	c.free = append(c.free, i)
	if c.waiters > 0 {
		c.ping()
	}
	return cl, rd, true
}

// ping wakes one call that waits for a slot.
func (c *Conn) ping() {
	select {
	case c.freed <- struct{}{}:
	default:
	}
}

// giveUp detaches a request whose caller waits no longer, and reports whether
// it still could: if not, the answer is being delivered right now.
func (c *Conn) giveUp(req uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.slots[uint32(req)]
	if !s.busy || uint64(s.gen) != req&^ownReq>>32 {
		return false
	}
	s.call, s.read = nil, nil
	return true
}

// post appends a frame to what is to be written. c.mu is held; flush follows.
func (c *Conn) post(kind wire.Kind, req uint64, m wire.Appender) {
	c.queue = wire.Pad(wire.AppendFrame(c.queue, kind, 0, req, m), int(c.welcome.Align))
}

// cork keeps back what is posted from here on, uncork sends it.
func (c *Conn) cork() {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

func (c *Conn) uncork() {
	c.mu.Lock()
	c.corked = false
	waiting := len(c.queue) > 0
	c.mu.Unlock()
	if waiting {
		c.flush()
	}
}

// flush writes what is posted, unless somebody is at it, who then writes this
// too. A failure reaches the requests through the reader goroutine.
func (c *Conn) flush() {
	c.mu.Lock()
	if c.writing || c.corked {
		c.mu.Unlock()
		return
	}
	c.writing = true
	for len(c.queue) > 0 && !c.corked && c.down == nil {
		out := c.queue
		c.queue, c.spare = c.spare[:0], nil
		c.mu.Unlock()
		_, err := c.tcp.Write(out)
		if err != nil {
			c.abort(err)
		}
		c.mu.Lock()
		c.spare = out[:0]
	}
	c.writing = false
	c.mu.Unlock()
}
