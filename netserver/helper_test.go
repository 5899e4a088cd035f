package netserver

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/slab"
	"github.com/redoubt-storage/redoubt/wire"
)

// patience is how long a test waits for what must happen before it calls it a
// failure. Nothing is ever measured against it.
const patience = 20 * time.Second

var testVolume = redoubt.VolumeID{1: 7, 15: 9}

// A fake is a handler made of functions. One that is nil must not be called.
type fake struct {
	append  func(c *Conn, f *Frame)
	request func(c *Conn, f *Frame)

	mu     sync.Mutex
	closed map[*Conn]int
}

func (h *fake) Append(c *Conn, f *Frame)  { h.append(c, f) }
func (h *fake) Request(c *Conn, f *Frame) { h.request(c, f) }

func (h *fake) Closed(c *Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed == nil {
		h.closed = map[*Conn]int{}
	}
	h.closed[c]++
}

// A fixture is a server on a loopback socket.
type fixture struct {
	t    testing.TB
	srv  *Server
	pool *slab.Pool
	h    *fake
	down bool
}

// start serves h with small slabs, which reach their ends soon; change may be
// nil. When the test ends the server is shut down and must have returned every
// slab.
func start(t testing.TB, h *fake, change func(o *Options)) *fixture {
	t.Helper()
	o := Options{
		Handler: h,
		Welcome: wire.Welcome{MaxFrame: 272 << 10, Lanes: 2, Name: "test"},
		Log:     slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if change != nil {
		change(&o)
	}
	if o.Pool == nil {
		o.Pool = newPool(t, 8)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, err := Serve(ln, o)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, srv: srv, pool: o.Pool, h: h}
	t.Cleanup(f.finish)
	return f
}

func newPool(t testing.TB, count int) *slab.Pool {
	t.Helper()
	pool, err := slab.New(slab.Options{Size: 640 << 10, Count: count, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// finish shuts the server down. Whatever the clients did, no slab is lost and
// no connection was closed twice.
func (f *fixture) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if !f.down {
		if err := f.shutdown(ctx); err != nil {
			f.t.Errorf("shutdown: %v", err)
		}
	}
	if err := f.pool.Close(); err != nil {
		f.t.Error(err)
	}
	for c, n := range f.h.closed {
		if n != 1 {
			f.t.Errorf("Closed was called %d times for connection %d", n, c.ID())
		}
	}
	if s := f.srv.Stats(); s.Active != 0 || s.Accepted != s.Refused+s.Closed {
		f.t.Errorf("connections at the end: %+v", s)
	}
}

// shutdown is Shutdown for a test that looks at it more closely than finish.
func (f *fixture) shutdown(ctx context.Context) error {
	f.down = true
	return f.srv.Shutdown(ctx)
}

// until waits for cond.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("never happened: %s", what)
		}
	}
}

// A client is the other end of a connection, byte by byte.
type client struct {
	t    testing.TB
	conn *net.TCPConn
}

// connect opens a connection and says nothing.
func (f *fixture) connect() *client {
	f.t.Helper()
	nc, err := net.Dial("tcp", f.srv.Addr().String())
	if err != nil {
		f.t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	f.t.Cleanup(func() { nc.Close() })
	return &client{t: f.t, conn: nc.(*net.TCPConn)}
}

// dial opens a connection and says HELLO.
func (f *fixture) dial() *client {
	f.t.Helper()
	c := f.connect()
	c.send(helloFrame())
	if h, _ := c.recv(); h.Kind != wire.KindWelcome {
		f.t.Fatalf("%v instead of WELCOME", h.Kind)
	}
	return c
}

func helloFrame() []byte {
	return request(wire.KindHello, 1, &wire.Hello{MinVersion: 1, MaxVersion: 1, Name: "tester"})
}

// request returns a padded frame.
func request(kind wire.Kind, req uint64, m wire.Appender) []byte {
	return wire.Pad(wire.AppendFrame(nil, kind, 0, req, m), wire.HelloAlign)
}

func (c *client) send(frame []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(frame); err != nil {
		c.t.Fatal(err)
	}
}

// next receives a frame, or the error that ends the connection.
func (c *client) next() (wire.Header, []byte, error) {
	head := make([]byte, wire.HeaderSize)
	if _, err := io.ReadFull(c.conn, head); err != nil {
		return wire.Header{}, nil, err
	}
	h, err := wire.ParseHeader(head, wire.MaxPagesFrame)
	if err != nil {
		return h, nil, err
	}
	body := make([]byte, h.Len-wire.HeaderSize)
	if _, err := io.ReadFull(c.conn, body); err != nil {
		return h, nil, err
	}
	sum := body
	if h.Kind == wire.KindPages {
		sum = body[:int(h.Aux)*wire.PageDescSize]
	}
	return h, body, h.CheckBody(sum)
}

func (c *client) recv() (wire.Header, []byte) {
	c.t.Helper()
	h, body, err := c.next()
	if err != nil {
		c.t.Fatal(err)
	}
	return h, body
}

// recvError receives an ERROR frame.
func (c *client) recvError() (wire.Header, *wire.Error) {
	c.t.Helper()
	h, body := c.recv()
	if h.Kind != wire.KindError {
		c.t.Fatalf("%v instead of ERROR", h.Kind)
	}
	e := new(wire.Error)
	if err := e.Decode(body); err != nil {
		c.t.Fatal(err)
	}
	return h, e
}

// recvEnd expects the connection to end, in whichever way TCP says so.
func (c *client) recvEnd() {
	c.t.Helper()
	h, _, err := c.next()
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		c.t.Fatalf("the connection goes on: %v %v", h.Kind, err)
	}
}

