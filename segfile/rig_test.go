package segfile

import (
	"fmt"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/slab"
)

// A rig is a store on a simulated disk, driven by hand: what it appends is
// written and completed before the call returns.
type rig struct {
	t     *testing.T
	disk  *devtest.Disk
	mode  string // durability
	dev   *blockdev.Device
	store *Store
	small *slab.Pool
	wide  *slab.Pool // to read log back
	in    *slab.Pool // what "arrives"
	lw    *LogWrite

	filler *slab.Buf
}

const (
	rigSize   = 16 << 20
	rigExtent = 256 << 10
)

func newPool(t *testing.T, size, count int) *slab.Pool {
	t.Helper()
	p, err := slab.New(slab.Options{Name: t.Name(), Size: size, Count: count})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Runs that the cache still holds keep slabs; a test ends with its store.
		_ = p.Close()
	})
	return p
}

// newRig formats a disk and opens a store on it.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, disk: formatted(t), mode: "fua", small: newPool(t, 64<<10, 64), wide: newPool(t, 512<<10, 8), in: newPool(t, 4096, 64)}
	if err := r.open(false); err != nil {
		t.Fatal(err)
	}
	return r
}

func formatted(t *testing.T) *devtest.Disk {
	t.Helper()
	disk := devtest.New(rigSize)
	if _, err := blockdev.FormatEngine(disk, rigSize, 512, blockdev.FormatOptions{Cluster: redoubt.ClusterID{1}, Node: redoubt.NodeID{2}, ExtentSize: rigExtent, Count: 1}); err != nil {
		t.Fatal(err)
	}
	return disk
}

func (r *rig) open(readOnly bool) error {
	dev, err := blockdev.OpenEngine(r.disk, rigSize, 512, blockdev.Options{Durability: r.mode, ReadOnly: readOnly})
	if err != nil {
		return err
	}
	store, err := Open(dev, Options{Device: dev.Super().Device, Windows: r.wide, Small: r.small, MaxRecords: 1 << 16, ReadOnly: readOnly}, 0)
	if err != nil {
		return err
	}
	r.dev, r.store = dev, store
	r.filler = r.mem(r.small)
	r.lw = NewLogWrite(r.filler.Bytes()[:512])
	return nil
}

// reopen opens the store again from what disk holds.
func (r *rig) reopen(disk *devtest.Disk) *rig {
	r.t.Helper()
	n := &rig{t: r.t, disk: disk, mode: r.mode, small: newPool(r.t, 64<<10, 64), wide: newPool(r.t, 512<<10, 8), in: newPool(r.t, 4096, 64)}
	if err := n.open(false); err != nil {
		r.t.Fatalf("reopen: %v", err)
	}
	for _, d := range n.store.Recovery().Damage {
		r.t.Logf("recovery: %v", d.Err)
	}
	return n
}

func (r *rig) mem(p *slab.Pool) *slab.Buf {
	r.t.Helper()
	b := p.TryGet()
	for b == nil && r.store != nil && r.store.Reclaim(8) > 0 {
		b = p.TryGet()
	}
	if b == nil {
		r.t.Fatal("test rig is out of slabs")
	}
	return b
}

// write places runs, side by side where they fit, and completes their writes.
func (r *rig) write(runs ...*Run) error {
	r.t.Helper()
	for len(runs) > 0 {
		for r.store.WantsExtent() {
			if err := r.store.AddExtent(blockdev.Normal); err != nil {
				return err
			}
		}
		n, ok := r.store.Place(r.lw, runs, 1<<20)
		if !ok {
			return fmt.Errorf("no write: %v", r.store.Failed())
		}
		done := make(chan error, 1)
		r.lw.Done = func(_ *blockdev.Write, err error) { done <- err }
		r.dev.WriteDurable(&r.lw.Write)
		if err := r.store.Complete(r.lw, <-done); err != nil {
			return err
		}
		runs = runs[n:]
	}
	return nil
}

// must ends the test, or with the power gone the workload.
func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil && r.disk.IsCut() {
		panic(powerIsGone{})
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) change(prepare func(*slab.Buf) (*Change, error)) error {
	r.t.Helper()
	mem := r.mem(r.small)
	defer mem.Drop()
	c, err := prepare(mem)
	if err != nil || c == nil {
		return err
	}
	if err := r.write(c.Run); err != nil {
		return err
	}
	r.store.Commit(c)
	return nil
}

