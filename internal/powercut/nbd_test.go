package powercut

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A client speaks NBD as QEMU does, badly when told to.
type client struct {
	t    testing.TB
	conn net.Conn
	done chan error // what Serve returned
}

// dial connects to an export of d over a real socket: a pipe has no buffer, so
// two requests could never be under way at once.
func dial(t testing.TB, e *Export) *client {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "nbd"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := &client{t: t, done: make(chan error, 1)}
	if c.conn, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		err := e.Serve(server)
		server.Close()
		c.done <- err
	}()
	t.Cleanup(func() {
		c.conn.Close()
		server.Close()
	})
	return c
}

// send writes the pieces as one, each a string of bytes, a slice or an integer.
func (c *client) send(pieces ...any) {
	c.t.Helper()
	var b bytes.Buffer
	for _, p := range pieces {
		switch x := p.(type) {
		case string:
			b.WriteString(x)
		case []byte:
			b.Write(x)
		default:
			binary.Write(&b, binary.BigEndian, x)
		}
	}
	if _, err := c.conn.Write(b.Bytes()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) receive(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c.conn, p); err != nil {
		c.t.Fatalf("waiting for %d bytes: %v", n, err)
	}
	return p
}

// want asserts that the next bytes are these, given in hex with spaces.
func (c *client) want(what, hexed string) {
	c.t.Helper()
	want, err := hex.DecodeString(strings.ReplaceAll(hexed, " ", ""))
	if err != nil {
		c.t.Fatal(err)
	}
	if got := c.receive(len(want)); !bytes.Equal(got, want) {
		c.t.Fatalf("%s: got %x, want %x", what, got, want)
	}
}

// open shakes hands with the old option that has the shortest answer.
func (c *client) open() *client {
	c.t.Helper()
	c.receive(18)
	c.send(uint32(flagFixed|flagNoZeroes), uint64(optMagic), uint32(optExportName), uint32(0))
	c.receive(10)
	return c
}

// ask sends a request without waiting for its answer.
func (c *client) ask(flags, kind uint16, cookie, off uint64, n int, data []byte) {
	c.t.Helper()
	c.send(uint32(requestMagic), flags, kind, cookie, off, uint32(n), data)
}

// answer waits for the next simple reply.
func (c *client) answer(cookie uint64, code uint32, n int) []byte {
	c.t.Helper()
	head := c.receive(16)
	if m := binary.BigEndian.Uint32(head); m != replyMagic {
		c.t.Fatalf("reply magic %#x", m)
	}
	if got := binary.BigEndian.Uint64(head[8:]); got != cookie {
		c.t.Fatalf("reply to %d, want %d", got, cookie)
	}
	if got := binary.BigEndian.Uint32(head[4:]); got != code {
		c.t.Fatalf("reply with error %d, want %d", got, code)
	}
	return c.receive(n)
}

func TestHandshakeByteForByte(t *testing.T) {
	c := dial(t, &Export{Disk: newDisk(t, Moment{}, DiskOptions{Size: 0x1e00})})
	c.want("greeting", "4e42444d41474943 49484156454f5054 0003")
	c.send(uint32(flagFixed | flagNoZeroes))

	c.send(uint64(optMagic), uint32(8), uint32(0)) // structured replies
	c.want("refusal", "0003e889045565a9 00000008 80000001 00000000")

	c.send(uint64(optMagic), uint32(optGo), uint32(6), uint32(99), uint16(0)) // a name longer than the option
	c.want("refusal", "0003e889045565a9 00000007 80000003 00000000")

	c.send(uint64(optMagic), uint32(optInfo), uint32(10), uint32(4), "name", uint16(0))
	c.want("export", "0003e889045565a9 00000006 00000003 0000000c 0000 0000000000001e00 0025")
	c.want("sizes", "0003e889045565a9 00000006 00000003 0000000e 0003 00000200 00001000 02000000")
	c.want("end", "0003e889045565a9 00000006 00000001 00000000")

	c.send(uint64(optMagic), uint32(optGo), uint32(6), uint32(0), uint16(0))
	c.receive(32 + 34 + 20)
	c.ask(0, cmdDisconnect, 1, 0, 0, nil)
	if err := <-c.done; err != nil {
		t.Errorf("session: %v", err)
	}
}

