package netserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/wire"
)

// damage returns a copy of the frame, changed, with the header's crc made right
// if seal is set.
func damage(t testing.TB, frame []byte, seal bool, change func(b []byte)) []byte {
	t.Helper()
	b := bytes.Clone(frame)
	if change(b); bytes.Equal(b, frame) {
		t.Fatal("the damage changed nothing")
	}
	if seal {
		tab := crc32.MakeTable(crc32.Castagnoli)
		binary.LittleEndian.PutUint32(b[4:], crc32.Update(crc32.Checksum(b[:4], tab), tab, b[8:wire.HeaderSize]))
	}
	return b
}

// TestBadFrames: whatever a client sends after its HELLO, it is told if its
// header was whole, the connection ends, and the handler sees nothing of it.
func TestBadFrames(t *testing.T) {
	f := start(t, &fake{}, nil)
	app := appendFrame(t, 7, 100, 3000, 0, 1)
	put32 := func(at int, v uint32) func(b []byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[at:], v) }
	}
	for i, c := range []struct {
		name  string
		bytes []byte
		want  string // in the ERROR; empty: no ERROR
	}{
		{"garbage", bytes.Repeat([]byte{0xa5, 0x17}, 4096), ""},
		{"another protocol", []byte("GET /metrics HTTP/1.1\r\nHost: node\r\nAccept: */*\r\n\r\n"), ""},
		{"zeros", make([]byte, 8192), ""},
		{"a flipped bit in a header", damage(t, app, false, func(b []byte) { b[9] ^= 1 }), ""},
		{"a flipped bit in an entry header", damage(t, app, false, func(b []byte) { b[40] ^= 1 }), "sum of the body"},
		{"a length of 4 GiB", damage(t, app, true, put32(8, 1<<32-1)), "the limit is"},
		{"a length past the limit", damage(t, app, true, put32(8, 272<<10+8)), "the limit is"},
		{"a length of nothing", damage(t, app, true, put32(8, 0)), "outside"},
		{"a length of less", damage(t, app, true, put32(8, uint32(len(app)-1000))), "batch of"},
		{"entries without number", damage(t, app, true, put32(12, 1<<32-1)), "with aux"},
		{"an entry too many", damage(t, app, true, put32(12, 3)), "entries to come"},
		{"an entry too few", damage(t, app, true, put32(12, 1)), "entries end"},
		{"an unknown kind", damage(t, app, true, func(b []byte) { b[3] = 0x70 }), "no such frame kind"},
		{"another version", damage(t, app, true, func(b []byte) { b[2] = 9 }), "version 9"},
		{"flags", damage(t, app, true, put32(28, 4)), "flags 0x4"},
		{"a second HELLO", helloFrame(), "HELLO from a client that said HELLO"},
		{"a frame of a node", request(wire.KindOK, 7, nil), "OK from a client"},
		{"a body for a kind that has none", damage(t, request(wire.KindPing, 7, nil), true, put32(8, 40)), "outside"},
	} {
		cl := f.dial()
		cl.conn.Write(c.bytes) // the server may hang up in the middle of it
		if c.want != "" {
			h, e := cl.recvError()
			if !strings.Contains(e.Message, c.want) || !errors.Is(e, redoubt.ErrInvalid) || h.Req != 7 && h.Req != 1 {
				t.Errorf("%s: request %d: %v, want %q", c.name, h.Req, e, c.want)
			}
		}
		cl.recvEnd()
		until(t, c.name+" is counted", func() bool { return f.srv.Stats().BadFrames == uint64(i+1) })
	}
	if s := f.srv.Stats(); s.AppendFrames != 0 || s.Requests != 0 {
		t.Errorf("the handler saw something: %+v", s)
	}
}

// TestLimitOfPages: the WELCOME's limit on a READ is held.
func TestLimitOfPages(t *testing.T) {
	f := start(t, &fake{request: func(c *Conn, f *Frame) { c.Reply(f.Req, wire.KindOK, nil) }}, func(o *Options) { o.Welcome.MaxPages = 4 })
	c := f.dial()
	c.send(request(wire.KindRead, 1, &wire.Read{Pages: make([]uint32, 4)}))
	if h, _ := c.recv(); h.Kind != wire.KindOK {
		t.Errorf("%+v", h)
	}
	c.send(request(wire.KindRead, 2, &wire.Read{Pages: make([]uint32, 5)}))
	if _, e := c.recvError(); !strings.Contains(e.Message, "the limit is 4 pages") {
		t.Error(e)
	}
	c.recvEnd()
}

