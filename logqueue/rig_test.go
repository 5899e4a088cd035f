package logqueue

import (
	"fmt"
	"sync"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

const (
	rigSize   = 16 << 20
	rigExtent = 256 << 10
)

// A rig is a queue over a store on a simulated disk. While the disk is held, each
// write waits until the test completes it.
type rig struct {
	t     testing.TB
	disk  *devtest.Disk
	dev   *blockdev.Device
	store *segfile.Store
	q     *Queue
	small *slab.Pool
	wide  *slab.Pool
	in    *slab.Pool // what "arrives"

	mode  string // durability; default fua
	sopts segfile.Options
	opts  Options
	wrap  func(*blockdev.Device) Device // puts a fake before the device

	mu    sync.Mutex
	acked map[redoubt.SegmentID]redoubt.LSN
	moved func([]segfile.Moved) // called with each, if set
}

func newRig(t testing.TB, tune func(*rig)) *rig {
	t.Helper()
	r := &rig{t: t, disk: devtest.New(rigSize), mode: "fua"}
	if tune != nil {
		tune(r)
	}
	if _, err := blockdev.FormatEngine(r.disk, rigSize, 512, blockdev.FormatOptions{Cluster: redoubt.ClusterID{1}, Node: redoubt.NodeID{2}, ExtentSize: rigExtent, Count: 1}); err != nil {
		t.Fatal(err)
	}
	r.pools()
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) pools() {
	r.t.Helper()
	pool := func(name string, size, count int) *slab.Pool {
		p, err := slab.New(slab.Options{Name: name, Size: size, Count: count})
		if err != nil {
			r.t.Fatal(err)
		}
		return p
	}
	r.small, r.wide, r.in = pool("small", 64<<10, 16), pool("wide", 512<<10, 4), pool("in", 4096, 256)
}

// open opens the store and starts a queue. The log has all the extents ahead that
// it wants, so that the queue's goroutine has no reason to write.
func (r *rig) open() error {
	var err error
	if r.dev, err = blockdev.OpenEngine(r.disk, rigSize, 512, blockdev.Options{Durability: r.mode}); err != nil {
		return err
	}
	so := r.sopts
	so.Device, so.Windows, so.Small, so.MaxRecords = r.dev.Super().Device, r.wide, r.small, 1<<16
	if r.store, err = segfile.Open(r.dev, so, 0); err != nil {
		return err
	}
	for r.store.WantsExtent() {
		if err := r.store.AddExtent(blockdev.Normal); err != nil {
			return err
		}
	}
	r.acked = map[redoubt.SegmentID]redoubt.LSN{}
	o := r.opts
	o.Moved = r.tell
	var dev Device = r.dev
	if r.wrap != nil {
		dev = r.wrap(r.dev)
	}
	var fillers [][]byte
	for range max(2, o.Depth) {
		fillers = append(fillers, r.in.TryGet().Bytes()[:512])
	}
	r.q, err = New(r.store, dev, fillers, o)
	return err
}

func (r *rig) tell(moved []segfile.Moved) {
	r.mu.Lock()
	for _, m := range moved {
		// As a connection does: SCLs only grow.
		r.acked[m.Seg.ID] = max(r.acked[m.Seg.ID], m.SCL)
	}
	r.mu.Unlock()
	if r.moved != nil {
		r.moved(moved)
	}
}

// scl returns what the writer of a segment was told.
func (r *rig) scl(w *writer) redoubt.LSN {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acked[w.seg.ID]
}

// wantAcked fails unless the writer was told exactly this.
func (r *rig) wantAcked(w *writer, lsn redoubt.LSN) {
	r.t.Helper()
	if got := r.scl(w); got != lsn {
		r.t.Fatalf("acknowledged up to %d, want %d", got, lsn)
	}
}

// wantHeld fails unless writes of these lengths, and nothing else, wait on the
// disk.
func (r *rig) wantHeld(lens ...int) {
	r.t.Helper()
	var got []int
	for _, h := range r.disk.Held() {
		got = append(got, h.Len)
	}
	if fmt.Sprint(got) != fmt.Sprint(lens) && len(got)+len(lens) > 0 {
		r.t.Fatalf("writes of %v bytes are on the device, want %v", got, lens)
	}
}

// A writer writes one segment's log, one record a batch.
type writer struct {
	r     *rig
	seg   *segfile.Segment
	epoch redoubt.Epoch
	prev  redoubt.LSN
	last  redoubt.LSN // of page 0
}

func (r *rig) create(n byte) *writer {
	r.t.Helper()
	w := &writer{r: r, epoch: 1}
	if err := r.q.Change(func(mem *slab.Buf) (c *segfile.Change, err error) {
		w.seg, c, err = r.store.PrepareCreate(mem, segfile.SegmentSpec{ID: redoubt.SegmentID{n}, Volume: redoubt.VolumeID{9, n}, PG: redoubt.PGNo(n), Pages: 64,
			Kind: redoubt.FullSegment, Epoch: 1})
		return c, err
	}); err != nil {
		r.t.Fatal(err)
	}
	return w
}

// A sent run is one that was handed to the queue, and what came of it.
type sent struct {
	segfile.Run
	lsn redoubt.LSN

	mu    sync.Mutex
	ends  int // calls of Done
	err   error
	ended chan struct{} // closed by the first
}

// end is the run's Done.
func (s *sent) end(_ *segfile.Run, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ends++; s.ends == 1 {
		s.err = err
		s.Mem.Drop()
		close(s.ended)
	}
}

// want fails unless Done was called so often, and if so with err as it is.
func (s *sent) want(t testing.TB, ends int, err error) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ends != ends || ends > 0 && (s.err == nil) != (err == nil) {
		t.Fatalf("the run of LSN %d ended %d times, with %v; want %d and %v", s.lsn, s.ends, s.err, ends, err)
	}
}

