package coalescer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// fill appends fat records until the log holds n extents more than now.
func (r *rig) fill(rnd *rand.Rand, w *tape, n int) {
	r.t.Helper()
	for want := r.store.Usage().Head + uint64(n*rigExtent); r.store.Usage().Head < want; {
		r.mustAppend(w, fat(rnd))
	}
}

// A small device takes any amount of log as long as pages may take it in: the
// extents come back.
func TestALongRunFitsASmallDevice(t *testing.T) {
	r := newRig(t, nil)
	rnd := rand.New(rand.NewPCG(1, 9))
	tapes := []*tape{r.create(1, redoubt.FullSegment), r.create(2, redoubt.FullSegment), r.create(3, redoubt.TailSegment)}
	written, worst := uint64(0), 0
	for written < 3*rigSize {
		before := r.store.Usage().Head
		for _, w := range tapes {
			for range 3 {
				if err := r.append(w, fat(rnd)); err != nil {
					t.Fatalf("after %d bytes: %v; %+v, %+v", written, err, r.store.Usage(), r.folder.Stats())
				}
			}
			r.tell(w, w.lsn, w.lsn)
			w.recs = w.recs[len(w.recs)-min(len(w.recs), 200):] // the reference would outgrow the device
		}
		written += r.store.Usage().Head - before
		r.now = r.now.Add(10 * time.Millisecond)
		for did := r.pass(); did.Work != Nothing; did = r.pass() {
		}
		worst = max(worst, r.store.Usage().LogExtents)
	}
	st := r.folder.Stats()
	if worst > 20 || st.Roots == 0 || st.Extents < 200 {
		t.Fatalf("the log grew to %d extents; %+v", worst, st)
	}
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	if u := r.store.Usage(); u.Records != 0 {
		t.Fatalf("%d records are left", u.Records)
	}
}

// steps tells what was done as a sequence in which only the kinds of work and
// the segments count.
func steps(runs []Did) string {
	var b strings.Builder
	for _, did := range runs {
		s := did.Work.String()
		if did.Segment != nil {
			s += fmt.Sprintf(" %d", did.Segment.ID[0])
		}
		if !strings.HasSuffix(b.String(), s+"; ") {
			b.WriteString(s + "; ")
		}
	}
	return b.String()
}

// A segment whose floor stands still has a few blocks in the oldest extent.
// They are written again at the head, and the extent is free.
func TestAQuietSegmentDoesNotPinTheTail(t *testing.T) {
	r := newRig(t, nil)
	rnd := rand.New(rand.NewPCG(2, 9))
	quiet, busy := r.create(1, redoubt.FullSegment), r.create(2, redoubt.FullSegment)
	r.write(rnd, quiet, 5)
	r.fill(rnd, busy, 7)
	r.tell(busy, busy.lsn, busy.lsn)
	r.store.Reclaim(1000)
	tail := r.store.Usage().Tail
	got := steps(r.settle(time.Second))
	if want := "folded 2; moved 1; rooted 1; rooted 2; "; !strings.HasPrefix(got, want) {
		t.Fatalf("did %s", got)
	}
	if st := r.folder.Stats(); st.Moves != 1 {
		t.Fatalf("%d moves", st.Moves)
	}
	u := r.store.Usage()
	if u.Tail < tail+5*rigExtent {
		t.Fatalf("the tail went from %d to %d, the head is at %d", tail, u.Tail, u.Head)
	}
	r.check(quiet, 1)
	r.check(busy, 1000)
	again := r.reopen(r.disk.Restart())
	again.check(quiet, 1)
	if i := again.store.Info(again.seg(quiet)); i.SCL != quiet.lsn || i.Blocks != 5 {
		t.Fatalf("after a restart: %+v", i)
	}
	// And it may be folded as ever.
	again.tell(quiet, quiet.lsn, quiet.lsn)
	if err := again.flush(); err != nil {
		t.Fatal(err)
	}
	again.check(quiet, 1)
}

// Records that may not be folded and fill the oldest extents stay where they
// are: to copy them would win nothing.
func TestAFullExtentIsNotMoved(t *testing.T) {
	r := newRig(t, func(r *rig) { r.sopts.LogExtents = 60 })
	rnd := rand.New(rand.NewPCG(3, 9))
	stuck := r.create(1, redoubt.FullSegment)
	r.fill(rnd, stuck, 20)
	if runs := r.settle(time.Minute); len(runs) != 0 {
		t.Fatalf("did %s", steps(runs))
	}
	r.tell(stuck, stuck.lsn, stuck.lsn)
	r.settle(time.Minute)
	if u := r.store.Usage(); u.LogExtents > 14 {
		t.Fatalf("when it could be folded, the log kept %d extents", u.LogExtents)
	}
}

