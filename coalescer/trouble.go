package coalescer

import (
	"errors"
	"fmt"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/segfile"
)

// The pauses after which a segment is tried again: doubled each time, so that
// damage costs little until it is repaired. What only needs room is tried again
// sooner.
const (
	minPause     = time.Second
	maxPause     = time.Minute
	maxRoomPause = 4 * time.Second
)

// A rest is the pause after an error.
type rest struct {
	pause time.Duration
	until time.Time
}

func (r *rest) is(now time.Time) bool { return now.Before(r.until) }

// trouble takes what came of working on a segment. It returns an error if that
// is final; any other gives the segment a rest, and success ends it.
func (f *Folder) trouble(s *segment, r *rest, now time.Time, err error) error {
	switch {
	case err == nil:
		*r = rest{}
		return nil
	case f.ctx.Err() != nil || errors.Is(err, redoubt.ErrDeviceFailed) || errors.Is(err, redoubt.ErrClosed):
		return err
	case f.store.Failed() != nil:
		return f.store.Failed()
	}
	if !f.store.Ready(s.seg) {
		return nil // it was deleted while we were at it
	}
	most := maxPause
	if errors.Is(err, redoubt.ErrFull) || errors.Is(err, redoubt.ErrBusy) {
		most = maxRoomPause
	}
	r.pause = min(max(2*r.pause, minPause), most)
	r.until = now.Add(r.pause)
	f.ledger.failure(err)
	var told *toldError
	if errors.Is(err, redoubt.ErrCorrupt) && !errors.As(err, &told) {
		f.ledger.damage(s.seg, NoPage, err)
	}
	return nil
}

func segmentError(g *segfile.Segment, format string, args ...any) error {
	return fmt.Errorf("coalescer: segment %v pg %d: "+format, append([]any{g.ID, g.PG}, args...)...)
}

func corrupt(g *segfile.Segment, format string, args ...any) error {
	return segmentError(g, format+": %w", append(args, redoubt.ErrCorrupt)...)
}
