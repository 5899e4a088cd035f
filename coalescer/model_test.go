package coalescer

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// A tape writes one segment's log and remembers all of it: the reference.
type tape struct {
	id    redoubt.SegmentID
	spec  segfile.SegmentSpec
	epoch redoubt.Epoch
	lsn   redoubt.LSN // the last one written
	above redoubt.LSN // the next is above this as well: a truncation's end
	prev  map[uint32]redoubt.LSN
	recs  []redo.Record // with their payload, in LSN order
	acked redoubt.LSN
	vdl   redoubt.LSN // as told
	floor redoubt.LSN
}

func newTape(n byte, kind redoubt.SegmentKind) *tape {
	spec := segfile.SegmentSpec{ID: redoubt.SegmentID{n}, Volume: redoubt.VolumeID{9, n}, PG: redoubt.PGNo(n), Pages: rigPages, Kind: kind, Epoch: 1}
	return &tape{id: spec.ID, spec: spec, epoch: 1, prev: map[uint32]redoubt.LSN{}}
}

// create makes a tape's segment.
func (r *rig) create(n byte, kind redoubt.SegmentKind) *tape {
	r.t.Helper()
	w := newTape(n, kind)
	if err := r.change(func(mem *slab.Buf) (c *segfile.Change, err error) {
		_, c, err = r.store.PrepareCreate(mem, w.spec)
		return c, err
	}); err != nil {
		r.t.Fatal(err)
	}
	return w
}

func (r *rig) seg(w *tape) *segfile.Segment {
	r.t.Helper()
	g, ok := r.store.Segment(w.id)
	if !ok {
		r.t.Fatalf("segment %d is gone", w.id[0])
	}
	return g
}

// A change is what a record does, before it has an LSN.
type pageChange struct {
	page uint32
	kind redo.Kind
	off  int
	n    int
	from int
	fill byte
	data []byte
}

// randomChange draws a change; now and then it covers the whole page.
func randomChange(rnd *rand.Rand, pages uint32) pageChange {
	c := pageChange{page: rnd.Uint32N(pages), fill: byte(rnd.Uint32())}
	switch rnd.IntN(8) {
	case 0:
		c.kind, c.n = redo.Fill, redoubt.PageSize
	case 1:
		c.kind, c.off, c.n = redo.Fill, rnd.IntN(8192), 1+rnd.IntN(8192)
	case 2:
		c.kind, c.off, c.from, c.n = redo.Move, rnd.IntN(8192), rnd.IntN(8192), 1+rnd.IntN(8192)
	default:
		c.kind, c.off = redo.Write, rnd.IntN(16000)
		c.data = make([]byte, 1+rnd.IntN(128))
		for i := range c.data {
			c.data[i] = byte(rnd.Uint32())
		}
	}
	return c
}

// add writes the change's record into the batch.
func (w *tape) add(b *redo.Builder, c pageChange) bool {
	lsn := max(w.lsn, w.above) + 1
	prev := w.prev[c.page]
	ok := false
	switch c.kind {
	case redo.Write:
		ok = b.Write(lsn, c.page, prev, c.off, c.data, true)
	case redo.Fill:
		ok = b.Fill(lsn, c.page, prev, c.off, c.n, c.fill, true)
	case redo.Move:
		ok = b.Move(lsn, c.page, prev, c.off, c.from, c.n, true)
	case redo.Mark:
		ok = b.Mark(lsn, 1, w.vdl)
	}
	if !ok {
		return false
	}
	w.lsn = lsn
	if c.kind != redo.Mark {
		w.prev[c.page] = lsn
	}
	return true
}

// batch builds one batch of changes in b.
func (w *tape) batch(b []byte, changes []pageChange) []byte {
	var bld redo.Builder
	bld.Reset(b, w.spec.Volume, w.spec.PG, w.epoch, w.lsn)
	for _, c := range changes {
		if !w.add(&bld, c) {
			panic("the batch is full")
		}
	}
	out := bld.Finish()
	h, err := redo.ParseHeader(out)
	if err != nil {
		panic(err)
	}
	for it := redo.Records(out, h); it.Next(); {
		rec := it.Record
		rec.Data = bytes.Clone(rec.Data)
		w.recs = append(w.recs, rec)
	}
	return out
}

