package segfile

import (
	"errors"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
)

// logged returns a rig with n acknowledged records of one segment, a seal
// behind them if sealed, and the stretch of the device that the log takes.
func logged(t *testing.T, n int, sealed bool) (r *rig, from, to int64) {
	t.Helper()
	r = newRig(t)
	w := newTape(r.create(1))
	for lsn := redoubt.LSN(1); int(lsn) <= n; lsn++ {
		if err := r.append1(w, lsn, uint32(lsn%3), byte(lsn)); err != nil {
			t.Fatal(err)
		}
	}
	if sealed {
		if !r.store.NeedsSeal() {
			t.Fatal("an idle log with an unwitnessed write wants no seal")
		}
		if err := r.write(r.store.NewSeal(r.mem(r.small))); err != nil {
			t.Fatal(err)
		}
		if r.store.NeedsSeal() {
			t.Fatal("a sealed log wants another seal")
		}
	}
	u := r.store.Usage()
	off, _ := r.store.log.deviceOffset(u.Tail)
	return r, off, off + int64(u.Head-u.Tail)
}

// after opens a copy of the disk that damage was done to, for reading and
// writing, and says what the segment's SCL and doubts are.
func (r *rig) after(t *testing.T, damage func(*devtest.Disk)) (*rig, *Segment, Info) {
	t.Helper()
	disk := r.disk.Clone()
	damage(disk)
	n := &rig{t: t, disk: disk, mode: "fua", small: r.small, wide: r.wide, in: r.in}
	if err := n.open(false); err != nil {
		t.Fatalf("open: %v", err)
	}
	g, ok := n.store.Segment(redoubt.SegmentID{1})
	if !ok {
		return n, nil, Info{}
	}
	return n, g, n.store.Info(g)
}

// honest fails unless the segment gives right bytes up to its SCL and says
// UNKNOWN for every acknowledged record that it lacks.
func (r *rig) honest(g *Segment, i Info, acked redoubt.LSN) {
	r.t.Helper()
	if i.SCL < acked && (i.Unknown.Reason == Known || i.Unknown.Above > i.SCL) {
		r.t.Fatalf("SCL %d of %d acknowledged, and no doubt about it: %+v", i.SCL, acked, i.Unknown)
	}
	for page := range uint32(3) {
		if i.SCL == 0 {
			break
		}
		b, _, err := r.read(g, page, i.SCL)
		if errors.Is(err, redoubt.ErrCorrupt) {
			continue
		}
		if err != nil {
			r.t.Fatal(err)
		}
		for lsn := redoubt.LSN(1); lsn <= i.SCL; lsn++ {
			if uint32(lsn%3) == page && b[offsetOf(lsn)] != byte(lsn) {
				r.t.Fatalf("page %d: LSN %d reads %d", page, lsn, b[offsetOf(lsn)])
			}
		}
	}
}

// A flipped bit anywhere in the log never makes an acknowledged record look as
// if it had never been there, and never yields a wrong byte.
func TestAFlippedBitInTheLogIsUnknownNotTheEnd(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		r, from, to := logged(t, 6, sealed)
		lost, corrupt := 0, 0
		for off := from; off < to; off += flipStep {
			n, g, i := r.after(t, func(d *devtest.Disk) { d.Flip(off, uint(off%8)) })
			if g == nil {
				if len(n.store.Recovery().Damage) == 0 {
					t.Fatalf("flip at %d: the segment is gone and nobody says why", off)
				}
				n.retire()
				continue
			}
			n.honest(g, i, 6)
			if i.SCL < 6 {
				lost++
			}
			if i.Unknown.Reason == Corrupt {
				corrupt++
			}
			n.retire()
		}
		if lost < 150/flipStep || corrupt < 100/flipStep || sealed && corrupt < lost {
			t.Fatalf("sealed %v: %d flips cost a record, %d were judged corrupt: the test hit nothing, or damage is taken for a tear", sealed, lost, corrupt)
		}
	}
}

// A write that the device acknowledged and lost is found by the witness in a
// later header, whichever write it was.
func TestALostLogWriteIsUnknown(t *testing.T) {
	for lost := 1; lost <= 6; lost++ {
		r := newRig(t)
		w := newTape(r.create(1))
		var in *devtest.Injection
		for lsn := redoubt.LSN(1); lsn <= 6; lsn++ {
			if int(lsn) == lost {
				in = r.disk.Arm(devtest.Fault{Kind: devtest.LostWrite, Times: 1})
			}
			if err := r.append1(w, lsn, uint32(lsn%3), byte(lsn)); err != nil {
				t.Fatal(err)
			}
		}
		in.MustHaveInjected(t)
		if err := r.write(r.store.NewSeal(r.mem(r.small))); err != nil {
			t.Fatal(err)
		}
		n, g, i := r.after(t, func(*devtest.Disk) {})
		if i.SCL != redoubt.LSN(lost-1) || i.Unknown.Reason != Corrupt {
			t.Fatalf("write %d lost: SCL %d, unknown %+v", lost, i.SCL, i.Unknown)
		}
		n.honest(g, i, 6)
		// What was judged once stays judged, by its first witness.
		again := n.reopen(n.disk.Clone())
		g, _ = again.store.Segment(g.ID)
		if j := again.store.Info(g); j.Unknown != i.Unknown || len(again.store.Recovery().Holes) != 0 {
			t.Fatalf("after another restart: %+v, was %+v; holes %v", j.Unknown, i.Unknown, again.store.Recovery().Holes)
		}
	}
}

