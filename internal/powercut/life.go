package powercut

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/redoubt-storage/redoubt/internal/powercut/guest"
)

// LifeOptions describe what lives are made of; a seed chooses one of them.
type LifeOptions struct {
	Machine  MachineOptions
	Workload string
	Args     []string // for the workload

	Disks    int   // drives; default 1
	DiskSize int64 // bytes of each; default 64 MiB
	Lies     bool  // drives that answer flushes and do nothing

	// MaxCuts bounds the cuts of one life. Default 3: one recovery is recovered
	// from, and what that left behind once more.
	MaxCuts int

	// MaxWrites bounds the write at which the power goes. Default 400.
	MaxWrites int

	// LoadTime ends a load whose moment does not come. Default 60 s.
	LoadTime time.Duration

	// BootTime is what a boot may take until it has verified. Default 3 min: thirty
	// times what an idle machine needs.
	BootTime time.Duration

	// Drain is how long the line must be quiet after the cut before the guest has
	// no more acks on their way. Default 200 ms.
	Drain time.Duration
}

func (o LifeOptions) withDefaults() LifeOptions {
	o.Disks = max(o.Disks, 1)
	if o.DiskSize == 0 {
		o.DiskSize = 64 << 20
	}
	o.MaxCuts = max(o.MaxCuts, 1)
	if o.MaxWrites == 0 {
		o.MaxWrites = 400
	}
	if o.LoadTime == 0 {
		o.LoadTime = time.Minute
	}
	if o.BootTime == 0 {
		o.BootTime = 3 * time.Minute
	}
	if o.Drain == 0 {
		o.Drain = 200 * time.Millisecond
	}
	return o
}

// A Failure is a verdict against the workload, with all that is needed to reach it
// again: boot a machine on the images and verify.
type Failure struct {
	Seed    uint64
	Lost    bool // the verdict; else the workload could not do its work
	Text    string
	Images  [][]byte // that the failing boot found
	Config  guest.Config
	Console string
}

func (f *Failure) Error() string {
	what := "the workload broke"
	if f.Lost {
		what = "LOST"
	}
	return fmt.Sprintf("powercut: seed %d: %s: %s", f.Seed, what, f.Text)
}

// Unwrap lets errors.Is find guest.ErrLost in a verdict.
func (f *Failure) Unwrap() error {
	if f.Lost {
		return guest.ErrLost
	}
	return nil
}

// A CutReport tells about one cut.
type CutReport struct {
	Number, Of      int // in its life
	At              Moment
	Writes, Flushes int // that the drives had received since the boot
	Damage          Damage
	Verified        bool   // the boot had verified; else the cut hit its recovery
	Acked           uint64 // records, over all streams, ever
	Took            time.Duration
}

func (r CutReport) String() string {
	phase := "load"
	if !r.Verified {
		phase = "recovery"
	}
	return fmt.Sprintf("cut %d/%d at %v in %s (%d writes, %d flushes); %v; %d records acknowledged; %.1f s",
		r.Number, r.Of, r.At, phase, r.Writes, r.Flushes, r.Damage, r.Acked, r.Took.Seconds())
}

// A Life is one seed's sequence of boots and cuts.
type Life struct {
	Seed uint64

	opts    LifeOptions
	report  func(CutReport)
	images  [][]byte       // what the next boot finds
	streams []guest.Stream // the oracle
	life    int            // boots with load so far
	seen    map[string]uint64
}

// Format boots once on blank disks and formats them. It gives the images that every
// life starts from: what is durable when the guest says that it is done, so a
// formatter that forgets to flush is found out at once.
func Format(ctx context.Context, o LifeOptions) ([][]byte, error) {
	l := &Life{opts: o.withDefaults(), images: make([][]byte, o.withDefaults().Disks), seen: make(map[string]uint64)}
	b, err := l.boot(ctx, guest.PhaseFormat, Moment{})
	if err != nil {
		return nil, err
	}
	err = b.mustReach(guest.Formatted)
	if err = errors.Join(err, b.machine.Kill()); err != nil {
		return nil, err
	}
	images := make([][]byte, len(b.disks))
	for i, d := range b.disks {
		images[i] = d.durable
	}
	return images, nil
}

// NewLife prepares a life on formatted images, which it does not change. It reports
// each cut as it has happened.
func NewLife(seed uint64, o LifeOptions, formatted [][]byte, report func(CutReport)) *Life {
	return &Life{Seed: seed, opts: o.withDefaults(), report: report, images: formatted, seen: make(map[string]uint64)}
}

// Seen tells how often the boots have met what a cut can leave behind, in the
// workload's words.
func (l *Life) Seen() map[string]uint64 { return l.seen }

// Run lives the life. An error that matches guest.ErrLost is a verdict; both that
// and a workload that broke come as a *Failure.
func (l *Life) Run(ctx context.Context) error {
	r := rand.New(rand.NewPCG(l.Seed, 0x706f776572637574))
	cuts := 1 + r.IntN(l.opts.MaxCuts)
	for i := range cuts {
		if err := l.cut(ctx, r, i+1, cuts); err != nil {
			return err
		}
	}
	return l.Verify(ctx)
}

// moment chooses when the power goes: mostly anywhere in the load, now and then so
// early that it hits the recovery from the cut before.
func (l *Life) moment(r *rand.Rand) Moment {
	k := 1 + r.IntN(l.opts.MaxWrites)
	if r.IntN(4) == 0 {
		k = 1 + r.IntN(min(16, l.opts.MaxWrites))
	}
	if r.IntN(3) == 0 {
		return Moment{Flush: 1 + k/3}
	}
	return Moment{Write: k}
}

// cut boots, lets the guest verify and load, takes the power away, and leaves the
// images that are found afterwards.
func (l *Life) cut(ctx context.Context, r *rand.Rand, number, of int) error {
	start := time.Now()
	l.life++
	at := l.moment(r)
	b, err := l.boot(ctx, guest.PhaseLoad, at)
	if err != nil {
		return err
	}
	err = b.load()
	if err = errors.Join(err, b.machine.Kill()); err != nil {
		return err
	}
	report := CutReport{Number: number, Of: of, At: at, Verified: b.verified}
	report.Writes, report.Flushes = b.supply.Counts()
	images := make([][]byte, len(b.disks))
	for i, d := range b.disks {
		var damage Damage
		images[i], damage = d.AfterCut(r)
		report.Damage = report.Damage.Add(damage)
	}
	l.images = images
	for _, s := range l.streams {
		report.Acked += guest.Records(l.opts.Workload, s)
	}
	report.Took = time.Since(start)
	l.report(report)
	return nil
}

// Verify boots once more, on a supply that stays on, and asks for the verdict.
func (l *Life) Verify(ctx context.Context) error {
	b, err := l.boot(ctx, guest.PhaseVerify, Moment{})
	if err != nil {
		return err
	}
	err = b.mustReach(guest.Verified)
	return errors.Join(err, b.machine.Kill())
}