// What an archive hasn't confirmed is kept, though it is in pages; a little of
// it is moved out of the way.
func TestWhatAHolderNeedsIsKept(t *testing.T) {
	r := newRig(t, nil)
	rnd := rand.New(rand.NewPCG(4, 9))
	held, busy := r.create(1, redoubt.FullSegment), r.create(2, redoubt.FullSegment)
	g := r.seg(held)
	r.store.Hold(g, segfile.HoldArchive, 3)
	r.write(rnd, held, 4)
	r.tell(held, held.lsn, held.lsn)
	r.fill(rnd, busy, 7)
	r.tell(busy, busy.lsn, busy.lsn)
	r.settle(time.Minute)
	i := r.store.Info(g)
	if i.Coalesced != held.lsn || i.Trimmed != 3 || i.Blocks == 0 {
		t.Fatalf("%+v", i)
	}
	if u := r.store.Usage(); u.LogExtents > 7 {
		t.Fatalf("the log kept %d extents", u.LogExtents)
	}
	r.store.Hold(g, segfile.HoldArchive, redoubt.MaxLSN)
	r.settle(time.Minute)
	if i := r.store.Info(g); i.Blocks != 0 {
		t.Fatalf("%+v", i)
	}
}

// A fence that overtakes a root on its way to the log must outlive the extents
// before the root: the root doesn't know of it.
func TestAFenceThatOvertakesARootIsKept(t *testing.T) {
	r := newRig(t, nil)
	rnd := rand.New(rand.NewPCG(5, 9))
	w, busy := r.create(1, redoubt.FullSegment), r.create(2, redoubt.FullSegment)
	r.write(rnd, w, 5)
	r.tell(w, w.lsn, w.lsn)
	r.fill(rnd, busy, 7)
	r.tell(busy, busy.lsn, busy.lsn)
	var state uint64 // where the log was when the fence was written down
	r.log.before = func(run *segfile.Run) error {
		if run.Blocks[0].Kind != segfile.BlockRoot || run.Blocks[0].Seg.ID != w.id || state != 0 {
			return nil
		}
		state = r.store.Usage().Head
		if err := r.change(func(m *slab.Buf) (*segfile.Change, error) { return r.store.PrepareEpoch(m, r.seg(w), 2) }); err != nil {
			return err
		}
		r.fill(rnd, busy, 1) // the root lands in another extent than the fence
		r.tell(busy, busy.lsn, busy.lsn)
		return nil
	}
	r.settle(time.Second)
	if state == 0 {
		t.Fatal("no root was written")
	}
	if tail := r.store.Usage().Tail; tail/rigExtent <= state/rigExtent && r.folder.Stats().Roots < 3 {
		t.Fatalf("the tail, at %d, never came near the fence, at %d", tail, state)
	}
	again := r.reopen(r.disk.Restart())
	if i := again.store.Info(again.seg(w)); i.Epoch != 2 || i.SCL != w.lsn {
		t.Fatalf("after a restart: epoch %d, SCL %d of %d", i.Epoch, i.SCL, w.lsn)
	}
}

// Somebody reads pages while the log that they are made from is folded, trimmed
// and written over.
func TestAReaderKeepsWhatItWasPromised(t *testing.T) {
	r := newRig(t, nil)
	rnd := rand.New(rand.NewPCG(6, 9))
	w := r.create(1, redoubt.FullSegment)
	r.write(rnd, w, 30)
	r.tell(w, w.lsn, w.lsn-20)
	pages := make([]uint32, rigPages)
	for i := range pages {
		pages[i] = uint32(i)
	}
	point := w.lsn - 10
	plans := make([]segfile.PagePlan, rigPages)
	pin, err := r.store.PlanRead(r.seg(w), point, 0, pages, plans)
	if err != nil {
		t.Fatal(err)
	}
	want := make([][]byte, rigPages)
	for i := range want {
		want[i] = w.page(uint32(i), point)
	}
	for range 4 {
		r.fill(rnd, w, 6)
		r.tell(w, w.lsn, w.lsn)
		if err := r.flush(); err != nil {
			t.Fatal(err)
		}
		r.settle(time.Second)
	}
	r.store.Reclaim(1000)
	if u := r.store.Usage(); u.Tail < 10*rigExtent {
		t.Fatalf("the tail is still at %d", u.Tail)
	}
	for i := range plans {
		got, err := r.buildPage(r.seg(w), &plans[i])
		if err != nil {
			t.Fatalf("page %d: %v", i, err)
		}
		if string(got) != string(want[i]) {
			t.Fatalf("page %d has changed under its reader", i)
		}
	}
	free := r.store.Usage().FreeExtents
	r.store.Unpin(pin)
	r.settle(2 * time.Second)
	if now := r.store.Usage().FreeExtents; now <= free {
		t.Fatalf("%d extents were free with the reader and %d without", free, now)
	}
}