func TestOldHandshakeTellsFUAWhenSelected(t *testing.T) {
	c := dial(t, &Export{Disk: newDisk(t, Moment{}, DiskOptions{Size: 0x1e00}), FUA: true})
	c.receive(18)
	c.send(uint32(flagFixed), uint64(optMagic), uint32(optExportName), uint32(1), "x")
	c.want("export", "0000000000001e00 002d")
	if zeroes := c.receive(124); !bytes.Equal(zeroes, make([]byte, 124)) {
		t.Errorf("padding %x", zeroes)
	}
}

func TestClientMayAbort(t *testing.T) {
	c := dial(t, &Export{Disk: newDisk(t, Moment{}, DiskOptions{})})
	c.receive(18)
	c.send(uint32(flagFixed), uint64(optMagic), uint32(optAbort), uint32(0))
	c.want("ack", "0003e889045565a9 00000002 00000001 00000000")
	if err := <-c.done; err != nil {
		t.Errorf("session: %v", err)
	}
}

func TestRequestsReachTheDisk(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{})
	c := dial(t, &Export{Disk: d, FUA: true}).open()
	c.ask(0, cmdWrite, 1, 512, 512, fill('a', 1))
	c.answer(1, 0, 0)
	c.ask(0, cmdRead, 2, 511, 2, nil)
	if got := c.answer(2, 0, 2); string(got) != "\x00a" {
		t.Errorf("read %q", got)
	}
	c.ask(0, cmdTrim, 3, 0, 4096, nil)
	c.answer(3, 0, 0)
	c.ask(0, cmdFlush, 4, 0, 0, nil)
	c.answer(4, 0, 0)
	c.ask(cmdFlagFUA, cmdWrite, 5, 1024, 512, fill('b', 1))
	c.answer(5, 0, 0)
	for _, bad := range []struct {
		kind uint16
		off  uint64
		n    int
		data []byte
	}{{cmdRead, 4096, 1, nil}, {cmdRead, 1 << 63, 1, nil}, {cmdWrite, 1 << 63, 512, fill('c', 1)}, {cmdWrite, 1, 512, fill('c', 1)}, {77, 0, 0, nil}} {
		c.ask(0, bad.kind, 6, bad.off, bad.n, bad.data)
		c.answer(6, errnoInvalid, 0)
	}
	if found := outcomes(t, d); len(found) != 1 || found[".ab....."].Unflushed != 0 {
		t.Errorf("found %v", found)
	}
}

func TestFlushSentBesideTheWriteDoesNotCoverIt(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{})
	c := dial(t, &Export{Disk: d, Linger: time.Minute}).open()
	var both bytes.Buffer
	for _, kind := range []uint16{cmdWrite, cmdFlush} {
		n := uint32(0)
		if kind == cmdWrite {
			n = 512
		}
		for _, x := range []any{uint32(requestMagic), uint16(0), kind, uint64(kind), uint64(0), n} {
			binary.Write(&both, binary.BigEndian, x)
		}
		both.Write(fill('a', int(n)/512))
	}
	c.send(both.Bytes())
	// A group this large is answered at once, so the test need not linger.
	for i := range maxGroup {
		c.ask(0, cmdWrite, 100+uint64(i), 512, 512, fill('b', 1))
	}
	c.answer(cmdWrite, 0, 0)
	c.answer(cmdFlush, 0, 0)
	if found := outcomes(t, d); found["........"].Unflushed == 0 {
		t.Error("the flush covered a write that was in flight beside it")
	}
}

func TestFlushSentAfterTheAnswerCoversTheWrite(t *testing.T) {
	d := newDisk(t, Moment{}, DiskOptions{})
	c := dial(t, &Export{Disk: d}).open()
	c.ask(0, cmdWrite, 1, 0, 512, fill('a', 1))
	c.answer(1, 0, 0)
	c.ask(0, cmdFlush, 2, 0, 0, nil)
	c.answer(2, 0, 0)
	if found := outcomes(t, d); len(found) != 1 || found["a......."] != (Damage{}) {
		t.Errorf("found %v", found)
	}
}

