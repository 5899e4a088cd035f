package peer_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/netserver"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/wire"
)

// TestHelloFails: what a node may answer instead of a proper WELCOME, or not.
func TestHelloFails(t *testing.T) {
	badLimits := testWelcome()
	badLimits.Align = 8192
	for _, c := range []struct {
		name   string
		script func(n *rawNode)
		kind   error
		want   string
	}{
		{"another version", func(n *rawNode) {
			h, _ := n.recv()
			e := wire.ErrorOf(wire.NoEntry, fmt.Errorf("this node speaks versions 3 to 4: %w", redoubt.ErrInvalid))
			e.A, e.B = 3, 4
			n.reply(wire.KindError, h.Req, &e)
		}, redoubt.ErrInvalid, "this node speaks versions 3 to 4"},
		{"limits that no node may state", func(n *rawNode) {
			h, _ := n.recv()
			n.reply(wire.KindWelcome, h.Req, badLimits)
		}, redoubt.ErrInvalid, "alignment 8192"},
		{"another kind", func(n *rawNode) {
			h, _ := n.recv()
			n.reply(wire.KindOK, h.Req, nil)
		}, redoubt.ErrInvalid, "OK in answer to HELLO"},
		{"pages", func(n *rawNode) {
			h, _ := n.recv()
			n.send(pagesFrame(h.Req, 1, 1))
		}, redoubt.ErrInvalid, "PAGES before WELCOME"},
		{"another protocol", func(n *rawNode) {
			n.recv()
			n.send([]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"))
		}, redoubt.ErrInvalid, "not this protocol"},
		{"half a WELCOME", func(n *rawNode) {
			h, _ := n.recv()
			n.send(wire.AppendFrame(nil, wire.KindWelcome, 0, h.Req, testWelcome())[:50])
		}, nil, "unexpected EOF"},
		{"nothing", func(n *rawNode) { n.recv() }, nil, "EOF"},
	} {
		_, err := peer.Dial(testContext(t), listenRaw(t, c.script), peer.Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) || c.kind != nil && !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestDialEnds with its context, wherever it waits.
func TestDialEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	addr := listenRaw(t, func(n *rawNode) {
		n.recv()
		cancel() // and no answer, until the client has gone
		n.recv()
	})
	if _, err := peer.Dial(ctx, addr, peer.Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := peer.Dial(ctx, addr, peer.Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if _, err := peer.Dial(context.Background(), ln.Addr().String(), peer.Options{}); err == nil {
		t.Error("connected to nobody")
	}
}

// TestOptions: what can't be is an error from Dial.
func TestOptions(t *testing.T) {
	if _, err := peer.Dial(context.Background(), "", peer.Options{InFlight: -1}); !errors.Is(err, redoubt.ErrInvalid) {
		t.Error(err)
	}
	n := startNode(t, nil)
	if _, err := peer.Dial(testContext(t), n.addr(), peer.Options{InFlight: 257}); !errors.Is(err, redoubt.ErrInvalid) {
		t.Error(err)
	}
	c := dial(t, n.addr(), peer.Options{InFlight: 1, ReadBuffer: 64 << 10, WriteBuffer: 64 << 10})
	if err := c.Ping(testContext(t)); err != nil || c.Addr() != n.addr() {
		t.Error(err)
	}
}

// TestEveryRequestIsAnsweredOnce: a node that takes requests and then goes away,
// while some of their callers have given up; OnDown is last.
func TestEveryRequestIsAnsweredOnce(t *testing.T) {
	const calls, reads, given = 2, 3, 2
	goOn := make(chan struct{})
	addr := listenRaw(t, func(n *rawNode) {
		n.hello()
		for range calls + reads + given {
			n.recv()
		}
		<-goOn
	})
	var down, answered atomic.Int32
	c := dial(t, addr, peer.Options{OnDown: func(err error) {
		if !errors.Is(err, redoubt.ErrClosed) || answered.Load() != reads {
			t.Errorf("down before all reads were answered (%d): %v", answered.Load(), err)
		}
		down.Add(1)
	}})
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() {
			if err := c.Ping(testContext(t)); !errors.Is(err, redoubt.ErrClosed) {
				t.Errorf("call %d: %v", i, err)
			}
		})
	}
	for i := range reads {
		if err := c.Read(&peer.ReadRequest{Pages: []uint32{1}, Buf: make([]byte, redoubt.PageSize), Done: func(_ *peer.ReadRequest, err error) {
			if !errors.Is(err, redoubt.ErrClosed) {
				t.Errorf("read %d: %v", i, err)
			}
			answered.Add(1)
		}}); err != nil {
			t.Fatal(err)
		}
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for range given {
		if err := c.Ping(canceled); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	close(goOn)
	<-c.Done()
	wg.Wait()
	if down.Load() != 1 || answered.Load() != reads {
		t.Errorf("down %d times, %d of %d reads answered", down.Load(), answered.Load(), reads)
	}
	if err := c.Read(&peer.ReadRequest{Pages: []uint32{1}, Buf: make([]byte, redoubt.PageSize)}); !errors.Is(err, redoubt.ErrClosed) {
		t.Errorf("a read after the end: %v", err)
	}
}

// TestNonsense: a node that answers what nobody asked ends the connection, and
// what is in flight is answered with the reason.
func TestNonsense(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(n *rawNode, h wire.Header)
		want   string
	}{
		{"a request that isn't in flight", func(n *rawNode, h wire.Header) { n.reply(wire.KindOK, h.Req+1<<32, nil) }, "asked for something else"},
		{"a request that never was", func(n *rawNode, h wire.Header) { n.reply(wire.KindOK, 5, nil) }, "asked for something else"},
		{"a slot that never was", func(n *rawNode, h wire.Header) { n.reply(wire.KindOK, 1<<63|999, nil) }, "asked for something else"},
		{"another kind", func(n *rawNode, h wire.Header) { n.reply(wire.KindOK, h.Req, nil) }, "asked for something else"},
		{"a client's kind", func(n *rawNode, h wire.Header) { n.reply(wire.KindPing, h.Req, nil) }, "PING from a node"},
		{"another page", func(n *rawNode, h wire.Header) { n.send(pagesFrame(h.Req, 1, 5, 7)) }, "page 7 in the place of page 6"},
		{"a page too many", func(n *rawNode, h wire.Header) { n.send(pagesFrame(h.Req, 1, 5, 6, 7)) }, "PAGES of 3 pages"},
		{"pages for nobody", func(n *rawNode, h wire.Header) { n.send(pagesFrame(h.Req+1<<32, 1, 5, 6)) }, "asked for something else"},
		{"pages cut short", func(n *rawNode, h wire.Header) { n.send(pagesFrame(h.Req, 1, 5, 6)[:20000]) }, "unexpected EOF"},
		{"descriptors cut short", func(n *rawNode, h wire.Header) { n.send(pagesFrame(h.Req, 1, 5, 6)[:60]) }, "unexpected EOF"},
		{"an error for nobody", func(n *rawNode, h wire.Header) {
			n.reply(wire.KindError, h.Req+1<<32, &wire.Error{Code: wire.CodeBusy, Entry: wire.NoEntry})
		}, "isn't in flight"},
		{"a broken header", func(n *rawNode, h wire.Header) { n.send(make([]byte, 32)) }, "not this protocol"},
		{"a broken body", func(n *rawNode, h wire.Header) {
			b := wire.AppendFrame(nil, wire.KindError, 0, h.Req, &wire.Error{Code: wire.CodeBusy, Entry: wire.NoEntry})
			b[40] ^= 1
			n.send(b)
		}, "sum of the body"},
		{"a broken message", func(n *rawNode, h wire.Header) {
			n.reply(wire.KindError, h.Req, &wire.Error{Code: wire.CodeOK, Entry: wire.NoEntry})
		}, "ERROR with code 0"},
		{"a frame past its own limit", func(n *rawNode, h wire.Header) {
			n.reply(wire.KindTailed, h.Req, &wire.Tailed{Records: make([]wire.Held, 40000)})
		}, "the limit is"},
		{"the reason for hanging up", func(n *rawNode, h wire.Header) {
			n.reply(wire.KindError, 0, &wire.Error{Code: wire.CodeInvalid, Entry: wire.NoEntry, Message: "frame out of step"})
		}, "frame out of step"},
	} {
		addr := listenRaw(t, func(n *rawNode) {
			n.hello()
			h, _ := n.recv()
			c.answer(n, h)
		})
		conn := dial(t, addr, peer.Options{})
		answers := make(chan error, 10)
		if err := conn.Read(&peer.ReadRequest{Pages: []uint32{5, 6}, Buf: make([]byte, 2*redoubt.PageSize),
			Done: func(_ *peer.ReadRequest, err error) { answers <- err }}); err != nil {
			t.Fatal(err)
		}
		<-conn.Done()
		if err := <-answers; err == nil || len(answers) > 0 {
			t.Errorf("%s: answered %v, and %d times more", c.name, err, len(answers))
		}
		if err := conn.Err(); !errors.Is(err, redoubt.ErrClosed) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestWrongAnswerToACall ends the call too.
func TestWrongAnswerToACall(t *testing.T) {
	for name, answer := range map[string]func(n *rawNode, h wire.Header){
		"pages":      func(n *rawNode, h wire.Header) { n.send(pagesFrame(h.Req, 1, 5)) },
		"other kind": func(n *rawNode, h wire.Header) { n.reply(wire.KindListed, h.Req, &wire.Listed{}) },
	} {
		addr := listenRaw(t, func(n *rawNode) {
			n.hello()
			h, _ := n.recv()
			answer(n, h)
		})
		conn := dial(t, addr, peer.Options{})
		if err := conn.Ping(testContext(t)); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		<-conn.Done()
	}
}

// TestSecondAnswer: what answers a request for the second time doesn't pass for
// the answer to the next one.
func TestSecondAnswer(t *testing.T) {
	addr := listenRaw(t, func(n *rawNode) {
		n.hello()
		a, _ := n.recv()
		n.reply(wire.KindDescription, a.Req, &wire.Description{PG: 1})
		n.recv()
		n.reply(wire.KindDescription, a.Req, &wire.Description{PG: 1})
	})
	c := dial(t, addr, peer.Options{InFlight: 1})
	if d, err := c.Describe(testContext(t), segID(1)); err != nil || d.PG != 1 {
		t.Error(d, err)
	}
	if _, err := c.Describe(testContext(t), segID(2)); !errors.Is(err, redoubt.ErrClosed) {
		t.Errorf("the first answer came again: %v", err)
	}
}

// TestOldRefusal: an append that was refused is not why the node hung up later.
func TestOldRefusal(t *testing.T) {
	addr := listenRaw(t, func(n *rawNode) {
		n.hello()
		n.reply(wire.KindError, 3, &wire.Error{Code: wire.CodeFull, Entry: wire.NoEntry, Message: "no space"})
		h, _ := n.recv()
		n.reply(wire.KindOK, h.Req, nil)
	})
	refused := make(chan string, 1)
	c := dial(t, addr, peer.Options{OnError: func(req uint64, entry int, err error) {
		refused <- fmt.Sprintf("request %d, entry %d: %v", req, entry, err)
	}})
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
	<-c.Done()
	if got := <-refused; got != "request 3, entry -1: no space" {
		t.Error(got)
	}
	if err := c.Err(); errors.Is(err, redoubt.ErrFull) {
		t.Error(err)
	}
}

// TestGivingUp: a caller whose context ends gets its memory back at once; the
// late answer is thrown away and the connection goes on.
func TestGivingUp(t *testing.T) {
	gaveUp := make(chan struct{})
	addr := listenRaw(t, func(n *rawNode) {
		n.hello()
		a, _ := n.recv()
		b, _ := n.recv()
		<-gaveUp
		n.send(pagesFrame(a.Req, 0xee, 5, 6, 7, 8, 9))
		n.reply(wire.KindDescription, b.Req, &wire.Description{PG: 9})
		c, _ := n.recv()
		n.reply(wire.KindOK, c.Req, nil)
		n.recv()
	})
	c := dial(t, addr, peer.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	buf := make([]byte, 5*redoubt.PageSize)
	if err := c.ReadPages(ctx, &peer.ReadRequest{Pages: []uint32{5, 6, 7, 8, 9}, Buf: buf}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if d, err := c.Describe(ctx, segID(1)); !errors.Is(err, context.Canceled) || d.PG != 0 {
		t.Error(d, err)
	}
	close(gaveUp)
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
	for i, v := range buf {
		if v != 0 {
			t.Fatalf("byte %d of the caller's memory was written after it gave up", i)
		}
	}
}

// TestInFlight: past the bound Read is refused and a call waits for its turn.
func TestInFlight(t *testing.T) {
	const limit = 3
	release := make(chan struct{})
	addr := listenRaw(t, func(n *rawNode) {
		n.hello()
		var reqs []uint64
		for range limit {
			h, _ := n.recv()
			reqs = append(reqs, h.Req)
		}
		<-release
		n.send(pagesFrame(reqs[1], 7, 1))
		h, _ := n.recv() // the call whose turn it is now
		n.reply(wire.KindOK, h.Req, nil)
		for {
			h, _ := n.recv()
			if h.Kind == 0 {
				return
			}
			n.send(pagesFrame(h.Req, 8, 1))
		}
	})
	c := dial(t, addr, peer.Options{InFlight: limit})
	newRead := func() *peer.ReadRequest {
		return &peer.ReadRequest{Pages: []uint32{1}, Buf: make([]byte, redoubt.PageSize), Done: func(*peer.ReadRequest, error) {}}
	}
	for range limit {
		if err := c.Read(newRead()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Read(newRead()); !errors.Is(err, redoubt.ErrBusy) {
		t.Errorf("a read too many: %v", err)
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Ping(canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that can't wait: %v", err)
	}
	if err := c.ReadPages(canceled, newRead()); !errors.Is(err, context.Canceled) {
		t.Errorf("a read that can't wait: %v", err)
	}
	pinged := make(chan error)
	go func() { pinged <- c.Ping(testContext(t)) }()
	close(release)
	if err := <-pinged; err != nil {
		t.Error(err)
	}
	r := newRead()
	if err := c.ReadPages(testContext(t), r); err != nil || r.Buf[5] != 8 {
		t.Error(err)
	}
}

// TestBadRequests are refused before anything is sent.
func TestBadRequests(t *testing.T) {
	n := startNode(t, nil)
	c := dial(t, n.addr(), peer.Options{})
	for name, r := range map[string]*peer.ReadRequest{
		"no pages":       {Buf: make([]byte, redoubt.PageSize)},
		"too many pages": {Pages: make([]uint32, 65), Buf: make([]byte, 65*redoubt.PageSize)},
		"a short buffer": {Pages: make([]uint32, 2), Buf: make([]byte, 2*redoubt.PageSize-1)},
		"no geometry":    {Pages: make([]uint32, 1), Buf: make([]byte, redoubt.PageSize), Volume: volID(1)},
	} {
		if err := c.Read(r); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, size := range []int{0, 100, 513, 600 << 10} {
		if err := c.Append(make([]byte, size)); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("a frame of %d bytes: %v", size, err)
		}
	}
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
}

// TestTurnedAway: a node that is full says so.
func TestTurnedAway(t *testing.T) {
	n := startNode(t, func(o *netserver.Options) { o.MaxConns = 1 })
	dial(t, n.addr(), peer.Options{})
	_, err := peer.Dial(testContext(t), n.addr(), peer.Options{})
	if err == nil {
		t.Fatal("served beyond the limit")
	}
	if !errors.Is(err, redoubt.ErrBusy) {
		t.Logf("the reason was lost with the connection, as TCP may: %v", err)
	}
}
