package segfile

import (
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/redo"
)

// long makes a run with one batch of several sectors: record lsn, 3000 bytes of
// v into page 7.
func (r *rig) long(w *tape, lsn redoubt.LSN, v byte) *Run {
	r.t.Helper()
	data := make([]byte, 3000)
	for i := range data {
		data[i] = v
	}
	var b redo.Builder
	b.Reset(make([]byte, 4096), w.seg.Volume, w.seg.PG, w.epoch, w.prev)
	b.Write(lsn, 7, w.pages[7], 0, data, true)
	w.prev, w.pages[7] = lsn, lsn
	batch := b.Finish()
	buf := r.mem(r.in)
	run := &Run{Used: RunHeaderSize, Mem: buf}
	if err := run.append(buf.Bytes(), w.seg, BlockRedo, func(dst []byte) []byte { return append(dst, batch...) }); err != nil {
		r.t.Fatal(err)
	}
	h, err := w.seg.CheckBatch(batch)
	if err != nil {
		r.t.Fatal(err)
	}
	run.Blocks[0].Head = h
	run.pad(buf.Bytes(), 512)
	return run
}

// begin puts a run on its way to the device and doesn't wait for it.
func (r *rig) begin(run *Run) {
	r.t.Helper()
	if !r.store.Admit(run, func(int) (redoubt.LSN, redoubt.LSN) { return 0, 0 }) {
		r.t.Fatal(run.Blocks[0].Err)
	}
	if _, ok := r.store.Place(r.lw, []*Run{run}, 1<<20); !ok {
		r.t.Fatal("no write")
	}
	r.lw.Done = func(*blockdev.Write, error) {}
	r.dev.WriteDurable(&r.lw.Write)
}

// openAgain opens what a disk holds, on the same pools.
func (r *rig) openAgain(t *testing.T, disk *devtest.Disk) (*rig, *Segment, Info) {
	t.Helper()
	n := &rig{t: t, disk: disk, mode: r.mode, small: r.small, wide: r.wide, in: r.in}
	if err := n.open(false); err != nil {
		t.Fatalf("open (%s): %v", disk.Label(), err)
	}
	g, ok := n.store.Segment(redoubt.SegmentID{1})
	if !ok {
		t.Fatalf("%s: the segment is gone", disk.Label())
	}
	return n, g, n.store.Info(g)
}

// A write that the power cut tears is torn; the same bytes, damaged once the
// write was acknowledged and something later says so, are corrupt. And what was
// judged torn stays torn, though every recovery writes a higher witness behind
// it: it was never acknowledged, however often the node restarts.
func TestTheWitnessTellsTornFromCorrupt(t *testing.T) {
	r := newRig(t)
	w := newTape(r.create(1))
	for lsn := redoubt.LSN(1); lsn <= 3; lsn++ {
		if err := r.append1(w, lsn, uint32(lsn%3), byte(lsn)); err != nil {
			t.Fatal(err)
		}
	}
	at := r.store.Usage().Head
	r.disk.Hold()
	r.begin(r.long(w, 4, 44))
	r.disk.Cut()
	torn, half := 0, 0
	for disk := range r.disk.CrashStates(devtest.CrashOptions{}) {
		n, _, i := r.openAgain(t, disk)
		rec := n.store.Recovery()
		if len(rec.Damage) > 0 {
			t.Fatalf("%s: a tear is reported as damage: %v", disk.Label(), rec.Damage[0].Err)
		}
		if len(rec.Holes) > 0 && rec.Holes[0].From == at+RunHeaderSize+BlockHeaderSize {
			half++ // the batch's header is whole and the rest isn't
		}
		if i.SCL == 3 && i.Unknown.Reason == Torn {
			torn++
		}
		for again := range 3 {
			if i.SCL < 3 || i.SCL == 3 && i.Unknown.Reason == Corrupt || i.SCL == 4 && i.Unknown.Reason != Known {
				t.Fatalf("%s, restart %d: SCL %d, unknown %+v", disk.Label(), again, i.SCL, i.Unknown)
			}
			before := i.Unknown
			next := n.disk.Restart()
			n.retire()
			if n, _, i = r.openAgain(t, next); i.Unknown != before {
				t.Fatalf("%s, restart %d: unknown %+v, was %+v", disk.Label(), again, i.Unknown, before)
			}
		}
		n.retire()
	}
	if torn < 3 || half < 2 {
		t.Fatalf("%d states are torn, %d of them behind a whole header: the test cut nothing", torn, half)
	}
	corruptOnceWitnessed(t, at)
}

