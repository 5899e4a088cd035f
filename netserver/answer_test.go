package netserver

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/wire"
)

// collect returns a Request that passes the requests on to a channel.
func collect(n int) (chan uint64, chan *Conn, func(c *Conn, f *Frame)) {
	reqs, conns := make(chan uint64, n), make(chan *Conn, n)
	return reqs, conns, func(c *Conn, f *Frame) {
		conns <- c
		reqs <- f.Req
	}
}

// TestAnswersInAnyOrder: three requests, answered from another goroutine, the
// last one first.
func TestAnswersInAnyOrder(t *testing.T) {
	reqs, conns, request0 := collect(3)
	f := start(t, &fake{request: request0}, nil)
	c := f.dial()
	for req := uint64(1); req <= 3; req++ {
		c.send(request(wire.KindDescribe, req, &wire.Describe{}))
	}
	first, second, third := <-reqs, <-reqs, <-reqs
	conn := <-conns
	conn.Reply(third, wire.KindDescription, &wire.Description{PG: redoubt.PGNo(third)})
	conn.ReplyError(second, redoubt.ErrFenced)
	conn.Reply(first, wire.KindOK, nil)
	if h, body := c.recv(); h.Req != 3 || h.Kind != wire.KindDescription || len(body) != 192 {
		t.Errorf("%+v", h)
	}
	if h, e := c.recvError(); h.Req != 2 || !errors.Is(e, redoubt.ErrFenced) || e.Entry != wire.NoEntry {
		t.Errorf("%+v %v", h, e)
	}
	if h, _ := c.recv(); h.Req != 1 || h.Kind != wire.KindOK {
		t.Errorf("%+v", h)
	}
}

// TestPing is answered by the server itself.
func TestPing(t *testing.T) {
	f := start(t, &fake{}, nil)
	c := f.dial()
	c.send(request(wire.KindPing, 99, nil))
	if h, _ := c.recv(); h.Kind != wire.KindOK || h.Req != 99 {
		t.Errorf("%+v", h)
	}
}

// TestPages: the pages go out behind their descriptors, from the handler's
// memory, and are given back once.
func TestPages(t *testing.T) {
	pages := make([][]byte, 3)
	for i := range pages {
		pages[i] = bytes.Repeat([]byte{byte(i + 1)}, redoubt.PageSize)
	}
	var released atomic.Int32
	f := start(t, &fake{request: func(c *Conn, f *Frame) {
		var r wire.Read
		if err := r.Decode(f.Body()); err != nil || len(r.Pages) != 4 {
			t.Error(err)
		}
		c.ReplyPages(f.Req, []wire.PageDesc{
			{Page: r.Pages[0], LSN: 11, Sum: 21}, {Page: r.Pages[1], LSN: 12, Sum: 22},
			{Page: r.Pages[2], Code: wire.CodeCorrupt}, {Page: r.Pages[3], LSN: 14, Sum: 24},
		}, pages, func() { released.Add(1) })
	}}, nil)
	c := f.dial()
	c.send(request(wire.KindRead, 8, &wire.Read{Handle: 1, Point: 50, Pages: []uint32{5, 6, 7, 8}}))
	h, body := c.recv()
	if h.Kind != wire.KindPages || h.Req != 8 || h.Aux != 4 {
		t.Fatalf("%+v", h)
	}
	if d := wire.PageDescAt(body, 3); d != (wire.PageDesc{Page: 8, LSN: 14, Sum: 24}) {
		t.Errorf("%+v", d)
	}
	if !bytes.Equal(body[4*wire.PageDescSize:], bytes.Join(pages, nil)) {
		t.Error("other pages arrived")
	}
	until(t, "the pages are given back", func() bool { return released.Load() == 1 })
	until(t, "the pages are counted", func() bool { return f.srv.Stats().Pages == 3 })
}

// TestRequestsInFlight: past the limit of the WELCOME nothing is handed over
// until an answer is on its way.
func TestRequestsInFlight(t *testing.T) {
	reqs, conns, request0 := collect(20)
	f := start(t, &fake{request: request0}, func(o *Options) { o.Welcome.MaxInFlight = 4 })
	c := f.dial()
	var all []byte
	for req := uint64(1); req <= 12; req++ {
		all = append(all, request(wire.KindDescribe, req, &wire.Describe{})...)
	}
	c.send(all)
	var conn *Conn
	for req := uint64(1); req <= 12; req++ {
		if got := <-reqs; got != req {
			t.Fatalf("request %d instead of %d", got, req)
		}
		conn = <-conns
		if req < 4 {
			continue
		}
		conn.mu.Lock()
		pending := conn.pending
		conn.mu.Unlock()
		if len(reqs) > 0 || pending != 4 {
			t.Fatalf("%d are pending and %d more were handed over", pending, len(reqs))
		}
		conn.Reply(req-3, wire.KindOK, nil)
		if h, _ := c.recv(); h.Req != req-3 {
			t.Fatalf("%+v", h)
		}
	}
	for req := uint64(10); req <= 12; req++ {
		conn.Reply(req, wire.KindOK, nil)
	}
}

