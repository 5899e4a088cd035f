package peer_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/wire"
)

// A rawNode is the node's end of one connection, frame by frame, so that it can
// say what no node would.
type rawNode struct {
	t    *testing.T
	conn net.Conn
}

// listenRaw accepts one connection and plays the script on it; the connection
// is closed when the script returns.
func listenRaw(t *testing.T, script func(n *rawNode)) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		nc.SetDeadline(time.Now().Add(patience))
		script(&rawNode{t, nc})
		nc.Close()
	}()
	t.Cleanup(func() {
		ln.Close()
		<-ended
	})
	return ln.Addr().String()
}

func testWelcome() *wire.Welcome {
	return &wire.Welcome{Version: 1, Lanes: 1, Align: 512, MaxFrame: 512 << 10, MaxPages: 64, MaxInFlight: 8, MaxHandles: 10, Name: "raw"}
}

// hello takes the HELLO and sends WELCOME.
func (n *rawNode) hello() {
	h, _ := n.recv()
	if h.Kind != wire.KindHello {
		n.t.Errorf("%v instead of HELLO", h.Kind)
	}
	n.send(wire.AppendFrame(nil, wire.KindWelcome, 0, h.Req, testWelcome()))
}

// recv receives a client's frame with its padding; kind 0 at the end.
func (n *rawNode) recv() (wire.Header, []byte) {
	head := make([]byte, wire.HeaderSize)
	if _, err := io.ReadFull(n.conn, head); err != nil {
		return wire.Header{}, nil
	}
	h, err := wire.ParseHeader(head, 512<<10)
	if err != nil {
		n.t.Error(err)
		return wire.Header{}, nil
	}
	body := make([]byte, wire.Padded(h.Len, 512)-wire.HeaderSize)
	if _, err := io.ReadFull(n.conn, body); err != nil {
		n.t.Error(err)
		return wire.Header{}, nil
	}
	body = body[:h.Len-wire.HeaderSize]
	if err := h.CheckBody(body); err != nil {
		n.t.Error(err)
	}
	return h, body
}

func (n *rawNode) send(b []byte) { n.conn.Write(b) }

func (n *rawNode) reply(kind wire.Kind, req uint64, m wire.Appender) {
	n.send(wire.AppendFrame(nil, kind, 0, req, m))
}

// pagesFrame returns a PAGES frame with pages full of v.
func pagesFrame(req uint64, v byte, pages ...uint32) []byte {
	var descs []wire.PageDesc
	for _, p := range pages {
		descs = append(descs, wire.PageDesc{Page: p, LSN: 9})
	}
	b := wire.AppendPagesHead(nil, req, descs)
	for range len(pages) * 16384 {
		b = append(b, v)
	}
	return b
}

// ctx returns a context that ends when the test has waited long enough.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func dial(t testing.TB, addr string, o peer.Options) *peer.Conn {
	t.Helper()
	c, err := peer.Dial(testContext(t), addr, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
