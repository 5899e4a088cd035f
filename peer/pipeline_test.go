package peer_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/netserver"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

// oneBatch builds a frame with one batch of n records for the handle.
func oneBatch(a *wire.AppendBuilder, buf []byte, align, records int, handle uint32, prev redoubt.LSN) []byte {
	a.Reset(buf, align)
	var b redo.Builder
	b.Reset(a.Next(), volID(1), 0, 5, prev)
	for i := range records {
		b.Fill(prev+redoubt.LSN(i)+1, uint32(i%8), 0, 8*i, 8, byte(i+1), true)
	}
	a.Commit(handle, len(b.Finish()), 0, 0)
	return a.Finish(1)
}

// TestManyAtOnce: appends, reads and calls of several goroutines over one
// connection, each of which gets its own answer.
func TestManyAtOnce(t *testing.T) {
	n := startNode(t, nil)
	var o peer.Options
	told := listen(&o)
	c := dial(t, n.addr(), o)
	ctx := testContext(t)
	if _, err := c.Create(ctx, &wire.Create{Segment: segID(1), Volume: volID(1), Pages: 1024, Kind: redoubt.FullSegment, VolumeEpoch: 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Attach(ctx, &wire.Attach{Segment: segID(1)}); err != nil {
		t.Fatal(err)
	}
	const batches, records = 50, 16
	var wg sync.WaitGroup
	wg.Go(func() {
		var a wire.AppendBuilder
		buf := make([]byte, 8192)
		for i := range batches {
			if err := c.Append(oneBatch(&a, buf, 512, records, 0, redoubt.LSN(i*records))); err != nil {
				t.Error(err)
			}
		}
	})
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for range 25 {
				if rng.IntN(3) == 0 {
					id := segID(1 + rng.IntN(2))
					d, err := c.Describe(ctx, id)
					if id == segID(1) && (err != nil || d.Segment != id) || id != segID(1) && !errors.Is(err, redoubt.ErrNotFound) {
						t.Errorf("%v: %+v, %v", id, d, err)
					}
					continue
				}
				first := uint32(rng.IntN(8))
				r := &peer.ReadRequest{Pages: []uint32{first, 4 + first}, Buf: make([]byte, 2*redoubt.PageSize), Volume: volID(1), PGPages: 1024}
				if err := c.ReadPages(ctx, r); err != nil || r.Descs[0].Page != first || r.Descs[1].Code != wire.CodeOK {
					t.Errorf("%v: %+v", err, r.Descs)
				}
			}
		})
	}
	wg.Wait()
	told.wait(func() bool { return told.scl[0] == batches*records })
	if len(told.errs) > 0 {
		t.Error(told.errs)
	}
}

