package segfile

import (
	"errors"
	"slices"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/slab"
)

// wantByte fails unless the page as of point has v where the record at lsn put
// it.
func (r *rig) wantByte(g *Segment, page uint32, point, lsn redoubt.LSN, v byte) {
	r.t.Helper()
	b, _, err := r.read(g, page, point)
	if err != nil {
		r.t.Fatalf("read page %d at %d: %v", page, point, err)
	}
	if got := b[offsetOf(lsn)]; got != v {
		r.t.Fatalf("page %d at %d: byte of LSN %d is %d, want %d", page, point, lsn, got, v)
	}
}

// A record is read back from the log, from the page it was coalesced into, and
// after a restart from either.
func TestARecordSurvivesCoalescingAndRestart(t *testing.T) {
	r := newRig(t)
	g := r.create(1)
	w := newTape(g)
	for lsn := redoubt.LSN(1); lsn <= 40; lsn++ {
		if err := r.append1(w, lsn, uint32(lsn%5), byte(lsn)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(r *rig, floor redoubt.LSN) {
		t.Helper()
		g, ok := r.store.Segment(redoubt.SegmentID{1})
		if !ok {
			t.Fatal("the segment is gone")
		}
		if i := r.store.Info(g); i.SCL != 40 || i.Unknown.Reason != Known {
			t.Fatalf("SCL %d, unknown %v", i.SCL, i.Unknown)
		}
		for point := max(floor, 1); point <= 40; point++ {
			for lsn := redoubt.LSN(1); lsn <= 40; lsn++ {
				v := byte(0)
				if lsn <= point {
					v = byte(lsn)
				}
				r.wantByte(g, uint32(lsn%5), point, lsn, v)
			}
		}
	}
	check(r, 0)
	check(r.reopen(r.disk.Clone()), 0)

	r = r.reopen(r.disk.Restart())
	g, _ = r.store.Segment(redoubt.SegmentID{1})
	r.store.Tell(g, 30, 20)
	r.coalesce(g)
	if i := r.store.Info(g); i.Coalesced != 20 {
		t.Fatalf("coalesced %d, want the floor, 20", i.Coalesced)
	}
	check(r, 20)
	if _, _, err := r.read(g, 1, 19); !errors.Is(err, redoubt.ErrBelowFloor) {
		t.Fatalf("read below the floor: %v", err)
	}
	if _, _, err := r.read(g, 1, 41); !errors.Is(err, redoubt.ErrAboveSCL) {
		t.Fatalf("read above SCL: %v", err)
	}
	check(r.reopen(r.disk.Clone()), 20)
	r.root(g)
	check(r, 20)
	check(r.reopen(r.disk.Restart()), 20)
}

// A gap holds SCL back, and reads with it, until what is missing arrives.
func TestAGapHoldsSCLBack(t *testing.T) {
	r := newRig(t)
	g := r.create(1)
	w := newTape(g)
	if err := r.append1(w, 1, 0, 1); err != nil {
		t.Fatal(err)
	}
	lost, buf := r.run(w, 2, 1, 2)
	defer buf.Drop()
	for lsn := redoubt.LSN(3); lsn <= 6; lsn++ {
		if err := r.append1(w, lsn, uint32(lsn), byte(lsn)); err != nil {
			t.Fatal(err)
		}
	}
	if i := r.store.Info(g); i.SCL != 1 || i.Highest != 6 {
		t.Fatalf("SCL %d, highest %d; want 1 and 6", i.SCL, i.Highest)
	}
	again := r.reopen(r.disk.Clone())
	g2, _ := again.store.Segment(g.ID)
	if i := again.store.Info(g2); i.SCL != 1 || i.Highest != 6 {
		t.Fatalf("after a restart: SCL %d, highest %d; want 1 and 6", i.SCL, i.Highest)
	}
	if !r.store.Admit(lost, func(int) (redoubt.LSN, redoubt.LSN) { return 0, 0 }) {
		t.Fatal("the missing batch was refused")
	}
	if err := r.write(lost); err != nil {
		t.Fatal(err)
	}
	if i := r.store.Info(g); i.SCL != 6 {
		t.Fatalf("SCL %d after the gap was filled, want 6", i.SCL)
	}
	r.wantByte(g, 6, 6, 6, 6)
}

// A gap above SCL is what a crash with several writes in flight leaves behind. A
// check tells of it and doesn't call it damage, or it would cry wolf after every
// power cut.
func TestAGapIsNoDamage(t *testing.T) {
	r := newRig(t)
	g := r.create(1)
	w := newTape(g)
	for lsn := redoubt.LSN(1); lsn <= 7; lsn++ {
		if lsn%3 != 0 {
			r.must(r.append1(w, lsn, uint32(lsn), byte(lsn)))
			continue
		}
		_, buf := r.run(w, lsn, uint32(lsn), byte(lsn)) // never written
		buf.Drop()
	}
	ro := &rig{t: t, disk: r.disk.Clone(), mode: "fua", small: r.small, wide: r.wide, in: r.in}
	r.must(ro.open(true))
	rep, err := ro.store.Check(nil)
	if err != nil || len(rep.Damage) != 0 {
		t.Fatalf("check: %v, damage %v", err, rep.Damage)
	}
	want := []Gap{{Segment: g.ID, Above: 2, From: 3, To: 5}, {Segment: g.ID, Above: 5, From: 6, To: 7}}
	if !slices.Equal(rep.Gaps, want) {
		t.Fatalf("gaps %v, want %v", rep.Gaps, want)
	}
}

// A new writer fences the old one and voids what it left behind; the voided
// records stay void after a restart, and the new ones link past them.
func TestFenceAndTruncate(t *testing.T) {
	r := newRig(t)
	g := r.create(1)
	w := newTape(g)
	for lsn := redoubt.LSN(1); lsn <= 10; lsn++ {
		if err := r.append1(w, lsn, uint32(lsn%3), byte(lsn)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.change(func(m *slab.Buf) (*Change, error) { return r.store.PrepareEpoch(m, g, 2) }); err != nil {
		t.Fatal(err)
	}
	if err := r.append1(w, 11, 0, 11); !errors.Is(err, redoubt.ErrFenced) {
		t.Fatalf("append of the old writer: %v", err)
	}
	if err := r.change(func(m *slab.Buf) (*Change, error) { return r.store.PrepareEpoch(m, g, 1) }); !errors.Is(err, redoubt.ErrFenced) {
		t.Fatalf("an older epoch: %v", err)
	}
	tr := redoubt.Truncation{Epoch: 2, From: 7, To: 1007}
	plan, err := r.store.PlanTruncate(g, tr)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.change(func(m *slab.Buf) (*Change, error) { return r.store.PrepareTruncate(m, plan) }); err != nil {
		t.Fatal(err)
	}
	w = &tape{seg: g, epoch: 2, prev: 7, pages: map[uint32]redoubt.LSN{0: 6, 1: 7, 2: 5}}
	if err := r.append1(w, 500, 0, 50); !errors.Is(err, redoubt.ErrInvalid) {
		t.Fatalf("append into the truncated range: %v", err)
	}
	w = &tape{seg: g, epoch: 2, prev: 7, pages: map[uint32]redoubt.LSN{0: 6, 1: 7, 2: 5}}
	if err := r.append1(w, 1008, 2, 77); err != nil {
		t.Fatal(err)
	}
	check := func(r *rig) {
		t.Helper()
		g, _ := r.store.Segment(redoubt.SegmentID{1})
		if i := r.store.Info(g); i.SCL != 1008 || i.Epoch != 2 || i.Truncation != tr {
			t.Fatalf("SCL %d, epoch %d, truncation %v", i.SCL, i.Epoch, i.Truncation)
		}
		r.wantByte(g, 2, 1008, 1008, 77)
		r.wantByte(g, 2, 1008, 8, 0)
		r.wantByte(g, 1, 1008, 7, 7)
		r.wantByte(g, 0, 1008, 9, 0)
	}
	check(r)
	check(r.reopen(r.disk.Restart()))
}

// A deleted segment stays deleted, its space comes back, and its log does not
// keep the tail.
func TestDelete(t *testing.T) {
	r := newRig(t)
	g, h := r.create(1), r.create(2)
	w := newTape(g)
	for lsn := redoubt.LSN(1); lsn <= 20; lsn++ {
		if err := r.append1(w, lsn, uint32(lsn), byte(lsn)); err != nil {
			t.Fatal(err)
		}
	}
	r.store.Tell(g, 20, 20)
	r.coalesce(g)
	before := r.store.Usage().FreeExtents
	if err := r.change(func(m *slab.Buf) (*Change, error) { return r.store.PrepareDelete(m, g, 1) }); err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.TrimLog(); err != nil {
		t.Fatal(err)
	}
	if after := r.store.Usage().FreeExtents; after <= before {
		t.Fatalf("%d extents free before, %d after the delete", before, after)
	}
	if err := r.append1(w, 21, 0, 1); !errors.Is(err, redoubt.ErrNotFound) {
		t.Fatalf("append to a deleted segment: %v", err)
	}
	again := r.reopen(r.disk.Restart())
	if _, ok := again.store.Segment(g.ID); ok {
		t.Fatal("the deleted segment is back")
	}
	if _, ok := again.store.Segment(h.ID); !ok {
		t.Fatal("the other segment is gone")
	}
}

// The log is trimmed as pages take it in, so a small log takes any amount.
func TestALongRunFitsASmallLog(t *testing.T) {
	r := newRig(t)
	g := r.create(1)
	w := newTape(g)
	for lsn := redoubt.LSN(1); lsn <= 30_000; lsn++ {
		if err := r.append1(w, lsn, uint32(lsn%64), byte(lsn)); err != nil {
			t.Fatalf("LSN %d: %v, %+v", lsn, err, r.store.Usage())
		}
		if lsn%1000 == 0 {
			r.store.Tell(g, lsn, lsn)
			r.coalesce(g)
			r.root(g)
			if _, err := r.store.TrimLog(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if u := r.store.Usage(); u.LogExtents > 6 || u.Records != 0 {
		t.Fatalf("the log has %d extents and %d records left", u.LogExtents, u.Records)
	}
	again := r.reopen(r.disk.Restart())
	g, _ = again.store.Segment(g.ID)
	for page := uint32(0); page < 64; page++ {
		lsn := redoubt.LSN(30_000 - 30_000%64 + uint64(page))
		if lsn > 30_000 {
			lsn -= 64
		}
		again.wantByte(g, page, 30_000, lsn, byte(lsn))
	}
}
