package bench

import (
	"context"
	"errors"
	"fmt"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/wire"
)

// An attachment is a protection group's segment on a session.
type attachment struct {
	lane   int
	conn   *peer.Conn
	handle uint32
	desc   wire.Description
}

// A session is the connections to a volume's node, one for each lane on which
// the volume has a segment, so that each lane's frames go out on their own.
type session struct {
	layout *layout
	lanes  []*peer.Conn // by lane; nil: no segment there
	groups []attachment // by PG
}

// openSession connects to the node and attaches every segment, all of which are
// there, as a writer of the epoch, or with 0 of the epoch that each has. opts
// returns the options of a lane's connection.
func openSession(ctx context.Context, addr string, l *layout, epoch redoubt.Epoch, opts func(lane int) peer.Options) (*session, error) {
	s := &session{layout: l}
	if err := s.open(ctx, addr, epoch, opts); err != nil {
		s.close()
		return nil, fmt.Errorf("bench: volume %s: %w", l.name, err)
	}
	return s, nil
}

func (s *session) open(ctx context.Context, addr string, epoch redoubt.Epoch, opts func(lane int) peer.Options) error {
	// Which lanes there are, and which segment is on which, is asked of a
	// connection of its own.
	ask, err := peer.Dial(ctx, addr, peer.Options{Name: "redoubt bench replay"})
	if err != nil {
		return err
	}
	defer ask.Close()
	s.lanes = make([]*peer.Conn, ask.Welcome().Lanes)
	for pg := range s.layout.pgs {
		id := s.layout.segment(pg)
		d, err := ask.Describe(ctx, id)
		if err != nil {
			return err
		}
		lane, as := int(d.Lane), epoch
		if lane >= len(s.lanes) {
			return fmt.Errorf("segment %v on lane %d of %d: %w", id, lane, len(s.lanes), redoubt.ErrInvalid)
		}
		if s.lanes[lane] == nil {
			if s.lanes[lane], err = peer.Dial(ctx, addr, opts(lane)); err != nil {
				return err
			}
		}
		if as == 0 {
			as = d.VolumeEpoch
		}
		a, err := s.lanes[lane].Attach(ctx, &wire.Attach{Segment: id, Volume: s.layout.volume, VolumeEpoch: as, MembershipEpoch: 1})
		if err != nil {
			return err
		}
		s.groups = append(s.groups, attachment{lane: lane, conn: s.lanes[lane], handle: a.Handle, desc: a.Description})
	}
	return nil
}

// close ends the connections and waits for their last callbacks.
func (s *session) close() {
	for _, c := range s.lanes {
		if c != nil {
			c.Close()
		}
	}
}

// abort ends the connections and waits for nothing.
func (s *session) abort() {
	for _, c := range s.lanes {
		if c != nil {
			c.Abort()
		}
	}
}

// read fetches the pages of req, which belong to a protection group.
func (s *session) read(ctx context.Context, pg int, req *peer.ReadRequest) error {
	s.prepare(pg, req)
	if err := s.groups[pg].conn.ReadPages(ctx, req); err != nil {
		return err
	}
	return pageErrors(s.layout, pg, req)
}

// readPointOf returns where a group is read as of point, if need is its last LSN
// there. A group without a record is empty at any point, but only at 0 does its
// segment know that nothing is missing; its floor stays 0 for that.
func readPointOf(point, need redoubt.LSN) redoubt.LSN {
	if need == 0 {
		return 0
	}
	return point
}

// floorOf returns PGMRPL of a group whose last LSN is given, when nobody reads
// below vdl.
func floorOf(vdl, last redoubt.LSN) redoubt.LSN { return readPointOf(vdl, last) }

// prepare fills in what a request for pages of a protection group needs.
func (s *session) prepare(pg int, req *peer.ReadRequest) {
	req.Handle = s.groups[pg].handle
	req.Volume, req.PG, req.PGPages = s.layout.volume, redoubt.PGNo(pg), s.layout.pgPages
}

// pageErrors returns what is wrong with the first page that didn't come whole.
func pageErrors(l *layout, pg int, req *peer.ReadRequest) error {
	for _, d := range req.Descs {
		if d.Code != wire.CodeOK {
			err := d.Code.Kind()
			if err == nil {
				err = fmt.Errorf("code %d", d.Code)
			}
			return fmt.Errorf("page %d of the volume at LSN %d: %w", uint64(pg)*uint64(l.pgPages)+uint64(d.Page), req.Point, err)
		}
	}
	return nil
}

// permanent reports that trying again can't help.
func permanent(err error) bool {
	for _, kind := range []error{redoubt.ErrFenced, redoubt.ErrInvalid, redoubt.ErrNotFound, redoubt.ErrExists, redoubt.ErrForeign,
		redoubt.ErrDeviceFailed, redoubt.ErrBelowFloor, redoubt.ErrAboveSCL, redoubt.ErrCorrupt, context.Canceled} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