// TestGoodBeforeBad: what came before a broken frame is served and answered.
func TestGoodBeforeBad(t *testing.T) {
	f := start(t, &fake{append: ackAll, request: attach}, nil)
	c := f.dial()
	c.attach()
	c.send(slices.Concat(appendFrame(t, 1, 100, 50, 0), request(wire.KindPing, 2, nil), make([]byte, 512)))
	kinds := map[wire.Kind]int{}
	for {
		h, _, err := c.next()
		if err != nil {
			break
		}
		kinds[h.Kind]++
	}
	if kinds[wire.KindAck] != 1 || kinds[wire.KindOK] != 1 {
		t.Errorf("%v", kinds)
	}
}

// TestTornFrame: a client that dies within a frame, or within its header, leaves
// nothing behind.
func TestTornFrame(t *testing.T) {
	f := start(t, &fake{}, nil)
	app := appendFrame(t, 7, 100, 3000, 0)
	for i, n := range []int{1, 31, 32, 33, 511, 512, len(app) - 1} {
		c := f.dial()
		c.send(app[:n])
		c.conn.CloseWrite()
		c.recvEnd()
		until(t, "the connection is gone", func() bool { return f.srv.Stats().Closed == uint64(i+1) })
	}
	until(t, "no slab is held", func() bool { return f.pool.Free() == f.pool.Cap() })
	if s := f.srv.Stats(); s.AppendFrames != 0 {
		t.Errorf("%+v", s)
	}
}

// TestSlowSender: a frame must become complete, wherever it stops; a connection
// that sends nothing may rest.
func TestSlowSender(t *testing.T) {
	f := start(t, &fake{}, func(o *Options) { o.FrameTimeout = 60 * time.Millisecond })
	idle := f.dial()
	app := appendFrame(t, 7, 100, 3000, 0)
	for i, n := range []int{1, 31, 32, 512, len(app) - 1} {
		c := f.dial()
		c.send(app[:n])
		c.recvEnd()
		until(t, "it is counted", func() bool { return f.srv.Stats().SlowSenders == uint64(i+1) })
	}
	idle.send(request(wire.KindPing, 1, nil))
	idle.recv()
	until(t, "no slab is held", func() bool { return f.pool.Free() == f.pool.Cap() })
}

// TestWaitingIsNotSlow: a client whose frame waits for a slab, because all are
// held, is not to blame.
func TestWaitingIsNotSlow(t *testing.T) {
	got := make(chan struct{})
	f := start(t, &fake{append: func(*Conn, *Frame) { close(got) }}, func(o *Options) {
		o.Pool = newPool(t, 1)
		o.FrameTimeout = 40 * time.Millisecond
	})
	held := f.pool.TryGet()
	c := f.dial()
	app := appendFrame(t, 7, 100, 3000, 0)
	conn := f.srv.snapshot()[0]
	c.send(app[:20])
	until(t, "the clock runs for half a header", func() bool { return conn.partialSince.Load() != 0 })
	c.send(app[20:])
	until(t, "the frame waits for a slab", func() bool { return f.pool.Waiting() == 1 })
	later := f.srv.clock.Load() + int64(10*f.srv.opts.FrameTimeout)
	until(t, "time passes", func() bool { return f.srv.clock.Load() > later })
	held.Drop()
	<-got
	if s := f.srv.Stats(); s.SlowSenders != 0 || s.SlabWaits != 1 {
		t.Errorf("%+v", s)
	}
}

// TestParkingYields: a reader that parks its slab while another waits for one
// gives it up at once.
func TestParkingYields(t *testing.T) {
	pool := newPool(t, 1)
	s := &Server{opts: Options{Pool: pool}}
	r := &reader{c: &Conn{srv: s}, buf: pool.TryGet()}
	s.waiting.Add(1)
	r.park()
	if pool.Free() != 1 {
		t.Error("the slab is kept")
	}
	if r.unpark(); r.buf != nil {
		t.Error("the reader believes that it still has it")
	}
	if err := pool.Close(); err != nil {
		t.Error(err)
	}
}

// TestLinger: a client that is still sending when its connection is closed gets
// to read why, because what it sends is taken until it stops.
func TestLinger(t *testing.T) {
	f := start(t, &fake{}, func(o *Options) { o.LingerTimeout = patience })
	c := f.dial()
	c.send(make([]byte, 512))
	junk := make([]byte, 64<<10)
	for range 100 {
		c.send(junk) // fails the test if the server has hung up
	}
	c.conn.CloseWrite()
	c.recvEnd()
}