func TestNothingIsAnsweredAfterTheCut(t *testing.T) {
	d := newDisk(t, Moment{Write: 1}, DiskOptions{})
	c := dial(t, &Export{Disk: d}).open()
	c.ask(0, cmdWrite, 1, 0, 512, fill('a', 1))
	<-d.supply.Off()
	c.ask(0, cmdRead, 2, 0, 512, nil)
	c.conn.(*net.UnixConn).CloseWrite()
	if err := <-c.done; err != nil {
		t.Errorf("session: %v", err)
	}
	if n, err := c.conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes came back, %v", n, err)
	}
}

func TestLyingLengthsEndTheSession(t *testing.T) {
	cases := map[string]func(c *client){
		"an option of 4 GiB": func(c *client) {
			c.receive(18)
			c.send(uint32(flagFixed), uint64(optMagic), uint32(optGo), ^uint32(0))
		},
		"an option without its magic": func(c *client) {
			c.receive(18)
			c.send(uint32(flagFixed), uint64(1), uint32(optGo), uint32(0))
		},
		"a write of 4 GiB": func(c *client) {
			c.open().send(uint32(requestMagic), uint16(0), uint16(cmdWrite), uint64(1), uint64(0), ^uint32(0))
		},
		"a request without its magic": func(c *client) { c.open().send(uint32(1), make([]byte, 24)) },
		"half a request":              func(c *client) { c.open().send(uint32(requestMagic)); c.conn.(*net.UnixConn).CloseWrite() },
		"half the bytes that it wrote": func(c *client) {
			c.open().ask(0, cmdWrite, 1, 0, 512, []byte("x"))
			c.conn.(*net.UnixConn).CloseWrite()
		},
	}
	for name, misbehave := range cases {
		t.Run(name, func(t *testing.T) {
			c := dial(t, &Export{Disk: newDisk(t, Moment{}, DiskOptions{})})
			misbehave(c)
			if err := <-c.done; err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("session ended with %v", err)
			}
		})
	}
}

// A stream is a connection that delivers given bytes and then its end.
type stream struct {
	net.Conn
	in io.Reader
}

func (s stream) Read(p []byte) (int, error)      { return s.in.Read(p) }
func (s stream) Write(p []byte) (int, error)     { return len(p), nil }
func (s stream) SetReadDeadline(time.Time) error { return nil }

// FuzzSession gives the server any bytes at all. Whatever they are, the session
// ends, and the disk's promises hold: its durable bytes are what was flushed.
func FuzzSession(f *testing.F) {
	hello := binary.BigEndian.AppendUint32(nil, flagFixed|flagNoZeroes)
	hello = binary.BigEndian.AppendUint64(hello, optMagic)
	hello = append(hello, 0, 0, 0, optExportName, 0, 0, 0, 0)
	ask := func(b []byte, kind uint16, off uint64, n uint32, data []byte) []byte {
		b = binary.BigEndian.AppendUint32(b, requestMagic)
		b = binary.BigEndian.AppendUint32(b, uint32(kind))
		b = binary.BigEndian.AppendUint64(b, 7)
		b = binary.BigEndian.AppendUint64(b, off)
		b = binary.BigEndian.AppendUint32(b, n)
		return append(b, data...)
	}
	f.Add([]byte{})
	f.Add(hello)
	f.Add(ask(ask(ask(bytes.Clone(hello), cmdWrite, 512, 512, fill('a', 1)), cmdFlush, 0, 0, nil), cmdRead, 0, 4096, nil))
	f.Add(ask(bytes.Clone(hello), cmdDisconnect, 0, 0, nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		d := newDisk(t, Moment{}, DiskOptions{})
		e := &Export{Disk: d, FUA: true}
		err := e.Serve(stream{in: bytes.NewReader(in)})
		if err == nil && len(in) < 20 {
			t.Error("a session without a farewell ended in order")
		}
		d.supply.Cut()
		image, damage := d.AfterCut(rand.New(rand.NewPCG(1, 1)))
		if damage.Unflushed == 0 && !bytes.Equal(image, d.current) {
			t.Error("all was flushed, and yet the cut changed something")
		}
	})
}
