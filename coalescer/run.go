package coalescer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// A run is the memory of one coalescing run, used again for the next.
type run struct {
	mem    []*slab.Buf
	picked []uint32
	plans  []segfile.PagePlan // of the pages with something to fold
	pages  [][]byte           // of each plan: where its page is built
	lost   []error            // of each plan: why it has no base
	sums   []uint32
	lsns   []redoubt.LSN

	bases   pageReads
	log     feed
	ranges  []segfile.SlotRange
	changes []segfile.MapChange
	writes  []*pageWrite
	group   group
}

// A pageWrite is one write of pages into slots side by side.
type pageWrite struct {
	w   blockdev.Write
	run *run
	err error
}

func newRun(dev Device, o *Options) run {
	return run{plans: make([]segfile.PagePlan, 0, o.RunPages*o.RunSlabs), bases: newPageReads(dev), group: newGroup(),
		log: newFeed(dev, o)}
}

// Bounds of a run. A plan takes the store's mutex, which appends need too, so
// only a few pages are planned at a time; and no run gathers records without
// bound. What a rare huge plan took is given back.
const (
	planAtOnce   = 8
	enoughRecs   = segfile.MaxPlanRecords
	keepPlanRecs = 1 << 12
)

// fold folds the pages that were picked.
func (f *Folder) fold(s *segment, now time.Time) (Did, error) {
	r := &f.run
	if len(r.picked) == 0 {
		return Did{}, nil
	}
	if err := f.take(); err != nil {
		return Did{}, err
	}
	defer r.forget()
	// Until the new versions are in the map nothing may be released that they
	// are made from, nor the extents that they are written to, should somebody
	// delete the segment.
	pin := f.store.Pin()
	defer f.store.Unpin(pin)
	before := r.bases.bytes + r.log.bytes()
	target := f.plan(s.seg)
	did := Did{Work: Folded, Segment: s.seg}
	var err error
	if len(r.plans) > 0 {
		err = f.build(s.seg)
		if err == nil {
			err = f.install(s.seg, target, &did)
		}
	}
	read := r.bases.bytes + r.log.bytes() - before
	did.Bytes += read
	f.ledger.note(func(st *Stats) { st.Read += uint64(read) })
	f.refresh(s)
	if err == nil {
		err = r.damaged()
	}
	if err != nil {
		r.log.forget()
		s.queue, s.queued = s.queue[:0], 0
	}
	err = f.trouble(s, &s.folding, now, err)
	if did.Pages == 0 {
		did.Work = Nothing
	}
	return did, err
}

// take takes the memory that the pages that were picked need. It waits for the
// first slab alone; where there are no more, the run is shorter, and the other
// pages are picked again later.
func (f *Folder) take() error {
	r := &f.run
	buf, err := f.opts.Pages.Get(f.ctx)
	if err != nil {
		return fmt.Errorf("coalescer: memory for pages: %w", err)
	}
	for buf != nil {
		r.mem = append(r.mem, buf)
		if buf = nil; len(r.picked) > len(r.mem)*f.opts.RunPages {
			buf = f.opts.Pages.TryGet()
		}
	}
	r.picked = r.picked[:min(len(r.picked), len(r.mem)*f.opts.RunPages)]
	return nil
}

// plan plans the pages that were picked and gives each its place in memory. It
// returns the LSN up to which all of them will be complete.
func (f *Folder) plan(g *segfile.Segment) redoubt.LSN {
	r := &f.run
	slices.Sort(r.picked)
	plans := r.plans[:len(r.picked)]
	target, n, recs := redoubt.MaxLSN, 0, 0
	for i := 0; i < len(r.picked) && recs < enoughRecs; {
		some := r.picked[i:min(i+planAtOnce, len(r.picked))]
		t, pin := f.store.PlanPages(g, some, plans[n:n+len(some)])
		f.store.Unpin(pin)
		target = min(target, t)
		i += len(some)
		for k, end := n, n+len(some); k < end; k++ {
			if len(plans[k].Recs) > 0 {
				recs += len(plans[k].Recs)
				plans[n], plans[k] = plans[k], plans[n]
				n++
			}
		}
	}
	r.plans = plans[:n]
	r.pages, r.lost = r.pages[:0], r.lost[:0]
	for i := range r.plans {
		mem, at := r.mem[i/f.opts.RunPages].Bytes(), i%f.opts.RunPages*redoubt.PageSize
		r.pages = append(r.pages, mem[at:at+redoubt.PageSize])
		r.lost = append(r.lost, nil)
	}
	r.sums, r.lsns = slices.Grow(r.sums[:0], n)[:n], slices.Grow(r.lsns[:0], n)[:n]
	return target
}

// build makes the new versions in memory. Pages whose base is damaged are
// marked lost.
func (f *Folder) build(g *segfile.Segment) error {
	r := &f.run
	if err := r.log.begin(f.ctx, f.store, g, r.plans); err != nil {
		return err
	}
	r.bases.reset()
	for i := range r.plans {
		if p := &r.plans[i]; p.Zeros() {
			clear(r.pages[i])
		} else {
			r.bases.add(i, f.store.SlotOffset(p.Slot), r.pages[i])
		}
	}
	r.bases.start()
	err := r.log.fill() // in flight beside the bases
	r.bases.wait()
	f.checkBases(g)
	for err == nil && r.log.more() {
		if err = r.log.apply(r.pages); err == nil {
			err = r.log.fill()
		}
	}
	r.log.finish()
	if err != nil {
		return err
	}
	for i := range r.plans {
		p := &r.plans[i]
		r.lsns[i] = p.Last()
		r.sums[i] = redo.PageSum(g.Volume, g.PageNo(p.Page), p.Last(), r.pages[i])
	}
	return nil
}