// A clean end is a witness too: the loss of the very last write shows.
func TestACleanShutdownWitnessesTheLastWrite(t *testing.T) {
	r := newRig(t)
	w := newTape(r.create(1))
	if err := r.append1(w, 1, 1, 1); err != nil {
		t.Fatal(err)
	}
	in := r.disk.Arm(devtest.Fault{Kind: devtest.LostWrite, Times: 1})
	if err := r.append1(w, 2, 2, 2); err != nil {
		t.Fatal(err)
	}
	in.MustHaveInjected(t)
	end := r.store.Usage().Durable
	dev, err := blockdev.OpenEngine(r.disk.Clone(), rigSize, 512, blockdev.Options{Durability: "fua"})
	if err != nil {
		t.Fatal(err)
	}
	store, err := Open(dev, Options{Device: dev.Super().Device, Windows: r.wide, Small: r.small, MaxRecords: 1 << 16}, end)
	if err != nil {
		t.Fatal(err)
	}
	g, _ := store.Segment(redoubt.SegmentID{1})
	if i := store.Info(g); i.SCL != 1 || i.Unknown.Reason != Corrupt {
		t.Fatalf("SCL %d, unknown %+v", i.SCL, i.Unknown)
	}
}

// A stale extent, one from another device and one written elsewhere are not
// believed.
func TestAStaleOrForeignExtentIsNotBelieved(t *testing.T) {
	r, from, _ := logged(t, 6, true)
	other, otherFrom, otherTo := logged(t, 3, true)
	foreign := make([]byte, otherTo-otherFrom)
	other.disk.Peek(foreign, otherFrom)
	n, g, i := r.after(t, func(d *devtest.Disk) { d.Overwrite(t, from, foreign) })
	if g != nil && (i.SCL > 0 && i.Unknown.Reason == Known) {
		t.Fatalf("another device's log is believed: %+v", i)
	}
	if len(n.store.Recovery().Damage) == 0 {
		t.Fatal("nobody says that the log is damaged")
	}
	// The same bytes one block further on.
	own := make([]byte, 512)
	r.disk.Peek(own, from+1024)
	_, g, i = r.after(t, func(d *devtest.Disk) { d.Overwrite(t, from+1536, own) })
	if g == nil || i.SCL >= 6 || i.Unknown.Reason != Corrupt {
		t.Fatalf("a misdirected write went unnoticed: %+v", i)
	}
}

// Damage to a page, to a map page, and to the map block that names them is found
// where it is, and check says where.
func TestDamageToPagesIsFound(t *testing.T) {
	r := newRig(t)
	g := r.create(1)
	w := newTape(g)
	for lsn := redoubt.LSN(1); lsn <= 6; lsn++ {
		if err := r.append1(w, lsn, uint32(lsn%3), byte(lsn)); err != nil {
			t.Fatal(err)
		}
	}
	r.store.Tell(g, 6, 6)
	r.coalesce(g)
	r.root(g)
	st, err := r.store.PageState(g, 1)
	if err != nil || st.Offset < 0 {
		t.Fatalf("page 1: %+v, %v", st, err)
	}
	n, g2, i := r.after(t, func(d *devtest.Disk) { d.Flip(st.Offset+4000, 3) })
	if _, _, err := n.read(g2, 1, i.SCL); !errors.Is(err, redoubt.ErrCorrupt) {
		t.Fatalf("read of a damaged page: %v", err)
	}
	n.wantByte(g2, 2, i.SCL, 5, 5)
	ro := &rig{t: t, disk: n.disk.Clone(), mode: "fua", small: r.small, wide: r.wide, in: r.in}
	if err := ro.open(true); err != nil {
		t.Fatal(err)
	}
	rep, err := ro.store.Check(nil)
	if err != nil || len(rep.Damage) != 1 || rep.Damage[0].Offset != st.Offset {
		t.Fatalf("check: %v, damage %v; want one at byte %d", err, rep.Damage, st.Offset)
	}
	mapAt := r.store.SlotOffset(uint32(g.pm.refs[0].slot))
	n, g2, _ = r.after(t, func(d *devtest.Disk) { d.Flip(mapAt+100, 1) })
	if _, _, err := n.read(g2, 1, 6); !errors.Is(err, redoubt.ErrCorrupt) {
		t.Fatalf("read with a damaged page map: %v", err)
	}
	if len(n.store.Recovery().Damage) == 0 {
		t.Fatal("recovery says nothing of the damaged page map")
	}
}