// appendFrame returns an APPEND frame with one batch of payload bytes for each
// of the handles, whose records are the LSNs from first.
func appendFrame(t testing.TB, req uint64, first redoubt.LSN, payload int, handles ...uint32) []byte {
	t.Helper()
	var a wire.AppendBuilder
	a.Reset(make([]byte, 272<<10), wire.HelloAlign)
	data := make([]byte, payload)
	for i := range data {
		data[i] = byte(first) + byte(i)
	}
	for i, h := range handles {
		var b redo.Builder
		lsn := first + redoubt.LSN(i)
		b.Reset(a.Next(), testVolume, 0, 1, lsn-1)
		for left := data; len(left) > 0; left = left[min(len(left), redoubt.PageSize):] {
			if b.Count() > 0 {
				lsn++
			}
			if !b.Write(lsn, 0, 0, 0, left[:min(len(left), redoubt.PageSize)], true) {
				t.Fatal("no room for the record")
			}
		}
		a.Commit(h, len(b.Finish()), 0, 0)
	}
	return a.Finish(req)
}

// ackAll is the Append of a handler that is done at once.
func ackAll(c *Conn, f *Frame) {
	for it := wire.Entries(f.Bytes()[:f.Len], f.Aux); it.Next(); {
		if c.Handle(it.Handle) == nil {
			c.AppendError(f.Req, 0, redoubt.ErrNotFound)
			continue
		}
		h, err := redo.Verify(testVolume, it.Batch)
		if err != nil {
			c.AppendError(f.Req, 0, err)
			continue
		}
		c.Ack(it.Handle, h.Last)
	}
}

// attach is the Request of a handler that attaches anything, as handle after
// handle.
func attach(c *Conn, f *Frame) {
	h, err := c.NewHandle("segment")
	if err != nil {
		c.ReplyError(f.Req, err)
		return
	}
	c.Reply(f.Req, wire.KindAttached, &wire.Attached{Handle: h})
}

// attach asks for a handle and returns it.
func (c *client) attach() uint32 {
	c.t.Helper()
	c.send(request(wire.KindAttach, 77, &wire.Attach{}))
	h, body := c.recv()
	var a wire.Attached
	if h.Kind != wire.KindAttached || h.Req != 77 {
		c.t.Fatalf("%v for request %d instead of ATTACHED", h.Kind, h.Req)
	}
	if err := a.Decode(body); err != nil {
		c.t.Fatal(err)
	}
	return a.Handle
}

// recvAcks receives ACK frames until every handle in want is acknowledged up to
// its LSN, and returns how many frames that took.
func (c *client) recvAcks(want map[uint32]redoubt.LSN) int {
	c.t.Helper()
	got := map[uint32]redoubt.LSN{}
	for frames := 1; ; frames++ {
		h, body := c.recv()
		if h.Kind != wire.KindAck {
			c.t.Fatalf("%v instead of ACK", h.Kind)
		}
		for i := range int(h.Aux) {
			a := wire.AckAt(body, i)
			if a.SCL < got[a.Handle] || a.SCL > want[a.Handle] {
				c.t.Fatalf("handle %d: SCL %d after %d, at most %d", a.Handle, a.SCL, got[a.Handle], want[a.Handle])
			}
			got[a.Handle] = a.SCL
		}
		done := true
		for h, scl := range want {
			done = done && got[h] == scl
		}
		if done {
			return frames
		}
	}
}
