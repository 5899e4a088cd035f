package powercut

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/redoubt-storage/redoubt/internal/powercut/guest"
)

// A boot is a machine that is up, and what has been heard from it.
type boot struct {
	life     *Life
	supply   *Supply
	disks    []*Disk
	machine  *Machine
	config   guest.Config
	found    [][]byte // the images that it was booted on
	have     []uint64 // by stream, as the guest found it
	verified bool
	moved    time.Time // when something was last acknowledged in the load
}

// boot starts a machine on what the cut before has left.
func (l *Life) boot(ctx context.Context, phase string, at Moment) (*boot, error) {
	b := &boot{
		life: l, supply: NewSupply(at), found: l.images,
		config: guest.Config{
			Workload: l.opts.Workload, Args: l.opts.Args, Phase: phase, Seed: l.Seed,
			Life: l.life, Devices: l.opts.Disks, Streams: slices.Clone(l.streams),
		},
	}
	for i := range b.config.Streams {
		b.config.Streams[i].Lives = slices.Clone(l.streams[i].Lives)
	}
	for _, image := range l.images {
		d, err := NewDisk(b.supply, bytes.Clone(image), DiskOptions{Size: l.opts.DiskSize, Lies: l.opts.Lies})
		if err != nil {
			return nil, err
		}
		b.disks = append(b.disks, d)
	}
	var err error
	b.machine, err = Boot(ctx, l.opts.Machine, b.supply, b.disks, b.config)
	return b, err
}

// until listens until a verb is heard, the power goes, or the time is over, and
// reports whether it was the first.
func (b *boot) until(limit time.Duration, verb string) (bool, error) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		select {
		case m, ok := <-b.machine.Messages():
			if !ok {
				return false, b.failure(false, fmt.Sprintf("the guest fell silent before it had said %q", verb))
			}
			if err := b.hear(m); err != nil {
				return false, err
			}
			if m.Verb == verb {
				return true, nil
			}
		case <-timeout.C:
			return false, nil
		case <-b.supply.Off():
			return false, nil
		}
	}
}

// mustReach is until, for a verb that a sound workload says within the boot's time.
func (b *boot) mustReach(verb string) error {
	reached, err := b.until(b.life.opts.BootTime, verb)
	if err == nil && !reached {
		err = b.failure(false, fmt.Sprintf("no %q within %v", verb, b.life.opts.BootTime))
	}
	return err
}

// load sees the guest through its recovery and its load until the power is off, and
// then listens for the acks that are still on their way.
func (b *boot) load() error {
	reached, err := b.until(b.life.opts.BootTime, guest.Verified)
	switch {
	case err != nil:
		return err
	case reached:
		b.begin()
		full, err := b.until(b.life.opts.LoadTime, guest.Full)
		if err != nil {
			return err
		}
		// A slow load is cut where it is; one that stands still is a bug that a
		// cut would hide.
		if still := time.Since(b.moved); !full && !b.off() && still > b.life.opts.LoadTime/2 {
			return b.failure(false, fmt.Sprintf("the load stands still: nothing acknowledged for %v", still.Round(time.Second)))
		}
	case !b.off():
		return b.failure(false, fmt.Sprintf("no recovery within %v", b.life.opts.BootTime))
	}
	b.supply.Cut() // if the guest has run out of room or of time
	return b.drain()
}

// begin notes where this life's records start, and lets the guest write them.
func (b *boot) begin() {
	l := b.life
	for len(l.streams) < len(b.have) {
		l.streams = append(l.streams, guest.Stream{})
	}
	for i, n := range b.have {
		l.streams[i].Begin(l.life, n)
		l.streams[i].Acked = max(l.streams[i].Acked, n) // found, hence durable
	}
	b.moved = time.Now()
	b.machine.Go()
}

// drain listens until the line is quiet.
func (b *boot) drain() error {
	quiet := time.NewTimer(b.life.opts.Drain)
	defer quiet.Stop()
	for {
		select {
		case m, ok := <-b.machine.Messages():
			if !ok {
				return nil
			}
			if err := b.hear(m); err != nil {
				return err
			}
			quiet.Reset(b.life.opts.Drain)
		case <-quiet.C:
			return nil
		}
	}
}

// hear takes one message in.
func (b *boot) hear(m guest.Message) error {
	switch m.Verb {
	case guest.Have:
		for len(b.have) <= m.Stream {
			b.have = append(b.have, 0)
		}
		b.have[m.Stream] = m.N
	case guest.Seen:
		b.life.seen[m.Text] += m.N
	case guest.Verified:
		b.verified = true
	case guest.Ack:
		if m.Stream >= len(b.life.streams) {
			return b.failure(false, fmt.Sprintf("an ack for stream %d of %d", m.Stream, len(b.life.streams)))
		}
		s := &b.life.streams[m.Stream]
		s.Acked = max(s.Acked, m.N)
		b.moved = time.Now()
	case guest.Lost:
		return b.failure(true, m.Text)
	case guest.Broken:
		if !b.off() { // without drives every program breaks
			return b.failure(false, m.Text)
		}
	}
	return nil
}

func (b *boot) off() bool {
	select {
	case <-b.supply.Off():
		return true
	default:
		return false
	}
}

// failure is a verdict, with what it takes to reach it again.
func (b *boot) failure(lost bool, text string) error {
	c := b.config
	if c.Phase == guest.PhaseLoad {
		c.Phase = guest.PhaseVerify
	}
	return &Failure{
		Seed: b.life.Seed, Lost: lost, Text: text,
		Images: b.found, Config: c, Console: b.machine.Console(),
	}
}
