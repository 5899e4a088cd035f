package bench

import (
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
	"golang.org/x/sys/unix"
)

// An appendConn is one connection's part of an append load. Whoever frees a
// writer sends what it writes next: the connection's reader goroutine after an
// ACK frame, or with a rate also the pacer.
type appendConn struct {
	load    *appendLoad
	drained chan struct{} // closed when the load was stopped and nothing is in flight

	acks []wire.Ack // of the ACK frame that is being read; the reader goroutine's

	mu       sync.Mutex
	peer     *peer.Conn
	feeds    []*feed   // by handle
	ready    [][]*feed // by lane: those with something to send
	frame    wire.AppendBuilder
	batch    redo.Builder
	buf      []byte
	align    int
	series   []*Histogram // latency, by interval
	acked    uint64       // sends
	flying   int          // sends
	arrivals uint64       // with a rate: of all feeds together
	stopped  bool
}

// options returns the callbacks.
func (c *appendConn) options() peer.Options {
	return peer.Options{
		Name:       "redoubt bench append",
		OnAck:      func(handle uint32, scl redoubt.LSN) { c.acks = append(c.acks, wire.Ack{Handle: handle, SCL: scl}) },
		OnAckFrame: c.onAckFrame,
		OnError: func(_ uint64, entry int, err error) {
			c.load.fail(fmt.Errorf("the node refused entry %d of a frame: %w", entry, err))
		},
		OnDown: c.load.fail,
	}
}

// open takes the connection, which has been made.
func (c *appendConn) open(p *peer.Conn) {
	w := p.Welcome()
	c.peer, c.align = p, int(w.Align)
	c.buf = make([]byte, w.MaxFrame)
	c.ready = make([][]*feed, w.Lanes)
}

// add gives the connection the next of its segments.
func (c *appendConn) add(f *feed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if int(f.target.handle) != len(c.feeds) {
		c.load.fail(fmt.Errorf("handle %d for segment %d of the connection: want them dense: %w", f.target.handle, len(c.feeds), redoubt.ErrInvalid))
		return
	}
	c.feeds = append(c.feeds, f)
}

// begin sends for the first time: half of the writers, then the other half, so
// that one half gathers while the device is busy with the other. Waiting
// writers that begin in step would stay in step for ever.
func (c *appendConn) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := make([]int, len(c.feeds))
	for i, f := range c.feeds {
		if c.load.opts.Batch == 0 {
			held[i] = f.free / 2
		}
		f.free -= held[i]
		c.list(f)
	}
	c.send()
	for i, f := range c.feeds {
		f.free += held[i]
		c.list(f)
	}
	c.send()
}

// list notes that f may have something to send.
func (c *appendConn) list(f *feed) {
	if !f.listed && f.ready() > 0 {
		f.listed = true
		c.ready[f.target.lane] = append(c.ready[f.target.lane], f)
	}
}

// send sends everything that is ready. c.mu is held, also while the socket
// pushes back: what is acknowledged meanwhile goes out together afterwards.
func (c *appendConn) send() {
	if c.stopped {
		return
	}
	for lane := range c.ready {
		for len(c.ready[lane]) > 0 {
			if err := c.peer.Append(c.fill(lane)); err != nil {
				c.load.fail(err)
				return
			}
		}
	}
}

// fill builds one frame for a lane, of which something is ready: a batch of each
// segment in turns, until it is full or nothing is left.
func (c *appendConn) fill(lane int) []byte {
	now := time.Since(c.load.epoch)
	c.frame.Reset(c.buf, c.align)
	list := c.ready[lane]
	for full := false; len(list) > 0 && !full; {
		left := list[:0]
		for i, f := range list {
			before := f.begun
			if full = !f.build(&c.frame, &c.batch, now); full {
				left = append(left, list[i:]...)
				break
			}
			c.flying += int(f.begun - before)
			if f.ready() > 0 {
				left = append(left, f)
			} else {
				f.listed = false
			}
		}
		list = left
	}
	c.ready[lane] = list
	return c.frame.Finish(0)
}

// onAckFrame is called when an ACK frame has been read to its end.
func (c *appendConn) onAckFrame() {
	now := time.Since(c.load.epoch)
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.histogram(now)
	for _, a := range c.acks {
		if int(a.Handle) >= len(c.feeds) {
			continue // attached, and not dealt out yet
		}
		f := c.feeds[a.Handle]
		n := f.ack(a.SCL, now, h)
		c.acked += uint64(n)
		c.flying -= n
		c.list(f)
	}
	c.acks = c.acks[:0]
	c.send()
	c.checkDrained()
}

// histogram returns that of the interval in which now lies.
func (c *appendConn) histogram(now time.Duration) *Histogram {
	i := int(now / c.load.opts.Interval)
	for len(c.series) <= i {
		c.series = append(c.series, new(Histogram))
	}
	return c.series[i]
}

func (c *appendConn) checkDrained() {
	if c.stopped && c.flying == 0 {
		select {
		case <-c.drained:
		default:
			close(c.drained)
		}
	}
}

// stop ends the sending and returns how many sends were acknowledged.
func (c *appendConn) stop() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	c.checkDrained()
	return c.acked
}

// pace begins sends when they are due. It sleeps in the system call: the
// runtime's timers, rounded up to a millisecond when a thread waits in epoll,
// would show in every latency.
func (c *appendConn) pace() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		c.mu.Lock()
		now := time.Since(c.load.epoch)
		next := c.arrive(now)
		c.send()
		stopped := c.stopped
		c.mu.Unlock()
		if stopped {
			return
		}
		// Not too long, or the end of the load would be missed.
		wait := min(next-time.Since(c.load.epoch), 10*time.Millisecond)
		if wait > 0 {
			ts := unix.NsecToTimespec(int64(wait))
			_ = unix.Nanosleep(&ts, nil) // a signal ends it early, which is harmless
		}
	}
}

// arrive notes what is due by now and returns when the next will be.
func (c *appendConn) arrive(now time.Duration) time.Duration {
	for {
		f := c.feeds[c.arrivals%uint64(len(c.feeds))]
		due := f.due(f.arrived)
		if due > now {
			return due
		}
		f.arrived++
		c.arrivals++
		c.list(f)
	}
}