// TestHello: what a client may say first, and what it is told.
func TestHello(t *testing.T) {
	f := start(t, &fake{}, func(o *Options) { o.HelloTimeout = 100 * time.Millisecond })
	hello := helloFrame()
	old := request(wire.KindHello, 1, &wire.Hello{MinVersion: 2, MaxVersion: 5})
	for i, c := range []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"nothing", nil, ""},
		{"a part of a header", hello[:20], ""},
		{"a part of a HELLO", hello[:400], ""},
		{"garbage", bytes.Repeat([]byte{1}, 512), ""},
		{"another kind", request(wire.KindPing, 1, nil), "PING before HELLO"},
		{"another version", old, "the client speaks versions 2 to 5, the node version 1"},
		{"a lying length", damage(t, hello, true, func(b []byte) { b[9] = 0x10 }), "the limit is 512"},
		{"a broken body", damage(t, hello, false, func(b []byte) { b[36] ^= 1 }), "sum of the body"},
	} {
		cl := f.connect()
		cl.send(c.bytes)
		if c.want != "" {
			if _, e := cl.recvError(); !strings.Contains(e.Message, c.want) || e.A != 1 || e.B != 1 {
				t.Errorf("%s: %+v", c.name, e)
			}
		}
		cl.recvEnd()
		until(t, c.name+" is counted", func() bool { return f.srv.Stats().BadHellos == uint64(i+1) })
	}
	if f.pool.Free() != f.pool.Cap() || f.srv.Stats().Reads != 0 {
		t.Errorf("a connection without HELLO took a slab: %+v", f.srv.Stats())
	}
}

// TestTooManyConnections: past the limit a client is told and turned away; when
// one leaves, the next comes in.
func TestTooManyConnections(t *testing.T) {
	f := start(t, &fake{}, func(o *Options) { o.MaxConns = 2 })
	a := f.dial()
	f.dial()
	c := f.connect()
	if _, e := c.recvError(); !errors.Is(e, redoubt.ErrBusy) {
		t.Error(e)
	}
	c.recvEnd()
	a.conn.Close()
	until(t, "there is room", func() bool { return f.srv.Stats().Active == 1 })
	f.dial()
	if s := f.srv.Stats(); s.Refused != 1 || s.Accepted != 4 {
		t.Errorf("%+v", s)
	}
}

// TestOptions: what a server can't work with is an error, not a guess.
func TestOptions(t *testing.T) {
	pool := newPool(t, 1)
	defer pool.Close()
	good := Options{Pool: pool, Handler: &fake{}, Welcome: wire.Welcome{MaxFrame: 272 << 10}}
	if o, err := good.withDefaults(); err != nil || o.Welcome.Align != 512 || o.MaxConns != 4096 {
		t.Fatalf("%+v, %v", o, err)
	}
	for name, change := range map[string]func(o *Options){
		"no pool":          func(o *Options) { o.Pool = nil },
		"no handler":       func(o *Options) { o.Handler = nil },
		"large frames":     func(o *Options) { o.Welcome.MaxFrame = 512 << 10 },
		"odd alignment":    func(o *Options) { o.Welcome.Align = 513 },
		"many pages":       func(o *Options) { o.Welcome.MaxPages = 65 },
		"another version":  func(o *Options) { o.Welcome.Version = 2 },
		"no connection":    func(o *Options) { o.MaxConns = -1 },
		"negative timeout": func(o *Options) { o.FrameTimeout = -1 },
		"negative buffer":  func(o *Options) { o.ReadBuffer = -1 },
	} {
		o := good
		change(&o)
		if _, err := o.withDefaults(); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzStream sends any bytes after a HELLO. The server neither panics nor keeps
// anything, and the next client is served.
func FuzzStream(f *testing.F) {
	h := &fake{
		append:  ackAll,
		request: func(c *Conn, f *Frame) { c.Reply(f.Req, wire.KindOK, nil) },
	}
	fx := start(f, h, nil)
	f.Fuzz(func(t *testing.T, stream []byte) {
		fx := &fixture{t: t, srv: fx.srv, pool: fx.pool, h: h}
		c := fx.dial()
		c.conn.SetLinger(0) // no TIME_WAIT: the fuzzer opens many
		c.conn.Write(stream)
		c.conn.CloseWrite()
		io.Copy(io.Discard, c.conn)
		c.conn.Close()
		until(t, "everything is given back", func() bool { return fx.srv.Stats().Active == 0 && fx.pool.Free() == fx.pool.Cap() })
	})
}
