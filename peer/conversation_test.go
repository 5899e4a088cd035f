package peer_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

// A news keeps what the callbacks of a connection were told.
type news struct {
	mu    sync.Mutex
	moved sync.Cond
	scl   map[uint32]redoubt.LSN
	errs  []string
	down  []error
	// frames counts ACK frames; open, acks since the last.
	frames, open int
}

func listen(o *peer.Options) *news {
	n := &news{scl: map[uint32]redoubt.LSN{}}
	n.moved.L = &n.mu
	locked := func(f func()) {
		n.mu.Lock()
		f()
		n.mu.Unlock()
		n.moved.Broadcast()
	}
	o.OnAck = func(h uint32, scl redoubt.LSN) { locked(func() { n.scl[h] = max(n.scl[h], scl); n.open++ }) }
	o.OnAckFrame = func() { locked(func() { n.frames++; n.open = 0 }) }
	o.OnError = func(req uint64, entry int, err error) {
		locked(func() { n.errs = append(n.errs, fmt.Sprintf("request %d entry %d: %s", req, entry, verdict(err))) })
	}
	o.OnDown = func(err error) { locked(func() { n.down = append(n.down, err) }) }
	return n
}

// wait waits until cond holds of the news.
func (n *news) wait(cond func() bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for !cond() {
		n.moved.Wait()
	}
}

// verdict prints an error with the kinds that it matches.
func verdict(err error) string {
	if err == nil {
		return "ok"
	}
	var kinds []string
	for _, k := range []error{
		redoubt.ErrCorrupt, redoubt.ErrFenced, redoubt.ErrBusy, redoubt.ErrFull, redoubt.ErrNotFound, redoubt.ErrExists,
		redoubt.ErrBelowFloor, redoubt.ErrAboveSCL, redoubt.ErrInvalid, redoubt.ErrDeviceFailed, redoubt.ErrClosed, redoubt.ErrForeign,
	} {
		if errors.Is(err, k) {
			kinds = append(kinds, k.Error())
		}
	}
	s := fmt.Sprintf("%v [%s]", err, strings.Join(kinds, ", "))
	if e, ok := errors.AsType[*wire.Error](err); ok {
		s += fmt.Sprintf(" a=%d b=%d", e.A, e.B)
	}
	return s
}

func segID(n int) redoubt.SegmentID { return redoubt.SegmentID{15: byte(n)} }
func volID(n int) redoubt.VolumeID  { return redoubt.VolumeID{0: 0xee, 15: byte(n)} }

// A talk is one script: a node and one connection to it.
type talk struct {
	node *memNode
	conn *peer.Conn
	news *news
	addr string
}

// TestConversation runs the scripts of testdata/conversations.
func TestConversation(t *testing.T) {
	datadriven.Walk(t, "testdata/conversations", func(t *testing.T, path string) {
		k := &talk{node: startNode(t, nil)}
		k.addr = k.node.addr()
		t.Cleanup(func() {
			if k.conn != nil {
				k.conn.Close()
			}
		})
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			return strings.ReplaceAll(k.do(ctx, t, d), k.addr, "NODE") + "\n"
		})
	})
}

func arg[T any](t *testing.T, d *datadriven.TestData, name string) T {
	var v T
	d.MaybeScanArgs(t, name, &v)
	return v
}

func (k *talk) do(ctx context.Context, t *testing.T, d *datadriven.TestData) string {
	seg, handle := segID(arg[int](t, d, "seg")), uint32(arg[uint64](t, d, "handle"))
	switch d.Cmd {
	case "dial":
		o := peer.Options{Name: "script"}
		k.news = listen(&o)
		c, err := peer.Dial(ctx, k.addr, o)
		if err != nil {
			return verdict(err)
		}
		k.conn = c
		w := c.Welcome()
		return fmt.Sprintf("welcome to %s: align %d, frames to %d, %d pages, %d in flight", w.Name, w.Align, w.MaxFrame, w.MaxPages, w.MaxInFlight)
	case "create":
		de, err := k.conn.Create(ctx, &wire.Create{Segment: seg, Volume: volID(arg[int](t, d, "vol")), PG: redoubt.PGNo(arg[uint64](t, d, "pg")), Pages: 1024,
			Kind: redoubt.FullSegment, VolumeEpoch: redoubt.Epoch(arg[uint64](t, d, "epoch")), MembershipEpoch: 3})
		return describe(de, err)
	case "attach":
		a, err := k.conn.Attach(ctx, &wire.Attach{Segment: seg})
		if err != nil {
			return verdict(err)
		}
		return fmt.Sprintf("handle %d, lane %d: %s", a.Handle, a.Lane, describe(a.Description, nil))
	case "describe":
		return describe(k.conn.Describe(ctx, seg))
	case "fence":
		return describe(k.conn.Fence(ctx, seg, redoubt.Epoch(arg[uint64](t, d, "epoch"))))
	case "truncate":
		return describe(k.conn.Truncate(ctx, seg, redoubt.Truncation{Epoch: redoubt.Epoch(arg[uint64](t, d, "epoch")),
			From: redoubt.LSN(arg[uint64](t, d, "from")), To: redoubt.LSN(arg[uint64](t, d, "to"))}))
	case "delete":
		return verdict(k.conn.Delete(ctx, &wire.Delete{Segment: seg}))
	case "floor":
		return verdict(k.conn.SetFloor(ctx, handle, redoubt.LSN(arg[uint64](t, d, "vdl")), redoubt.LSN(arg[uint64](t, d, "floor"))))
	case "ping":
		return verdict(k.conn.Ping(ctx))
	case "list":
		l, err := k.conn.List(ctx, segID(arg[int](t, d, "after")), uint32(arg[uint64](t, d, "max")))
		var out []string
		for _, s := range l.Segments {
			out = append(out, fmt.Sprintf("segment %d pg %d scl %d", s.Segment[15], s.PG, s.SCL))
		}
		return fmt.Sprintf("%s more=%v %s", verdict(err), l.More, strings.Join(out, ", "))
	case "tail":
		tl, err := k.conn.Tail(ctx, handle, redoubt.LSN(arg[uint64](t, d, "above")), uint32(arg[uint64](t, d, "max")))
		return fmt.Sprintf("%s scl %d more=%v %v", verdict(err), tl.SCL, tl.More, tl.Records)
	}
	return k.data(ctx, t, d, handle)
}

