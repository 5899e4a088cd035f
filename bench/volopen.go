package bench

import (
	"context"
	"errors"
	"fmt"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/wire"
)

// An opened volume is ready for its writer, who goes on behind LSN start.
type opened struct {
	epoch    redoubt.Epoch
	start    redoubt.LSN   // the first new record is the one behind it
	vdl      redoubt.LSN   // 0: the volume is new, or nothing of it was durable
	last     []redoubt.LSN // of each group, at or below VDL
	control  controlRecord
	warnings []string
}

// openVolume makes the volume, or opens what there is of it as a new writer
// does. Each step may be repeated: killed anywhere in between, the next call does
// the whole again.
func openVolume(ctx context.Context, addr string, l *layout, lal redoubt.LSN) (*opened, error) {
	c, err := peer.Dial(ctx, addr, peer.Options{Name: "redoubt bench replay"})
	if err != nil {
		return nil, fmt.Errorf("bench: volume %s: %w", l.name, err)
	}
	defer c.Close()
	o, err := openOn(ctx, c, l, lal)
	if err != nil {
		return nil, fmt.Errorf("bench: volume %s: %w", l.name, err)
	}
	return o, nil
}

func openOn(ctx context.Context, c *peer.Conn, l *layout, lal redoubt.LSN) (*opened, error) {
	epoch, fresh, err := makeSegments(ctx, c, l)
	if err != nil {
		return nil, err
	}
	if fresh {
		return &opened{epoch: epoch, last: make([]redoubt.LSN, l.pgs)}, nil
	}
	o := &opened{epoch: epoch + 1}
	all, err := o.fence(ctx, c, l)
	if err != nil {
		return nil, err
	}
	if o.warnings, err = judgeUnknown(all); err != nil {
		return nil, err
	}
	handles, err := o.survey(ctx, c, l, all)
	if err != nil {
		return nil, err
	}
	_, o.vdl = recoveryPoint(all)
	t := truncationAbove(o.vdl, lal, o.epoch, all)
	if err := o.truncate(ctx, c, l, t, handles); err != nil {
		return nil, err
	}
	o.start = t.To
	o.control, err = readControl(ctx, c, l, handles, o)
	return o, err
}

// makeSegments makes the segments that are missing. It returns the highest
// volume epoch that any has, and whether all of them are new.
func makeSegments(ctx context.Context, c *peer.Conn, l *layout) (epoch redoubt.Epoch, fresh bool, err error) {
	epoch = 1
	written := false
	var missing []int
	for pg := range l.pgs {
		d, err := c.Describe(ctx, l.segment(pg))
		switch {
		case errors.Is(err, redoubt.ErrNotFound):
			missing = append(missing, pg)
			continue
		case err != nil:
			return 0, false, err
		}
		epoch = max(epoch, d.VolumeEpoch)
		written = written || d.Highest > 0 || d.VDL > 0 || d.Truncation.To > 0
	}
	if written && len(missing) > 0 {
		return 0, false, fmt.Errorf("the volume has records, and %d of its %d segments are missing, that of PG %d first: "+
			"their records are lost; is this the right node?: %w", len(missing), l.pgs, missing[0], redoubt.ErrNotFound)
	}
	for _, pg := range missing {
		_, err := c.Create(ctx, &wire.Create{Segment: l.segment(pg), Volume: l.volume, PG: redoubt.PGNo(pg), Pages: l.pgPages,
			Kind: redoubt.FullSegment, Lane: wire.AnyLane, VolumeEpoch: 1, MembershipEpoch: 1, GeometryEpoch: 1})
		if err != nil {
			return 0, false, err
		}
	}
	return epoch, len(missing) == l.pgs, nil
}

