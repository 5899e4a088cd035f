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

// liveLog is how much log T14 wants a restart to read: at most this, and less
// than what begins to be slowed down on a small device.
const liveLog = 1 << 30

// restarts is T14: the node is killed with a hot log that nothing of may go, and
// started again.
func (s *suite) restarts(ctx context.Context) ([]Row, error) {
	if err := s.fillLog(ctx); err != nil {
		return nil, err
	}
	live, err := s.liveLogBytes(ctx)
	if err != nil {
		return nil, err
	}
	if live < 16<<20 {
		return nil, fmt.Errorf("only %s of live log to recover", sizeText(float64(live)))
	}
	gib := float64(live) / (1 << 30)
	var inner []float64
	got, err := s.rounds(ctx, "T14, restarts", func(ctx context.Context) (float64, error) {
		s.node.kill()
		took, err := s.node.start(ctx)
		if err != nil {
			return 0, err
		}
		recovery, err := s.node.recovery(ctx)
		inner = append(inner, recovery.Seconds())
		return took.Seconds() / gib, err
	})
	if err != nil {
		return nil, err
	}
	if err := s.deleteAll(ctx); err != nil {
		return nil, err
	}
	r := Row{ID: "T14", What: "node, from SIGKILL and start to serving, for each GiB of live hot log", Must: 1, Aim: 0.3, Lower: true}
	r.alone(Side{Name: "node", Unit: "s", Rounds: got[0]})
	r.Note = fmt.Sprintf("%.2f GiB of live log; of the whole start, reading the log took %.2f s", gib, median(inner))
	return []Row{r}, nil
}

// fillLog appends until there is enough log, and keeps it live: the node is told
// neither VDL nor PGMRPL.
func (s *suite) fillLog(ctx context.Context) error {
	const size, batch = 1024, 32
	want := min(float64(liveLog), 0.3*float64(s.DeviceSize)) // of a log of three quarters of it
	const rate = 200e6                                       // bytes a second, so that the amount is as wanted
	_, err := s.appendRun(AppendOptions{Segments: 16, RecordSize: size, Batch: batch, Window: 64, Rate: rate / size,
		Duration: time.Duration(want / rate * float64(time.Second)), HoldLog: true, Keep: true}, func(AppendResult) float64 { return 0 })(ctx)
	return err
}

// eachSegment calls f for every segment of the node.
func (s *suite) eachSegment(ctx context.Context, f func(c *peer.Conn, d wire.Description) error) error {
	c, err := peer.Dial(ctx, s.node.addr, peer.Options{Name: "redoubt bench all"})
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer c.Close()
	for after, more := (redoubt.SegmentID{}), true; more; {
		list, err := c.List(ctx, after, 0)
		if err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		for _, g := range list.Segments {
			after = g.Segment
			d, err := c.Describe(ctx, g.Segment)
			if err == nil {
				err = f(c, d)
			}
			if err != nil {
				return fmt.Errorf("bench: %w", err)
			}
		}
		more = list.More
	}
	return nil
}

func (s *suite) liveLogBytes(ctx context.Context) (n uint64, err error) {
	err = s.eachSegment(ctx, func(_ *peer.Conn, d wire.Description) error {
		n += d.LogBytes
		return nil
	})
	return n, err
}

func (s *suite) deleteAll(ctx context.Context) error {
	return s.eachSegment(ctx, func(c *peer.Conn, d wire.Description) error {
		return c.Delete(ctx, &wire.Delete{Segment: d.Segment, VolumeEpoch: d.VolumeEpoch, MembershipEpoch: d.MembershipEpoch})
	})
}

// sampleMemory notes how much memory the node takes.
func (s *suite) sampleMemory(ctx context.Context) {
	// A node that can't be asked has failed a measure, which says so.
	if m, err := scrape(ctx, s.node.http); err == nil {
		s.rss = max(s.rss, m[metricRSS])
	}
}

// memoryBound is T16: the most that the node took in any measure.
func (s *suite) memoryBound(ctx context.Context) ([]Row, error) {
	s.sampleMemory(ctx)
	if s.rss == 0 {
		return nil, errors.New("the node's memory could not be had from its metrics")
	}
	r := Row{ID: "T16", What: "node, resident memory after each measure, the most, against -memory", Must: 1, Aim: 1, Lower: true}
	r.ratio(Side{Name: "resident", Unit: "bytes", Rounds: []float64{s.rss}}, Side{Name: "-memory", Unit: "bytes", Rounds: []float64{float64(s.Memory)}})
	return []Row{r}, nil
}