// stuck makes the writer of the connection wait inside a write: the client has
// asked for more pages than the socket holds and reads nothing.
func stuck(t *testing.T, f *fixture, c *client, conns chan *Conn) *Conn {
	t.Helper()
	pages := make([]uint32, wire.MaxPages)
	for req := range uint64(8) {
		c.send(request(wire.KindRead, req+1, &wire.Read{Pages: pages}))
	}
	conn := <-conns
	for range 7 {
		<-conns
	}
	until(t, "the writer is inside a write that doesn't end", func() bool {
		n := f.srv.Stats().Writes
		return conn.writingSince.Load() != 0 && n == f.srv.Stats().Writes && socketFull(conn)
	})
	return conn
}

// socketFull reports whether the kernel takes no byte more for the connection.
func socketFull(c *Conn) bool {
	full := false
	c.raw.Control(func(fd uintptr) { full = !writable(int(fd)) })
	return full
}

// sendPages is a Request that answers any READ with 64 pages.
func sendPages(conns chan *Conn, released *atomic.Int32) func(c *Conn, f *Frame) {
	page := make([]byte, redoubt.PageSize)
	return func(c *Conn, f *Frame) {
		var r wire.Read
		r.Decode(f.Body())
		descs, pages := make([]wire.PageDesc, len(r.Pages)), make([][]byte, len(r.Pages))
		for i := range pages {
			pages[i] = page
		}
		c.ReplyPages(f.Req, descs, pages, func() { released.Add(1) })
		conns <- c
	}
}

// smallBuffers keeps what the kernel holds for a stuck client small.
func smallBuffers(o *Options) { o.WriteBuffer = 64 << 10 }

// TestAcksCoalesce: while the client doesn't read, acks gather; then one frame
// tells it all, the highest LSN of each handle.
func TestAcksCoalesce(t *testing.T) {
	var released atomic.Int32
	conns := make(chan *Conn, 8)
	f := start(t, &fake{request: sendPages(conns, &released)}, smallBuffers)
	c := f.dial()
	conn := stuck(t, f, c, conns)
	for range 3 {
		if _, err := conn.NewHandle("segment"); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for h := range uint32(3) {
		wg.Go(func() {
			for lsn := range redoubt.LSN(1000) {
				conn.Ack(h, 1000*redoubt.LSN(h)+lsn)
				conn.Ack(h, 1) // an older one that was overtaken
			}
		})
	}
	wg.Wait()
	before := f.srv.Stats().AckFrames
	acks := map[uint32]redoubt.LSN{}
	frames := 0
	for pages := 0; pages < 8; {
		h, body := c.recv()
		if h.Kind == wire.KindPages {
			pages++
			continue
		}
		frames++
		for i := range int(h.Aux) {
			a := wire.AckAt(body, i)
			acks[a.Handle] = a.SCL
		}
	}
	if frames != 1 || before != 0 || acks[0] != 999 || acks[1] != 1999 || acks[2] != 2999 {
		t.Errorf("%d ACK frames (%d before the client read): %v", frames, before, acks)
	}
	until(t, "all pages are given back", func() bool { return released.Load() == 8 })
}

// TestSlowReader: a client that takes no answers is dropped, and what it held
// is given back.
func TestSlowReader(t *testing.T) {
	var released atomic.Int32
	conns := make(chan *Conn, 8)
	f := start(t, &fake{request: sendPages(conns, &released)}, func(o *Options) {
		smallBuffers(o)
		o.WriteTimeout = 50 * time.Millisecond
	})
	idle := f.dial()
	c := f.dial()
	for req := range uint64(8) {
		c.send(request(wire.KindRead, req+1, &wire.Read{Pages: make([]uint32, wire.MaxPages)}))
	}
	conn := <-conns
	<-conn.Done()
	until(t, "what is left is given back, and the slow reader counted", func() bool {
		s := f.srv.Stats()
		return int(released.Load()) == 1+len(conns) && s.Active == 1 && s.SlowReaders == 1
	})
	idle.send(request(wire.KindPing, 1, nil)) // a client that rests isn't slow
	idle.recv()
}

// TestGoneClient: answers and acks for a connection that is gone are dropped,
// and their pages given back.
func TestGoneClient(t *testing.T) {
	reqs, conns, request0 := collect(3)
	h := &fake{request: request0}
	f := start(t, h, nil)
	c := f.dial()
	for req := range uint64(3) {
		c.send(request(wire.KindRead, req+1, &wire.Read{Pages: []uint32{1}}))
		<-reqs
	}
	conn := <-conns
	if _, err := conn.NewHandle(1); err != nil {
		t.Fatal(err)
	}
	c.conn.Close()
	<-conn.Done()
	released := 0
	conn.ReplyPages(1, []wire.PageDesc{{}}, [][]byte{make([]byte, redoubt.PageSize)}, func() { released++ })
	conn.ReplyPages(2, []wire.PageDesc{{Code: wire.CodeFull}}, nil, nil)
	conn.ReplyError(3, redoubt.ErrBusy)
	conn.AppendError(3, 0, redoubt.ErrBusy)
	conn.Ack(0, 5)
	if released != 1 {
		t.Errorf("the pages were given back %d times", released)
	}
	until(t, "the handler knows", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.closed[conn] == 1
	})
}

