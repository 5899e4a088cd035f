package netserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/slab"
	"github.com/redoubt-storage/redoubt/wire"
	"golang.org/x/sys/unix"
)

// A Frame is a client's frame where it arrived: inside a slab of the pool, at a
// multiple of the alignment. It belongs to the server.
type Frame struct {
	wire.Header
	bytes []byte
	buf   *slab.Buf
}

// Bytes returns the whole frame, header and padding included. The handler of an
// APPEND frame may overwrite the header and the entry headers.
func (f *Frame) Bytes() []byte { return f.bytes }

// Body returns the frame's body, without header and padding.
func (f *Frame) Body() []byte { return f.bytes[wire.HeaderSize:f.Len] }

// Hold returns the slab that the frame lies in with a hold for the caller, who
// drops it when it needs the bytes no more.
func (f *Frame) Hold() *slab.Buf {
	f.buf.Hold()
	return f.buf
}

// errCutShort ends a reader whose client left in the middle of something.
var errCutShort = errors.New("the client closed the connection within a frame")

// A reader is what the reader goroutine of a connection knows.
//
// Of the slab, [0,start) has been handed over, [start,end) is received and not
// yet a whole frame, and reading goes on at end. No frame straddles two slabs:
// reading stops at the server's readEnd, or behind it at the end of the frame
// that begins before it.
type reader struct {
	c      *Conn
	buf    *slab.Buf // nil: none is held
	mem    []byte
	start  int
	end    int
	need   int // where the frame at start ends; 0: its header isn't complete
	frame  Frame
	wait   context.Context // of a wait for a slab
	stop   context.CancelFunc
	poll   func(fd uintptr) bool // r.tryRead, bound once
	isSlow bool                  // Conn.partialSince is set

	// What tryRead found.
	got      int
	readable bool // there are bytes, but no slab to read them into
	err      error

	isParked bool // the slab lies in Conn.parked, or was taken from there
	peek     [wire.HeaderSize]byte

	// Counted here and added to the server's after each read.
	frames, entries, bytes, requests uint64
}

func (r *reader) init(c *Conn) {
	r.c = c
	r.wait, r.stop = context.WithCancel(c.ctx)
	r.poll = r.tryRead
}

// read hands over frames until the connection ends or the server stops.
func (c *Conn) read() error {
	r := &c.in
	if c.isStopping() {
		return errStopped
	}
	for {
		err := r.receive()
		if err == nil {
			err = r.handOver()
		}
		r.count()
		if err != nil {
			return err
		}
	}
}

// receive waits until there is something to read, takes a slab if it has none,
// and reads.
func (r *reader) receive() error {
	if r.buf != nil && r.start == r.end && r.end >= r.c.srv.readEnd {
		r.drop()
	}
	for {
		r.got, r.readable, r.err = 0, false, nil
		if err := r.c.raw.Read(r.poll); err != nil {
			return r.readError(err)
		}
		if r.err != nil {
			return r.readError(r.err)
		}
		if r.readable {
			if err := r.takeSlab(); err != nil {
				return err
			}
			continue
		}
		r.end += r.got
		r.c.srv.counters.reads.Add(1)
		r.c.srv.counters.bytesIn.Add(uint64(r.got))
		return nil
	}
}

// readError says what a failed read means.
func (r *reader) readError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && r.c.isStopping() {
		return errStopped
	}
	if err == io.EOF && r.start != r.end {
		return errCutShort
	}
	return err
}

// tryRead is called by the netpoller's RawConn.Read, which waits until the
// socket is readable each time it returns false.
func (r *reader) tryRead(fd uintptr) bool {
	r.unpark()
	if r.buf == nil {
		return r.tryPeek(int(fd))
	}
	n, err := -1, error(syscall.EINTR)
	for err == syscall.EINTR {
		n, err = syscall.Read(int(fd), r.mem[r.end:r.limit()])
	}
	switch {
	case n > 0:
		r.got = n
	case err == syscall.EAGAIN:
		if r.start != r.end {
			r.slow()
		} else {
			r.park()
		}
		return false
	case err != nil:
		r.err = os.NewSyscallError("read", err)
	default:
		r.err = io.EOF
	}
	return true
}

// limit returns where reading into the slab stops.
func (r *reader) limit() int { return max(r.c.srv.readEnd, r.need) }

// tryPeek is tryRead without a slab. It asks for the header of the next frame
// only: who hasn't sent that much, or sent a bad one, costs us no slab.
func (r *reader) tryPeek(fd int) bool {
	n, err := -1, error(syscall.EINTR)
	for err == syscall.EINTR {
		n, _, err = unix.Recvfrom(fd, r.peek[:], unix.MSG_PEEK)
	}
	switch {
	case err == syscall.EAGAIN:
		return false
	case err != nil:
		r.err = os.NewSyscallError("recvfrom", err)
	case n == 0:
		r.err = io.EOF
	case n == len(r.peek):
		_, r.err = r.c.parse(r.peek[:])
		r.readable = true
	case hungUp(fd):
		r.err = errCutShort
	default:
		r.slow()
		return false
	}
	return true
}

// hungUp reports whether the client will send no more. The netpoller wakes a
// reader once for what has come, the end included; so who has read a part of a
// header asks, or would wait for what has come already.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1
}

// slow starts the clock for an incomplete frame, quick stops it.
func (r *reader) slow() {
	if !r.isSlow {
		r.isSlow = true
		r.c.partialSince.Store(r.c.srv.since())
	}
}