// frame builds a run with one batch of changes.
func (r *rig) frame(w *tape, changes []pageChange) (*segfile.Run, *slab.Buf) {
	r.t.Helper()
	buf, err := r.frames.Get(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	g := r.seg(w)
	mem := buf.Bytes()
	run := &segfile.Run{Mem: buf}
	b := run.Add()
	b.Seg, b.Kind, b.Off = g, segfile.BlockRedo, segfile.RunHeaderSize
	at := b.Off + segfile.BlockHeaderSize
	batch := w.batch(mem[at:], changes)
	b.Len = len(batch)
	if b.Head, err = g.CheckBatch(batch); err != nil {
		r.t.Fatal(err)
	}
	run.Used = b.Off + segfile.BlockSize(b.Len)
	n := (run.Used + 511) &^ 511
	clear(mem[at+len(batch) : n])
	run.Bytes = mem[:n]
	return run, buf
}

// append appends one batch and waits for it. A refusal is returned.
func (r *rig) append(w *tape, changes ...pageChange) error {
	r.t.Helper()
	run, buf := r.frame(w, changes)
	defer buf.Drop()
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	if !r.store.Admit(run, func(int) (redoubt.LSN, redoubt.LSN) { return w.vdl, w.floor }) {
		return run.Blocks[0].Err
	}
	if err := r.log.write(run); err != nil {
		return err
	}
	w.acked = w.lsn
	return nil
}

func (r *rig) mustAppend(w *tape, changes ...pageChange) {
	r.t.Helper()
	if err := r.append(w, changes...); err != nil {
		r.t.Fatalf("append to segment %d: %v", w.id[0], err)
	}
}

// write appends n batches of random changes.
func (r *rig) write(rnd *rand.Rand, w *tape, n int) {
	r.t.Helper()
	for range n {
		changes := make([]pageChange, 1+rnd.IntN(5))
		for i := range changes {
			changes[i] = randomChange(rnd, rigPages)
		}
		r.mustAppend(w, changes...)
	}
}

// tell says VDL and PGMRPL.
func (r *rig) tell(w *tape, vdl, floor redoubt.LSN) {
	r.t.Helper()
	w.vdl, w.floor = max(w.vdl, vdl), max(w.floor, floor)
	r.store.Tell(r.seg(w), vdl, floor)
}

// page builds a page of the reference as of a point.
func (w *tape) page(page uint32, point redoubt.LSN) []byte {
	b := make([]byte, redoubt.PageSize)
	for i := range w.recs {
		if rec := &w.recs[i]; rec.Kind != redo.Mark && rec.Page == page && rec.LSN <= point {
			rec.Apply(b)
		}
	}
	return b
}

// check compares every page as of every LSN in [floor, SCL] with the reference;
// with step > 1 only every step-th LSN, and both ends.
func (r *rig) check(w *tape, step redoubt.LSN) {
	r.t.Helper()
	if err := r.compare(w, step); err != nil {
		r.t.Fatalf("segment %d (%s): %v", w.id[0], r.disk.Label(), err)
	}
}

func (r *rig) compare(w *tape, step redoubt.LSN) error {
	r.t.Helper()
	g := r.seg(w)
	i := r.store.Info(g)
	if i.SCL < w.acked {
		return fmt.Errorf("SCL %d, but %d was acknowledged", i.SCL, w.acked)
	}
	if i.Coalesced > min(i.Floor, i.VDL, i.SCL) {
		return fmt.Errorf("coalesced to %d, past the floor %d, VDL %d or SCL %d", i.Coalesced, i.Floor, i.VDL, i.SCL)
	}
	pages := map[uint32]bool{}
	for k := range w.recs {
		if w.recs[k].Kind != redo.Mark {
			pages[w.recs[k].Page] = true
		}
	}
	for page := range pages {
		want := w.page(page, i.Floor)
		next := 0
		for point := i.Floor; point <= i.SCL; point++ {
			for ; next < len(w.recs) && w.recs[next].LSN <= point; next++ {
				if rec := &w.recs[next]; rec.LSN > i.Floor && rec.Page == page {
					rec.Apply(want)
				}
			}
			if (point-i.Floor)%step != 0 && point != i.SCL {
				continue
			}
			got, err := r.readPage(g, page, point)
			if err != nil {
				return fmt.Errorf("page %d at %d: %w", page, point, err)
			}
			if !bytes.Equal(got, want) {
				return fmt.Errorf("page %d at %d is not as the reference has it; %+v", page, point, i)
			}
		}
	}
	return nil
}

// The reference is itself checked: what it builds is what a careless reading of
// the records gives.
func TestTheReferenceAppliesRecordsInOrder(t *testing.T) {
	w := newTape(1, redoubt.FullSegment)
	b := make([]byte, redoubt.MaxBatchBytes)
	w.batch(b, []pageChange{{page: 3, kind: redo.Write, off: 10, data: []byte("abc")}, {page: 3, kind: redo.Move, off: 11, from: 10, n: 3}, {page: 4, kind: redo.Fill, n: 2, fill: 'x'}})
	if got := string(w.page(3, 1)[10:14]); got != "abc\x00" {
		t.Fatalf("at 1: %q", got)
	}
	if got := string(w.page(3, 3)[10:14]); got != "aabc" {
		t.Fatalf("at 3: %q", got)
	}
	if got := string(w.page(4, 3)[:3]); got != "xx\x00" {
		t.Fatalf("other page: %q", got)
	}
}

// truncate forgets what a truncation voids, and goes on past it.
func (w *tape) truncate(t redoubt.Truncation) {
	n := len(w.recs)
	for n > 0 && w.recs[n-1].LSN > t.From {
		n--
	}
	w.recs = w.recs[:n]
	clear(w.prev)
	last := redoubt.LSN(0)
	for i := range w.recs {
		last = w.recs[i].LSN
		if w.recs[i].Kind != redo.Mark {
			w.prev[w.recs[i].Page] = last
		}
	}
	w.lsn, w.acked, w.above, w.epoch = last, last, t.To, t.Epoch
}