// create makes a segment of 64 pages.
func (r *rig) create(n byte) *Segment {
	r.t.Helper()
	var g *Segment
	err := r.change(func(mem *slab.Buf) (c *Change, err error) {
		spec := SegmentSpec{ID: redoubt.SegmentID{n}, Volume: redoubt.VolumeID{9, n}, PG: redoubt.PGNo(n), Pages: 64, Kind: redoubt.FullSegment, Epoch: 1}
		g, c, err = r.store.PrepareCreate(mem, spec)
		return c, err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}

// retire gives back what the rig's store holds, so that its pools can serve
// another.
func (r *rig) retire() {
	if r.store != nil {
		r.store.Reclaim(1 << 30)
	}
	if r.filler != nil {
		r.filler.Drop()
	}
	r.store, r.filler = nil, nil
}

// A tape writes a segment's log: one-record batches that put a value into a
// page, with the links they need.
type tape struct {
	seg   *Segment
	epoch redoubt.Epoch
	prev  redoubt.LSN
	pages map[uint32]redoubt.LSN
}

func newTape(g *Segment) *tape { return &tape{seg: g, epoch: 1, pages: map[uint32]redoubt.LSN{}} }

// batch builds a batch with one record: byte v at offset 8*(lsn%1024) of page.
func (w *tape) batch(buf []byte, lsn redoubt.LSN, page uint32, v byte) []byte {
	var b redo.Builder
	b.Reset(buf, w.seg.Volume, w.seg.PG, w.epoch, w.prev)
	b.Write(lsn, page, w.pages[page], offsetOf(lsn), []byte{v, v, v, v}, true)
	w.prev, w.pages[page] = lsn, lsn
	return b.Finish()
}

func offsetOf(lsn redoubt.LSN) int { return int(8 * (lsn % 1024)) }

// run makes a run that holds one batch.
func (r *rig) run(w *tape, lsn redoubt.LSN, page uint32, v byte) (*Run, *slab.Buf) {
	r.t.Helper()
	buf := r.mem(r.in)
	run := &Run{Used: RunHeaderSize, Mem: buf}
	if err := run.append(buf.Bytes(), w.seg, BlockRedo, func(b []byte) []byte {
		return append(b, w.batch(make([]byte, 4096), lsn, page, v)...)
	}); err != nil {
		r.t.Fatal(err)
	}
	b := &run.Blocks[0]
	h, err := w.seg.CheckBatch(run.Bytes0()[b.Off+BlockHeaderSize : b.Off+BlockHeaderSize+b.Len])
	if err != nil {
		r.t.Fatal(err)
	}
	b.Head = h
	run.pad(buf.Bytes(), 512)
	return run, buf
}

// Bytes0 is the run's memory before pad has set Bytes.
func (r *Run) Bytes0() []byte { return r.Mem.(*slab.Buf).Bytes() }

// append1 appends one record and waits for it.
func (r *rig) append1(w *tape, lsn redoubt.LSN, page uint32, v byte) error {
	r.t.Helper()
	run, buf := r.run(w, lsn, page, v)
	defer buf.Drop()
	if !r.store.Admit(run, func(int) (redoubt.LSN, redoubt.LSN) { return 0, 0 }) {
		return run.Blocks[0].Err
	}
	return r.write(run)
}

// read builds a page as of a point.
func (r *rig) read(g *Segment, page uint32, point redoubt.LSN) ([]byte, redoubt.LSN, error) {
	r.t.Helper()
	plans := make([]PagePlan, 1)
	pin, err := r.store.PlanRead(g, point, 0, []uint32{page}, plans)
	if err != nil {
		return nil, 0, err
	}
	defer r.store.Unpin(pin)
	return r.build(g, &plans[0])
}

func (r *rig) build(g *Segment, p *PagePlan) ([]byte, redoubt.LSN, error) {
	buf := r.mem(r.small)
	defer buf.Drop()
	base := buf.Bytes()[:redoubt.PageSize]
	if !p.Zeros() {
		if err := r.dev.ReadAt(base, r.store.SlotOffset(p.Slot)); err != nil {
			return nil, 0, err
		}
	}
	w := r.store.NewWindow()
	defer w.Close()
	lsn, _, err := w.Build(g, p, base)
	return append([]byte(nil), base...), lsn, err
}

// coalesce brings everything up to the target into pages, one run.
func (r *rig) coalesce(g *Segment) {
	r.t.Helper()
	pages, err := r.store.PickPages(g, 64, false, nil)
	r.must(err)
	plans := make([]PagePlan, len(pages))
	target, pin := r.store.PlanPages(g, pages, plans)
	defer r.store.Unpin(pin)
	ranges, err := r.store.AllocSlots(g, len(pages), nil)
	r.must(err)
	next := slotsOf(ranges)
	var changes []MapChange
	mem := r.mem(r.small)
	defer mem.Drop()
	for i := range plans {
		b, lsn, err := r.build(g, &plans[i])
		r.must(err)
		sl := uint32(next())
		r.must(r.dev.WriteAt(append(mem.Bytes()[:0], b...), r.store.SlotOffset(sl)))
		changes = append(changes, MapChange{Page: plans[i].Page, Slot: sl, Sum: redo.PageSum(g.Volume, g.PageNo(plans[i].Page), lsn, b), LSN: lsn})
	}
	r.must(r.change(func(mem *slab.Buf) (*Change, error) { return r.store.PrepareMap(mem, g, changes, target) }))
}

func (r *rig) root(g *Segment) {
	r.t.Helper()
	r.must(r.change(func(mem *slab.Buf) (*Change, error) {
		p, err := r.store.PrepareRoot(mem, g)
		if err != nil {
			return nil, err
		}
		return &p.Change, nil
	}))
}