func (r *reader) quick() {
	if r.isSlow {
		r.isSlow = false
		r.c.partialSince.Store(0)
	}
}

// park leaves the slab, between two frames, where anybody who needs one may
// take it (rob) while the reader waits. A connection that is busy finds it
// there again and goes on filling it; dropping it each time would spread small
// frames over as many slabs.
func (r *reader) park() {
	r.isParked = true
	r.c.parked.Store(r.buf)
	// Who began to wait for a slab before this store didn't see it.
	if r.c.srv.waiting.Load() > 0 {
		r.c.rob()
	}
}

func (r *reader) unpark() {
	if !r.isParked {
		return
	}
	r.isParked = false
	if r.c.parked.Swap(nil) == nil {
		r.forget()
	}
}

// rob drops the slab of a reader that waits, and reports whether there was one.
func (c *Conn) rob() bool {
	b := c.parked.Swap(nil)
	if b == nil {
		return false
	}
	b.Drop()
	c.srv.counters.slabsRobbed.Add(1)
	return true
}

// drop gives the reader's slab back, if it has one.
func (r *reader) drop() {
	r.unpark()
	if r.buf != nil {
		r.buf.Drop()
	}
	r.forget()
}

func (r *reader) forget() {
	r.buf, r.mem, r.start, r.end, r.need = nil, nil, 0, 0, 0
}

// takeSlab gets a slab to read into. Where there is none it waits, and the
// socket isn't read meanwhile: back-pressure begins here.
func (r *reader) takeSlab() error {
	r.quick()
	s := r.c.srv
	b := s.opts.Pool.TryGet()
	if b == nil {
		var err error
		if b, err = s.waitSlab(r.wait); err != nil {
			if r.c.isStopping() {
				return errStopped
			}
			return err
		}
	}
	r.buf, r.mem = b, b.Bytes()
	return nil
}

func (s *Server) waitSlab(ctx context.Context) (*slab.Buf, error) {
	s.counters.slabWaits.Add(1)
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	for s.Reclaim() {
		if b := s.opts.Pool.TryGet(); b != nil {
			return b, nil
		}
	}
	return s.opts.Pool.Get(ctx)
}

// handOver gives every frame that is complete to the handler.
func (r *reader) handOver() error {
	for r.end-r.start >= wire.HeaderSize {
		if r.need == 0 {
			h, err := r.c.parse(r.mem[r.start:r.end])
			if err != nil {
				return err
			}
			r.frame.Header = h
			r.need = r.start + wire.Padded(h.Len, int(r.c.srv.opts.Welcome.Align))
		}
		if r.end < r.need {
			return nil
		}
		r.quick()
		f := &r.frame
		f.buf, f.bytes = r.buf, r.mem[r.start:r.need:r.need]
		if err := f.CheckBody(f.Body()); err != nil {
			return &protocolError{req: f.Req, tell: true, reason: err}
		}
		if err := r.dispatch(f); err != nil {
			return err
		}
		r.start, r.need = r.need, 0
	}
	return nil
}

// parse decodes a header and refuses what no client may send after HELLO.
func (c *Conn) parse(b []byte) (wire.Header, error) {
	h, err := wire.ParseHeader(b, int(c.srv.opts.Welcome.MaxFrame))
	switch {
	case err != nil:
		return h, &protocolError{req: h.Req, tell: wire.HeaderIntact(err), reason: err}
	case h.Kind.FromNode() || h.Kind == wire.KindHello:
		return h, &protocolError{req: h.Req, tell: true, reason: fmt.Errorf("%v from a client that said HELLO: %w", h.Kind, redoubt.ErrInvalid)}
	case h.Kind == wire.KindRead && h.Len > wire.ReadFrameSize(int(c.srv.opts.Welcome.MaxPages)):
		return h, &protocolError{req: h.Req, tell: true, reason: fmt.Errorf("READ of %d bytes, the limit is %d pages: %w",
			h.Len, c.srv.opts.Welcome.MaxPages, redoubt.ErrInvalid)}
	}
	return h, nil
}

// dispatch hands one frame over.
func (r *reader) dispatch(f *Frame) error {
	c := r.c
	if f.Kind == wire.KindAppend {
		if !c.waitRoom(0) {
			return errStopped
		}
		r.frames++
		r.entries += uint64(f.Aux)
		r.bytes += uint64(len(f.bytes))
		c.srv.opts.Handler.Append(c, f)
		return nil
	}
	if !c.waitRoom(1) {
		return errStopped
	}
	r.requests++
	if f.Kind == wire.KindPing {
		c.Reply(f.Req, wire.KindOK, nil)
		return nil
	}
	c.srv.opts.Handler.Request(c, f)
	return nil
}

// waitRoom waits until fewer answers than the limit are pending, adds n to
// them and returns true; or false when nothing more is to be handed over.
func (c *Conn) waitRoom(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.pending >= int(c.srv.opts.Welcome.MaxInFlight) && c.phase == running && !c.stopping {
		c.room.Wait()
	}
	if c.phase != running || c.stopping {
		return false
	}
	c.pending += n
	return true
}

// count adds what was handed over to the server's counters.
func (r *reader) count() {
	n := &r.c.srv.counters
	if r.frames > 0 {
		n.appendFrames.Add(r.frames)
		n.appendEntries.Add(r.entries)
		n.appendBytes.Add(r.bytes)
	}
	if r.requests > 0 {
		n.requests.Add(r.requests)
	}
	r.frames, r.entries, r.bytes, r.requests = 0, 0, 0, 0
}
