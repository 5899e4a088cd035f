package coalescer

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/segfile"
)

// Work says what a Pass did.
type Work uint8

const (
	Nothing  Work = iota
	Folded        // pages of one segment
	Advanced      // a segment that had nothing left to fold: its log may go
	Rooted        // a segment's page map
	Moved         // blocks of a quiet segment to the head of the log
	Trimmed       // extents only
)

var workNames = [...]string{Nothing: "nothing", Folded: "folded", Advanced: "advanced", Rooted: "rooted", Moved: "moved", Trimmed: "trimmed"}

func (w Work) String() string { return workNames[w] }

// Did is what a Pass did, and when the next is worth the call.
type Did struct {
	Work    Work
	Segment *segfile.Segment
	Pages   int
	Records int
	Bytes   int64 // read and written
	Extents int   // released
	Next    time.Time
}

// A Folder folds the log of one device into pages and trims it. It does one
// piece of work for each call of Pass, starts no goroutine and looks at no clock.
// It isn't safe for concurrent use.
type Folder struct {
	// Set by NewFolder, never changed.
	store  *segfile.Store
	dev    Device
	log    Log
	opts   Options
	ledger *ledger
	ctx    context.Context // ends the waits for memory

	known    map[*segfile.Segment]*segment
	order    []*segment // by tag
	backlogs []segfile.Backlog
	turn     int       // whose in order
	checked  time.Time // when a survey was last thought of
	surveyed time.Time
	head     uint64 // of the log at that time
	rested   bool   // the survey found nothing to fold
	trim     bool   // there may be extents to release
	pace     pace
	runPages int // of a run, at this debt
	flushing bool

	run    run
	window *segfile.Window
}

// A segment is what a folder remembers of one.
type segment struct {
	seg     *segfile.Segment
	backlog segfile.Backlog
	ages    ages
	burst   redoubt.LSN // what began a chain up to here is being folded for its age
	long    redoubt.LSN // target when long chains were last picked
	flush   redoubt.LSN // what Flush asks for
	queue   []uint32    // pages that were picked, by number
	queued  int         // how many of those were folded since
	folding rest
	moving  rest // its blocks and its root, to the head of the log
	seen    bool // by the survey
}

// NewFolder returns a folder. ctx ends its waits for memory.
func NewFolder(ctx context.Context, store *segfile.Store, dev Device, log Log, opts Options) (*Folder, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	return newFolder(ctx, store, dev, log, opts, newLedger(&opts)), nil
}

func newFolder(ctx context.Context, store *segfile.Store, dev Device, log Log, opts Options, l *ledger) *Folder {
	return &Folder{store: store, dev: dev, log: log, opts: opts, ledger: l, ctx: ctx,
		known: map[*segfile.Segment]*segment{}, run: newRun(dev, &opts), window: store.NewWindow()}
}

// Stats returns the counters. It may be called from any goroutine.
func (f *Folder) Stats() Stats { return f.ledger.read() }

// Pass does one piece of what is due at now. Where that is Nothing, or the pace
// asks for a rest, Next is in the future. An error is final: the device has
// failed or was closed. Everything else is counted, and tried again.
func (f *Folder) Pass(now time.Time) (Did, error) {
	if err := f.store.Failed(); err != nil {
		return Did{}, err
	}
	usage := f.store.Usage()
	debt := usage.Debt()
	if !f.flushing {
		if rest := f.pace.wait(now, f.opts.rate(debt)); rest > 0 {
			return Did{Next: now.Add(rest)}, nil
		}
	}
	if f.surveyDue(now, usage.Head) {
		if err := f.survey(now, debt); err != nil {
			return Did{}, err
		}
		f.head = usage.Head
	}
	if f.runPages = f.opts.RunPages; debt >= f.opts.SoftDebt || f.flushing {
		f.runPages *= f.opts.RunSlabs
	}
	did, err := f.work(now, debt)
	if err != nil {
		return did, err
	}
	f.pace.spend(did.Bytes)
	if did.Work == Nothing {
		f.run.log.forget()
		did.Next = f.checked.Add(f.opts.Survey)
		return did, nil
	}
	did.Next = now
	if did.Work != Trimmed {
		did.Extents, err = f.release()
	}
	return did, err
}

