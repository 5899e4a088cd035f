package node

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/netserver"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
	"github.com/redoubt-storage/redoubt/wire"
)

// Request implements netserver.Handler. Reads are served at once; whatever may
// wait for a device gets a goroutine, of which a connection can have as many as
// it may have requests in flight.
func (n *Node) Request(c *netserver.Conn, f *netserver.Frame) {
	if f.Kind == wire.KindRead {
		n.read(c, f)
		return
	}
	body := bytes.Clone(f.Body())
	kind, req := f.Kind, f.Req
	go func() {
		if err := n.control(c, kind, req, body); err != nil {
			c.ReplyError(req, err)
		}
	}()
}

// Closed implements netserver.Handler.
func (n *Node) Closed(c *netserver.Conn) {
	for h := uint32(0); ; h++ {
		a, _ := c.Handle(h).(*attachment)
		if a == nil {
			return
		}
		unwatch(a.seg, c)
	}
}

// control answers everything but APPEND and READ, or returns an error and
// answers nothing.
func (n *Node) control(c *netserver.Conn, kind wire.Kind, req uint64, body []byte) error {
	switch kind {
	case wire.KindCreate:
		return n.create(c, req, body)
	case wire.KindDelete:
		return n.delete(c, req, body)
	case wire.KindAttach:
		return n.attach(c, req, body)
	case wire.KindDescribe:
		var m wire.Describe
		if err := m.Decode(body); err != nil {
			return err
		}
		return n.describe(c, req, m.Segment)
	case wire.KindList:
		return n.list(c, req, body)
	case wire.KindFloor:
		return n.floor(c, req, body)
	case wire.KindFence:
		return n.fence(c, req, body)
	case wire.KindTruncate:
		return n.truncate(c, req, body)
	case wire.KindTail:
		return n.tail(c, req, body)
	}
	return fmt.Errorf("node: a %v request is not for a storage node: %w", kind, redoubt.ErrInvalid)
}

// find returns a segment of the node that is ready.
func (n *Node) find(id redoubt.SegmentID) (*lane, *segfile.Segment, error) {
	for _, l := range n.lanes {
		if g, ok := l.store.Segment(id); ok && l.store.Ready(g) {
			return l, g, nil
		}
	}
	return nil, nil, fmt.Errorf("node: segment %v is not on this node: %w", id, redoubt.ErrNotFound)
}

func (n *Node) create(c *netserver.Conn, req uint64, body []byte) error {
	var m wire.Create
	if err := m.Decode(body); err != nil {
		return err
	}
	// Until the segment stands somewhere, nobody else may place it elsewhere.
	n.placing.Lock()
	defer n.placing.Unlock()
	l, err := n.place(&m)
	if err != nil {
		return err
	}
	spec := segfile.SegmentSpec{ID: m.Segment, Volume: m.Volume, PG: m.PG, Pages: m.Pages, Kind: m.Kind,
		Epoch: m.VolumeEpoch, Membership: m.MembershipEpoch, Geometry: m.GeometryEpoch}
	err = l.queue.Change(func(mem *slab.Buf) (ch *segfile.Change, err error) {
		_, ch, err = l.store.PrepareCreate(mem, spec)
		return ch, err
	})
	if err != nil {
		return err
	}
	return n.describe(c, req, m.Segment)
}

// place returns the lane on which a segment is, or is to be: the one asked for,
// or else the one with the fewest pages promised.
func (n *Node) place(m *wire.Create) (*lane, error) {
	for _, l := range n.lanes {
		if _, ok := l.store.Segment(m.Segment); ok {
			return l, nil
		}
	}
	if m.Lane != wire.AnyLane {
		if int(m.Lane) >= len(n.lanes) {
			return nil, fmt.Errorf("node: lane %d of %d: %w", m.Lane, len(n.lanes), redoubt.ErrInvalid)
		}
		return n.lanes[m.Lane], nil
	}
	var best *lane
	least := int64(0)
	for _, l := range n.lanes {
		if l.store.Failed() != nil {
			continue
		}
		if p := l.store.PromisedPages(); best == nil || p < least {
			best, least = l, p
		}
	}
	if best == nil {
		return nil, fmt.Errorf("node: every device has failed: %w", redoubt.ErrDeviceFailed)
	}
	return best, nil
}

func (n *Node) delete(c *netserver.Conn, req uint64, body []byte) error {
	var m wire.Delete
	if err := m.Decode(body); err != nil {
		return err
	}
	l, g, err := n.find(m.Segment)
	if err != nil {
		return err
	}
	if err := l.queue.Change(func(mem *slab.Buf) (*segfile.Change, error) {
		return l.store.PrepareDelete(mem, g, m.VolumeEpoch)
	}); err != nil {
		return err
	}
	l.coal.Wake()
	c.Reply(req, wire.KindOK, nil)
	return nil
}

func (n *Node) attach(c *netserver.Conn, req uint64, body []byte) error {
	var m wire.Attach
	if err := m.Decode(body); err != nil {
		return err
	}
	l, g, err := n.find(m.Segment)
	if err != nil {
		return err
	}
	i := l.store.Info(g)
	switch {
	case g.Volume != m.Volume:
		return fmt.Errorf("node: segment %v is of volume %v, not %v: %w", g.ID, g.Volume, m.Volume, redoubt.ErrInvalid)
	case m.VolumeEpoch < i.Epoch:
		return &segfile.EpochError{Seg: g, Held: i.Epoch, Got: m.VolumeEpoch}
	case m.MembershipEpoch < i.Membership:
		return &segfile.EpochError{Seg: g, Held: i.Membership, Got: m.MembershipEpoch}
	}
	h, err := c.NewHandle(&attachment{lane: l, seg: g})
	if err != nil {
		return err
	}
	watch(g, watcher{conn: c, handle: h})
	select {
	case <-c.Done():
		unwatch(g, c) // Closed may have looked before the handle was there
	default:
	}
	c.Reply(req, wire.KindAttached, &wire.Attached{Handle: h, Lane: uint8(l.index), Description: n.description(l, g)})
	return nil
}

