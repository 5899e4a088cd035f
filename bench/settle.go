package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
)

// A settling is a segment whose log is to be in pages up to an LSN.
type settling struct {
	conn *peer.Conn
	id   redoubt.SegmentID
	upto redoubt.LSN
}

// settlePoll is how often segments are asked how far they are: nobody tells.
const settlePoll = 50 * time.Millisecond

// awaitCoalesced waits until all of the segments' log is in pages.
func awaitCoalesced(ctx context.Context, waits []settling, p *Progress) error {
	total := uint64(len(waits))
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	defer p.Done()
	for {
		var left []settling
		dirty := uint64(0)
		for _, w := range waits {
			d, err := w.conn.Describe(ctx, w.id)
			if err != nil {
				return fmt.Errorf("bench: waiting for coalescing: %w", err)
			}
			if d.Coalesced < w.upto {
				left = append(left, w)
				dirty += d.DirtyPages
			}
		}
		if waits = left; len(waits) == 0 {
			return nil
		}
		p.Show(total-uint64(len(waits)), total, fmt.Sprintf("coalescing, %d segments to go, %d dirty pages", len(waits), dirty))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("bench: waiting for coalescing, %d segments to go: %w", len(waits), context.Cause(ctx))
		}
	}
}
