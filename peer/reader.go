package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/wire"
)

// A reader reads frames from the socket. Small ones are decoded in its buffer;
// of a PAGES frame what the buffer doesn't hold goes straight to where the
// caller wants the pages.
type reader struct {
	tcp   *net.TCPConn
	c     *Conn // to be told when reading waits; nil until the connection is open
	limit int   // of a frame other than PAGES, bytes
	buf   []byte
	r, w  int // what is not yet consumed: buf[r:w]

	refusal *wire.Error // in the frame before, about no request of ours
}

// bufSize holds a few answers of one page. A copy out of it costs less than the
// system call that it saves.
const bufSize = 64 << 10

func (r *reader) init(tcp *net.TCPConn) {
	r.tcp = tcp
	r.limit = bufSize
	r.buf = make([]byte, bufSize)
}

// fill makes n bytes available at the start of what is not yet consumed, and
// returns them. n is within the limits.
func (r *reader) fill(n int) ([]byte, error) {
	if r.w-r.r < n { // move what little there is to the front, so that much can follow
		to := r.buf
		if n > len(to) {
			to = make([]byte, n)
		}
		r.w = copy(to, r.buf[r.r:r.w])
		r.r, r.buf = 0, to
	}
	for r.w < r.r+n {
		k, err := r.read(r.buf[r.w:])
		r.w += k
		if err == io.EOF && (r.w > r.r || n > wire.HeaderSize) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
	return r.buf[r.r : r.r+n], nil
}

// header returns the next header without consuming it.
func (r *reader) header() (wire.Header, error) {
	b, err := r.fill(wire.HeaderSize)
	if err != nil {
		return wire.Header{}, err
	}
	h, err := wire.ParseHeader(b, r.limit)
	if err == nil && !h.Kind.FromNode() {
		err = fmt.Errorf("%v from a node: %w", h.Kind, redoubt.ErrInvalid)
	}
	return h, err
}

// frame consumes a frame other than PAGES and returns its body, which is good
// until the next call.
func (r *reader) frame() (wire.Header, []byte, error) {
	h, err := r.header()
	if err != nil {
		return h, nil, err
	}
	if h.Kind == wire.KindPages {
		return h, nil, fmt.Errorf("%v before WELCOME: %w", h.Kind, redoubt.ErrInvalid)
	}
	body, err := r.body(h, h.Len)
	return h, body, err
}

// body consumes the first n bytes of a frame and returns what of them is body.
func (r *reader) body(h wire.Header, n int) ([]byte, error) {
	b, err := r.fill(n)
	if err != nil {
		return nil, err
	}
	r.r += n
	b = b[wire.HeaderSize:]
	return b, h.CheckBody(b)
}

// copyTo consumes len(dst) bytes into dst.
func (r *reader) copyTo(dst []byte) error {
	n := copy(dst, r.buf[r.r:r.w])
	r.r += n
	for n < len(dst) {
		k, err := r.read(dst[n:])
		if n += k; err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// read is the only place where the reader goroutine waits for the node, so what
// its callbacks have asked for is sent before and not while they run: the
// answers of one read lead to one write.
func (r *reader) read(b []byte) (int, error) {
	if r.c == nil {
		return r.tcp.Read(b)
	}
	r.c.uncork()
	n, err := r.tcp.Read(b)
	r.c.cork()
	return n, err
}

// skip consumes n bytes.
func (r *reader) skip(n int) error {
	for n > 0 {
		b, err := r.fill(min(n, bufSize))
		if err != nil {
			return err
		}
		r.r += len(b)
		n -= len(b)
	}
	return nil
}

// run is the reader goroutine.
func (c *Conn) run() {
	c.in.limit = int(c.welcome.MaxFrame)
	c.in.c = c
	err := c.receive()
	c.tcp.Close()
	c.mu.Lock()
	switch {
	case c.in.refusal != nil && isEnd(err):
		err = c.in.refusal
	case c.bye && isEnd(err):
		err = errors.New("the node shut down")
	}
	c.setDown(err)
	down := c.down
	c.mu.Unlock()
	c.failAll(down)
	if c.opts.OnDown != nil {
		c.opts.OnDown(down)
	}
	close(c.done)
}

// isEnd reports whether it was the node that ended the connection.
func isEnd(err error) bool { return err == io.EOF || errors.Is(err, syscall.ECONNRESET) }

// failAll answers every request that is in flight. None is added any more.
func (c *Conn) failAll(err error) {
	for i := range c.slots {
		c.mu.Lock()
		s := &c.slots[i]
		cl, rd := s.call, s.read
		s.busy, s.call, s.read = false, nil, nil
		c.mu.Unlock()
		deliver(cl, rd, err)
	}
	c.mu.Lock()
	if c.waiters > 0 {
		c.ping() // each wakes the next, and finds that the connection is down
	}
	c.mu.Unlock()
}

// deliver ends a request: a call, a read, or one that was given up.
func deliver(cl *call, rd *ReadRequest, err error) {
	if cl != nil {
		cl.finish(err)
	}
	if rd != nil {
		rd.Done(rd, err)
	}
}

// receive reads frames until the connection ends, and returns why.
func (c *Conn) receive() error {
	for {
		h, err := c.in.header()
		if err != nil {
			return err
		}
		c.in.refusal = nil
		if h.Kind == wire.KindPages {
			err = c.pages(h)
		} else {
			err = c.other(h)
		}
		if err != nil {
			return err
		}
	}
}

// other takes a frame that isn't PAGES.
func (c *Conn) other(h wire.Header) error {
	body, err := c.in.body(h, h.Len)
	if err != nil {
		return err
	}
	switch h.Kind {
	case wire.KindAck:
		c.acks(h, body)
		return nil
	case wire.KindBye:
		c.mu.Lock()
		c.bye = true
		c.mu.Unlock()
		return nil
	case wire.KindError:
		return c.refused(h, body)
	}
	cl, rd, ok := c.claim(h.Req)
	if !ok || rd != nil || cl != nil && cl.want != h.Kind {
		deliver(cl, rd, fmt.Errorf("%v in answer to something else: %w", h.Kind, redoubt.ErrInvalid))
		return fmt.Errorf("%v under request %#x, which asked for something else: %w", h.Kind, h.Req, redoubt.ErrInvalid)
	}
	if cl == nil {
		return nil // given up
	}
	if cl.into != nil {
		err = cl.into.Decode(body)
	}
	deliver(cl, nil, err)
	return err
}

func (c *Conn) acks(h wire.Header, body []byte) {
	if c.opts.OnAck != nil {
		for i := range int(h.Aux) {
			a := wire.AckAt(body, i)
			c.opts.OnAck(a.Handle, a.SCL)
		}
	}
	if c.opts.OnAckFrame != nil {
		c.opts.OnAckFrame()
	}
}

// refused takes an ERROR: the answer to a request, or word of an append, or the
// reason why the node is about to hang up.
func (c *Conn) refused(h wire.Header, body []byte) error {
	e := new(wire.Error)
	if err := e.Decode(body); err != nil {
		return err
	}
	if h.Req&ownReq != 0 {
		cl, rd, ok := c.claim(h.Req)
		if !ok {
			return fmt.Errorf("ERROR under request %#x, which isn't in flight: %w", h.Req, e)
		}
		deliver(cl, rd, e)
		return nil
	}
	if e.Entry == wire.NoEntry {
		c.in.refusal = e // if it hangs up now, that is why
	}
	if c.opts.OnError != nil {
		c.opts.OnError(h.Req, e.Entry, e)
	}
	return nil
}

// pages takes a PAGES frame.
func (c *Conn) pages(h wire.Header) error {
	descs, err := c.in.body(h, wire.HeaderSize+int(h.Aux)*wire.PageDescSize)
	if err != nil {
		return err
	}
	cl, rd, ok := c.claim(h.Req)
	if !ok || cl != nil || rd != nil && len(rd.Pages) != int(h.Aux) {
		err = fmt.Errorf("PAGES of %d pages under request %#x, which asked for something else: %w", h.Aux, h.Req, redoubt.ErrInvalid)
		deliver(cl, rd, err)
		return err
	}
	if rd == nil { // given up
		return c.in.skip(h.Len - wire.HeaderSize - len(descs))
	}
	err = c.in.pagesInto(rd, descs)
	if err == nil {
		rd.verify()
	}
	deliver(nil, rd, err)
	return err
}

// pagesInto decodes the descriptors and receives the pages, as many at once as
// lie side by side in the caller's memory.
func (r *reader) pagesInto(rd *ReadRequest, descs []byte) error {
	for i := range rd.Pages {
		rd.Descs[i] = wire.PageDescAt(descs, i)
		if rd.Descs[i].Page != rd.Pages[i] {
			return fmt.Errorf("PAGES: page %d in the place of page %d: %w", rd.Descs[i].Page, rd.Pages[i], redoubt.ErrInvalid)
		}
	}
	for i := 0; i < len(rd.Descs); i++ {
		first := i
		for i < len(rd.Descs) && rd.Descs[i].Code == wire.CodeOK {
			i++
		}
		if err := r.copyTo(rd.Buf[first*redoubt.PageSize : i*redoubt.PageSize]); err != nil {
			return err
		}
	}
	return nil
}