// surveyDue reports whether it is time to look at all segments. Where nothing
// was left to fold and the log has not moved since, little can have changed.
func (f *Folder) surveyDue(now time.Time, head uint64) bool {
	if !f.surveyed.IsZero() && now.Before(f.checked.Add(f.opts.Survey)) {
		return false
	}
	f.checked = now
	return !f.rested || head != f.head || !now.Before(f.surveyed.Add(10*f.opts.Survey))
}

// survey looks at all segments and brings their index up to date.
func (f *Folder) survey(now time.Time, debt float64) error {
	f.backlogs = f.store.Backlogs(f.backlogs[:0])
	slices.SortFunc(f.backlogs, func(a, b segfile.Backlog) int { return cmp.Compare(a.Seg.Tag(), b.Seg.Tag()) })
	f.order, f.rested, f.trim = f.order[:0], true, true
	f.checked, f.surveyed = now, now
	paused := 0
	for i := range f.backlogs {
		s := f.known[f.backlogs[i].Seg]
		if s == nil {
			s = &segment{seg: f.backlogs[i].Seg}
			f.known[s.seg] = s
		}
		s.seen = true
		f.order = append(f.order, s)
		if s.folding.is(now) {
			paused++
		}
		if err := f.look(s, f.backlogs[i], now); err != nil {
			return err
		}
	}
	for g, s := range f.known {
		if !s.seen {
			delete(f.known, g)
		}
		s.seen = false
	}
	f.ledger.note(func(s *Stats) { s.Paused, s.Debt = paused, debt })
	return nil
}

// look takes a segment's backlog, and indexes what came since the last time.
func (f *Folder) look(s *segment, b segfile.Backlog, now time.Time) error {
	s.backlog = b
	s.ages.cut(b.SCL)
	s.ages.note(now, b.SCL, f.opts.MaxAge/(ageSamples-4))
	f.rested = f.rested && b.Coalesced >= b.Target
	if b.Indexed >= b.Target || b.Broken != nil || s.folding.is(now) || s.seg.Kind != redoubt.FullSegment {
		return nil
	}
	// A full index empties as what is in it is folded.
	if err := f.store.Index(s.seg, b.Target); err != nil && !errors.Is(err, redoubt.ErrBusy) {
		return f.trouble(s, &s.folding, now, err)
	}
	f.refresh(s)
	return nil
}

// refresh brings what is remembered of a segment up to date.
func (f *Folder) refresh(s *segment) {
	if b, there := f.store.Backlog(s.seg); there {
		s.backlog = b
		return
	}
	s.backlog = segfile.Backlog{Seg: s.seg}
}

// work does what is most urgent.
func (f *Folder) work(now time.Time, debt float64) (Did, error) {
	if debt >= f.opts.SoftDebt {
		if did, err := f.moveTail(now, debt); did.Work != Nothing || err != nil {
			return did, err
		}
	}
	if did, err := f.rotate(func(s *segment) (Did, error) { return f.due(s, now) }); did.Work != Nothing || err != nil {
		return did, err
	}
	if debt >= f.opts.SoftDebt {
		// The tail can't be moved, or what is short is the index: fold what may be.
		did, err := f.rotate(func(s *segment) (Did, error) { return f.foldUpto(s, now, s.backlog.Target) })
		if did.Work != Nothing || err != nil {
			return did, err
		}
	}
	if !f.trim {
		return Did{}, nil
	}
	f.trim = false
	n, err := f.release()
	if n == 0 {
		return Did{}, err
	}
	return Did{Work: Trimmed, Extents: n}, err
}

// rotate asks the segments in turn until one had work.
func (f *Folder) rotate(do func(*segment) (Did, error)) (Did, error) {
	for range f.order {
		f.turn = (f.turn + 1) % len(f.order)
		if did, err := do(f.order[f.turn]); did.Work != Nothing || err != nil {
			return did, err
		}
	}
	return Did{}, nil
}

