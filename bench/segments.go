package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/wire"
)

// A target is a segment that a load has made for itself: the one protection
// group of a volume of its own, so that its LSNs are dense by themselves.
type target struct {
	id     redoubt.SegmentID
	volume redoubt.VolumeID
	conn   int // index of the connection that it is attached to
	handle uint32
	lane   uint8
}

// makeTargets makes n fresh segments of so many pages, spread over the lanes of
// the node in turns, and attaches them to conns in turns: of as many connections
// as lanes, or fewer, each has lanes to itself. On error none is left.
func makeTargets(ctx context.Context, conns []*peer.Conn, n int, pages uint32) (all []target, err error) {
	lanes := int(conns[0].Welcome().Lanes)
	defer func() {
		if err != nil {
			err = errors.Join(err, deleteTargets(ctx, conns[0], all))
			all = nil
		}
	}()
	for i := range n {
		t := target{id: redoubt.SegmentID(redoubt.NewID()), volume: redoubt.VolumeID(redoubt.NewID()), conn: i % len(conns)}
		c := conns[t.conn]
		_, err := c.Create(ctx, &wire.Create{Segment: t.id, Volume: t.volume, Pages: pages, Kind: redoubt.FullSegment,
			Lane: uint8(i % lanes), VolumeEpoch: 1, MembershipEpoch: 1, GeometryEpoch: 1})
		if err != nil {
			return all, fmt.Errorf("bench: making segment %d of %d: %w", i+1, n, err)
		}
		all = append(all, t)
		a, err := c.Attach(ctx, &wire.Attach{Segment: t.id, Volume: t.volume, VolumeEpoch: 1, MembershipEpoch: 1})
		if err != nil {
			return all, fmt.Errorf("bench: attaching segment %d of %d: %w", i+1, n, err)
		}
		all[i].handle, all[i].lane = a.Handle, a.Lane
	}
	return all, nil
}

// deleteTargets removes what makeTargets made, even after ctx was cancelled.
func deleteTargets(ctx context.Context, c *peer.Conn, all []target) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	var errs []error
	for _, t := range all {
		if err := c.Delete(ctx, &wire.Delete{Segment: t.id, VolumeEpoch: 1, MembershipEpoch: 1}); err != nil {
			errs = append(errs, err)
			if ctx.Err() != nil || errors.Is(err, redoubt.ErrClosed) {
				break // the others would say the same
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("bench: deleting the load's segments: %w", err)
	}
	return nil
}

// dialAll makes n connections; opts returns the options of each.
func dialAll(ctx context.Context, addr string, n int, opts func(i int) peer.Options) ([]*peer.Conn, error) {
	var conns []*peer.Conn
	for i := range n {
		c, err := peer.Dial(ctx, addr, opts(i))
		if err != nil {
			closeAll(conns)
			return nil, fmt.Errorf("bench: node %s: %w", addr, err)
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func closeAll(conns []*peer.Conn) {
	for _, c := range conns {
		c.Close()
	}
}
