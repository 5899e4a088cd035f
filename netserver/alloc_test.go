package netserver

import (
	"io"
	"sync/atomic"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/wire"
)

// exchange returns a function that sends what is in frames at once and receives
// n bytes: a round trip of the whole pipe without a client that allocates.
func exchange(t testing.TB, c *client, frames []byte, n int) func() {
	buf := make([]byte, n)
	return func() {
		if _, err := c.conn.Write(frames); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.conn, buf); err != nil {
			t.Fatal(err)
		}
	}
}

// ackFrame is the length of an ACK frame for one handle.
const ackFrame = wire.HeaderSize + wire.AckSize

// TestNoAllocations counts what the whole process allocates while frames come
// in and acks, answers and pages go out.
func TestNoAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("allocations can't be counted under the race detector")
	}
	var next atomic.Uint64
	page := [][]byte{make([]byte, redoubt.PageSize)}
	descs := make([]wire.PageDesc, 1)
	f := start(t, &fake{
		append: func(c *Conn, f *Frame) {
			buf := f.Hold()
			for it := wire.Entries(f.Bytes()[:f.Len], f.Aux); it.Next(); {
				c.Handle(it.Handle)
			}
			c.Ack(0, redoubt.LSN(next.Add(1)))
			buf.Drop()
		},
		request: func(c *Conn, f *Frame) { c.ReplyPages(f.Req, descs, page, nil) },
	}, nil)
	for _, tc := range []struct {
		name   string
		frames []byte
		n      int
	}{
		{"append and ack", appendFrame(t, 1, 100, 100, 0, 0, 0, 0), ackFrame},
		{"ping", request(wire.KindPing, 1, nil), wire.HeaderSize},
		{"read", request(wire.KindRead, 1, &wire.Read{Pages: []uint32{1}}), wire.HeaderSize + wire.PageDescSize + redoubt.PageSize},
	} {
		c := f.dial()
		until(t, "the connection is there", func() bool { return len(f.srv.snapshot()) > 0 })
		for _, conn := range f.srv.snapshot() {
			conn.NewHandle(1)
		}
		run := exchange(t, c, tc.frames, tc.n)
		for range 100 {
			run() // buffers of the pools and queues grow once
		}
		if n := testing.AllocsPerRun(500, run); n != 0 {
			t.Errorf("%s: %v allocations", tc.name, n)
		}
		c.conn.Close()
		until(t, "the connection is gone", func() bool { return f.srv.Stats().Active == 0 })
	}
}

// BenchmarkAppend sends frames of 32 batches of 128-byte payloads over one
// connection, eight in flight, to a handler that acknowledges at once: what
// socket, frames and acks cost, client included.
func BenchmarkAppend(b *testing.B) {
	var next atomic.Uint64
	f := start(b, &fake{append: func(c *Conn, f *Frame) {
		for it := wire.Entries(f.Bytes()[:f.Len], f.Aux); it.Next(); {
			c.Handle(it.Handle)
		}
		c.Ack(0, redoubt.LSN(next.Add(1)))
	}}, nil)
	c := f.dial()
	f.srv.snapshot()[0].NewHandle(1)
	handles := make([]uint32, 32)
	frame := appendFrame(b, 1, 100, 128, handles...)
	acked := make(chan redoubt.LSN, 1)
	go func() {
		buf := make([]byte, ackFrame)
		for {
			if _, err := io.ReadFull(c.conn, buf); err != nil {
				close(acked)
				return
			}
			select {
			case <-acked:
			default:
			}
			acked <- wire.AckAt(buf[wire.HeaderSize:], 0).SCL
		}
	}()
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	scl := redoubt.LSN(0)
	sent := redoubt.LSN(0)
	for b.Loop() {
		for sent-scl >= 8 {
			scl = <-acked
		}
		if _, err := c.conn.Write(frame); err != nil {
			b.Fatal(err)
		}
		sent++
	}
	for scl < sent {
		scl = <-acked
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*32), "ns/batch")
	c.conn.Close()
	for range acked {
	}
}