// due does what is due of one segment, if anything is.
func (f *Folder) due(s *segment, now time.Time) (Did, error) {
	b := &s.backlog
	if s.folding.is(now) || b.Broken != nil {
		return Did{}, nil
	}
	if f.flushing && b.Coalesced < s.flush {
		return f.foldUpto(s, now, s.flush)
	}
	if b.Long > 0 && b.Target > s.long {
		if did, err := f.foldLong(s, now); did.Work != Nothing || err != nil {
			return did, err
		}
	}
	aged := min(s.ages.before(now.Add(-f.opts.MaxAge)), b.Target)
	if b.Oldest != 0 && b.Oldest <= aged {
		s.burst = s.ages.before(now.Add(-f.opts.MaxAge / 2))
	}
	if b.Oldest != 0 && b.Oldest <= min(s.burst, b.Target) {
		return f.foldUpto(s, now, s.burst)
	}
	if b.First != 0 && b.First <= aged && b.Coalesced < b.First {
		return f.foldUpto(s, now, aged)
	}
	return Did{}, nil
}

// foldLong folds pages with long chains.
func (f *Folder) foldLong(s *segment, now time.Time) (Did, error) {
	r := &f.run
	var err error
	r.picked, err = f.store.PickPages(s.seg, f.runPages, true, r.picked[:0])
	if len(r.picked) < f.runPages {
		s.long = s.backlog.Target // no more of them until the target has moved
	}
	if err != nil {
		return Did{}, f.trouble(s, &s.folding, now, err)
	}
	return f.fold(s, now)
}

// sweepPages is how many pages are picked at once. Runs go through them by number,
// so that the versions of neighbours lie side by side, and are read in large
// pieces when they are folded again.
const sweepPages = 1024

// foldUpto folds the oldest pages of a segment that have a record at or below
// upto. When there are none, all up to there is in pages, and it says so in the
// log if that lets the log go.
func (f *Folder) foldUpto(s *segment, now time.Time, upto redoubt.LSN) (Did, error) {
	upto = min(upto, s.backlog.Target)
	for s.foldable(now, upto) {
		if s.queued == len(s.queue) {
			if s.queue, s.queued = s.queue[:0], 0; s.seg.Kind == redoubt.FullSegment {
				s.queue = f.store.PickOlder(s.seg, sweepPages, upto, s.queue)
				slices.Sort(s.queue)
			}
			if len(s.queue) == 0 {
				return f.advance(s, now)
			}
		}
		n := min(f.runPages, len(s.queue)-s.queued)
		f.run.picked = append(f.run.picked[:0], s.queue[s.queued:s.queued+n]...)
		s.queued += n
		if did, err := f.fold(s, now); did.Work != Nothing || err != nil {
			return did, err
		}
	}
	s.queue, s.queued = s.queue[:0], 0
	return Did{}, nil
}

// Flush asks for everything to be folded that may be now. Pass then does that
// and nothing else first, at full speed, until Flushed.
func (f *Folder) Flush(now time.Time) error {
	for _, s := range f.known {
		s.folding = rest{}
	}
	if err := f.survey(now, f.store.Usage().Debt()); err != nil {
		return err
	}
	f.flushing = true
	for _, s := range f.order {
		s.flush = s.backlog.Target
	}
	return nil
}

// Flushed reports whether what Flush asked for is done, or can't be done now:
// then the error says of which segments, and why.
func (f *Folder) Flushed(now time.Time) (bool, error) {
	var errs []error
	for _, s := range f.order {
		b, there := f.store.Backlog(s.seg)
		switch {
		case !there || b.Coalesced >= min(s.flush, b.Target):
		case b.Broken != nil:
			errs = append(errs, b.Broken)
		case s.folding.is(now):
			errs = append(errs, segmentError(s.seg, "coalesced to LSN %d of %d: %w", b.Coalesced, s.flush, f.ledger.read().LastError))
		default:
			return false, nil
		}
	}
	f.flushing = false
	return true, errors.Join(errs...)
}

// Close gives memory back.
func (f *Folder) Close() {
	f.window.Close()
	f.run.log.forget()
}