// fence shuts every earlier writer out.
func (o *opened) fence(ctx context.Context, c *peer.Conn, l *layout) ([]survivor, error) {
	all := make([]survivor, l.pgs)
	for pg := range all {
		var err error
		if all[pg].desc, err = c.Fence(ctx, l.segment(pg), o.epoch); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// survey attaches the segments and asks each what it holds above the highest VDL
// that any of them was told.
func (o *opened) survey(ctx context.Context, c *peer.Conn, l *layout, all []survivor) (handles []uint32, err error) {
	told := toldVDL(all)
	for pg := range all {
		a, err := c.Attach(ctx, &wire.Attach{Segment: l.segment(pg), Volume: l.volume, VolumeEpoch: o.epoch, MembershipEpoch: 1})
		if err != nil {
			return nil, err
		}
		handles = append(handles, a.Handle)
		for above, more := told, true; more; {
			t, err := c.Tail(ctx, a.Handle, above, 0)
			if err != nil {
				return nil, err
			}
			if n := len(t.Records); n > 0 {
				above = t.Records[n-1].LSN
			} else if t.More {
				return nil, fmt.Errorf("PG %d says that it holds more above LSN %d, and doesn't say what: %w", pg, above, redoubt.ErrInvalid)
			}
			all[pg].held = append(all[pg].held, t.Records...)
			more = t.More
		}
	}
	return handles, nil
}

// truncate makes what is above VDL void. Each segment is told VDL before, so that
// it remembers both or neither. PGMRPL is told with the first batch.
func (o *opened) truncate(ctx context.Context, c *peer.Conn, l *layout, t redoubt.Truncation, handles []uint32) error {
	o.last = make([]redoubt.LSN, l.pgs)
	for pg := range l.pgs {
		if err := c.SetFloor(ctx, handles[pg], o.vdl, 0); err != nil {
			return err
		}
		d, err := c.Truncate(ctx, l.segment(pg), t)
		if err != nil {
			return err
		}
		if d.SCL > o.vdl {
			return fmt.Errorf("PG %d has SCL %d after everything above %d was truncated: %w", pg, d.SCL, o.vdl, redoubt.ErrInvalid)
		}
		o.last[pg] = d.SCL
	}
	return nil
}

// readControl reads how far the trace is in the volume.
func readControl(ctx context.Context, c *peer.Conn, l *layout, handles []uint32, o *opened) (controlRecord, error) {
	pg, index := l.place(l.control())
	if o.vdl == 0 {
		return controlRecord{}, nil
	}
	req := peer.ReadRequest{Handle: handles[pg], Point: readPointOf(o.vdl, o.last[pg]), Need: o.last[pg], Pages: []uint32{index}, Buf: make([]byte, redoubt.PageSize),
		Volume: l.volume, PG: redoubt.PGNo(pg), PGPages: l.pgPages}
	if err := c.ReadPages(ctx, &req); err != nil {
		return controlRecord{}, err
	}
	if err := pageErrors(l, pg, &req); err != nil {
		return controlRecord{}, err
	}
	return parseControl(req.Buf)
}

// readLinks asks for the last LSN of pages, as of VDL.
func readLinks(ctx context.Context, s *session, o *opened, pages map[uint64]struct{}, links map[uint64]redoubt.LSN) error {
	if o.vdl == 0 {
		return nil
	}
	byPG := make(map[int][]uint32)
	for p := range pages {
		pg, index := s.layout.place(p)
		byPG[pg] = append(byPG[pg], index)
	}
	buf := make([]byte, wire.MaxPages*redoubt.PageSize)
	for pg, list := range byPG {
		most := min(wire.MaxPages, int(s.groups[pg].conn.Welcome().MaxPages))
		for len(list) > 0 {
			n := min(most, len(list))
			req := peer.ReadRequest{Point: readPointOf(o.vdl, o.last[pg]), Need: o.last[pg], Pages: list[:n], Buf: buf}
			if err := s.read(ctx, pg, &req); err != nil {
				return fmt.Errorf("bench: volume %s: last LSNs of pages: %w", s.layout.name, err)
			}
			for _, d := range req.Descs {
				if d.LSN > 0 {
					links[uint64(pg)*uint64(s.layout.pgPages)+uint64(d.Page)] = d.LSN
				}
			}
			list = list[n:]
		}
	}
	return nil
}

// deleteVolume removes the segments of a volume that are there, and says how
// many there were.
func deleteVolume(ctx context.Context, c *peer.Conn, l *layout) (n int, err error) {
	for pg := range l.pgs {
		d, err := c.Describe(ctx, l.segment(pg))
		if errors.Is(err, redoubt.ErrNotFound) {
			continue
		}
		if err == nil {
			err = c.Delete(ctx, &wire.Delete{Segment: l.segment(pg), VolumeEpoch: d.VolumeEpoch, MembershipEpoch: d.MembershipEpoch})
		}
		if err != nil {
			return n, fmt.Errorf("bench: volume %s: deleting PG %d: %w", l.name, pg, err)
		}
		n++
	}
	return n, nil
}
