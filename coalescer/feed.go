package coalescer

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
)

// A feed applies the records of a run's pages in one sweep, in LSN order, and
// fetches their batches as it goes, in rounds. A round has either one batch that
// is still in memory, or as many as there is room for that are not.
//
// The records of any 64 pages lie all over the segment's log, so the next run of
// the segment needs the same batches again. What was read once is kept, as far as
// the slabs reach, until another segment's turn: a position of the log never has
// another content. What doesn't fit is read into one slab, round by round.
type feed struct {
	store *segfile.Store
	seg   *segfile.Segment

	kept  gather
	index map[uint64]int // position of a batch that is kept -> its item
	round gather

	recs    []feedRec // all, in LSN order
	next    int       // the first that isn't applied
	batches []feedBatch
	flying  bool // the round's reads were started and not waited for
}

// A feedRec is one record to apply.
type feedRec struct {
	lsn  redoubt.LSN
	pos  uint64 // of its batch
	len  uint32
	off  uint32 // in the batch
	page int32  // index of its plan
}

// A feedBatch is one batch of a round.
type feedBatch struct {
	place segfile.LogPlace // with a hold, if it is in memory
	item  int              // of where it was read to
	kept  bool             // that is kept
	known bool             // and was verified before
}

// maxRound bounds the batches of a round.
const maxRound = 1024

func newFeed(dev Device, o *Options) feed {
	return feed{kept: newGather(dev, o.Ahead, o.AheadSlabs-1), round: newGather(dev, o.Ahead, 1), index: map[uint64]int{}}
}

// begin takes the records of plans, and memory.
func (d *feed) begin(ctx context.Context, store *segfile.Store, g *segfile.Segment, plans []segfile.PagePlan) error {
	if g != d.seg {
		d.forget()
	}
	d.store, d.seg, d.recs, d.next = store, g, d.recs[:0], 0
	for i := range plans {
		for _, r := range plans[i].Recs {
			d.recs = append(d.recs, feedRec{lsn: r.LSN, pos: r.Pos, len: r.Len, off: r.Off, page: int32(i)})
		}
	}
	slices.SortFunc(d.recs, func(a, b feedRec) int { return cmp.Compare(a.lsn, b.lsn) })
	if err := d.round.take(ctx); err != nil {
		return fmt.Errorf("coalescer: memory to read log into: %w", err)
	}
	return nil
}

// forget gives back all memory.
func (d *feed) forget() {
	clear(d.index)
	d.kept.drop()
	d.round.drop()
	d.seg = nil
	if cap(d.recs) > 2*enoughRecs {
		d.recs = nil
	}
}

// bytes returns what was read from the device, ever.
func (d *feed) bytes() int64 { return d.kept.bytes + d.round.bytes }

// more reports whether there are records to apply.
func (d *feed) more() bool { return d.next < len(d.recs) }

// fill gets the next round on its way.
func (d *feed) fill() error {
	d.round.reset()
	d.batches = d.batches[:0]
	for i := d.next; i < len(d.recs) && len(d.batches) < maxRound; i = d.behind(i) {
		b, err := d.locate(&d.recs[i])
		if err != nil {
			if len(d.batches) > 0 {
				break // it will be met again
			}
			return err
		}
		if b.place.Bytes != nil {
			if len(d.batches) > 0 {
				b.place.Mem.Drop()
				break
			}
			d.batches = append(d.batches, b)
			return nil
		}
		if !b.known && !d.read(&b) {
			break
		}
		d.batches = append(d.batches, b)
	}
	if len(d.batches) == 0 && d.more() {
		invariant.Assert(false, "coalescer: a slab has no room for one batch")
	}
	d.kept.start()
	d.round.start()
	d.flying = true
	return nil
}

// locate finds the batch of a record.
func (d *feed) locate(r *feedRec) (feedBatch, error) {
	if item, ok := d.index[r.pos]; ok {
		return feedBatch{item: item, kept: true, known: true}, nil
	}
	place, err := d.store.Locate(d.seg, r.pos, r.len)
	return feedBatch{place: place}, err
}

// read asks for a batch, where there is room.
func (d *feed) read(b *feedBatch) bool {
	g := &d.kept
	if b.kept = g.add(b.place.Off, b.place.Len()); !b.kept {
		if g = &d.round; !g.add(b.place.Off, b.place.Len()) {
			return false
		}
	}
	b.item = len(g.items) - 1
	return true
}

// behind returns where the records of the next batch begin.
func (d *feed) behind(i int) int {
	pos := d.recs[i].pos
	for i++; i < len(d.recs) && d.recs[i].pos == pos; i++ {
	}
	return i
}

// apply waits for the round and applies its records to the pages.
func (d *feed) apply(pages [][]byte) error {
	d.land()
	defer d.release()
	for i := range d.batches {
		batch, err := d.bytesOf(&d.batches[i], d.recs[d.next].pos)
		if err != nil {
			return err
		}
		for end := d.behind(d.next); d.next < end; d.next++ {
			r := &d.recs[d.next]
			rec, err := redo.RecordAt(batch, int(r.off), r.lsn)
			if err != nil {
				return corrupt(d.seg, "record at LSN %d: %w", r.lsn, err)
			}
			rec.Apply(pages[r.page])
		}
	}
	return nil
}

// bytesOf returns a batch of the round, verified.
func (d *feed) bytesOf(b *feedBatch, pos uint64) ([]byte, error) {
	if b.place.Bytes != nil {
		return b.place.Bytes, nil
	}
	g := &d.round
	if b.kept {
		g = &d.kept
	}
	block, err := g.get(b.item)
	if err != nil {
		return nil, corrupt(d.seg, "log at device offset %d: %w", b.place.Off, err)
	}
	if !b.known {
		if err := d.store.CheckPlace(d.seg, b.place, block); err != nil {
			return nil, err
		}
	}
	if b.kept && !b.known {
		d.index[pos] = b.item
	}
	return block[segfile.BlockHeaderSize:], nil
}

// land waits for the round's reads.
func (d *feed) land() {
	if d.flying {
		d.kept.wait()
		d.round.wait()
		d.flying = false
	}
}

// release ends the hold of a round in memory.
func (d *feed) release() {
	if len(d.batches) > 0 && d.batches[0].place.Bytes != nil {
		d.batches[0].place.Mem.Drop()
	}
	d.batches = d.batches[:0]
}

// finish ends the sweep, wherever it is. What is kept stays.
func (d *feed) finish() {
	d.land()
	d.release()
	d.round.drop()
}
