package node

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

// An entry is one batch of an APPEND frame that somebody should not have sent.
type badEntry struct {
	handle uint32
	batch  []byte
}

// oneRecord builds a batch with one record, as a segment would take it but for
// what change makes of it.
func oneRecord(w *segmentWriter, change func(vol *redoubt.VolumeID, pg *redoubt.PGNo, epoch *redoubt.Epoch, page *uint32)) []byte {
	vol, pg, epoch, page := w.spec.Volume, w.spec.PG, w.epoch, uint32(0)
	if change != nil {
		change(&vol, &pg, &epoch, &page)
	}
	var bb redo.Builder
	bb.Reset(make([]byte, 4096), vol, pg, epoch, w.prev)
	bb.Fill(w.prev+1, page, w.pages[page], 0, 64, 99, true)
	return bb.Finish()
}

// sendBad sends entries as one frame and returns the refusal.
func (c *client) sendBad(entries ...badEntry) error {
	c.t.Helper()
	var fb wire.AppendBuilder
	fb.Reset(make([]byte, 64<<10), int(c.Welcome().Align))
	for _, e := range entries {
		if !fb.Add(e.handle, e.batch, 0, 0) {
			c.t.Fatal("the frame is full")
		}
	}
	if err := c.Append(fb.Finish(7)); err != nil {
		c.t.Fatal(err)
	}
	return c.await(^uint32(0), 1) // no such handle is ever acknowledged: it waits for the refusal
}

// What must not be in an APPEND frame is refused, with the right kind of error,
// and changes nothing; the connection and everybody else go on.
func TestBadAppendsAreRefusedAndChangeNothing(t *testing.T) {
	n := openNode(t, formatDevices(t, 2, 32<<20), nil)
	defer closeNode(t, n)
	good, bad := dial(t, n), dial(t, n)
	a, b, bystander := bad.create(3, 0), bad.create(4, 1), good.create(5, 0)
	if err := bad.await(a.at.Handle, a.send(5, 3)); err != nil {
		t.Fatal(err)
	}
	flipped := oneRecord(a, nil)
	flipped[len(flipped)-1] ^= 1
	for _, test := range []struct {
		name    string
		entries []badEntry
		want    error
	}{
		{"unknown handle", []badEntry{{99, oneRecord(a, nil)}}, redoubt.ErrInvalid},
		{"largest handle", []badEntry{{^uint32(0), oneRecord(a, nil)}}, redoubt.ErrInvalid},
		{"unknown handle behind a good one", []badEntry{{a.at.Handle, oneRecord(a, nil)}, {99, oneRecord(a, nil)}}, redoubt.ErrInvalid},
		{"two lanes", []badEntry{{a.at.Handle, oneRecord(a, nil)}, {b.at.Handle, oneRecord(b, nil)}}, redoubt.ErrInvalid},
		{"another volume", []badEntry{{a.at.Handle, oneRecord(a, func(v *redoubt.VolumeID, _ *redoubt.PGNo, _ *redoubt.Epoch, _ *uint32) { v[0] ^= 1 })}}, redoubt.ErrCorrupt},
		{"another group", []badEntry{{a.at.Handle, oneRecord(a, func(_ *redoubt.VolumeID, pg *redoubt.PGNo, _ *redoubt.Epoch, _ *uint32) { *pg++ })}}, redoubt.ErrInvalid},
		{"a page past the group", []badEntry{{a.at.Handle, oneRecord(a, func(_ *redoubt.VolumeID, _ *redoubt.PGNo, _ *redoubt.Epoch, p *uint32) { *p = redoubt.MinPGPages })}}, redoubt.ErrInvalid},
		{"a higher epoch", []badEntry{{a.at.Handle, oneRecord(a, func(_ *redoubt.VolumeID, _ *redoubt.PGNo, e *redoubt.Epoch, _ *uint32) { *e++ })}}, redoubt.ErrInvalid},
		{"a lower epoch", []badEntry{{a.at.Handle, oneRecord(a, func(_ *redoubt.VolumeID, _ *redoubt.PGNo, e *redoubt.Epoch, _ *uint32) { *e-- })}}, redoubt.ErrFenced},
		{"a wrong sum", []badEntry{{a.at.Handle, flipped}}, redoubt.ErrCorrupt},
	} {
		if err := bad.sendBad(test.entries...); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if d, err := bad.Describe(t.Context(), a.spec.Segment); err != nil || d.SCL != 5 || d.Highest != 5 {
			t.Errorf("%s: changed something: %+v, %v", test.name, d, err)
		}
		if err := good.await(bystander.at.Handle, bystander.send(3, 3)); err != nil {
			t.Errorf("%s: somebody else's append: %v", test.name, err)
		}
	}
	// One bad entry does not take the good ones beside it down.
	wrong := badEntry{a.at.Handle, flipped}
	if err := bad.sendBad(wrong, badEntry{a.at.Handle, oneRecord(a, nil)}, wrong); !errors.Is(err, redoubt.ErrCorrupt) {
		t.Fatalf("between two bad entries: %v", err)
	}
	if err := bad.await(^uint32(0), 1); !errors.Is(err, redoubt.ErrCorrupt) {
		t.Fatalf("the second bad entry: %v", err)
	}
	if err := bad.await(a.at.Handle, 6); err != nil {
		t.Fatalf("the good entry between two bad ones: %v", err)
	}
	bystander.check(3)
	noSlabsHeld(t, n, good, bad)
}

