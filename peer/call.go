package peer

import (
	"context"
	"errors"
	"fmt"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/wire"
)

// A call is a request whose caller waits.
type call struct {
	want wire.Kind
	into decoder // nil: the answer has no body
	err  error
	done chan struct{}
}

type decoder interface{ Decode(b []byte) error }

// finish delivers an answer, or what came instead of one.
func (cl *call) finish(err error) {
	cl.err = err
	close(cl.done)
}

// call sends a request and waits for its answer, which must be of kind want.
// When ctx is done first the answer is thrown away once it comes.
func (c *Conn) call(ctx context.Context, kind wire.Kind, m wire.Appender, want wire.Kind, into decoder) error {
	cl := &call{want: want, into: into, done: make(chan struct{})}
	req, err := c.begin(ctx, kind, m, cl)
	if err != nil {
		return err
	}
	select {
	case <-cl.done:
	case <-ctx.Done():
		if c.giveUp(req) {
			return fmt.Errorf("peer: node %s: %v: %w", c.addr, kind, context.Cause(ctx))
		}
		<-cl.done
	}
	if cl.err != nil && !errors.Is(cl.err, redoubt.ErrClosed) {
		return fmt.Errorf("peer: node %s: %v: %w", c.addr, kind, cl.err)
	}
	return cl.err
}

// begin sends the request of a call, and waits for a slot if none is free.
func (c *Conn) begin(ctx context.Context, kind wire.Kind, m wire.Appender, cl *call) (uint64, error) {
	c.mu.Lock()
	for {
		req, err := c.take(cl, nil)
		if err == nil {
			c.post(kind, req, m)
			c.mu.Unlock()
			c.flush()
			return req, nil
		}
		if err != errBusy {
			c.mu.Unlock()
			return 0, err
		}
		if err := c.waitSlot(ctx); err != nil {
			c.mu.Unlock()
			return 0, err
		}
	}
}

// waitSlot waits until a slot may be free. c.mu is held.
func (c *Conn) waitSlot(ctx context.Context) error {
	c.waiters++
	c.mu.Unlock()
	var err error
	select {
	case <-c.freed:
	case <-ctx.Done():
		err = fmt.Errorf("peer: node %s: waiting for a request to end: %w", c.addr, context.Cause(ctx))
	}
	c.mu.Lock()
	c.waiters--
	if c.waiters > 0 {
		c.ping() // the next one looks for itself
	}
	return err
}

// Create makes a segment. One that exists with the same properties is fine.
func (c *Conn) Create(ctx context.Context, m *wire.Create) (wire.Description, error) {
	return c.describe(ctx, wire.KindCreate, m)
}

// Delete makes the node forget a segment.
func (c *Conn) Delete(ctx context.Context, m *wire.Delete) error {
	return c.call(ctx, wire.KindDelete, m, wire.KindOK, nil)
}

// Attach returns a handle for a segment, for the life of the connection.
func (c *Conn) Attach(ctx context.Context, m *wire.Attach) (wire.Attached, error) {
	var a wire.Attached
	err := c.call(ctx, wire.KindAttach, m, wire.KindAttached, &a)
	return a, err
}

// Describe returns what a segment says of itself.
func (c *Conn) Describe(ctx context.Context, segment redoubt.SegmentID) (wire.Description, error) {
	return c.describe(ctx, wire.KindDescribe, &wire.Describe{Segment: segment})
}

// List returns segments of the node whose IDs are above after, at most max (0:
// as many as the node likes), and whether there are more.
func (c *Conn) List(ctx context.Context, after redoubt.SegmentID, max uint32) (wire.Listed, error) {
	var l wire.Listed
	err := c.call(ctx, wire.KindList, &wire.List{After: after, Max: max}, wire.KindListed, &l)
	return l, err
}

// SetFloor tells a segment VDL and PGMRPL.
func (c *Conn) SetFloor(ctx context.Context, handle uint32, vdl, floor redoubt.LSN) error {
	return c.call(ctx, wire.KindFloor, &wire.Floor{Handle: handle, VDL: vdl, Floor: floor}, wire.KindOK, nil)
}

// Fence installs a volume epoch on a segment.
func (c *Conn) Fence(ctx context.Context, segment redoubt.SegmentID, epoch redoubt.Epoch) (wire.Description, error) {
	return c.describe(ctx, wire.KindFence, &wire.Fence{Segment: segment, Epoch: epoch})
}

// Truncate voids a range of records on a segment.
func (c *Conn) Truncate(ctx context.Context, segment redoubt.SegmentID, t redoubt.Truncation) (wire.Description, error) {
	return c.describe(ctx, wire.KindTruncate, &wire.Truncate{Segment: segment, Truncation: t})
}

// Tail returns records that a segment holds above an LSN, at most max (0: as
// many as the node likes).
func (c *Conn) Tail(ctx context.Context, handle uint32, above redoubt.LSN, max uint32) (wire.Tailed, error) {
	var t wire.Tailed
	err := c.call(ctx, wire.KindTail, &wire.Tail{Handle: handle, Max: max, Above: above}, wire.KindTailed, &t)
	return t, err
}

// Ping asks whether the node is there.
func (c *Conn) Ping(ctx context.Context) error {
	return c.call(ctx, wire.KindPing, nil, wire.KindOK, nil)
}

func (c *Conn) describe(ctx context.Context, kind wire.Kind, m wire.Appender) (wire.Description, error) {
	var d wire.Description
	err := c.call(ctx, kind, m, wire.KindDescription, &d)
	return d, err
}
