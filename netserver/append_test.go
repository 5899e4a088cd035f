package netserver

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"unsafe"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/slab"
	"github.com/redoubt-storage/redoubt/wire"
)

// TestAppendAndAck is the ordinary life of a client: it attaches two segments,
// appends to both in one frame, and is told.
func TestAppendAndAck(t *testing.T) {
	f := start(t, &fake{append: ackAll, request: attach}, nil)
	c := f.dial()
	if a, b := c.attach(), c.attach(); a != 0 || b != 1 {
		t.Errorf("handles %d and %d", a, b)
	}
	c.send(appendFrame(t, 5, 100, 50, 0, 1))
	c.recvAcks(map[uint32]redoubt.LSN{0: 100, 1: 101})

	// A handle that the connection doesn't have.
	c.send(appendFrame(t, 6, 200, 50, 9))
	if h, e := c.recvError(); h.Req != 6 || e.Code != wire.CodeNotFound {
		t.Errorf("request %d: %+v", h.Req, e)
	}
	if s := f.srv.Stats(); s.AppendFrames != 2 || s.AppendEntries != 3 || s.Acks != 2 || s.Errors != 1 || s.AppendBytes != 1024 {
		t.Errorf("%+v", s)
	}
}

// TestZeroCopy: what Append is given lies in the pool's region, at a multiple of
// the alignment, and frames that arrive together lie side by side.
func TestZeroCopy(t *testing.T) {
	type place struct{ off, n int }
	var (
		pool   = newPool(t, 4)
		base   = uintptr(unsafe.Pointer(unsafe.SliceData(pool.Region())))
		places = make(chan place, 100)
	)
	f := start(t, &fake{append: func(c *Conn, f *Frame) {
		b := f.Bytes()
		places <- place{int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) - base), len(b)}
	}}, func(o *Options) { o.Pool, o.Welcome.Align = pool, 4096 })
	c := f.dial()
	frame := wire.Pad(appendFrame(t, 1, 100, 5000, 0), 4096)
	c.send(slices.Concat(frame, frame, frame))
	last := -1
	for i := range 3 {
		p := <-places
		if p.off < 0 || p.off+p.n > len(pool.Region()) || p.off%4096 != 0 || p.n != len(frame) {
			t.Errorf("frame %d of %d bytes lies at %d of a region of %d", i, p.n, p.off, len(pool.Region()))
		}
		if i > 0 && p.off != last {
			t.Errorf("frame %d lies at %d, the one before ends at %d", i, p.off, last)
		}
		last = p.off + p.n
	}
}

// TestStreamOfFrames sends frames of all sizes in pieces of all sizes through a
// few slabs, whose frames the handler holds for a while, and looks at every
// byte when it lets go.
func TestStreamOfFrames(t *testing.T) {
	type held struct {
		buf    *slab.Buf
		bytes  []byte
		header wire.Header
	}
	var (
		mu   sync.Mutex
		keep []held
		rng  = rand.New(rand.NewPCG(1, 2))
		lsns []redoubt.LSN
	)
	release := func(h held) {
		it := wire.Entries(h.bytes[:h.header.Len], h.header.Aux)
		for it.Next() {
			bh, err := redo.Verify(testVolume, it.Batch)
			if err != nil {
				t.Error(err)
			}
			lsns = append(lsns, bh.First)
		}
		if it.Err() != nil {
			t.Error(it.Err())
		}
		h.buf.Drop()
	}
	const frames = 400
	f := start(t, &fake{append: func(c *Conn, f *Frame) {
		mu.Lock()
		defer mu.Unlock()
		keep = append(keep, held{f.Hold(), f.Bytes(), f.Header})
		for len(keep) > rng.IntN(6) {
			release(keep[0])
			keep = keep[1:]
		}
	}}, func(o *Options) { o.Pool = newPool(t, 7) })
	c := f.dial()

	var want []redoubt.LSN
	crng := rand.New(rand.NewPCG(3, 4))
	for i := range frames {
		n := 1 + crng.IntN(2000)
		if crng.IntN(8) == 0 {
			n = 1 + crng.IntN(250<<10)
		}
		first := redoubt.LSN(1000 * (i + 1))
		frame := appendFrame(t, uint64(i), first, n, 0)
		want = append(want, first)
		for len(frame) > 0 {
			k := min(len(frame), 1+crng.IntN(100<<10))
			c.send(frame[:k])
			frame = frame[k:]
		}
	}
	until(t, "all frames are handed over", func() bool { return f.srv.Stats().AppendFrames == frames })
	mu.Lock()
	defer mu.Unlock()
	for _, h := range keep {
		release(h)
	}
	keep = nil
	if !slices.Equal(lsns, want) {
		t.Errorf("%d batches came, want %d, or in another order", len(lsns), len(want))
	}
	if s := f.srv.Stats(); s.Reads >= s.BytesIn/wire.HelloAlign {
		t.Errorf("%d reads for %d bytes", s.Reads, s.BytesIn)
	}
}

