package coalescer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// A Scrubber reads everything that is live on a device again, in cycles: of one
// segment after the other the page versions, the map pages and the batches in the
// log, from the device even where memory has them too. It reads up to a slab for
// each call of Pass. It isn't safe for concurrent use.
type Scrubber struct {
	// Set by NewScrubber, never changed.
	store  *segfile.Store
	opts   Options
	ledger *ledger
	ctx    context.Context

	segs []*segfile.Segment // still to scrub in this cycle; the first is under way
	part scrubPart
	next uint64 // of what part walks through
	pace pace
	rest time.Time // no cycle before

	pages    pageReads
	log      gather
	plans    []segfile.PagePlan
	mapPlans []segfile.MapPagePlan
	places   []segfile.LogPlace
}

type scrubPart uint8

const (
	scrubPages scrubPart = iota
	scrubMap
	scrubLog
	scrubDone
)

// scrubPlans bounds the pages, and the batches, of one Pass.
const scrubPlans = 64

// Scrubbed is what a Scrubber's Pass did, and when the next is worth the call.
type Scrubbed struct {
	Pages, MapPages, Batches int
	Bytes                    int64
	Next                     time.Time
}

// NewScrubber returns a scrubber. ctx ends its waits for memory.
func NewScrubber(ctx context.Context, store *segfile.Store, dev Device, opts Options) (*Scrubber, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	return newScrubber(ctx, store, dev, opts, newLedger(&opts)), nil
}

func newScrubber(ctx context.Context, store *segfile.Store, dev Device, opts Options, l *ledger) *Scrubber {
	n := min(scrubPlans, opts.Ahead.Size()/redoubt.PageSize)
	return &Scrubber{store: store, opts: opts, ledger: l, ctx: ctx, pages: newPageReads(dev), log: newGather(dev, opts.Ahead, 1),
		plans: make([]segfile.PagePlan, n), mapPlans: make([]segfile.MapPagePlan, n), places: make([]segfile.LogPlace, scrubPlans)}
}

// Stats returns the counters. It may be called from any goroutine.
func (s *Scrubber) Stats() Stats { return s.ledger.read() }

// Pass scrubs a little, if it is time. The error is final: the device was
// closed.
func (s *Scrubber) Pass(now time.Time) (Scrubbed, error) {
	if s.opts.ScrubRate < 0 {
		return Scrubbed{Next: now.Add(s.opts.ScrubPause)}, nil
	}
	if now.Before(s.rest) {
		return Scrubbed{Next: s.rest}, nil
	}
	rate := float64(s.opts.ScrubRate) * (1 - s.store.Usage().Debt()/s.opts.FullDebt)
	if rate <= 0 {
		return Scrubbed{Next: now.Add(time.Second)}, nil // the foreground has no time to spare
	}
	if rest := s.pace.wait(now, rate); rest > 0 {
		return Scrubbed{Next: now.Add(min(rest, time.Second))}, nil
	}
	if len(s.segs) == 0 {
		s.begin()
	}
	did, err := s.step()
	s.pace.spend(did.Bytes)
	did.Next = now
	if len(s.segs) == 0 {
		s.ledger.cycle()
		s.rest = now.Add(s.opts.ScrubPause)
		did.Next = s.rest
	}
	s.ledger.note(func(st *Stats) {
		st.ScrubbedPages += uint64(did.Pages)
		st.ScrubbedMapPages += uint64(did.MapPages)
		st.ScrubbedBatches += uint64(did.Batches)
		st.ScrubbedBytes += uint64(did.Bytes)
	})
	return did, err
}

// begin starts a cycle.
func (s *Scrubber) begin() {
	s.segs = s.store.Segments()
	slices.SortFunc(s.segs, func(a, b *segfile.Segment) int { return cmp.Compare(a.Tag(), b.Tag()) })
	s.part, s.next = scrubPages, 0
}

// step does one piece of the first segment's part, and goes on to the next part
// when there is nothing more of it.
func (s *Scrubber) step() (did Scrubbed, err error) {
	if len(s.segs) == 0 {
		return did, nil
	}
	buf, err := s.opts.Ahead.Get(s.ctx)
	if err != nil {
		return did, fmt.Errorf("coalescer: memory to scrub: %w", err)
	}
	defer buf.Drop()
	for did.Bytes == 0 && len(s.segs) > 0 && err == nil {
		g := s.segs[0]
		switch s.part {
		case scrubPages:
			err = s.readPages(g, buf, &did)
		case scrubMap:
			err = s.readMap(g, buf, &did)
		case scrubLog:
			err = s.readLog(g, buf, &did)
		default:
			s.segs = s.segs[1:]
			s.part, s.next = scrubPages, 0
		}
	}
	return did, err
}