// A device without room for pages is no reason to lose anything: the run gives
// back what it took, and goes on when there is room.
func TestAFullDeviceLosesNothing(t *testing.T) {
	r := newRig(t, nil)
	rnd := rand.New(rand.NewPCG(7, 9))
	w, other := r.create(1, redoubt.FullSegment), r.create(2, redoubt.FullSegment)
	r.write(rnd, w, 20)
	r.tell(w, w.lsn, w.lsn)
	hog := r.seg(other)
	var taken []segfile.SlotRange
	for {
		more, err := r.store.AllocSlots(hog, 1, nil)
		if err != nil {
			break
		}
		taken = append(taken, more...)
	}
	if err := r.flush(); !errors.Is(err, redoubt.ErrFull) {
		t.Fatalf("flush: %v", err)
	}
	st := r.folder.Stats()
	if st.Errors == 0 || !errors.Is(st.LastError, redoubt.ErrFull) {
		t.Fatalf("%+v", st)
	}
	r.check(w, 1)
	r.store.FreeSlots(taken)
	if _, err := r.store.TrimLog(); err != nil {
		t.Fatal(err)
	}
	r.settle(10 * time.Second)
	if i := r.store.Info(r.seg(w)); i.Coalesced != w.lsn {
		t.Fatalf("coalesced to %d of %d", i.Coalesced, w.lsn)
	}
	r.check(w, 1)
}

// A log that refuses, for whatever reason, costs no space: each run gives back
// the slots that it took.
func TestARefusedMapBlockGivesItsSlotsBack(t *testing.T) {
	r := newRig(t, nil)
	rnd := rand.New(rand.NewPCG(8, 9))
	w := r.create(1, redoubt.FullSegment)
	r.write(rnd, w, 60)
	r.tell(w, w.lsn, w.lsn)
	refusals := 0
	r.log.before = func(*segfile.Run) error {
		refusals++
		return redoubt.ErrBusy
	}
	r.passFor(10 * time.Minute)
	if refusals < 10 {
		t.Fatalf("only %d refusals", refusals)
	}
	free := r.store.Usage().FreeExtents
	r.passFor(20 * time.Minute)
	if now := r.store.Usage().FreeExtents; now != free {
		t.Fatalf("%d extents were free, %d are after more refusals", free, now)
	}
	r.log.before = nil
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	r.check(w, 1)
}

// The index is smaller than one batch: folding goes on in pieces.
func TestAFullIndexEmptiesItself(t *testing.T) {
	r := newRig(t, func(r *rig) { r.sopts.MaxRecords = 1 << 10; r.opts.RunPages = 8 })
	w := r.create(1, redoubt.FullSegment)
	for range 4 {
		changes := make([]pageChange, 700)
		for i := range changes {
			changes[i] = pageChange{page: uint32(i % 40), kind: redo.Fill, off: i, n: 1, fill: byte(i)}
		}
		r.mustAppend(w, changes...)
	}
	r.tell(w, w.lsn, w.lsn)
	for range 100 {
		r.now = r.now.Add(time.Second)
		r.settle(time.Second)
	}
	if i := r.store.Info(r.seg(w)); i.Coalesced != w.lsn || i.Blocks != 0 {
		t.Fatalf("coalesced to %d of %d, %d blocks left", i.Coalesced, w.lsn, i.Blocks)
	}
	r.check(w, 1)
}

// A page that was written more often than a plan holds, while nothing could be
// folded, takes several runs.
func TestAnEndlessChainIsFoldedInPieces(t *testing.T) {
	r := newRig(t, func(r *rig) { r.sopts.MaxRecords = 1 << 18 })
	w := r.create(1, redoubt.FullSegment)
	const total = 2*segfile.MaxPlanRecords + 5000
	for w.lsn < total {
		changes := make([]pageChange, 1000)
		for i := range changes {
			n := int(w.lsn) + i
			changes[i] = pageChange{page: 3, kind: redo.Fill, off: n % 16000, n: 1, fill: byte(n >> 8)}
		}
		r.mustAppend(w, changes...)
	}
	r.mustAppend(w, pageChange{page: 9, kind: redo.Fill, n: 5, fill: 1})
	r.tell(w, w.lsn, w.lsn)
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	st := r.folder.Stats()
	if st.Runs < 3 || st.Records != uint64(w.lsn) {
		t.Fatalf("%d records in %d runs, want %d", st.Records, st.Runs, w.lsn)
	}
	r.check(w, 1<<20)
}
