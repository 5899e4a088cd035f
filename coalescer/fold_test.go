package coalescer

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
)

// After MaxAge everything that may be folded is in pages, and every read point
// from the floor up reads as before.
func TestFoldingChangesNoRead(t *testing.T) {
	var read [2]uint64
	for i, cached := range []bool{true, false} {
		r := newRig(t, nil)
		rnd := rand.New(rand.NewPCG(1, 2))
		tapes := []*tape{r.create(1, redoubt.FullSegment), r.create(2, redoubt.FullSegment), r.create(3, redoubt.TailSegment)}
		for round := range 4 {
			for _, w := range tapes {
				r.write(rnd, w, 15)
				r.tell(w, w.lsn-3, w.lsn-9)
			}
			for _, w := range tapes[:2] {
				r.check(w, 1)
			}
			if !cached {
				r.store.Reclaim(1000)
			}
			r.settle(2 * r.folder.opts.MaxAge)
			for _, w := range tapes {
				if i := r.store.Info(r.seg(w)); i.Coalesced != w.lsn-9 {
					t.Fatalf("round %d: segment %d is coalesced to %d, want the floor, %d", round, w.id[0], i.Coalesced, w.lsn-9)
				}
			}
			for _, w := range tapes[:2] {
				r.check(w, 1)
			}
		}
		again := r.reopen(r.disk.Restart())
		for _, w := range tapes[:2] {
			again.check(w, 1)
		}
		st := r.folder.Stats()
		if st.Errors != 0 || st.Damage != 0 || st.Pages == 0 || st.Records == 0 {
			t.Fatalf("stats: %+v", st)
		}
		read[i] = st.Read
	}
	if read[1] <= read[0] {
		t.Fatalf("%d bytes were read with the log in memory, and %d without", read[0], read[1])
	}
}

// A page is folded for the length of its own chain long before its age asks for
// it, and the others are left alone.
func TestALongChainIsFoldedEarly(t *testing.T) {
	r := newRig(t, func(r *rig) { r.sopts.LongChain = 8; r.opts.Survey = time.Millisecond })
	w := r.create(1, redoubt.FullSegment)
	r.mustAppend(w, pageChange{page: 5, kind: redo.Fill, n: 9, fill: 1})
	for i := range 8 {
		r.mustAppend(w, pageChange{page: 6, kind: redo.Fill, off: i, n: 9, fill: byte(i)})
	}
	r.tell(w, w.lsn, w.lsn)
	did := r.pass()
	if did.Work != Folded || did.Pages != 1 || did.Records != 8 {
		t.Fatalf("did %+v", did)
	}
	if runs := r.settle(time.Second); len(runs) != 0 {
		t.Fatalf("and then %+v", runs)
	}
	if i := r.store.Info(r.seg(w)); i.DirtyPages != 1 || i.Coalesced != 0 {
		t.Fatalf("%d pages are dirty, coalesced to %d", i.DirtyPages, i.Coalesced)
	}
	r.check(w, 1)
	r.settle(2 * r.folder.opts.MaxAge)
	if i := r.store.Info(r.seg(w)); i.DirtyPages != 0 || i.Coalesced != w.lsn {
		t.Fatalf("in the end %d pages are dirty, coalesced to %d", i.DirtyPages, i.Coalesced)
	}
	r.check(w, 1)
}

// Nothing is folded before its time, and what is only half as old goes along.
func TestAgeDecides(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1, redoubt.FullSegment)
	start := r.now
	var did Did
	for page := range uint32(4) {
		r.mustAppend(w, pageChange{page: page, kind: redo.Fill, n: 9, fill: 7})
		r.tell(w, w.lsn, w.lsn)
		if did = r.pass(); did.Work != Nothing {
			t.Fatalf("did %+v", did)
		}
		r.now = r.now.Add(time.Second)
	}
	for did.Work == Nothing {
		if did = r.pass(); did.Next.After(r.now) {
			r.now = did.Next
		}
	}
	if age := r.now.Sub(start); age < r.folder.opts.MaxAge || age > r.folder.opts.MaxAge+2*time.Second {
		t.Fatalf("the first page was folded when it was %v old", age)
	}
	if did.Pages < 2 || did.Pages > 3 {
		t.Fatalf("%d pages went, of which one was due and one or two half as old", did.Pages)
	}
}

// Segments take turns: one with endless work does not keep another waiting.
func TestSegmentsTakeTurns(t *testing.T) {
	r := newRig(t, func(r *rig) { r.opts.RunPages = 4 })
	a, b := r.create(1, redoubt.FullSegment), r.create(2, redoubt.FullSegment)
	for page := range uint32(40) {
		r.mustAppend(a, pageChange{page: page, kind: redo.Fill, n: 9, fill: 7})
	}
	for page := range uint32(8) {
		r.mustAppend(b, pageChange{page: page, kind: redo.Fill, n: 9, fill: 7})
	}
	r.tell(a, a.lsn, a.lsn)
	r.tell(b, b.lsn, b.lsn)
	r.pass()
	r.now = r.now.Add(2 * r.folder.opts.MaxAge)
	var order []byte
	for _, did := range r.settle(time.Second)[:4] {
		order = append(order, did.Segment.ID[0])
	}
	if string(order) != "\x01\x02\x01\x02" && string(order) != "\x02\x01\x02\x01" {
		t.Fatalf("the first runs were of segments %v", order)
	}
}

