package peer

import (
	"context"
	"errors"
	"fmt"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

// A ReadRequest asks for pages of one segment as of a read point. Its fields,
// and the memory behind them, are the Conn's from Read until Done.
type ReadRequest struct {
	Handle uint32
	Point  redoubt.LSN
	Need   redoubt.LSN // the group's last LSN at or below Point, if known; see wire.Read
	Pages  []uint32    // indices inside the protection group, at most the node's MaxPages

	// Buf receives page i of Pages at [i*16384, (i+1)*16384), where Descs[i]
	// says that it came (wire.CodeOK); elsewhere it stays as it is.
	Buf []byte

	// Descs receives what the node says of each page. It is made if it is too
	// small.
	Descs []wire.PageDesc

	// With a Volume, the sum of every page is checked, for which the pages of a
	// protection group of the volume are needed too. A page that fails has
	// wire.CodeCorrupt in Descs, and its bytes are not to be used.
	Volume  redoubt.VolumeID
	PG      redoubt.PGNo
	PGPages uint32

	// Done is called once, on the reader goroutine, if Read returned nil. With
	// an error, no page came.
	Done func(r *ReadRequest, err error)

	// Ctx is the caller's.
	Ctx any

	msg wire.Read
}

// Read asks for pages and returns at once. It fails with redoubt.ErrBusy when
// as many requests are in flight as may be; then, and with any other error, Done
// isn't called.
func (c *Conn) Read(r *ReadRequest) error {
	_, err := c.read(r)
	return err
}

func (c *Conn) read(r *ReadRequest) (uint64, error) {
	n := len(r.Pages)
	if n < 1 || n > int(c.welcome.MaxPages) || len(r.Buf) < n*redoubt.PageSize {
		return 0, fmt.Errorf("peer: READ of %d pages into %d bytes, at most %d pages: %w", n, len(r.Buf), c.welcome.MaxPages, redoubt.ErrInvalid)
	}
	if r.Volume != (redoubt.VolumeID{}) && r.PGPages == 0 {
		return 0, fmt.Errorf("peer: READ of volume %v without the pages of a protection group: %w", r.Volume, redoubt.ErrInvalid)
	}
	if cap(r.Descs) < n {
		r.Descs = make([]wire.PageDesc, n)
	}
	r.Descs = r.Descs[:n]
	r.msg = wire.Read{Handle: r.Handle, Point: r.Point, Need: r.Need, Pages: r.Pages}
	c.mu.Lock()
	req, err := c.take(nil, r)
	if err != nil {
		c.mu.Unlock()
		return 0, err
	}
	c.post(wire.KindRead, req, &r.msg)
	c.mu.Unlock()
	c.flush()
	return req, nil
}

// ReadPages is Read for a caller that waits; Done is not looked at. When ctx is
// done first, the answer is thrown away once it comes and Buf is the caller's
// again at once.
func (c *Conn) ReadPages(ctx context.Context, r *ReadRequest) error {
	done := make(chan error, 1)
	r.Done = func(_ *ReadRequest, err error) { done <- err }
	req, err := c.read(r)
	for err == errBusy {
		c.mu.Lock()
		err = c.waitSlot(ctx)
		c.mu.Unlock()
		if err == nil {
			req, err = c.read(r)
		}
	}
	if err != nil {
		return err
	}
	select {
	case err = <-done:
	case <-ctx.Done():
		if c.giveUp(req) {
			return fmt.Errorf("peer: node %s: READ: %w", c.addr, context.Cause(ctx))
		}
		err = <-done
	}
	if err != nil && !errors.Is(err, redoubt.ErrClosed) {
		return fmt.Errorf("peer: node %s: READ: %w", c.addr, err)
	}
	return err
}

// verify checks the sums of the pages that came, if it was asked to.
func (r *ReadRequest) verify() {
	if r.Volume == (redoubt.VolumeID{}) {
		return
	}
	first := redoubt.PageNo(r.PG) * redoubt.PageNo(r.PGPages)
	for i := range r.Descs {
		d := &r.Descs[i]
		if d.Code != wire.CodeOK {
			continue
		}
		page := r.Buf[i*redoubt.PageSize : (i+1)*redoubt.PageSize]
		if redo.PageSum(r.Volume, first+redoubt.PageNo(d.Page), d.LSN, page) != d.Sum {
			d.Code = wire.CodeCorrupt
		}
	}
}
