package coalescer

import (
	"context"
	"fmt"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
)

// A feed applies the records of a run's pages in one sweep, in LSN order, and
// fetches their batches as it goes. In each round it has either one batch that is
// still in memory, or as many as fit into its slabs that must come from the
// device.
type feed struct {
	gather
	store *segfile.Store
	seg   *segfile.Segment

	recs   []feedRec // all, in LSN order
	next   int       // the first that isn't applied
	places []segfile.LogPlace
	inMem  bool // the round's one batch is in memory, with a hold
	flying bool // the round's reads were started and not waited for
}

// A feedRec is one record to apply.
type feedRec struct {
	lsn  redoubt.LSN
	pos  uint64 // of its batch
	len  uint32
	off  uint32 // in the batch
	page int32  // index of its plan
}

// maxRound bounds the batches of a round.
const maxRound = 1024

// begin takes the records of plans and memory to read ahead into.
func (d *feed) begin(ctx context.Context, store *segfile.Store, g *segfile.Segment, plans []segfile.PagePlan) error {
	d.store, d.seg, d.recs, d.next = store, g, d.recs[:0], 0
	for i := range plans {
		for _, r := range plans[i].Recs {
			d.recs = append(d.recs, feedRec{lsn: r.LSN, pos: r.Pos, len: r.Len, off: r.Off, page: int32(i)})
		}
	}
	slices.SortFunc(d.recs, byLSN)
	if err := d.take(ctx); err != nil {
		return fmt.Errorf("coalescer: memory to read log into: %w", err)
	}
	return nil
}

// more reports whether there are records to apply.
func (d *feed) more() bool { return d.next < len(d.recs) }

// fill gets the next round on its way.
func (d *feed) fill() error {
	d.reset()
	d.places = d.places[:0]
	for i := d.next; i < len(d.recs) && len(d.places) < maxRound; i = d.behind(i) {
		r := &d.recs[i]
		place, err := d.store.Locate(d.seg, r.pos, r.len)
		if err != nil {
			if len(d.places) > 0 {
				break // it will be met again
			}
			return err
		}
		if place.Bytes != nil {
			if len(d.places) > 0 {
				place.Mem.Drop()
				break
			}
			d.places, d.inMem = append(d.places, place), true
			return nil
		}
		if !d.add(place.Off, place.Len()) {
			break
		}
		d.places = append(d.places, place)
	}
	invariant.Assert(len(d.places) > 0 || !d.more(), "coalescer: a slab has no room for one batch")
	d.start()
	d.flying = true
	return nil
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
	if d.flying {
		d.wait()
		d.flying = false
	}
	if d.inMem {
		defer d.release()
	}
	for i := range d.places {
		batch, err := d.batch(i)
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

// batch returns the i-th batch of the round, verified.
func (d *feed) batch(i int) ([]byte, error) {
	p := d.places[i]
	if p.Bytes != nil {
		return p.Bytes, nil
	}
	b, err := d.get(i)
	if err != nil {
		return nil, corrupt(d.seg, "log at device offset %d: %w", p.Off, err)
	}
	if err := d.store.CheckPlace(d.seg, p, b); err != nil {
		return nil, err
	}
	return b[segfile.BlockHeaderSize:], nil
}

// release ends the hold of a round in memory.
func (d *feed) release() {
	if d.inMem {
		d.places[0].Mem.Drop()
		d.inMem = false
	}
}

// finish ends the sweep, wherever it is.
func (d *feed) finish() {
	if d.flying {
		d.wait()
		d.flying = false
	}
	d.release()
	d.drop()
	if cap(d.recs) > 2*enoughRecs {
		d.recs = nil
	}
}