func (n *Node) describe(c *netserver.Conn, req uint64, id redoubt.SegmentID) error {
	l, g, err := n.find(id)
	if err != nil {
		return err
	}
	d := n.description(l, g)
	c.Reply(req, wire.KindDescription, &d)
	return nil
}

func (n *Node) description(l *lane, g *segfile.Segment) wire.Description {
	i := l.store.Info(g)
	d := wire.Description{
		Segment: i.ID, Volume: i.Volume, Device: l.dev.Super().Device, PG: i.PG, Pages: i.Pages, Kind: i.Kind, Lane: uint8(l.index),
		Unknown: wire.UnknownReason(i.Unknown.Reason), UnknownAbove: i.Unknown.Above,
		VolumeEpoch: i.Epoch, MembershipEpoch: i.Membership, GeometryEpoch: i.Geometry,
		SCL: i.SCL, Highest: i.Highest, VDL: i.VDL, Floor: i.Floor, Coalesced: i.Coalesced, Trimmed: i.Trimmed,
		LogBytes: uint64(i.LogBytes), DirtyPages: uint64(i.DirtyPages), PageCount: uint64(i.PageCount), Truncation: i.Truncation,
	}
	if l.store.Failed() != nil {
		d.State |= wire.StateFailed
	}
	if l.store.Room(0) <= 0 {
		d.State |= wire.StateFull
	}
	return d
}

func (n *Node) list(c *netserver.Conn, req uint64, body []byte) error {
	var m wire.List
	if err := m.Decode(body); err != nil {
		return err
	}
	var all []wire.Summary
	for _, l := range n.lanes {
		for _, g := range l.store.Segments() {
			if bytes.Compare(g.ID[:], m.After[:]) > 0 && l.store.Ready(g) {
				i := l.store.Info(g)
				all = append(all, wire.Summary{Segment: g.ID, Volume: g.Volume, PG: g.PG, Kind: g.Kind, Lane: uint8(l.index), SCL: i.SCL})
			}
		}
	}
	slices.SortFunc(all, func(a, b wire.Summary) int { return bytes.Compare(a.Segment[:], b.Segment[:]) })
	limit := wire.MaxListed(n.maxFrame)
	if m.Max != 0 {
		limit = min(limit, int(m.Max))
	}
	out := wire.Listed{More: len(all) > limit, Segments: all[:min(limit, len(all))]}
	c.Reply(req, wire.KindListed, &out)
	return nil
}

func (n *Node) attached(c *netserver.Conn, h uint32) (*attachment, error) {
	a, _ := c.Handle(h).(*attachment)
	if a == nil {
		return nil, fmt.Errorf("node: handle %d was never attached on this connection: %w", h, redoubt.ErrInvalid)
	}
	return a, nil
}

func (n *Node) floor(c *netserver.Conn, req uint64, body []byte) error {
	var m wire.Floor
	if err := m.Decode(body); err != nil {
		return err
	}
	a, err := n.attached(c, m.Handle)
	if err != nil {
		return err
	}
	a.lane.store.Tell(a.seg, m.VDL, m.Floor)
	a.lane.coal.Wake()
	c.Reply(req, wire.KindOK, nil)
	return nil
}

func (n *Node) fence(c *netserver.Conn, req uint64, body []byte) error {
	var m wire.Fence
	if err := m.Decode(body); err != nil {
		return err
	}
	l, g, err := n.find(m.Segment)
	if err != nil {
		return err
	}
	if err := l.queue.Change(func(mem *slab.Buf) (*segfile.Change, error) {
		return l.store.PrepareEpoch(mem, g, m.Epoch)
	}); err != nil {
		return err
	}
	return n.describe(c, req, m.Segment)
}

func (n *Node) truncate(c *netserver.Conn, req uint64, body []byte) error {
	var m wire.Truncate
	if err := m.Decode(body); err != nil {
		return err
	}
	l, g, err := n.find(m.Segment)
	if err != nil {
		return err
	}
	// Two truncations of a segment at once would invalidate each other's plan.
	n.truncating.Lock()
	defer n.truncating.Unlock()
	plan, err := l.store.PlanTruncate(g, m.Truncation)
	if err != nil {
		return err
	}
	if err := l.queue.Change(func(mem *slab.Buf) (*segfile.Change, error) {
		return l.store.PrepareTruncate(mem, plan)
	}); err != nil {
		return err
	}
	return n.describe(c, req, m.Segment)
}

func (n *Node) tail(c *netserver.Conn, req uint64, body []byte) error {
	var m wire.Tail
	if err := m.Decode(body); err != nil {
		return err
	}
	a, err := n.attached(c, m.Handle)
	if err != nil {
		return err
	}
	limit := wire.MaxTailed(n.maxFrame)
	if m.Max != 0 {
		limit = min(limit, int(m.Max))
	}
	held, more, err := a.lane.store.HeldAbove(a.seg, m.Above, limit, nil)
	if err != nil {
		return err
	}
	out := wire.Tailed{SCL: a.lane.store.Info(a.seg).SCL, More: more}
	for _, h := range held {
		out.Records = append(out.Records, wire.Held{LSN: h.LSN, CPL: h.CPL})
	}
	c.Reply(req, wire.KindTailed, &out)
	return nil
}
