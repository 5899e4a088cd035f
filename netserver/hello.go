package netserver

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/wire"
)

// hello reads HELLO and answers it. Until then the client costs us this small
// buffer and no slab.
func (c *Conn) hello() error {
	c.tcp.SetReadDeadline(time.Now().Add(c.srv.opts.HelloTimeout))
	if c.isStopping() {
		return errStopped
	}
	m, req, err := c.readHello()
	if err != nil {
		return c.helloError(err)
	}
	if m.MinVersion > wire.Version || m.MaxVersion < wire.Version {
		return &protocolError{req: req, tell: true, reason: fmt.Errorf("HELLO: the client speaks versions %d to %d, the node version %d: %w",
			m.MinVersion, m.MaxVersion, wire.Version, redoubt.ErrInvalid)}
	}
	c.client = m.Name
	c.tcp.SetWriteDeadline(time.Now().Add(c.srv.opts.HelloTimeout))
	frame := wire.AppendFrame(nil, wire.KindWelcome, 0, req, &c.srv.opts.Welcome)
	if _, err := c.tcp.Write(frame); err != nil {
		return c.helloError(err)
	}
	c.tcp.SetWriteDeadline(time.Time{}) // the watcher takes over
	c.tcp.SetReadDeadline(time.Time{})
	return nil
}

// readHello reads the first frame. Its header is judged before the rest is
// waited for.
func (c *Conn) readHello() (m wire.Hello, req uint64, err error) {
	buf := make([]byte, wire.HelloAlign)
	if _, err := io.ReadFull(c.tcp, buf[:wire.HeaderSize]); err != nil {
		return m, 0, err
	}
	h, err := wire.ParseHeader(buf, len(buf))
	if err != nil {
		return m, 0, &protocolError{req: h.Req, tell: wire.HeaderIntact(err), reason: err}
	}
	if h.Kind != wire.KindHello {
		return m, 0, &protocolError{req: h.Req, tell: true, reason: fmt.Errorf("%v before HELLO: %w", h.Kind, redoubt.ErrInvalid)}
	}
	if _, err := io.ReadFull(c.tcp, buf[wire.HeaderSize:]); err != nil {
		return m, 0, err
	}
	body := buf[wire.HeaderSize:h.Len]
	if err = h.CheckBody(body); err == nil {
		err = m.Decode(body)
	}
	if err != nil {
		return m, 0, &protocolError{req: h.Req, tell: true, reason: err}
	}
	return m, h.Req, nil
}

// helloError says what a failed read or write before WELCOME means.
func (c *Conn) helloError(err error) error {
	switch {
	case c.isStopping():
		return errStopped
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no HELLO within %v", c.srv.opts.HelloTimeout)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("HELLO was cut short")
	}
	return err
}