// TestHandles: numbers from 0, up to the limit, and none that wasn't given out.
func TestHandles(t *testing.T) {
	f := start(t, &fake{request: attach}, func(o *Options) { o.Welcome.MaxHandles = 3 })
	c := f.dial()
	for want := range uint32(3) {
		if h := c.attach(); h != want {
			t.Errorf("handle %d, want %d", h, want)
		}
	}
	c.send(request(wire.KindAttach, 5, &wire.Attach{}))
	if _, e := c.recvError(); !errors.Is(e, redoubt.ErrBusy) {
		t.Error(e)
	}
	conn := f.srv.snapshot()[0]
	if conn.Handle(2) != "segment" || conn.Handle(3) != nil || conn.Handle(1<<32-1) != nil {
		t.Errorf("handle 2 is %v, 3 is %v", conn.Handle(2), conn.Handle(3))
	}
}

// TestBrokenContracts: an answer too many, an ack of nothing, pages that don't
// match their descriptors are bugs of the handler, and stop it.
func TestBrokenContracts(t *testing.T) {
	reqs, conns, request0 := collect(1)
	f := start(t, &fake{request: request0}, nil)
	c := f.dial()
	c.send(request(wire.KindDescribe, 1, &wire.Describe{}))
	<-reqs
	conn := <-conns
	mustPanic := func(what string, do func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s goes unnoticed", what)
			}
		}()
		do()
	}
	mustPanic("an ack of no handle", func() { conn.Ack(0, 1) })
	mustPanic("a page too few", func() { conn.ReplyPages(1, []wire.PageDesc{{}}, nil, nil) })
	mustPanic("a short page", func() { conn.ReplyPages(1, []wire.PageDesc{{}}, [][]byte{{1}}, nil) })
	conn.Reply(1, wire.KindOK, nil)
	c.recv()
	until(t, "the answer is written", func() bool { return f.srv.Stats().Answers == 1 })
	mustPanic("a second answer", func() { conn.Reply(1, wire.KindOK, nil) })
}

// TestMoreAcksThanAFrameHolds: they go out in two.
func TestMoreAcksThanAFrameHolds(t *testing.T) {
	const handles = 20000
	var released atomic.Int32
	conns := make(chan *Conn, 8)
	f := start(t, &fake{request: sendPages(conns, &released)}, smallBuffers)
	c := f.dial()
	conn := stuck(t, f, c, conns)
	for h := range uint32(handles) {
		if _, err := conn.NewHandle(h); err != nil {
			t.Fatal(err)
		}
		conn.Ack(h, redoubt.LSN(h)+1)
	}
	var frames []uint32
	acked := map[uint32]redoubt.LSN{}
	for len(acked) < handles {
		h, body := c.recv()
		if h.Kind != wire.KindAck {
			continue
		}
		frames = append(frames, h.Aux)
		for i := range int(h.Aux) {
			a := wire.AckAt(body, i)
			if acked[a.Handle] != 0 || a.SCL != redoubt.LSN(a.Handle)+1 {
				t.Fatalf("%+v, before %d", a, acked[a.Handle])
			}
			acked[a.Handle] = a.SCL
		}
	}
	if len(frames) != 2 {
		t.Errorf("frames of %v acks", frames)
	}
}

// TestDeadStaysDead: a connection that was cut isn't brought back by what its
// reader finds last.
func TestDeadStaysDead(t *testing.T) {
	f := start(t, &fake{}, nil)
	f.dial()
	conn := f.srv.snapshot()[0]
	if !conn.kill(errCut) || conn.kill(errStopped) {
		t.Error("the first of two kills is not the first")
	}
	conn.endRead(&protocolError{reason: redoubt.ErrInvalid, tell: true})
	conn.endRead(errStopped)
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if conn.phase != dead || conn.reason != errCut || len(conn.queue) > 0 {
		t.Errorf("phase %d, reason %v, %d answers queued", conn.phase, conn.reason, len(conn.queue))
	}
}
