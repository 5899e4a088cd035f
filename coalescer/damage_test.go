package coalescer

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// slotOf returns where a page's version lies on the device.
func (r *rig) slotOf(w *tape, page uint32) int64 {
	r.t.Helper()
	s, err := r.store.PageState(r.seg(w), page)
	if err != nil || s.Slot == 0 {
		r.t.Fatalf("page %d has no version: %v", page, err)
	}
	return s.Offset
}

// folded makes a rig with a segment of which some pages are in slots.
func folded(t *testing.T) (*rig, *tape) {
	r := newRig(t, nil)
	w := r.create(1, redoubt.FullSegment)
	for page := range uint32(10) {
		r.mustAppend(w, pageChange{page: page, kind: redo.Fill, off: 7, n: 900, fill: byte(page + 1)})
	}
	r.tell(w, w.lsn, w.lsn)
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	return r, w
}

// A page whose version has rotted is reported and left out; the others of its
// run are folded, and other segments don't notice. Each attempt is later than
// the one before.
func TestABaseThatRotsIsReportedAndLeftOut(t *testing.T) {
	r, w := folded(t)
	other := r.create(2, redoubt.FullSegment)
	r.disk.Flip(r.slotOf(w, 4)+100, 3)
	for page := range uint32(10) {
		r.mustAppend(w, pageChange{page: page, kind: redo.Fill, off: 2000, n: 9, fill: 3})
		r.mustAppend(other, pageChange{page: page, kind: redo.Fill, off: 2000, n: 9, fill: 3})
	}
	r.tell(w, w.lsn, w.lsn)
	r.tell(other, other.lsn, other.lsn)
	r.settle(2 * r.folder.opts.MaxAge)
	if want := []string{"segment 1 page 4"}; !slices.Equal(r.damage, want) {
		t.Fatalf("told of %q, want %q", r.damage, want)
	}
	i := r.store.Info(r.seg(w))
	if i.DirtyPages != 1 || i.Coalesced != w.lsn-6 {
		t.Fatalf("%d pages are left, coalesced to %d of %d", i.DirtyPages, i.Coalesced, w.lsn)
	}
	if i := r.store.Info(r.seg(other)); i.Coalesced != other.lsn {
		t.Fatalf("the other segment is coalesced to %d of %d", i.Coalesced, other.lsn)
	}
	tries := r.folder.Stats().Errors
	r.settle(10 * time.Minute)
	if n := r.folder.Stats().Errors - tries; n == 0 || n > 20 {
		t.Fatalf("tried %d times in ten minutes", n)
	}
	if st := r.folder.Stats(); st.Damage != 1 || !errors.Is(st.LastError, redoubt.ErrCorrupt) {
		t.Fatalf("%+v", st)
	}
}

// A base that can't be read costs that page, not those that were read with it.
func TestAReadErrorCostsOnePage(t *testing.T) {
	r, w := folded(t)
	for page := range uint32(10) {
		r.mustAppend(w, pageChange{page: page, kind: redo.Fill, off: 2000, n: 9, fill: 3})
	}
	r.tell(w, w.lsn, w.lsn)
	in := r.disk.Arm(devtest.Fault{Kind: devtest.ReadError, Off: r.slotOf(w, 4), Len: 512, Times: -1})
	if err := r.flush(); !errors.Is(err, redoubt.ErrCorrupt) {
		t.Fatalf("flush: %v", err)
	}
	in.MustHaveInjected(t)
	if i := r.store.Info(r.seg(w)); i.DirtyPages != 1 {
		t.Fatalf("%d pages are left", i.DirtyPages)
	}
	in.Disarm()
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	r.check(w, 1)
}

// A log write that was lost leaves what the extent held in an earlier life: here
// a whole batch of the same segment, of the same length, with a right sum. It
// is neither folded nor read.
func TestALostLogWriteIsFound(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1, redoubt.FullSegment)
	small := func() pageChange {
		return pageChange{page: uint32(w.lsn % rigPages), kind: redo.Write, off: 8, data: []byte{byte(w.lsn), byte(w.lsn >> 8), 0, 1}}
	}
	for r.store.Usage().Head < 2*rigSize { // every extent of the log has had a life before
		for range 400 {
			r.mustAppend(w, small())
		}
		r.tell(w, w.lsn, w.lsn)
		if err := r.flush(); err != nil {
			t.Fatal(err)
		}
		r.settle(100 * time.Millisecond)
		w.recs = w.recs[:0]
	}
	before := r.store.Info(r.seg(w)).Coalesced
	page := uint32(w.lsn % rigPages)
	in := r.disk.Arm(devtest.Fault{Kind: devtest.LostWrite})
	r.mustAppend(w, small())
	in.MustHaveInjected(t)
	r.store.Reclaim(1000)
	stale := make([]byte, 512)
	r.disk.Peek(stale, r.lastBatch(w)/512*512)
	batch := stale[segfile.RunHeaderSize+segfile.BlockHeaderSize:]
	h, err := redo.ParseHeader(batch)
	if err != nil || h.Last > before {
		t.Fatalf("no earlier batch is there: %v, LSN %d", err, h.Last)
	}
	if _, err := r.seg(w).CheckBatch(batch[:h.Len]); err != nil {
		t.Fatalf("the earlier batch is not whole: %v", err)
	}
	if _, err := r.readPage(r.seg(w), page, w.lsn); !errors.Is(err, redoubt.ErrCorrupt) {
		t.Fatalf("read: %v", err)
	}
	r.tell(w, w.lsn, w.lsn)
	if err := r.flush(); !errors.Is(err, redoubt.ErrCorrupt) {
		t.Fatalf("flush: %v", err)
	}
	if i := r.store.Info(r.seg(w)); i.Coalesced != before {
		t.Fatalf("coalesced from %d to %d", before, i.Coalesced)
	}
	if want := []string{"segment 1 log or map"}; !slices.Equal(r.damage, want) {
		t.Fatalf("told of %q, want %q", r.damage, want)
	}
}

