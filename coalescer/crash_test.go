package coalescer

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// fat draws a change that takes room in the log.
func fat(rnd *rand.Rand) pageChange {
	c := pageChange{page: rnd.Uint32N(rigPages), kind: redo.Write, off: rnd.IntN(8000), data: make([]byte, 2000+rnd.IntN(6000))}
	for i := range c.data {
		c.data[i] = byte(rnd.Uint32())
	}
	return c
}

// stride is how far apart the operations are at which a test acts: every one in
// the plain build; a checked build, which is many times slower, takes a third.
var stride = func() int {
	if invariant.Checked {
		return 3
	}
	return 1
}()

// half makes a rig with two segments and a quiet one, some pages of which are
// folded, and more log than one extent behind that.
func half(t testing.TB, seed uint64, durability string) (*rig, []*tape) {
	t.Helper()
	r := newRig(t, func(r *rig) { r.opts.SoftDebt, r.opts.RunPages, r.durability = 0.01, 16, durability })
	rnd := rand.New(rand.NewPCG(seed, 1))
	tapes := []*tape{r.create(1, redoubt.FullSegment), r.create(2, redoubt.FullSegment), r.create(3, redoubt.FullSegment)}
	r.write(rnd, tapes[2], 3)
	for _, w := range tapes[:2] {
		r.write(rnd, w, 10)
		r.tell(w, w.lsn, w.lsn)
	}
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	for range 60 {
		for _, w := range tapes[:2] {
			r.mustAppend(w, fat(rnd))
		}
	}
	for _, w := range tapes {
		r.tell(w, w.lsn-2, w.lsn-5)
	}
	r.tell(tapes[2], 0, 0)
	r.store.Reclaim(1000)
	return r, tapes
}

// The power is cut at every single write, and flush, that folding, rooting, moving and
// trimming make. Whatever the cut leaves of it, each page reads as before at
// every point, and what was acknowledged is there.
func TestACutAtAnyWriteLeavesEitherVersionWhole(t *testing.T) {
	for _, durability := range []string{"fua", "flush"} {
		t.Run(durability, func(t *testing.T) { cutEverywhere(t, durability) })
	}
}

func cutEverywhere(t *testing.T, durability string) {
	kinds := map[Work]bool{}
	states := 0
	for k := 1; ; k += stride {
		r, tapes := half(t, 7, durability)
		r.disk.CutAtOp(k)
		var err error
		for range 60 {
			var did Did
			if did, err = r.folder.Pass(r.now); err != nil || did.Work == Nothing && r.now.After(did.Next) {
				break
			}
			kinds[did.Work] = true
			if did.Next.After(r.now) {
				r.now = did.Next
			}
		}
		if !r.disk.IsCut() {
			break
		}
		r.release()
		if err == nil {
			t.Fatalf("cut %d: nobody noticed", k)
		}
		for disk := range r.disk.CrashStates(devtest.CrashOptions{Exhaustive: 2, Samples: 4, Seed: uint64(k)}) {
			states++
			again := r.reopen(disk)
			for _, w := range tapes {
				again.check(w, 17)
			}
			if states%4 == 0 {
				if err := again.flush(); err != nil {
					t.Fatalf("cut %d (%s): flush: %v", k, disk.Label(), err)
				}
				for _, w := range tapes {
					again.check(w, 17)
				}
			}
			again.release()
		}
	}
	for _, w := range []Work{Folded, Rooted, Moved} {
		if !kinds[w] {
			t.Errorf("nothing was %v", w)
		}
	}
	t.Logf("%d states after a cut", states)
}

// While a run is under way, at each of its operations on the device: pages read
// as they must at every point, more is appended, the floor rises, and in the end
// nothing is lost.
func TestReadsAndAppendsInTheMiddleOfARun(t *testing.T) {
	r, tapes := half(t, 8, "")
	rnd := rand.New(rand.NewPCG(8, 8))
	calls := 0
	inside := false
	r.hook.before = func() {
		if inside {
			return
		}
		inside = true
		defer func() { inside = false }()
		if calls++; calls%5 != 0 {
			return
		}
		for _, w := range tapes[:2] {
			r.check(w, 29)
		}
		w := tapes[calls/5%2]
		r.write(rnd, w, 1)
		r.tell(w, w.lsn-1, w.lsn-4)
	}
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	r.hook.before = nil
	if calls < 10 {
		t.Fatalf("only %d operations", calls)
	}
	if err := r.flush(); err != nil {
		t.Fatal(err)
	}
	for _, w := range tapes {
		r.check(w, 1)
		if i := r.store.Info(r.seg(w)); i.Coalesced != i.Target {
			t.Fatalf("segment %d is coalesced to %d of %d", w.id[0], i.Coalesced, i.Target)
		}
	}
	again := r.reopen(r.disk.Restart())
	for _, w := range tapes {
		again.check(w, 7)
	}
}