// checkBases verifies the versions that were read.
func (f *Folder) checkBases(g *segfile.Segment) {
	r := &f.run
	for i := range r.bases.pages {
		b := &r.bases.pages[i]
		p := &r.plans[b.key]
		if b.err != nil {
			r.lost[b.key] = corrupt(g, "page %d at LSN %d, slot %d, device offset %d: %w", p.Page, p.LSN, p.Slot-1, b.off, b.err)
			if errors.Is(b.err, redoubt.ErrClosed) {
				continue
			}
		} else if sum := redo.PageSum(g.Volume, g.PageNo(p.Page), p.LSN, b.buf); sum != p.Sum {
			r.lost[b.key] = corrupt(g, "page %d at LSN %d, slot %d, device offset %d: sum %08x, the map says %08x; fetch it from a peer",
				p.Page, p.LSN, p.Slot-1, b.off, sum, p.Sum)
		}
		if err := r.lost[b.key]; err != nil {
			f.ledger.damage(g, p.Page, err)
		}
	}
}

// damaged returns the first damage of the run.
func (r *run) damaged() error {
	for _, err := range r.lost {
		if err != nil {
			return &toldError{err}
		}
	}
	return nil
}

// A toldError is damage of which the owner knows.
type toldError struct{ error }

func (e *toldError) Unwrap() error { return e.error }

// install writes the new versions and makes them count.
func (f *Folder) install(g *segfile.Segment, target redoubt.LSN, did *Did) error {
	r := &f.run
	n, recs := 0, 0
	for i := range r.plans {
		if r.lost[i] == nil {
			n++
			recs += len(r.plans[i].Recs)
		}
	}
	if n == 0 {
		return nil
	}
	var err error
	if r.ranges, err = f.store.AllocSlots(g, n, r.ranges[:0]); err != nil {
		return err
	}
	if err = r.write(f); err == nil {
		err = f.change(func(mem *slab.Buf) (*segfile.Change, error) { return f.store.PrepareMap(mem, g, r.changes, target) })
	}
	if err != nil {
		f.store.FreeSlots(r.ranges)
		return err
	}
	did.Pages, did.Records = n, recs
	did.Bytes += int64(n) * redoubt.PageSize
	f.ledger.note(func(s *Stats) {
		s.Runs++
		s.Pages += uint64(n)
		s.Records += uint64(recs)
		s.Written += uint64(n) * redoubt.PageSize
	})
	return nil
}

// writeFlight bounds the page writes in flight: more would only make the
// foreground's wait longer.
const writeFlight = 2

// write writes the pages that were built into the slots of ranges, and notes
// the changes of the map.
func (r *run) write(f *Folder) error {
	r.changes = r.changes[:0]
	i, n := 0, 0
	r.group.begin()
	for _, rng := range r.ranges {
		for from := 0; from < rng.N; from += f.opts.RunPages {
			if n > 0 && n%writeFlight == 0 {
				r.group.wait()
				r.group.begin()
			}
			w := r.pageWrite(n)
			n++
			w.w.Off, w.w.Bufs = f.store.SlotOffset(rng.First+uint32(from)), w.w.Bufs[:0]
			for j := from; j < min(rng.N, from+f.opts.RunPages); j++ {
				for r.lost[i] != nil {
					i++
				}
				w.add(r.pages[i])
				r.changes = append(r.changes, segfile.MapChange{Page: r.plans[i].Page, Slot: rng.First + uint32(j), Sum: r.sums[i], LSN: r.lsns[i]})
				i++
			}
			r.group.add()
			f.dev.WriteDurable(&w.w)
		}
	}
	r.group.wait()
	for _, w := range r.writes[:n] {
		if w.err != nil {
			return fmt.Errorf("coalescer: writing pages at device offset %d: %w", w.w.Off, w.err)
		}
	}
	return nil
}

func (r *run) pageWrite(k int) *pageWrite {
	if k == len(r.writes) {
		w := &pageWrite{run: r}
		w.w.Ctx, w.w.Done = w, pageWriteDone
		r.writes = append(r.writes, w)
	}
	return r.writes[k]
}

func pageWriteDone(w *blockdev.Write, err error) {
	p := w.Ctx.(*pageWrite)
	p.err = err
	p.run.group.end()
}

// add adds a page, as one piece with the one before where they are neighbours
// in memory too.
func (w *pageWrite) add(page []byte) {
	if n := len(w.w.Bufs); n > 0 {
		last := w.w.Bufs[n-1]
		if cap(last)-len(last) >= len(page) && &last[:len(last)+1][len(last)] == &page[0] {
			w.w.Bufs[n-1] = last[:len(last)+len(page)]
			return
		}
	}
	w.w.Bufs = append(w.w.Bufs, page)
}

// forget gives back the memory of the pages, and what huge plans took.
func (r *run) forget() {
	for i, b := range r.mem {
		b.Drop()
		r.mem[i] = nil
	}
	r.mem = r.mem[:0]
	plans := r.plans[:cap(r.plans)]
	for i := range plans {
		if cap(plans[i].Recs) > keepPlanRecs {
			plans[i].Recs = nil
		}
	}
}
