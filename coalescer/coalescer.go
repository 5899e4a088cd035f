package coalescer

import (
	"context"
	"fmt"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/segfile"
)

// A Coalescer runs a Folder and a Scrubber for one device, each on a goroutine
// of its own: Start starts them, Close ends them and waits. The other methods
// may be called from any goroutine.
type Coalescer struct {
	// Set by New, never changed.
	opts   Options
	ledger *ledger
	ctx    context.Context
	cancel context.CancelFunc

	wake    chan struct{}     // anybody -> the folder's goroutine
	flushes chan chan<- error // Flush -> the folder's goroutine
	folded  chan struct{}     // closed when that goroutine has gone
	group   sync.WaitGroup    // both goroutines
	started bool              // by Start
	failure atomic.Pointer[error]

	folder   *Folder   // of its goroutine alone, from Start on
	scrubber *Scrubber // likewise
}

// New returns a coalescer, at rest.
func New(store *segfile.Store, dev Device, log Log, opts Options) (*Coalescer, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	l := newLedger(&opts)
	ctx, cancel := context.WithCancel(context.Background())
	return &Coalescer{
		opts: opts, ledger: l, ctx: ctx, cancel: cancel,
		wake: make(chan struct{}, 1), flushes: make(chan chan<- error), folded: make(chan struct{}),
		folder:   newFolder(ctx, store, dev, log, opts, l),
		scrubber: newScrubber(ctx, store, dev, opts, l),
	}, nil
}

// Start starts folding and scrubbing. It is called once.
func (c *Coalescer) Start() {
	c.started = true
	c.group.Add(2)
	go c.labelled("fold", c.fold)
	go c.labelled("scrub", c.scrub)
}

func (c *Coalescer) labelled(part string, run func(context.Context)) {
	defer c.group.Done()
	pprof.Do(c.ctx, pprof.Labels("part", "coalescer/"+part, "device", c.opts.Name), run)
}

// Wake says that the log wants room: fold now, if there is anything to fold. It
// never blocks.
func (c *Coalescer) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Flush folds everything that may be folded at the time of the call and waits
// for it. The error says what could not be: it is folded when that has passed.
func (c *Coalescer) Flush(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case c.flushes <- done:
	case <-ctx.Done():
		return fmt.Errorf("coalescer: flush of %s: %w", c.opts.Name, context.Cause(ctx))
	case <-c.folded:
		return c.gone()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("coalescer: flush of %s: %w", c.opts.Name, context.Cause(ctx))
	case <-c.folded:
		return c.gone()
	}
}

func (c *Coalescer) gone() error {
	if err := c.Err(); err != nil {
		return err
	}
	return fmt.Errorf("coalescer: %s: %w", c.opts.Name, redoubt.ErrClosed)
}

// Err returns why folding has ended for good, or nil.
func (c *Coalescer) Err() error {
	if p := c.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// Stats returns the counters.
func (c *Coalescer) Stats() Stats { return c.ledger.read() }

// Close ends both goroutines after what they are doing, and waits for them. The
// log must still take what is under way.
func (c *Coalescer) Close() {
	c.cancel()
	if c.started {
		c.group.Wait()
	}
	c.folder.Close()
}

// fold calls the folder whenever it is time.
func (c *Coalescer) fold(ctx context.Context) {
	defer close(c.folded)
	var waiting []chan<- error // for a flush
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		did, err := c.folder.Pass(time.Now())
		if err != nil {
			c.fail(err)
			return
		}
		if len(waiting) > 0 {
			if done, err := c.folder.Flushed(time.Now()); done {
				for _, w := range waiting {
					w <- err
				}
				waiting = waiting[:0]
			}
		}
		timer.Reset(time.Until(did.Next))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-c.wake:
		case w := <-c.flushes:
			waiting = append(waiting, w)
			if err := c.folder.Flush(time.Now()); err != nil {
				c.fail(err)
				return
			}
		}
	}
}

// fail notes why folding ends; to be closed is no failure.
func (c *Coalescer) fail(err error) {
	if c.ctx.Err() == nil {
		c.failure.CompareAndSwap(nil, &err)
	}
}

// scrub calls the scrubber whenever it is time.
func (c *Coalescer) scrub(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		did, err := c.scrubber.Pass(time.Now())
		if err != nil {
			return
		}
		timer.Reset(time.Until(did.Next))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
	}
}