// during runs act at the k-th operation of a flush on the device, for every k
// there is, and then calls judge.
func during(t *testing.T, seed uint64, act func(*rig, []*tape), judge func(*rig, []*tape)) {
	t.Helper()
	for k := 1; ; k += stride {
		r, tapes := half(t, seed, "")
		calls := 0
		r.hook.before = func() {
			if calls++; calls == k {
				act(r, tapes)
			}
		}
		if err := r.flush(); err != nil {
			t.Fatalf("at operation %d: %v", k, err)
		}
		r.hook.before = nil
		if calls < k {
			if k < 10 {
				t.Fatalf("only %d operations", k)
			}
			return
		}
		judge(r, tapes)
		again := r.reopen(r.disk.Restart())
		judge(again, tapes)
		r.release()
		again.release()
	}
}

// A new writer fences and truncates while pages are being folded.
func TestTruncationInTheMiddleOfARun(t *testing.T) {
	act := func(r *rig, tapes []*tape) {
		w := tapes[0]
		g := r.seg(w)
		if err := r.change(func(m *slab.Buf) (*segfile.Change, error) { return r.store.PrepareEpoch(m, g, 2) }); err != nil {
			t.Fatal(err)
		}
		tr := redoubt.Truncation{Epoch: 2, From: w.vdl, To: w.vdl + 1000}
		plan, err := r.store.PlanTruncate(g, tr)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.change(func(m *slab.Buf) (*segfile.Change, error) { return r.store.PrepareTruncate(m, plan) }); err != nil {
			t.Fatal(err)
		}
		w.truncate(tr)
		r.write(rand.New(rand.NewPCG(5, 5)), w, 2)
		r.tell(w, w.lsn, w.lsn-1)
	}
	judge := func(r *rig, tapes []*tape) {
		for _, w := range tapes {
			r.check(w, 500)
		}
		if i := r.store.Info(r.seg(tapes[0])); i.Epoch != 2 || i.SCL != tapes[0].lsn {
			t.Fatalf("%+v", i)
		}
	}
	during(t, 9, act, judge)
}

// A segment is deleted while its pages are being folded. The others lose
// nothing, its space comes back, and nothing is written into what others have by
// then: the hook device's checks would notice.
func TestDeleteInTheMiddleOfARun(t *testing.T) {
	act := func(r *rig, tapes []*tape) {
		g := r.seg(tapes[0])
		if err := r.change(func(m *slab.Buf) (*segfile.Change, error) { return r.store.PrepareDelete(m, g, 1) }); err != nil {
			t.Fatal(err)
		}
		// Somebody else takes what is free at once.
		if _, err := r.store.TrimLog(); err != nil {
			t.Fatal(err)
		}
	}
	judge := func(r *rig, tapes []*tape) {
		if _, there := r.store.Segment(tapes[0].id); there {
			t.Fatal("it is still there")
		}
		for _, w := range tapes[1:] {
			r.check(w, 29)
		}
		if st := r.folder.Stats(); st.Damage != 0 || st.Errors != 0 {
			t.Fatalf("%+v", st)
		}
		extents := 0
		for _, e := range r.dev.Extents() {
			if e.Owner == 1 {
				extents++
			}
		}
		if extents > 0 {
			if _, err := r.store.TrimLog(); err != nil {
				t.Fatal(err)
			}
		}
		for _, e := range r.dev.Extents() {
			if e.Owner == 1 {
				t.Fatalf("extent %d still belongs to the deleted segment", e.Index)
			}
		}
	}
	during(t, 10, act, judge)
}

// A device that fails ends the folding, with the reason.
func TestAFailedDeviceEndsTheFolding(t *testing.T) {
	r, _ := half(t, 11, "")
	in := r.disk.Arm(devtest.Fault{Kind: devtest.WriteError, Skip: 2})
	err := r.flush()
	if !errors.Is(err, redoubt.ErrDeviceFailed) {
		t.Fatalf("flush: %v", err)
	}
	in.MustHaveInjected(t)
	if _, err := r.folder.Pass(r.now); !errors.Is(err, redoubt.ErrDeviceFailed) {
		t.Fatalf("the next pass: %v", err)
	}
}