// corruptOnceWitnessed damages the same batch after it was acknowledged and
// another write has said so.
func corruptOnceWitnessed(t *testing.T, at uint64) {
	r := newRig(t)
	w := newTape(r.create(1))
	for lsn := redoubt.LSN(1); lsn <= 3; lsn++ {
		if err := r.append1(w, lsn, uint32(lsn%3), byte(lsn)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.write(r.long(w, 4, 44)); err != nil {
		t.Fatal(err)
	}
	off, ok := r.store.log.deviceOffset(at)
	if !ok {
		t.Fatal("the log isn't where it was")
	}
	damage := func(want UnknownReason) {
		t.Helper()
		disk := r.disk.Clone()
		disk.Flip(off+2048, 3)
		n, g, i := r.openAgain(t, disk)
		if i.SCL != 3 || i.Unknown.Reason != want {
			t.Fatalf("SCL %d, unknown %+v, want %v", i.SCL, i.Unknown, want)
		}
		n.honest(g, i, 4)
		n.retire()
	}
	damage(Torn) // nothing on this device says that it was acknowledged
	if err := r.write(r.store.NewSeal(r.mem(r.small))); err != nil {
		t.Fatal(err)
	}
	damage(Corrupt)
}

// A recovery that is itself cut short leaves the next one no wiser and no more
// foolish: what is corrupt is still found corrupt, and nothing else is.
func TestRecoveryMayBeCutAtEveryWrite(t *testing.T) {
	const batch = 512 * 4 // behind the start of the log: of a record that was acknowledged
	for _, mode := range []string{"fua", "flush"} {
		for what, at := range map[string]int64{"a run header": batch + 4, "a batch": batch + RunHeaderSize + BlockHeaderSize + redo.BatchHeaderSize + 3, "nothing": 0} {
			r, from, _ := logged(t, 6, true)
			if at != 0 {
				r.disk.Flip(from+at, 1)
			}
			r.mode = mode
			states := cutRecovery(t, r, func(label string, i Info) {
				switch {
				case what == "a batch" && (i.SCL >= 6 || i.Unknown.Reason != Corrupt):
					t.Fatalf("%s damaged, %s: SCL %d, unknown %+v: the damage is forgotten", what, label, i.SCL, i.Unknown)
				case what == "a run header" && i.Unknown.Reason != Corrupt:
					t.Fatalf("%s damaged, %s: SCL %d, unknown %+v: the damage is forgotten", what, label, i.SCL, i.Unknown)
				case what == "nothing" && (i.SCL != 6 || i.Unknown.Reason == Corrupt):
					t.Fatalf("%s: SCL %d, unknown %+v: nothing was damaged", label, i.SCL, i.Unknown)
				}
			})
			if states < 5 {
				t.Fatalf("%s: only %d states", mode, states)
			}
		}
	}
}

// cutRecovery cuts the opening of r's disk at every operation and opens every
// state that is left, twice.
func cutRecovery(t *testing.T, r *rig, judge func(label string, i Info)) (states int) {
	t.Helper()
	for cut := 1; ; cut++ {
		disk := r.disk.Clone()
		disk.CutAtOp(cut)
		n := &rig{t: t, disk: disk, mode: r.mode, small: r.small, wide: r.wide, in: r.in}
		err := n.open(false)
		n.retire()
		if !disk.IsCut() {
			if err != nil {
				t.Fatal(err)
			}
			return states
		}
		for left := range disk.CrashStates(devtest.CrashOptions{}) {
			m, _, i := r.openAgain(t, left)
			judge(left.Label(), i)
			next := m.disk.Restart()
			m.retire()
			m, _, i = r.openAgain(t, next)
			judge(left.Label()+", once more", i)
			m.retire()
			states++
		}
	}
}

// More damaged batches than a restart block can list don't keep the device from
// opening, and stay UNKNOWN.
func TestMoreHolesThanARestartBlockLists(t *testing.T) {
	const n = 3 * maxHoles / 2
	r := newRig(t)
	w, other := newTape(r.create(1)), newTape(r.create(2))
	if err := r.append1(other, 1, 1, 1); err != nil {
		t.Fatal(err)
	}
	for lsn := redoubt.LSN(1); lsn <= n; lsn++ {
		if err := r.append1(w, lsn, uint32(lsn%3), byte(lsn)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.write(r.store.NewSeal(r.mem(r.small))); err != nil {
		t.Fatal(err)
	}
	disk, flipped := r.disk.Clone(), 0
	if _, err := WalkLog(r.dev, r.dev.Super().Device, func(e LogEntry) {
		if e.Kind == BlockRedo && e.Tag == w.seg.tag {
			disk.Flip(e.Offset+BlockHeaderSize+redo.BatchHeaderSize+redo.RecordHeaderSize, 2)
			flipped++
		}
	}); err != nil || flipped != n {
		t.Fatalf("%d of %d batches damaged: %v", flipped, n, err)
	}
	m, _, i := r.openAgain(t, disk)
	for range 2 {
		if i.SCL != 0 || i.Unknown.Reason != Corrupt {
			t.Fatalf("SCL %d, unknown %+v", i.SCL, i.Unknown)
		}
		g, _ := m.store.Segment(other.seg.ID)
		if o := m.store.Info(g); o.SCL != 1 || o.Unknown.Reason != Corrupt {
			t.Fatalf("the other segment: SCL %d, unknown %+v: what lies between joined holes counts as judged", o.SCL, o.Unknown)
		}
		next := m.disk.Restart()
		m.retire()
		if m, _, i = r.openAgain(t, next); len(m.store.Recovery().Holes) > 0 {
			t.Fatalf("judged again: %d holes", len(m.store.Recovery().Holes))
		}
	}
	m.retire()
}