// data does what concerns appends, pages and the end.
func (k *talk) data(ctx context.Context, t *testing.T, d *datadriven.TestData, handle uint32) string {
	switch d.Cmd {
	case "append":
		return verdict(k.conn.Append(k.frame(t, d)))
	case "acked":
		scl := redoubt.LSN(arg[uint64](t, d, "scl"))
		var got redoubt.LSN
		k.news.wait(func() bool {
			got = k.news.scl[handle]
			return got >= scl && k.news.open == 0
		})
		return fmt.Sprintf("handle %d is complete up to %d", handle, got)
	case "refused":
		k.news.wait(func() bool { return len(k.news.errs) > 0 })
		k.news.mu.Lock()
		defer k.news.mu.Unlock()
		errs := strings.Join(k.news.errs, "\n")
		k.news.errs = nil
		return errs
	case "read":
		return k.read(ctx, t, d, handle)
	case "shutdown":
		k.node.stop()
		return "the node is gone"
	case "down":
		<-k.conn.Done()
		return fmt.Sprintf("%d times: %s", len(k.news.down), verdict(k.news.down[0]))
	case "close":
		k.conn.Close()
		return verdict(k.conn.Err())
	}
	t.Fatalf("%s: no such command %q", d.Pos, d.Cmd)
	return ""
}

// frame builds an APPEND frame: a line "HANDLE PREV FIRST PAGE BYTE" for a batch
// of one record that fills 16 bytes of the page at FIRST.
func (k *talk) frame(t *testing.T, d *datadriven.TestData) []byte {
	var a wire.AppendBuilder
	a.Reset(make([]byte, 4096), int(k.conn.Welcome().Align))
	for _, line := range strings.Split(d.Input, "\n") {
		var handle, page uint32
		var prev, first redoubt.LSN
		var v byte
		if _, err := fmt.Sscan(line, &handle, &prev, &first, &page, &v); err != nil {
			t.Fatalf("%s: %q: %v", d.Pos, line, err)
		}
		var b redo.Builder
		b.Reset(a.Next(), volID(1), 0, redoubt.Epoch(arg[uint64](t, d, "epoch")), prev)
		b.Fill(first, page, 0, int(first), 16, v, true)
		a.Commit(handle, len(b.Finish()), redoubt.LSN(arg[uint64](t, d, "vdl")), redoubt.LSN(arg[uint64](t, d, "floor")))
	}
	return a.Finish(arg[uint64](t, d, "req"))
}

// read prints the runs of bytes that are not zero.
func (k *talk) read(ctx context.Context, t *testing.T, d *datadriven.TestData, handle uint32) string {
	var pages []uint32
	for _, v := range strings.Split(arg[string](t, d, "pages"), "/") {
		var p uint32
		fmt.Sscan(v, &p)
		pages = append(pages, p)
	}
	r := &peer.ReadRequest{
		Handle: handle, Point: redoubt.LSN(arg[uint64](t, d, "point")), Pages: pages,
		Buf: make([]byte, len(pages)*redoubt.PageSize), Volume: volID(1), PGPages: 1024,
	}
	if d.HasArg("vol") {
		r.Volume = volID(arg[int](t, d, "vol"))
	}
	if err := k.conn.ReadPages(ctx, r); err != nil {
		return verdict(err)
	}
	var out []string
	for i, de := range r.Descs {
		s := fmt.Sprintf("page %d: %v, LSN %d:", de.Page, de.Code, de.LSN)
		b := r.Buf[i*redoubt.PageSize : (i+1)*redoubt.PageSize]
		for from := 0; from < len(b); {
			to := from
			for to < len(b) && b[to] == b[from] {
				to++
			}
			if b[from] != 0 {
				s += fmt.Sprintf(" %d+%d=%d", from, to-from, b[from])
			}
			from = to
		}
		out = append(out, s)
	}
	return strings.Join(out, "\n")
}

func describe(d wire.Description, err error) string {
	if err != nil {
		return verdict(err)
	}
	return fmt.Sprintf("segment %d pg %d %v: epoch %d/%d scl %d highest %d vdl %d floor %d truncation %+v",
		d.Segment[15], d.PG, d.Kind, d.VolumeEpoch, d.MembershipEpoch, d.SCL, d.Highest, d.VDL, d.Floor, d.Truncation)
}