// ended goes on to the next part.
func (s *Scrubber) ended() { s.part, s.next = s.part+1, 0 }

// readPages checks some page versions.
func (s *Scrubber) readPages(g *segfile.Segment, buf *slab.Buf, did *Scrubbed) error {
	n, next, pin := s.store.PlanVersions(g, uint32(s.next), s.plans)
	defer s.store.Unpin(pin)
	if s.next = uint64(next); n == 0 && next >= g.Pages {
		s.ended()
		return nil
	}
	s.readSlots(n, buf, func(i int) uint32 { return s.plans[i].Slot })
	for i := range s.pages.pages {
		r := &s.pages.pages[i]
		p := &s.plans[r.key]
		err := r.err
		if err == nil {
			if sum := redo.PageSum(g.Volume, g.PageNo(p.Page), p.LSN, r.buf); sum != p.Sum {
				err = corrupt(g, "page %d at LSN %d, slot %d, device offset %d: sum %08x, the map says %08x; fetch it from a peer",
					p.Page, p.LSN, p.Slot-1, r.off, sum, p.Sum)
			}
		}
		if err := s.judge(g, p.Page, r.off, err); err != nil {
			return err
		}
	}
	did.Pages += n
	did.Bytes += int64(n) * redoubt.PageSize
	return nil
}

// readMap checks some map pages.
func (s *Scrubber) readMap(g *segfile.Segment, buf *slab.Buf, did *Scrubbed) error {
	n, next, pin := s.store.PlanMapPages(g, int(s.next), s.mapPlans)
	defer s.store.Unpin(pin)
	if s.next = uint64(next); n == 0 {
		s.ended()
		return nil
	}
	s.readSlots(n, buf, func(i int) uint32 { return s.mapPlans[i].Slot })
	for i := range s.pages.pages {
		r := &s.pages.pages[i]
		err := r.err
		if err == nil {
			err = s.store.CheckMapPage(g, s.mapPlans[r.key], r.buf)
		}
		if err := s.judge(g, NoPage, r.off, err); err != nil {
			return err
		}
	}
	did.MapPages += n
	did.Bytes += int64(n) * redoubt.PageSize
	return nil
}

// readSlots reads n slots into buf, side by side.
func (s *Scrubber) readSlots(n int, buf *slab.Buf, slot func(i int) uint32) {
	s.pages.reset()
	for i := range n {
		s.pages.add(i, s.store.SlotOffset(slot(i)), buf.Bytes()[i*redoubt.PageSize:(i+1)*redoubt.PageSize])
	}
	s.pages.start()
	s.pages.wait()
}

// readLog checks some batches in the log.
func (s *Scrubber) readLog(g *segfile.Segment, buf *slab.Buf, did *Scrubbed) error {
	n, next, pin := s.store.PlanLog(g, s.next, len(buf.Bytes()), s.places)
	defer s.store.Unpin(pin)
	if s.next = next; n == 0 {
		s.ended()
		return nil
	}
	before := s.log.bytes
	s.log.lend(buf)
	for i := range n {
		if !s.log.add(s.places[i].Off, s.places[i].Len()) {
			s.next = next - uint64(n-i)
			break
		}
	}
	s.log.start()
	s.log.wait()
	for i := range s.log.items {
		b, err := s.log.get(i)
		if err == nil {
			err = s.store.CheckPlace(g, s.places[i], b)
		}
		if err := s.judge(g, NoPage, s.places[i].Off, err); err != nil {
			return err
		}
	}
	did.Batches += len(s.log.items)
	did.Bytes += s.log.bytes - before
	return nil
}

// judge reports damage. Only an error that ends the scrub comes back.
func (s *Scrubber) judge(g *segfile.Segment, page uint32, off int64, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, redoubt.ErrClosed):
		return err
	case !errors.Is(err, redoubt.ErrCorrupt):
		err = corrupt(g, "device offset %d can't be read: %w", off, err)
	}
	s.ledger.damage(g, page, err)
	return nil
}