// A tail segment has no pages; its log goes all the same.
func TestATailSegmentOnlyAdvances(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1, redoubt.TailSegment)
	rnd := rand.New(rand.NewPCG(3, 4))
	r.write(rnd, w, 20)
	r.tell(w, w.lsn-1, w.lsn-2)
	runs := r.settle(2 * r.folder.opts.MaxAge)
	if len(runs) != 1 || runs[0].Work != Advanced {
		t.Fatalf("did %+v", runs)
	}
	if i := r.store.Info(r.seg(w)); i.Coalesced != w.lsn-2 || i.PageCount != 0 {
		t.Fatalf("%+v", i)
	}
	again := r.reopen(r.disk.Restart())
	if i := again.store.Info(again.seg(w)); i.SCL != w.lsn || i.Coalesced != w.lsn-2 {
		t.Fatalf("after a restart: %+v", i)
	}
}

// A log of marks has nothing to fold either.
func TestMarksOnlyAdvance(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1, redoubt.FullSegment)
	for range 5 {
		r.mustAppend(w, pageChange{kind: redo.Mark})
	}
	r.tell(w, w.lsn, w.lsn)
	if runs := r.settle(2 * r.folder.opts.MaxAge); len(runs) != 1 || runs[0].Work != Advanced {
		t.Fatalf("did %+v", runs)
	}
	if i := r.store.Info(r.seg(w)); i.Coalesced != w.lsn || i.Blocks != 0 {
		t.Fatalf("%+v", i)
	}
}

// A record that covers its page makes the version on disk, and what came before
// it, unnecessary: nothing is read.
func TestACoveringRecordNeedsNoBase(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1, redoubt.FullSegment)
	r.mustAppend(w, pageChange{page: 1, kind: redo.Fill, off: 5, n: 9, fill: 7})
	r.tell(w, w.lsn, w.lsn)
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	r.mustAppend(w, pageChange{page: 1, kind: redo.Fill, off: 50, n: 9, fill: 8},
		pageChange{page: 1, kind: redo.Fill, n: redoubt.PageSize, fill: 9},
		pageChange{page: 1, kind: redo.Fill, off: 60, n: 1, fill: 10})
	r.tell(w, w.lsn, w.lsn-1)
	before := r.folder.Stats()
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	after := r.folder.Stats()
	if after.Read != before.Read || after.Records-before.Records != 1 {
		t.Fatalf("%d bytes were read, %d records applied", after.Read-before.Read, after.Records-before.Records)
	}
	r.check(w, 1)
}

// Pages take the extents that they need and no more, however many lie in one
// extent and however often they are folded.
func TestPagesTakeNoMoreExtentsThanTheyNeed(t *testing.T) {
	r := newRig(t, nil)
	w := r.create(1, redoubt.FullSegment)
	for round := range 20 {
		for page := range uint32(rigPages) {
			r.mustAppend(w, pageChange{page: page, kind: redo.Fill, off: 100 * round, n: 99, fill: byte(page)})
		}
		r.tell(w, w.lsn, w.lsn)
		if err := r.flush(); err != nil {
			t.Fatal(err)
		}
		r.passFor(time.Second)
		extents := 0
		for _, e := range r.dev.Extents() {
			if e.Role == blockdev.RolePages {
				extents++
			}
		}
		// 48 pages fill three extents; as many are being written beside them.
		if extents > 7 {
			t.Fatalf("round %d: %d pages have %d extents of %d", round, rigPages, extents, rigExtent/redoubt.PageSize)
		}
	}
	r.check(w, 100)
}

// Pages that lie side by side in a slab are one piece of a write; the end of a
// slab ends a piece.
func TestPiecesOfAWriteEndWithTheirSlab(t *testing.T) {
	a, b := make([]byte, 3*redoubt.PageSize), make([]byte, 2*redoubt.PageSize)
	page := func(mem []byte, i int) []byte { return mem[i*redoubt.PageSize : (i+1)*redoubt.PageSize] }
	var w pageWrite
	for _, p := range [][]byte{page(a, 0), page(a, 1), page(a, 2), page(b, 1), page(b, 0)} {
		w.add(p)
	}
	var got []int
	for _, piece := range w.w.Bufs {
		got = append(got, len(piece)/redoubt.PageSize)
	}
	if !slices.Equal(got, []int{3, 1, 1}) {
		t.Fatalf("pieces of %v pages, want 3, 1 and 1", got)
	}
}

// In debt a run takes all the memory there is, and goes out as several writes.
func TestARunInDebtTakesSeveralSlabs(t *testing.T) {
	r := newMemRig(t, newMemDevice(256), redoubt.DeviceID{1}, 512)
	changes := make([]pageChange, 512)
	for i := range changes {
		changes[i] = pageChange{page: uint32(i), kind: redo.Fill, off: i, n: 9, fill: byte(i)}
	}
	r.append(t, changes)
	if err := r.folder.Flush(r.now); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if did, err := r.folder.Pass(r.now); err != nil || did.Pages != 256 {
			t.Fatalf("did %+v, %v", did, err)
		}
	}
	if done, err := r.folder.Flushed(r.now); !done || err != nil {
		t.Fatalf("flushed: %v, %v", done, err)
	}
	for i := range changes {
		plans := make([]segfile.PagePlan, 1)
		pin, err := r.store.PlanRead(r.seg, r.tape.lsn, 0, []uint32{uint32(i)}, plans)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, redoubt.PageSize)
		if err := r.log.dev.ReadAt(b, r.store.SlotOffset(plans[0].Slot)); err != nil {
			t.Fatal(err)
		}
		r.store.Unpin(pin)
		if sum := redo.PageSum(r.seg.Volume, r.seg.PageNo(uint32(i)), plans[0].LSN, b); sum != plans[0].Sum || b[i] != byte(i) {
			t.Fatalf("page %d is not what was written", i)
		}
	}
}
