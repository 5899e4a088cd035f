package node

import (
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

// sendImages appends one batch of n whole pages and returns its last LSN.
func (w *segmentWriter) sendImages(n, pages int) redoubt.LSN {
	w.c.t.Helper()
	var fb wire.AppendBuilder
	var bb redo.Builder
	fb.Reset(w.buf, int(w.c.Welcome().Align))
	bb.Reset(fb.Next(), w.spec.Volume, w.spec.PG, w.epoch, w.prev)
	image := make([]byte, redoubt.PageSize)
	for range n {
		lsn := w.prev + 1
		page := uint32(int(lsn) % pages)
		for i := range image {
			image[i] = byte(lsn)
		}
		if !bb.Write(lsn, page, w.pages[page], 0, image, true) {
			w.c.t.Fatal("batch is full")
		}
		w.prev, w.pages[page] = lsn, lsn
	}
	fb.Commit(w.at.Handle, len(bb.Finish()), w.floor, w.floor)
	if err := w.c.Append(fb.Finish(uint64(w.prev))); err != nil {
		w.c.t.Fatal(err)
	}
	return w.prev
}

// A log much smaller than what goes through it never stands still, though the
// only word of PGMRPL comes with the very batches that have to wait for room.
func TestPGMRPLIsHeardFromBatchesThatWait(t *testing.T) {
	n := openNode(t, formatDevices(t, 1, 48<<20), func(o *Options) {
		o.LogShare = 0.02 // 8 extents of 1 MiB
		o.Queue.FullTimeout = 8 * time.Second
		o.Coalesce.MaxAge = time.Hour // only the want of room makes it work
	})
	defer closeNode(t, n)
	c := dial(t, n)
	w := c.create(0, 0)
	for range 3 {
		told := w.floor
		for n.lanes[0].store.Room(3) >= 8*redoubt.PageSize+4096 {
			w.floor = told // the node is told nothing new while there is room
			if err := c.await(w.at.Handle, w.sendImages(8, 64)); err != nil {
				t.Fatal(err)
			}
		}
		w.floor = w.prev
		if err := c.await(w.at.Handle, w.sendImages(8, 64)); err != nil {
			t.Fatalf("LSN %d: %v", w.prev, err)
		}
	}
	d, err := c.Describe(t.Context(), w.spec.Segment)
	if err != nil || d.SCL != w.prev {
		t.Fatalf("%+v, %v; want SCL %d", d, err, w.prev)
	}
}