// TestBackPressure: a handler that holds on to everything stops the client when
// the slabs run out, and lets it go on when it lets go.
func TestBackPressure(t *testing.T) {
	var (
		mu    sync.Mutex
		holds []*slab.Buf
	)
	f := start(t, &fake{append: func(c *Conn, f *Frame) {
		mu.Lock()
		defer mu.Unlock()
		holds = append(holds, f.Hold())
	}}, func(o *Options) { o.Pool = newPool(t, 3) })
	c := f.dial()
	const frames = 40
	frame := appendFrame(t, 1, 100, 200<<10, 0)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for range frames {
			if _, err := c.conn.Write(frame); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	until(t, "the reader waits for a slab", func() bool { return f.pool.Waiting() == 1 })
	if got := f.srv.Stats().AppendFrames; got == 0 || got >= frames {
		t.Fatalf("%d of %d frames were handed over with 3 slabs", got, frames)
	}
	for f.srv.Stats().AppendFrames < frames {
		got := f.srv.Stats().AppendFrames
		mu.Lock()
		for _, b := range holds {
			b.Drop()
		}
		holds = nil
		mu.Unlock()
		until(t, "the stream goes on", func() bool { return f.srv.Stats().AppendFrames > got || got == frames })
	}
	<-sent
	mu.Lock()
	defer mu.Unlock()
	for _, b := range holds {
		b.Drop()
	}
	if s := f.srv.Stats(); s.SlabWaits == 0 {
		t.Errorf("no wait was counted: %+v", s)
	}
}

// TestIdleConnectionsHoldNoSlab: many connections that have sent something, and
// then rest, leave every slab to others.
func TestIdleConnectionsHoldNoSlab(t *testing.T) {
	f := start(t, &fake{append: ackAll, request: attach}, func(o *Options) { o.Pool = newPool(t, 2) })
	for range 20 {
		c := f.dial()
		c.attach()
		c.send(appendFrame(t, 5, 100, 50, 0))
		c.recvAcks(map[uint32]redoubt.LSN{0: 100})
	}
	if f.srv.Stats().SlabsRobbed == 0 {
		t.Error("twenty connections took turns with two slabs, and none was taken from another")
	}
	until(t, "all slabs are free", func() bool { return f.pool.Free() == f.pool.Cap() })
}

// TestHandlerMayOverwriteHeaders: a node puts its own headers over the frame's.
func TestHandlerMayOverwriteHeaders(t *testing.T) {
	got := make(chan uint64, 3)
	f := start(t, &fake{append: func(c *Conn, f *Frame) {
		got <- f.Req
		b := f.Bytes()
		for it := wire.Entries(b[:f.Len], f.Aux); it.Next(); {
			clear(b[it.Off : it.Off+wire.EntryHeaderSize])
		}
		clear(b[:wire.HeaderSize])
	}}, nil)
	c := f.dial()
	c.send(slices.Concat(appendFrame(t, 1, 100, 500, 0, 1), appendFrame(t, 2, 200, 500, 0, 1), appendFrame(t, 3, 300, 500, 0, 1)))
	for want := uint64(1); want <= 3; want++ {
		if req := <-got; req != want {
			t.Errorf("frame %d instead of %d", req, want)
		}
	}
}
