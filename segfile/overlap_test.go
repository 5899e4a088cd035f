package segfile

import (
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/slab"
)

// stretch appends one batch with the records from first to last, each of which
// puts its LSN into page 0.
func (r *rig) stretch(g *Segment, first, last redoubt.LSN) {
	r.t.Helper()
	var b redo.Builder
	b.Reset(make([]byte, 4000), g.Volume, g.PG, 1, first-1)
	for lsn := first; lsn <= last; lsn++ {
		b.Write(lsn, 0, lsn-1, offsetOf(lsn), []byte{byte(lsn)}, true)
	}
	batch := b.Finish()
	buf := r.mem(r.in)
	defer buf.Drop()
	run := &Run{Used: RunHeaderSize, Mem: buf}
	if err := run.append(buf.Bytes(), g, BlockRedo, func(dst []byte) []byte { return append(dst, batch...) }); err != nil {
		r.t.Fatal(err)
	}
	var err error
	if run.Blocks[0].Head, err = g.CheckBatch(batch); err != nil {
		r.t.Fatal(err)
	}
	run.pad(buf.Bytes(), 512)
	if !r.store.Admit(run, func(int) (redoubt.LSN, redoubt.LSN) { return 0, 0 }) {
		return // it has that
	}
	if err := r.write(run); err != nil {
		r.t.Fatal(err)
	}
}

// A writer that sends its log again may cut it otherwise than before: batches
// overlap, contain others, and come twice, some of them behind gaps. Every record
// is there once, whatever the order, before and after a restart, indexed early or
// late.
func TestLogThatIsCutOtherwiseWhenItIsSentAgain(t *testing.T) {
	type piece struct{ first, last redoubt.LSN }
	for _, pieces := range [][]piece{
		{{2, 2}, {1, 2}},
		{{5, 6}, {1, 8}},
		{{3, 4}, {5, 6}, {8, 9}, {1, 7}, {8, 10}},
		{{1, 2}, {3, 4}, {1, 6}, {5, 8}},
		{{5, 6}, {5, 6}, {4, 7}, {5, 6}, {1, 3}},
		{{4, 8}, {5, 6}, {1, 3}},
		{{6, 9}, {2, 7}, {3, 5}, {1, 1}},
		{{1, 2}, {6, 7}, {2, 8}},
	} {
		for _, early := range []bool{true, false} {
			r := newRig(t)
			g := r.create(1)
			last := redoubt.LSN(0)
			for _, p := range pieces {
				r.stretch(g, p.first, p.last)
				if last = max(last, p.last); early {
					if err := r.store.Index(g, redoubt.MaxLSN); err != nil {
						t.Fatalf("%v: %v", pieces, err)
					}
				}
			}
			check := func(r *rig, when string) {
				t.Helper()
				g, _ := r.store.Segment(redoubt.SegmentID{1})
				if i := r.store.Info(g); i.SCL != last || i.Highest != last {
					t.Fatalf("%v, %s: SCL %d, highest %d, want %d", pieces, when, i.SCL, i.Highest, last)
				}
				for lsn := redoubt.LSN(1); lsn <= last; lsn++ {
					r.wantByte(g, 0, last, lsn, byte(lsn))
				}
			}
			check(r, "at once")
			r.store.Tell(g, last, last)
			again := r.reopen(r.disk.Clone())
			check(again, "after a restart")
			r.coalesce(g)
			check(r, "in pages")
			if u := r.store.Usage(); u.Records != 0 || r.store.Info(g).LogBytes != 0 {
				t.Fatalf("%v: %d records and %d bytes are left over", pieces, u.Records, r.store.Info(g).LogBytes)
			}
			again.retire()
			r.retire()
		}
	}
}

// The coalescer may move a block between the plan of a truncation and its
// execution: what the truncation leaves of the block is still there.
func TestATruncationFindsABlockThatWasMoved(t *testing.T) {
	r := newRig(t)
	g := r.create(1)
	r.stretch(g, 1, 6)
	if err := r.change(func(m *slab.Buf) (*Change, error) { return r.store.PrepareEpoch(m, g, 2) }); err != nil {
		t.Fatal(err)
	}
	plan, err := r.store.PlanTruncate(g, redoubt.Truncation{Epoch: 2, From: 4, To: 100})
	if err != nil {
		t.Fatal(err)
	}
	pin, w, before := r.store.Pin(), r.store.NewWindow(), r.store.Usage().Head
	move, err := r.store.PrepareMove(g, before, w)
	if err != nil || move == nil {
		t.Fatalf("nothing was moved: %v", err)
	}
	if err := r.write(move.Run); err != nil {
		t.Fatal(err)
	}
	r.store.Commit(move)
	move.Run.Mem.Drop()
	w.Close()
	r.store.Unpin(pin)
	if g.firstLive() < before && g.rootPos >= before {
		t.Fatal("the block is where it was")
	}
	if err := r.change(func(m *slab.Buf) (*Change, error) { return r.store.PrepareTruncate(m, plan) }); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*rig{r, r.reopen(r.disk.Clone())} {
		g, _ := x.store.Segment(redoubt.SegmentID{1})
		if i := x.store.Info(g); i.SCL != 4 {
			t.Fatalf("SCL %d, want 4", i.SCL)
		}
		x.wantByte(g, 0, 4, 4, 4)
		x.wantByte(g, 0, 4, 5, 0)
	}
}