// scrubber returns a scrubber over the rig's store.
func (r *rig) scrubber() *Scrubber {
	r.t.Helper()
	s, err := NewScrubber(context.Background(), r.store, r.hook, r.opts)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// cycle lets the scrubber run until it has been round.
func (r *rig) cycle(s *Scrubber) Stats {
	r.t.Helper()
	for until := s.Stats().ScrubCycles + 1; s.Stats().ScrubCycles < until; {
		did, err := s.Pass(r.now)
		if err != nil {
			r.t.Fatal(err)
		}
		if did.Next.After(r.now) {
			r.now = did.Next
		}
	}
	return s.Stats()
}

// The scrub reads every page version, every map page and every live batch, and
// tells of each damage once in a cycle.
func TestTheScrubFindsWhatHasRotted(t *testing.T) {
	r, w := folded(t)
	rnd := rand.New(rand.NewPCG(2, 2))
	root := func() {
		t.Helper()
		if err := r.folder.change(func(mem *slab.Buf) (*segfile.Change, error) {
			p, err := r.store.PrepareRoot(mem, r.seg(w))
			if err != nil {
				return nil, err
			}
			return &p.Change, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	root()
	r.write(rnd, w, 12)
	s := r.scrubber()
	st := r.cycle(s)
	if st.ScrubbedPages != 10 || st.ScrubbedMapPages != 1 || st.ScrubbedBatches != 12 || st.Damage != 0 {
		t.Fatalf("%+v", st)
	}
	// One bit in a page, one in the map page, one in the log's last block: the
	// map page lies behind the pages, in the same extent.
	mapPage := r.slotOf(w, 9) + redoubt.PageSize
	r.disk.Flip(r.slotOf(w, 6)+9000, 0)
	r.disk.Flip(mapPage+200, 0)
	r.disk.Flip(r.lastBatch(w)+60, 0)
	want := []string{"segment 1 page 6", "segment 1 log or map", "segment 1 log or map"}
	for cycle := range 2 {
		r.damage = nil
		st = r.cycle(s)
		if !slices.Equal(r.damage, want) {
			t.Fatalf("cycle %d: told of %q, want %q", cycle, r.damage, want)
		}
	}
	if st.Damage != 6 || st.ScrubCycles != 3 {
		t.Fatalf("%+v", st)
	}
}

// lastBatch returns where the segment's newest batch lies on the device.
func (r *rig) lastBatch(w *tape) int64 {
	r.t.Helper()
	places := make([]segfile.LogPlace, 64)
	n, _, pin := r.store.PlanLog(r.seg(w), 0, 1<<20, places)
	r.store.Unpin(pin)
	if n == 0 {
		r.t.Fatal("the segment has no log")
	}
	return places[n-1].Off
}

// The scrub keeps to its rate, rests between cycles, and stands back when the
// log is full.
func TestTheScrubKeepsItsPace(t *testing.T) {
	r, w := folded(t)
	r.opts.ScrubRate, r.opts.ScrubPause = 64<<10, time.Minute
	s := r.scrubber()
	start := r.now
	st := r.cycle(s)
	// What was read last is paid for after the pause.
	r.cycle(s)
	took := r.now.Sub(start).Seconds()
	least := float64(st.ScrubbedBytes)/(64<<10) + 60
	if took < least || took > 3*least+10 {
		t.Fatalf("two cycles of %d bytes took %.1f s", st.ScrubbedBytes, took)
	}
	rnd := rand.New(rand.NewPCG(3, 3))
	r.fill(rnd, w, 13)
	r.now = r.now.Add(time.Hour)
	for range 10 {
		did, err := s.Pass(r.now)
		if err != nil || did.Bytes != 0 || !did.Next.After(r.now) {
			t.Fatalf("with a debt of %.2f it did %+v, %v", r.store.Usage().Debt(), did, err)
		}
		r.now = did.Next
	}
}

// What is written, folded and deleted while the scrub goes round is no damage.
func TestTheScrubOfAMovingTarget(t *testing.T) {
	r := newRig(t, func(r *rig) { r.opts.ScrubRate = 1 << 40 })
	rnd := rand.New(rand.NewPCG(4, 4))
	tapes := []*tape{r.create(1, redoubt.FullSegment), r.create(2, redoubt.FullSegment)}
	s := r.scrubber()
	for round := range 60 {
		if round == 30 {
			if err := r.change(func(m *slab.Buf) (*segfile.Change, error) { return r.store.PrepareDelete(m, r.seg(tapes[0]), 1) }); err != nil {
				t.Fatal(err)
			}
			tapes = tapes[1:]
		}
		for _, w := range tapes {
			for range 4 {
				r.mustAppend(w, fat(rnd))
			}
			r.tell(w, w.lsn, w.lsn-1)
		}
		for range 3 {
			if _, err := s.Pass(r.now); err != nil {
				t.Fatal(err)
			}
			r.now = r.now.Add(time.Second)
			r.settle(0)
		}
		r.now = r.now.Add(time.Minute)
	}
	if st := s.Stats(); st.ScrubbedPages < 100 || st.ScrubCycles < 2 || st.Damage != 0 {
		t.Fatalf("%+v", st)
	}
}
