package powercut

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/redoubt-storage/redoubt/internal/powercut/guest"
)

// A Campaign is many lives, one after the other: the seeds Seed, Seed+1, ... until
// there have been enough cuts. The last life is lived to its end.
type Campaign struct {
	Life LifeOptions
	Seed uint64
	Cuts int
	Keep string    // the directory that gets what a failure leaves behind
	Out  io.Writer // gets a line for each cut

	// Must lists what the boots must have met, in the workload's words, for a
	// campaign of MustCuts cuts and more to prove anything.
	Must []string

	cuts     int
	seen     map[string]uint64
	damage   Damage
	recovery int // cuts that hit a recovery
}

// MustCuts is how many cuts it takes to meet everything that a campaign must.
const MustCuts = 20

// Run runs the campaign up to the first failure. It fails as well when the cuts
// took nothing away, since that proves nothing.
func (c *Campaign) Run(ctx context.Context) error {
	start := time.Now()
	formatted, err := Format(ctx, c.Life)
	if err != nil {
		return c.keep(ctx, err)
	}
	fmt.Fprintf(c.Out, "formatted in %.1f s\n", time.Since(start).Seconds())
	c.seen = make(map[string]uint64)
	seed := c.Seed
	for ; c.cuts < c.Cuts; seed++ {
		l := NewLife(seed, c.Life, formatted, c.report(seed))
		if err := l.Run(ctx); err != nil {
			return c.keep(ctx, err)
		}
		for what, n := range l.Seen() {
			c.seen[what] += n
		}
	}
	took := time.Since(start)
	fmt.Fprintf(c.Out, "%s: %d cuts in %d lives (seeds %d to %d), %d of them in a recovery, nothing lost; %v; %.1f s, %.1f s a cut\n",
		c.Life.Workload, c.cuts, seed-c.Seed, c.Seed, seed-1, c.recovery, c.damage, took.Seconds(), took.Seconds()/float64(c.cuts))
	if len(c.seen) > 0 {
		fmt.Fprintf(c.Out, "the boots have met: %s\n", strings.TrimPrefix(fmt.Sprint(c.seen), "map"))
	}
	return c.proved()
}

// proved fails when nothing was at stake.
func (c *Campaign) proved() error {
	if c.damage.SectorsLost == 0 && c.cuts > 1 {
		return errors.New("powercut: no cut took anything away: either every write is forced, or the machine is blind")
	}
	for _, what := range c.Must {
		if c.cuts >= MustCuts && c.seen[what] == 0 {
			return fmt.Errorf("powercut: %d cuts, and no boot has met %q: the load does not do what it should be cut in", c.cuts, what)
		}
	}
	return nil
}

func (c *Campaign) report(seed uint64) func(CutReport) {
	return func(r CutReport) {
		c.cuts++
		c.damage = c.damage.Add(r.Damage)
		if !r.Verified {
			c.recovery++
		}
		fmt.Fprintf(c.Out, "seed %d: %v\n", seed, r)
	}
}

// keep saves what a failure leaves behind and says how to come back to it.
func (c *Campaign) keep(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("powercut: interrupted after %d cuts: %w", c.cuts, ctx.Err())
	}
	var f *Failure
	if !errors.As(err, &f) || c.Keep == "" {
		return err
	}
	dir, saveErr := f.Save(c.Keep)
	if saveErr != nil {
		return errors.Join(err, saveErr)
	}
	return fmt.Errorf("%w\n%s\nagain with the same kind of cuts: make powercut WORKLOAD=%s CUTS=1 SEED=%d\nthe same bytes, same verdict:       scripts/powercut.sh replay %s",
		err, indent(f.Console), c.Life.Workload, f.Seed, dir)
}

// A Plant is a known-wrong combination that the machine must catch.
type Plant struct {
	Name string
	Life LifeOptions
}

// Plants lists the planted bugs, each as a change of sound options: two programs
// that acknowledge too early, and a right one on a lying drive; of the workload
// node, also a node that was told that it need not flush.
func Plants(o LifeOptions) []Plant {
	early, beside, lies := o, o, o
	early.Workload = "planted-early"
	beside.Workload = "planted-beside"
	lies.Workload, lies.Lies = "standin", true
	plants := []Plant{{"an ack before the flush", early}, {"a flush beside the write", beside}, {"a drive that lies", lies}}
	if o.Workload == "node" {
		plp := o
		plp.Workload = "planted-plp"
		plants = append(plants, Plant{"a node that takes a cache for stable storage", plp})
	}
	return plants
}

// Catch lives up to so many lives with a planted bug and fails unless one of them
// ends with the verdict that something was lost.
func (p Plant) Catch(ctx context.Context, seed uint64, lives int, out io.Writer) error {
	formatted, err := Format(ctx, p.Life)
	if err != nil {
		return err
	}
	cuts := 0
	for i := range lives {
		err := NewLife(seed+uint64(i), p.Life, formatted, func(CutReport) { cuts++ }).Run(ctx)
		if errors.Is(err, guest.ErrLost) {
			var f *Failure
			errors.As(err, &f)
			fmt.Fprintf(out, "planted %s: caught after %d cuts: %s\n", p.Name, cuts, f.Text)
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("powercut: planted %s was not caught in %d cuts: the machine is blind (seeds %d to %d)", p.Name, cuts, seed, seed+uint64(lives)-1)
}
