package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

// formatDevices makes n small devices in a directory of the test.
func formatDevices(t testing.TB, n int, size int64) []string {
	t.Helper()
	dir := t.TempDir()
	node := redoubt.NodeID(redoubt.NewID())
	cluster := redoubt.ClusterID(redoubt.NewID())
	var all []string
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("d%d", i))
		if _, err := blockdev.Format(t.Context(), path, blockdev.FormatOptions{Size: size, ExtentSize: 1 << 20,
			Cluster: cluster, Node: node, Position: i, Count: n}); err != nil {
			t.Fatal(err)
		}
		all = append(all, path)
	}
	return all
}

// openNode starts a node on devices; the test closes it.
func openNode(t testing.TB, devices []string, change func(*Options)) *Node {
	t.Helper()
	o := Options{Devices: devices, Listen: "127.0.0.1:0", HTTP: "127.0.0.1:0", Memory: 128 << 20, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&o)
	}
	n, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func closeNode(t testing.TB, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// A client is a connection that knows the SCLs it was told.
type client struct {
	t testing.TB
	*peer.Conn
	mu   sync.Mutex
	cond *sync.Cond
	scl  map[uint32]redoubt.LSN
	errs []error
}

func dial(t testing.TB, n *Node) *client {
	t.Helper()
	c := &client{t: t, scl: map[uint32]redoubt.LSN{}}
	c.cond = sync.NewCond(&c.mu)
	conn, err := peer.Dial(t.Context(), n.Addr().String(), peer.Options{
		OnAck: func(h uint32, scl redoubt.LSN) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.scl[h] = scl
			c.cond.Broadcast()
		},
		OnError: func(_ uint64, _ int, err error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.errs = append(c.errs, err)
			c.cond.Broadcast()
		},
		OnDown: func(error) { c.cond.Broadcast() },
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Conn = conn
	t.Cleanup(conn.Abort)
	return c
}

// await waits until the handle's SCL has reached lsn, or an append was refused.
func (c *client) await(h uint32, lsn redoubt.LSN) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.scl[h] < lsn {
		if len(c.errs) > 0 {
			err := c.errs[0]
			c.errs = c.errs[1:]
			return err
		}
		c.cond.Wait()
	}
	return nil
}

// A segmentWriter writes one segment's log over a connection.
type segmentWriter struct {
	c     *client
	spec  wire.Create
	at    wire.Attached
	epoch redoubt.Epoch
	prev  redoubt.LSN
	pages map[uint32]redoubt.LSN
	floor redoubt.LSN
	buf   []byte
}

func (c *client) create(pg redoubt.PGNo, lane uint8) *segmentWriter {
	c.t.Helper()
	w := &segmentWriter{c: c, epoch: 1, pages: map[uint32]redoubt.LSN{}, buf: make([]byte, 256<<10)}
	w.spec = wire.Create{Segment: redoubt.SegmentID(redoubt.NewID()), Volume: redoubt.VolumeID(redoubt.NewID()), PG: pg, Pages: redoubt.MinPGPages,
		Kind: redoubt.FullSegment, Lane: lane, VolumeEpoch: 1, MembershipEpoch: 1, GeometryEpoch: 1}
	if _, err := c.Create(c.t.Context(), &w.spec); err != nil {
		c.t.Fatal(err)
	}
	w.attach()
	return w
}

func (w *segmentWriter) attach() {
	w.c.t.Helper()
	at, err := w.c.Attach(w.c.t.Context(), &wire.Attach{Segment: w.spec.Segment, Volume: w.spec.Volume, VolumeEpoch: w.epoch, MembershipEpoch: 1})
	if err != nil {
		w.c.t.Fatal(err)
	}
	w.at = at
}

// send appends count records, the i-th of which fills 64 bytes of page lsn%pages
// with byte(lsn).
func (w *segmentWriter) send(count, pages int) redoubt.LSN {
	w.c.t.Helper()
	var fb wire.AppendBuilder
	var bb redo.Builder
	fb.Reset(w.buf, int(w.c.Welcome().Align))
	bb.Reset(fb.Next(), w.spec.Volume, w.spec.PG, w.epoch, w.prev)
	for range count {
		lsn := w.prev + 1
		page := uint32(int(lsn) % pages)
		if !bb.Fill(lsn, page, w.pages[page], fillOffset(lsn), 64, byte(lsn), true) {
			w.c.t.Fatal("batch is full")
		}
		w.prev, w.pages[page] = lsn, lsn
	}
	fb.Commit(w.at.Handle, len(bb.Finish()), w.floor, w.floor)
	if err := w.c.Append(fb.Finish(uint64(w.prev))); err != nil {
		w.c.t.Fatal(err)
	}
	return w.prev
}

func fillOffset(lsn redoubt.LSN) int { return int(lsn%256) * 64 }

// check reads all pages as of the last record and compares them.
func (w *segmentWriter) check(pages int) {
	w.c.t.Helper()
	want := make([][]byte, pages)
	for i := range want {
		want[i] = make([]byte, redoubt.PageSize)
	}
	for lsn := redoubt.LSN(1); lsn <= w.prev; lsn++ {
		p := want[int(lsn)%pages][fillOffset(lsn):]
		for i := range 64 {
			p[i] = byte(lsn)
		}
	}
	for first := 0; first < pages; first += 64 {
		n := min(64, pages-first)
		r := &peer.ReadRequest{Handle: w.at.Handle, Point: w.prev, Buf: make([]byte, n*redoubt.PageSize), Volume: w.spec.Volume, PG: w.spec.PG, PGPages: w.spec.Pages}
		for i := range n {
			r.Pages = append(r.Pages, uint32(first+i))
		}
		if err := w.c.ReadPages(w.c.t.Context(), r); err != nil {
			w.c.t.Fatal(err)
		}
		for i := range n {
			if r.Descs[i].Code != wire.CodeOK || string(r.Buf[i*redoubt.PageSize:(i+1)*redoubt.PageSize]) != string(want[first+i]) {
				w.c.t.Fatalf("page %d as of %d: code %v, LSN %d, bytes differ: %v", first+i, w.prev, r.Descs[i].Code, r.Descs[i].LSN, r.Descs[i].Code == wire.CodeOK)
			}
		}
	}
}

// What a client wrote is acknowledged, read back, survives a clean restart and
// coalescing, on every engine.
func TestWriteReadRestart(t *testing.T) {
	for _, engine := range []string{"sync", "auto"} {
		t.Run(engine, func(t *testing.T) {
			devices := formatDevices(t, 2, 64<<20)
			opts := func(o *Options) { o.IOEngine = engine; o.Coalesce.MaxAge = 50 * time.Millisecond }
			n := openNode(t, devices, opts)
			c := dial(t, n)
			a, b := c.create(3, 0), c.create(4, 1)
			for range 50 {
				for _, w := range []*segmentWriter{a, b} {
					w.floor = w.prev
					if err := c.await(w.at.Handle, w.send(20, 100)); err != nil {
						t.Fatal(err)
					}
				}
			}
			a.check(100)
			b.check(100)
			closeNode(t, n)

			n = openNode(t, devices, opts)
			defer func() { closeNode(t, n) }()
			c = dial(t, n)
			for _, w := range []*segmentWriter{a, b} {
				w.c = c
				w.attach()
				if d := w.at.Description; d.SCL != w.prev || d.Unknown != wire.UnknownNone {
					t.Fatalf("after a restart: %+v, want SCL %d", d, w.prev)
				}
				w.check(100)
				w.floor = w.prev
				if err := c.await(w.at.Handle, w.send(20, 100)); err != nil {
					t.Fatal(err)
				}
				if err := c.SetFloor(t.Context(), w.at.Handle, w.prev, w.prev); err != nil {
					t.Fatal(err)
				}
				n.lanes[w.at.Lane].flush(t)
				d, err := c.Describe(t.Context(), w.spec.Segment)
				if err != nil || d.Coalesced != w.prev || d.PageCount != 100 {
					t.Fatalf("after a flush: %+v, %v", d, err)
				}
				w.check(100)
			}
		})
	}
}

func (l *lane) flush(t testing.TB) {
	t.Helper()
	if err := l.coal.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// An older writer is refused and changes nothing.
func TestFence(t *testing.T) {
	n := openNode(t, formatDevices(t, 1, 32<<20), nil)
	defer closeNode(t, n)
	c := dial(t, n)
	w := c.create(0, 0)
	if err := c.await(w.at.Handle, w.send(5, 3)); err != nil {
		t.Fatal(err)
	}
	d, err := c.Fence(t.Context(), w.spec.Segment, 2)
	if err != nil || d.VolumeEpoch != 2 || d.SCL != 5 {
		t.Fatalf("fence: %+v, %v", d, err)
	}
	w.send(1, 3)
	if err := c.await(w.at.Handle, 6); !errors.Is(err, redoubt.ErrFenced) {
		t.Fatalf("append of the old writer: %v", err)
	}
	if _, err := c.Attach(t.Context(), &wire.Attach{Segment: w.spec.Segment, Volume: w.spec.Volume, VolumeEpoch: 1, MembershipEpoch: 1}); !errors.Is(err, redoubt.ErrFenced) {
		t.Fatalf("attach of the old writer: %v", err)
	}
	if d, err = c.Describe(t.Context(), w.spec.Segment); err != nil || d.Highest != 5 {
		t.Fatalf("a fenced append changed something: %+v, %v", d, err)
	}
	tail, err := c.Tail(t.Context(), w.at.Handle, 2, 10)
	if err != nil || len(tail.Records) != 3 || tail.Records[0].LSN != 3 || !tail.Records[0].CPL {
		t.Fatalf("tail: %+v, %v", tail, err)
	}
	if d, err = c.Truncate(t.Context(), w.spec.Segment, redoubt.Truncation{Epoch: 2, From: 4, To: 1004}); err != nil || d.SCL != 4 {
		t.Fatalf("truncate: %+v, %v", d, err)
	}
	list, err := c.List(t.Context(), redoubt.SegmentID{}, 0)
	if err != nil || len(list.Segments) != 1 || list.Segments[0].SCL != 4 {
		t.Fatalf("list: %+v, %v", list, err)
	}
	if err := c.Delete(t.Context(), &wire.Delete{Segment: w.spec.Segment, VolumeEpoch: 2, MembershipEpoch: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Describe(t.Context(), w.spec.Segment); !errors.Is(err, redoubt.ErrNotFound) {
		t.Fatalf("describe of a deleted segment: %v", err)
	}
}