// run makes the next record of the segment a run, as a frame would come in.
func (w *writer) run() *sent {
	w.r.t.Helper()
	mem := w.r.in.TryGet()
	for mem == nil && w.r.store.Reclaim(64) > 0 {
		mem = w.r.in.TryGet()
	}
	if mem == nil {
		w.r.t.Fatal("test rig is out of slabs")
	}
	s := &sent{ended: make(chan struct{}), lsn: w.prev + 1}
	s.Done, s.Mem = s.end, mem
	w.fill(&s.Run, mem.Bytes())
	return s
}

// fill builds the run in buf. It allocates nothing once the run was used.
func (w *writer) fill(run *segfile.Run, buf []byte) {
	const at = segfile.RunHeaderSize + segfile.BlockHeaderSize
	lsn := w.prev + 1
	var b redo.Builder
	b.Reset(buf[at:], w.seg.Volume, w.seg.PG, w.epoch, w.prev)
	b.Fill(lsn, 0, w.last, int(lsn%1024)*8, 8, byte(lsn), true)
	n := len(b.Finish())
	w.prev, w.last = lsn, lsn
	run.Used = segfile.RunHeaderSize + segfile.BlockSize(n)
	clear(buf[at+n : 512])
	run.Bytes = buf[:512]
	blk := run.Add()
	blk.Seg, blk.Kind, blk.Off, blk.Len = w.seg, segfile.BlockRedo, segfile.RunHeaderSize, n
	if blk.Head, blk.Err = w.seg.CheckBatch(buf[at : at+n]); blk.Err != nil {
		w.r.t.Fatal(blk.Err)
	}
}

// send appends the next record and doesn't wait for it.
func (w *writer) send() *sent {
	w.r.t.Helper()
	s := w.run()
	if err := w.r.q.Append(&s.Run, nothingNew); err != nil {
		w.r.t.Fatal(err)
	}
	return s
}

func nothingNew(int) (vdl, floor redoubt.LSN) { return 0, 0 }

// stored opens what a disk holds and returns the SCL of the segment there.
func (r *rig) stored(disk *devtest.Disk, w *writer) redoubt.LSN {
	r.t.Helper()
	dev, err := blockdev.OpenEngine(disk, rigSize, 512, blockdev.Options{Durability: r.mode, ReadOnly: true})
	if err != nil {
		r.t.Fatal(err)
	}
	store, err := segfile.Open(dev, segfile.Options{Device: dev.Super().Device, Windows: r.wide, Small: r.small, ReadOnly: true}, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	g, ok := store.Segment(w.seg.ID)
	if !ok {
		r.t.Fatalf("%s: the segment is gone", disk.Label())
	}
	return store.Info(g).SCL
}

// worst returns the disk on which a power cut now leaves nothing that isn't
// promised.
func (r *rig) worst() *devtest.Disk {
	for d := range r.disk.CrashStates(devtest.CrashOptions{Exhaustive: -1, Samples: 1}) {
		return d
	}
	return nil
}

// close ends the queue and fails if slabs are still held by runs.
func (r *rig) close() {
	r.t.Helper()
	r.disk.Inline()
	if err := r.q.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.noLeaks()
}

// noLeaks fails unless every run has given its memory back.
func (r *rig) noLeaks() {
	r.t.Helper()
	r.store.Reclaim(1 << 30)
	fillers := max(2, r.opts.Depth)
	if held := r.in.Cap() - r.in.Free() - fillers; held != 0 {
		r.t.Fatalf("%d runs still hold memory", held)
	}
	if held := r.small.Cap() - r.small.Free(); held != 0 {
		r.t.Fatalf("%d small slabs are still held", held)
	}
}
