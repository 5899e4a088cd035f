package peer_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/netserver"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/slab"
	"github.com/redoubt-storage/redoubt/wire"
)

// patience is how long a test waits for what must happen before it calls it a
// failure. Nothing is ever measured against it.
const patience = 20 * time.Second

// A memNode is a storage node that keeps everything in memory and forgets
// nothing: a handler behind a real server.
type memNode struct {
	t    testing.TB
	srv  *netserver.Server
	pool *slab.Pool

	mu       sync.Mutex
	segments map[redoubt.SegmentID]*segment
	hook     func(c *netserver.Conn, f *netserver.Frame) bool // takes a request if it returns true
}

// A segment keeps its batches whole.
type segment struct {
	wire.Description
	batches map[redoubt.LSN][]byte // by the LSN before the first
}

// heldError is a refusal with its two numbers.
type heldError struct {
	kind error
	a, b uint64
}

func (e *heldError) Error() string             { return fmt.Sprintf("memnode: %v (%d, %d)", e.kind, e.a, e.b) }
func (e *heldError) Unwrap() error             { return e.kind }
func (e *heldError) WireDetail() (a, b uint64) { return e.a, e.b }

// startNode serves a memNode; change may be nil.
func startNode(t testing.TB, change func(o *netserver.Options)) *memNode {
	t.Helper()
	pool, err := slab.New(slab.Options{Size: 640 << 10, Count: 4, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	n := &memNode{t: t, pool: pool, segments: map[redoubt.SegmentID]*segment{}}
	o := netserver.Options{
		Pool: pool, Handler: n,
		Welcome: wire.Welcome{MaxFrame: 272 << 10, Lanes: 2, Name: "memnode", Node: redoubt.NodeID{1: 1}},
		Log:     slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if change != nil {
		change(&o)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if n.srv, err = netserver.Serve(ln, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.stop)
	return n
}

func (n *memNode) addr() string { return n.srv.Addr().String() }

// stop shuts the node down, once.
func (n *memNode) stop() {
	if n.pool == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.srv.Shutdown(ctx); err != nil {
		n.t.Error(err)
	}
	if err := n.pool.Close(); err != nil {
		n.t.Error(err)
	}
	n.pool = nil
}

func (n *memNode) Closed(*netserver.Conn) {}

func (n *memNode) Append(c *netserver.Conn, f *netserver.Frame) {
	n.mu.Lock()
	defer n.mu.Unlock()
	it := wire.Entries(f.Bytes()[:f.Len], f.Aux)
	for i := 0; it.Next(); i++ {
		s, ok := c.Handle(it.Handle).(*segment)
		if !ok {
			c.AppendError(f.Req, i, &heldError{redoubt.ErrNotFound, uint64(it.Handle), 0})
			continue
		}
		if err := s.append(it.Batch); err != nil {
			c.AppendError(f.Req, i, err)
			continue
		}
		s.VDL, s.Floor = max(s.VDL, it.VDL), max(s.Floor, it.Floor)
		c.Ack(it.Handle, s.SCL)
	}
}

// append keeps a batch and moves the SCL over what closes up.
func (s *segment) append(batch []byte) error {
	h, err := redo.Verify(s.Volume, batch)
	if err != nil {
		return err
	}
	if h.Epoch < s.VolumeEpoch {
		return &heldError{redoubt.ErrFenced, uint64(s.VolumeEpoch), uint64(s.MembershipEpoch)}
	}
	s.batches[h.Prev] = bytes.Clone(batch)
	s.Highest = max(s.Highest, h.Last)
	for {
		next, ok := s.batches[s.SCL]
		if !ok {
			return nil
		}
		nh, _ := redo.ParseHeader(next)
		s.SCL = nh.Last
	}
}

// records calls f for every record held, in LSN order.
func (s *segment) records(f func(r *redo.Record)) {
	var all [][]byte
	for _, b := range s.batches {
		all = append(all, b)
	}
	slices.SortFunc(all, func(a, b []byte) int {
		x, _ := redo.ParseHeader(a)
		y, _ := redo.ParseHeader(b)
		return cmp.Compare(x.First, y.First)
	})
	for _, b := range all {
		h, _ := redo.ParseHeader(b)
		for it := redo.Records(b, h); it.Next(); {
			f(&it.Record)
		}
	}
}

func (n *memNode) Request(c *netserver.Conn, f *netserver.Frame) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hook != nil && n.hook(c, f) {
		return
	}
	kind, m, err := n.answer(c, f)
	switch {
	case err != nil:
		c.ReplyError(f.Req, err)
	case kind != 0:
		c.Reply(f.Req, kind, m)
	}
}

// answer serves one request; kind 0 says that the answer is on its way already.
func (n *memNode) answer(c *netserver.Conn, f *netserver.Frame) (wire.Kind, wire.Appender, error) {
	body := f.Body()
	switch f.Kind {
	case wire.KindCreate:
		return n.create(body)
	case wire.KindAttach:
		return n.attach(c, body)
	case wire.KindList:
		return n.list(body)
	case wire.KindRead:
		return 0, nil, n.read(c, f)
	case wire.KindTail:
		return n.tail(c, body)
	case wire.KindFloor:
		var m wire.Floor
		if err := m.Decode(body); err != nil {
			return 0, nil, err
		}
		s, ok := c.Handle(m.Handle).(*segment)
		if !ok {
			return 0, nil, &heldError{redoubt.ErrNotFound, uint64(m.Handle), 0}
		}
		s.VDL, s.Floor = max(s.VDL, m.VDL), max(s.Floor, m.Floor)
		return wire.KindOK, nil, nil
	}
	return n.byID(f)
}

// byID serves the requests that name a segment by its ID alone.
func (n *memNode) byID(f *netserver.Frame) (wire.Kind, wire.Appender, error) {
	body := f.Body()
	s := n.segments[redoubt.SegmentID(body[:16])]
	if s == nil {
		return 0, nil, &heldError{redoubt.ErrNotFound, 0, 0}
	}
	switch f.Kind {
	case wire.KindDelete:
		delete(n.segments, s.Segment)
		return wire.KindOK, nil, nil
	case wire.KindFence:
		var m wire.Fence
		if err := m.Decode(body); err != nil {
			return 0, nil, err
		}
		if m.Epoch < s.VolumeEpoch {
			return 0, nil, &heldError{redoubt.ErrFenced, uint64(s.VolumeEpoch), uint64(s.MembershipEpoch)}
		}
		s.VolumeEpoch = m.Epoch
	case wire.KindTruncate:
		var m wire.Truncate
		if err := m.Decode(body); err != nil {
			return 0, nil, err
		}
		s.Truncation = m.Truncation
	}
	return wire.KindDescription, &s.Description, nil
}

func (n *memNode) create(body []byte) (wire.Kind, wire.Appender, error) {
	var m wire.Create
	if err := m.Decode(body); err != nil {
		return 0, nil, err
	}
	s := n.segments[m.Segment]
	if s == nil {
		s = &segment{batches: map[redoubt.LSN][]byte{}, Description: wire.Description{
			Segment: m.Segment, Volume: m.Volume, PG: m.PG, Pages: m.Pages, Kind: m.Kind, Lane: m.Lane,
			VolumeEpoch: m.VolumeEpoch, MembershipEpoch: m.MembershipEpoch, GeometryEpoch: m.GeometryEpoch,
		}}
		n.segments[m.Segment] = s
	}
	if s.Volume != m.Volume || s.PG != m.PG {
		return 0, nil, &heldError{redoubt.ErrExists, 0, 0}
	}
	return wire.KindDescription, &s.Description, nil
}

func (n *memNode) attach(c *netserver.Conn, body []byte) (wire.Kind, wire.Appender, error) {
	var m wire.Attach
	if err := m.Decode(body); err != nil {
		return 0, nil, err
	}
	s := n.segments[m.Segment]
	if s == nil {
		return 0, nil, &heldError{redoubt.ErrNotFound, 0, 0}
	}
	h, err := c.NewHandle(s)
	return wire.KindAttached, &wire.Attached{Handle: h, Lane: s.Lane, Description: s.Description}, err
}

func (n *memNode) list(body []byte) (wire.Kind, wire.Appender, error) {
	var m wire.List
	if err := m.Decode(body); err != nil {
		return 0, nil, err
	}
	var l wire.Listed
	for id, s := range n.segments {
		if bytes.Compare(id[:], m.After[:]) > 0 {
			l.Segments = append(l.Segments, wire.Summary{Segment: id, Volume: s.Volume, PG: s.PG, Kind: s.Kind, Lane: s.Lane, SCL: s.SCL})
		}
	}
	slices.SortFunc(l.Segments, func(a, b wire.Summary) int { return bytes.Compare(a.Segment[:], b.Segment[:]) })
	if m.Max > 0 && len(l.Segments) > int(m.Max) {
		l.Segments, l.More = l.Segments[:m.Max], true
	}
	return wire.KindListed, &l, nil
}

func (n *memNode) tail(c *netserver.Conn, body []byte) (wire.Kind, wire.Appender, error) {
	var m wire.Tail
	if err := m.Decode(body); err != nil {
		return 0, nil, err
	}
	s, ok := c.Handle(m.Handle).(*segment)
	if !ok {
		return 0, nil, &heldError{redoubt.ErrNotFound, uint64(m.Handle), 0}
	}
	t := wire.Tailed{SCL: s.SCL}
	s.records(func(r *redo.Record) {
		switch {
		case r.LSN <= m.Above:
		case m.Max > 0 && len(t.Records) == int(m.Max):
			t.More = true
		default:
			t.Records = append(t.Records, wire.Held{LSN: r.LSN, CPL: r.CPL})
		}
	})
	return wire.KindTailed, &t, nil
}

// read answers with the pages as of the read point.
func (n *memNode) read(c *netserver.Conn, f *netserver.Frame) error {
	var m wire.Read
	if err := m.Decode(f.Body()); err != nil {
		return err
	}
	s, ok := c.Handle(m.Handle).(*segment)
	switch {
	case !ok:
		return &heldError{redoubt.ErrNotFound, uint64(m.Handle), 0}
	case m.Point < s.Floor:
		return &heldError{redoubt.ErrBelowFloor, uint64(s.Floor), uint64(s.SCL)}
	case m.Point > s.SCL:
		return &heldError{redoubt.ErrAboveSCL, uint64(s.Floor), uint64(s.SCL)}
	}
	var (
		descs []wire.PageDesc
		pages [][]byte
	)
	for _, p := range m.Pages {
		d := wire.PageDesc{Page: p, Code: wire.CodeNotFound}
		if p < s.Pages {
			page := make([]byte, redoubt.PageSize)
			d = wire.PageDesc{Page: p}
			s.records(func(r *redo.Record) {
				if r.Page == p && r.LSN <= m.Point {
					r.Apply(page)
					d.LSN = r.LSN
				}
			})
			d.Sum = redo.PageSum(s.Volume, redoubt.PageNo(s.PG)*redoubt.PageNo(s.Pages)+redoubt.PageNo(p), d.LSN, page)
			pages = append(pages, page)
		}
		descs = append(descs, d)
	}
	c.ReplyPages(f.Req, descs, pages, nil)
	return nil
}