// Reads that nobody may make are refused, each for its reason.
func TestBadReadsAreRefused(t *testing.T) {
	n := openNode(t, formatDevices(t, 1, 32<<20), nil)
	defer closeNode(t, n)
	c := dial(t, n)
	w := c.create(3, 0)
	if err := c.await(w.at.Handle, w.send(50, 10)); err != nil {
		t.Fatal(err)
	}
	if err := c.SetFloor(t.Context(), w.at.Handle, 50, 20); err != nil {
		t.Fatal(err)
	}
	var outside []uint32
	for i := range uint32(64) {
		outside = append(outside, redoubt.MinPGPages+i*1000)
	}
	for _, test := range []struct {
		name   string
		handle uint32
		point  redoubt.LSN
		need   redoubt.LSN
		pages  []uint32
		want   error
	}{
		{"64 pages past the group", w.at.Handle, 50, 0, outside, redoubt.ErrInvalid},
		{"the last of 64 past the group", w.at.Handle, 50, 0, append(make([]uint32, 63), ^uint32(0)), redoubt.ErrInvalid},
		{"point 0", w.at.Handle, 0, 0, []uint32{1}, redoubt.ErrBelowFloor},
		{"below the floor", w.at.Handle, 19, 0, []uint32{1}, redoubt.ErrBelowFloor},
		{"above SCL", w.at.Handle, 51, 0, []uint32{1}, redoubt.ErrAboveSCL},
		{"the highest point", w.at.Handle, redoubt.MaxLSN, 0, []uint32{1}, redoubt.ErrAboveSCL},
		{"needs more than is there", w.at.Handle, redoubt.MaxLSN, 51, []uint32{1}, redoubt.ErrAboveSCL},
		{"unknown handle", 77, 50, 0, []uint32{1}, redoubt.ErrInvalid},
	} {
		r := &peer.ReadRequest{Handle: test.handle, Point: test.point, Need: test.need, Pages: test.pages, Buf: make([]byte, len(test.pages)*redoubt.PageSize)}
		if err := c.ReadPages(t.Context(), r); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
	w.check(10)
	if free := n.pages.pool.Free(); free != n.pages.pool.Cap() {
		t.Fatalf("refused reads keep %d page buffers", n.pages.pool.Cap()-free)
	}
}

// hello is a good HELLO.
func hello() []byte {
	return wire.Pad(wire.AppendFrame(nil, wire.KindHello, 0, 1, &wire.Hello{MinVersion: wire.Version, MaxVersion: wire.Version, Name: "bad"}), wire.HelloAlign)
}

// raw connects without a client. If greet, the WELCOME has been read.
func raw(t *testing.T, n *Node, greet bool) *net.TCPConn {
	t.Helper()
	nc, err := net.Dial("tcp", n.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := nc.(*net.TCPConn)
	if !greet {
		return c
	}
	if _, err := c.Write(hello()); err != nil {
		t.Fatal(err)
	}
	var head [wire.HeaderSize]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		t.Fatal(err)
	}
	h, err := wire.ParseHeader(head[:], 1<<20)
	if err != nil || h.Kind != wire.KindWelcome {
		t.Fatalf("%v in answer to HELLO, %v", h.Kind, err)
	}
	if _, err := io.CopyN(io.Discard, c, int64(h.Len-wire.HeaderSize)); err != nil {
		t.Fatal(err)
	}
	return c
}

// Bytes that are no protocol end their own connection and nothing else.
func TestGarbageEndsItsOwnConnection(t *testing.T) {
	n := openNode(t, formatDevices(t, 1, 32<<20), nil)
	defer closeNode(t, n)
	good := dial(t, n)
	w := good.create(3, 0)
	ping := wire.Pad(wire.AppendFrame(nil, wire.KindPing, 0, 9, nil), 512)
	at := func(off int, v ...byte) []byte { b := slices.Clone(ping); copy(b[off:], v); return b }
	for _, test := range []struct {
		name  string
		greet bool
		bytes []byte
	}{
		{"text instead of HELLO", false, []byte("GET / HTTP/1.1\r\nHost: redoubt\r\n\r\n" + string(make([]byte, 512)))},
		{"zeros instead of HELLO", false, make([]byte, 4096)},
		{"PING instead of HELLO", false, ping},
		{"HELLO twice", true, hello()},
		{"a wrong magic", true, at(0, 'X')},
		{"a wrong version", true, at(2, 9)},
		{"a wrong sum of the header", true, at(4, 1, 2, 3, 4)},
		{"a length of 4 GiB", true, at(8, 0xff, 0xff, 0xff, 0xff)},
		{"a length of nothing", true, at(8, 0, 0, 0, 0)},
		{"noise", true, slices.Repeat([]byte{0xde, 0xad, 0xbe, 0xef}, 1024)},
		{"an answer's kind", true, wire.Pad(wire.AppendFrame(nil, wire.KindOK, 0, 9, nil), 512)},
	} {
		c := raw(t, n, test.greet)
		if _, err := c.Write(test.bytes); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
			t.Errorf("%s: the connection is still there", test.name)
		}
		c.Close()
		if err := good.await(w.at.Handle, w.send(3, 3)); err != nil {
			t.Fatalf("%s: somebody else's append: %v", test.name, err)
		}
	}
	w.check(3)
	noSlabsHeld(t, n, good)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// Ten thousand connections come and go: at once, in the middle of HELLO, behind
// it, and in the middle of a frame. The memory that they took is free again.
func TestTenThousandConnectionsComeAndGo(t *testing.T) {
	count := 10_000
	if testing.Short() {
		count = 1000
	}
	n := openNode(t, formatDevices(t, 1, 32<<20), nil)
	defer closeNode(t, n)
	good := dial(t, n)
	w := good.create(3, 0)
	if err := good.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	half := wire.AppendFrame(nil, wire.KindPing, 0, 9, nil)[:20]
	for i := range count {
		c := raw(t, n, i%4 >= 2)
		switch i % 4 {
		case 1:
			_, _ = c.Write(hello()[:100])
		case 3:
			_, _ = c.Write(half)
		}
		if i%2 == 0 {
			_ = c.SetLinger(0) // a reset, and no port that waits
		}
		c.Close()
		if i%1000 == 0 {
			if err := good.await(w.at.Handle, w.send(3, 3)); err != nil {
				t.Fatalf("after %d connections: %v", i, err)
			}
		}
	}
	w.check(3)
	noSlabsHeld(t, n, good)
	eventually(t, good, "the goroutines of dropped connections", func() bool { return runtime.NumGoroutine() <= before+4 })
}

// noSlabsHeld fails unless, but for one slab that each live connection receives
// into, all of the node's memory for frames is free again.
func noSlabsHeld(t *testing.T, n *Node, live ...*client) {
	t.Helper()
	eventually(t, live[0], "slabs that frames came in", func() bool {
		for _, l := range n.lanes {
			l.store.Reclaim(1 << 30)
		}
		return n.slabs.Cap()-n.slabs.Free() <= len(live)
	})
}

// eventually asks again, at the pace of round trips to the node, until ok.
func eventually(t *testing.T, c *client, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("still held: %s", what)
		}
		if err := c.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
