package netserver

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt/slab"
	"github.com/redoubt-storage/redoubt/wire"
)

// TestShutdownDrains: what was taken is answered and acknowledged after BYE,
// then the connection ends; new clients find nobody.
func TestShutdownDrains(t *testing.T) {
	var (
		reqs, conns, request0 = collect(5)
		draining              = make(chan struct{})
		finish                = make(chan struct{})
		mu                    sync.Mutex
		frames                []func()
	)
	h := &fake{request: request0, append: func(c *Conn, f *Frame) {
		buf := f.Hold()
		mu.Lock()
		defer mu.Unlock()
		frames = append(frames, func() {
			c.Ack(0, 4711)
			buf.Drop()
		})
	}}
	f := start(t, h, func(o *Options) {
		o.Drain = func(ctx context.Context) {
			close(draining)
			<-finish
			mu.Lock()
			defer mu.Unlock()
			for _, done := range frames {
				done()
			}
		}
	})
	c := f.dial()
	c.send(request(wire.KindDescribe, 1, &wire.Describe{}))
	<-reqs
	conn := <-conns
	if _, err := conn.NewHandle(1); err != nil {
		t.Fatal(err)
	}
	c.send(appendFrame(t, 2, 4711, 100, 0))
	until(t, "the frame is taken", func() bool { return f.srv.Stats().AppendFrames == 1 })

	shut := make(chan error)
	go func() { shut <- f.shutdown(context.Background()) }()
	if h, _ := c.recv(); h.Kind != wire.KindBye {
		t.Fatalf("%v instead of BYE", h.Kind)
	}
	<-draining
	c.conn.Write(request(wire.KindDescribe, 3, &wire.Describe{})) // nobody reads this
	close(finish)
	if h, body := c.recv(); h.Kind != wire.KindAck || wire.AckAt(body, 0) != (wire.Ack{SCL: 4711}) {
		t.Fatalf("%v instead of ACK", h.Kind)
	}
	conn.Reply(1, wire.KindOK, nil)
	if h, _ := c.recv(); h.Kind != wire.KindOK || h.Req != 1 {
		t.Fatalf("%+v", h)
	}
	c.recvEnd()
	c.conn.Close()
	if err := <-shut; err != nil {
		t.Error(err)
	}
	if len(reqs) > 0 {
		t.Error("a request was handed over after BYE")
	}
}

// TestShutdownCuts: when the time is up, connections that wait for something
// are cut, wherever they wait.
func TestShutdownCuts(t *testing.T) {
	var (
		released atomic.Int32
		conns    = make(chan *Conn, 8)
		held     = make(chan *slab.Buf, 100)
	)
	f := start(t, &fake{
		request: sendPages(conns, &released),
		append:  func(c *Conn, f *Frame) { held <- f.Hold() },
	}, func(o *Options) {
		smallBuffers(o)
		o.Pool = newPool(t, 3)
	})
	f.connect()        // waits with its HELLO
	f.dial()           // rests
	unread := f.dial() // doesn't read its answers
	stuck(t, f, unread, conns)
	starved := f.dial() // waits for a slab
	frame := appendFrame(t, 1, 100, 200<<10, 0)
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 50 {
			starved.conn.Write(frame) // until it is cut
		}
	})
	until(t, "a reader waits for a slab", func() bool { return f.pool.Waiting() == 1 })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := f.shutdown(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "were cut") {
		t.Error(err)
	}
	wg.Wait()
	if s := f.srv.Stats(); s.Active != 0 || released.Load() != 8 {
		t.Errorf("%d answers given back, %+v", released.Load(), s)
	}
	for len(held) > 0 {
		(<-held).Drop()
	}
}

// TestShutdownNames those that are inside the handler and can't be cut.
func TestShutdownNames(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	f := start(t, &fake{append: func(c *Conn, f *Frame) {
		close(inside)
		<-leave
	}}, func(o *Options) { o.LingerTimeout = 10 * time.Millisecond })
	c := f.dial()
	c.send(appendFrame(t, 1, 100, 100, 0))
	<-inside
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := f.shutdown(ctx); err == nil || !strings.Contains(err.Error(), "1 connections are still inside the handler") {
		t.Error(err)
	}
	close(leave)
	until(t, "it comes back", func() bool { return f.srv.Stats().Active == 0 })
}

// TestRefusedWhileShuttingDown: a connection that was accepted at the last
// moment is not served.
func TestRefusedWhileShuttingDown(t *testing.T) {
	f := start(t, &fake{}, nil)
	c := f.connect()
	until(t, "it is accepted", func() bool { return f.srv.Stats().Active == 1 })
	if err := f.shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	c.recvEnd()
	if _, err := net.Dial("tcp", f.srv.Addr().String()); err == nil {
		t.Error("somebody listens")
	}
}