// TestReadFromCallback: each answer asks for the next page, on the reader
// goroutine.
func TestReadFromCallback(t *testing.T) {
	n := startNode(t, nil)
	c := dial(t, n.addr(), peer.Options{InFlight: 1})
	ctx := testContext(t)
	if _, err := c.Create(ctx, &wire.Create{Segment: segID(1), Volume: volID(1), Pages: 1024, Kind: redoubt.FullSegment}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Attach(ctx, &wire.Attach{Segment: segID(1)}); err != nil {
		t.Fatal(err)
	}
	done := make(chan uint32)
	r := &peer.ReadRequest{Pages: []uint32{0}, Buf: make([]byte, redoubt.PageSize)}
	r.Done = func(r *peer.ReadRequest, err error) {
		if r.Pages[0]++; err != nil || r.Pages[0] == 50 {
			done <- r.Pages[0]
			return
		}
		if err := c.Read(r); err != nil {
			t.Error(err)
			done <- 0
		}
	}
	if err := c.Read(r); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got != 50 {
		t.Errorf("ended at %d", got)
	}
}

// TestAnswersReadTogether lead to requests that are written together: eight
// answers that arrive at once, each of which asks for more.
func TestAnswersReadTogether(t *testing.T) {
	const n = 8
	got := make(chan int, 1)
	addr := listenRaw(t, func(node *rawNode) {
		node.hello()
		var answers []byte
		for range n {
			h, _ := node.recv()
			answers = wire.AppendFrame(answers, wire.KindError, 0, h.Req, &wire.Error{Code: wire.CodeBusy, Entry: wire.NoEntry})
		}
		node.send(answers)
		k, err := node.conn.Read(make([]byte, 2*n*wire.HelloAlign))
		if err != nil {
			t.Error(err)
		}
		got <- k
	})
	c := dial(t, addr, peer.Options{})
	for range n {
		again := true
		r := &peer.ReadRequest{Pages: []uint32{1}, Buf: make([]byte, redoubt.PageSize)}
		r.Done = func(r *peer.ReadRequest, err error) {
			if again {
				again = false
				if err := c.Read(r); err != nil {
					t.Error(err)
				}
			}
		}
		if err := c.Read(r); err != nil {
			t.Fatal(err)
		}
	}
	if k := <-got; k != n*wire.HelloAlign {
		t.Errorf("the first read of the node returned %d bytes, want all %d requests", k, n)
	}
}

// TestLongAnswer: one that is larger than the reader's buffer.
func TestLongAnswer(t *testing.T) {
	records := make([]wire.Held, 30000)
	for i := range records {
		records[i].LSN = redoubt.LSN(i + 1)
	}
	addr := listenRaw(t, func(n *rawNode) {
		n.hello()
		for {
			h, _ := n.recv()
			if h.Kind == 0 {
				return
			}
			n.reply(wire.KindTailed, h.Req, &wire.Tailed{SCL: 7, Records: records})
		}
	})
	c := dial(t, addr, peer.Options{})
	for range 2 {
		got, err := c.Tail(testContext(t), 0, 0, 0)
		if err != nil || len(got.Records) != len(records) || got.Records[29999].LSN != 30000 {
			t.Errorf("%d records, %v", len(got.Records), err)
		}
	}
}

// TestBye: after BYE the node answers what it has, and nothing new is sent.
func TestBye(t *testing.T) {
	said := make(chan struct{})
	addr := listenRaw(t, func(n *rawNode) {
		n.hello()
		a, _ := n.recv()
		n.reply(wire.KindBye, 0, nil)
		n.send(wire.AppendFrame(nil, wire.KindOK, 0, a.Req, nil))
		<-said
		if h, _ := n.recv(); h.Kind != 0 {
			t.Errorf("%v after BYE", h.Kind)
		}
	})
	c := dial(t, addr, peer.Options{})
	if err := c.Ping(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := c.Ping(testContext(t)); !errors.Is(err, redoubt.ErrClosed) {
		t.Error(err)
	}
	c.Abort()
	close(said)
	<-c.Done()
}

// A quick handler answers without allocating.
type quick struct {
	scl   atomic.Uint64
	descs []wire.PageDesc
	pages [][]byte
}

func (h *quick) Append(c *netserver.Conn, f *netserver.Frame) { c.Ack(0, redoubt.LSN(h.scl.Add(1))) }
func (h *quick) Closed(*netserver.Conn)                       {}
func (h *quick) Request(c *netserver.Conn, f *netserver.Frame) {
	if f.Kind == wire.KindRead {
		c.ReplyPages(f.Req, h.descs, h.pages, nil)
		return
	}
	if f.Kind == wire.KindAttach {
		c.NewHandle(h)
		c.Reply(f.Req, wire.KindAttached, &wire.Attached{})
	}
}

// startQuick serves a quick handler and returns a connection with one handle.
func startQuick(t testing.TB, pages int, o peer.Options) *peer.Conn {
	h := &quick{}
	page := make([]byte, redoubt.PageSize)
	for i := range pages {
		h.descs = append(h.descs, wire.PageDesc{Page: uint32(i), LSN: 5, Sum: redo.PageSum(volID(1), redoubt.PageNo(i), 5, page)})
		h.pages = append(h.pages, page)
	}
	n := startNode(t, func(o *netserver.Options) { o.Handler = h })
	c := dial(t, n.addr(), o)
	if _, err := c.Attach(testContext(t), &wire.Attach{}); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestNoAllocations counts what the whole process, the server included,
// allocates for an append and its ack, and for a read and its pages.
func TestNoAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("allocations can't be counted under the race detector")
	}
	acked := make(chan redoubt.LSN, 1)
	read := make(chan error, 1)
	c := startQuick(t, 2, peer.Options{OnAck: func(_ uint32, scl redoubt.LSN) { acked <- scl }, OnAckFrame: func() {}})
	var a wire.AppendBuilder
	buf := make([]byte, 4096)
	r := &peer.ReadRequest{Pages: []uint32{0, 1}, Buf: make([]byte, 2*redoubt.PageSize), Volume: volID(1), PGPages: 1024,
		Done: func(_ *peer.ReadRequest, err error) { read <- err }}
	for name, f := range map[string]func(){
		"append and ack": func() {
			if err := c.Append(oneBatch(&a, buf, 512, 4, 0, 10)); err != nil {
				t.Fatal(err)
			}
			<-acked
		},
		"read": func() {
			if err := c.Read(r); err != nil {
				t.Fatal(err)
			}
			if err := <-read; err != nil || r.Descs[1].Code != wire.CodeOK {
				t.Fatal(err)
			}
		},
	} {
		for range 100 {
			f()
		}
		if n := testing.AllocsPerRun(500, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkRead keeps 64 reads of one page in flight: what sockets and framing
// cost for 16 KiB, both sides included, with and without the page sums. Each
// answer asks for the next page.
func BenchmarkRead(b *testing.B) {
	for _, bc := range []struct {
		name string
		vol  redoubt.VolumeID
	}{{"unchecked", redoubt.VolumeID{}}, {"checked", volID(1)}} {
		b.Run(bc.name, func(b *testing.B) {
			const depth = 64
			c := startQuick(b, 1, peer.Options{})
			var left atomic.Int64
			left.Store(int64(b.N))
			ended := make(chan struct{}, depth)
			next := func(r *peer.ReadRequest) {
				if left.Add(-1) < 0 || c.Read(r) != nil {
					ended <- struct{}{}
				}
			}
			b.SetBytes(redoubt.PageSize)
			b.ReportAllocs()
			b.ResetTimer()
			for range depth {
				next(&peer.ReadRequest{Pages: []uint32{0}, Buf: make([]byte, redoubt.PageSize), Volume: bc.vol, PGPages: 1024,
					Done: func(r *peer.ReadRequest, err error) {
						if err != nil || r.Descs[0].Code != wire.CodeOK {
							b.Error(err, r.Descs)
						}
						next(r)
					}})
			}
			for range depth {
				<-ended
			}
		})
	}
}

// BenchmarkAppend keeps appends of one batch of 32 records on their way.
func BenchmarkAppend(b *testing.B) {
	const records = 32
	c := startQuick(b, 1, peer.Options{})
	var a wire.AppendBuilder
	buf := make([]byte, 8192)
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Append(oneBatch(&a, buf, 512, records, 0, 10)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*records), "ns/record")
}
