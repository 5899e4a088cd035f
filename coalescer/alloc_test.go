package coalescer

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// A memDevice is a device in memory that allocates nothing: what is counted
// over it is the coalescer's and the store's.
type memDevice struct {
	b    []byte
	exts []blockdev.Extent
}

const memExtent = 1 << 20

func newMemDevice(extents int) *memDevice {
	d := &memDevice{b: make([]byte, extents*memExtent), exts: make([]blockdev.Extent, extents)}
	for i := range d.exts {
		d.exts[i].Index = uint32(i)
	}
	return d
}

func (d *memDevice) BlockSize() int                    { return 512 }
func (d *memDevice) ExtentSize() int64                 { return memExtent }
func (d *memDevice) Offset(index uint32) int64         { return int64(index) * memExtent }
func (d *memDevice) Extents() []blockdev.Extent        { return append([]blockdev.Extent(nil), d.exts...) }
func (d *memDevice) ReadAt(p []byte, off int64) error  { copy(p, d.b[off:]); return nil }
func (d *memDevice) WriteAt(p []byte, off int64) error { copy(d.b[off:], p); return nil }

func (d *memDevice) FreeExtents(blockdev.Class) int {
	n := 0
	for _, e := range d.exts {
		if e.Role == blockdev.RoleFree {
			n++
		}
	}
	return n
}

func (d *memDevice) Assign(role blockdev.Role, owner uint32, seq uint64, _ blockdev.Class) (blockdev.Extent, error) {
	for i := range d.exts {
		if e := &d.exts[i]; e.Role == blockdev.RoleFree {
			*e = blockdev.Extent{Index: e.Index, Gen: e.Gen + 1, Role: role, Owner: owner, Seq: seq}
			return *e, nil
		}
	}
	return blockdev.Extent{}, redoubt.ErrFull
}

func (d *memDevice) Release(index uint32) error {
	d.exts[index] = blockdev.Extent{Index: index, Gen: d.exts[index].Gen}
	return nil
}

func (d *memDevice) Read(r *blockdev.Read) {
	off := r.Off
	for _, b := range r.Bufs {
		off += int64(copy(b, d.b[off:]))
	}
	r.Done(r, nil)
}

func (d *memDevice) WriteDurable(w *blockdev.Write) {
	off := w.Off
	for _, b := range w.Bufs {
		off += int64(copy(d.b[off:], b))
	}
	w.Done(w, nil)
}

// An anyDevice is what a store and a folder need together.
type anyDevice interface {
	segfile.Device
	Device
}

// A memLog appends to the log of a store, one write after the other.
type memLog struct {
	store *segfile.Store
	dev   anyDevice
	lw    *segfile.LogWrite
	done  chan error
}

func (l *memLog) Kick() {}

func (l *memLog) AppendOwn(run *segfile.Run) error {
	for n := 0; n == 0; {
		for l.store.WantsExtent() {
			if err := l.store.AddExtent(blockdev.Normal); err != nil {
				return err
			}
		}
		var ok bool
		if n, ok = l.store.Place(l.lw, []*segfile.Run{run}, 1<<20); !ok {
			return redoubt.ErrFull
		}
		l.dev.WriteDurable(&l.lw.Write)
		err := <-l.done
		l.store.Complete(l.lw, err)
		if err != nil {
			return err
		}
	}
	return nil
}

// A memRig is a folder over a store in memory.
type memRig struct {
	store  *segfile.Store
	log    *memLog
	folder *Folder
	frames *slab.Pool
	seg    *segfile.Segment
	tape   *tape
	now    time.Time
}

func newMemRig(t testing.TB, dev anyDevice, id redoubt.DeviceID, pages uint32) *memRig {
	t.Helper()
	pool := func(name string, size, count int) *slab.Pool {
		p, err := slab.New(slab.Options{Name: name, Size: size, Count: count})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	r := &memRig{now: time.Unix(1000, 0), frames: pool("frames", 512<<10, 64)}
	small := pool("small", 64<<10, 8)
	var err error
	if r.store, err = segfile.Open(dev, segfile.Options{Device: id, Windows: pool("windows", 512<<10, 8), Small: small, LongChain: 1 << 15}, 0); err != nil {
		t.Fatal(err)
	}
	r.log = &memLog{store: r.store, dev: dev, lw: segfile.NewLogWrite(small.TryGet().Bytes()[:dev.BlockSize()]), done: make(chan error, 1)}
	r.log.lw.Done = func(_ *blockdev.Write, err error) { r.log.done <- err }
	if r.folder, err = NewFolder(context.Background(), r.store, dev, r.log, Options{Pages: pool("pages", 1<<20, 4), Ahead: pool("ahead", 1<<20, 10)}); err != nil {
		t.Fatal(err)
	}
	r.tape = newTape(1, redoubt.FullSegment)
	r.tape.spec.Pages = pages
	mem, err := r.store.Small()
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Drop()
	g, c, err := r.store.PrepareCreate(mem, r.tape.spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.log.AppendOwn(c.Run); err != nil {
		t.Fatal(err)
	}
	r.store.Commit(c)
	r.seg = g
	return r
}

// append appends one batch of changes and says that it may be folded.
func (r *memRig) append(t testing.TB, changes []pageChange) {
	t.Helper()
	buf := r.frames.TryGet()
	if buf == nil {
		r.store.Reclaim(1 << 20)
		buf = r.frames.TryGet()
	}
	defer buf.Drop()
	mem := buf.Bytes()
	run := &segfile.Run{Mem: buf}
	b := run.Add()
	b.Seg, b.Kind, b.Off = r.seg, segfile.BlockRedo, segfile.RunHeaderSize
	at := b.Off + segfile.BlockHeaderSize
	batch := r.tape.batch(mem[at:], changes)
	b.Len = len(batch)
	var err error
	if b.Head, err = r.seg.CheckBatch(batch); err != nil {
		t.Fatal(err)
	}
	run.Used = b.Off + segfile.BlockSize(b.Len)
	n := (run.Used + 4095) &^ 4095
	clear(mem[at+len(batch) : n])
	run.Bytes = mem[:n]
	r.store.Admit(run, func(int) (redoubt.LSN, redoubt.LSN) { return r.tape.lsn, r.tape.lsn })
	if err := r.log.AppendOwn(run); err != nil {
		t.Fatal(err)
	}
	r.store.Tell(r.seg, r.tape.lsn, r.tape.lsn)
	r.tape.recs = r.tape.recs[:0]
}

// A run allocates nothing for a page or a record. What it does allocate is the
// map block's, and the store's list of the slots that it replaced.
func TestFoldingAllocatesNothingPerPageOrRecord(t *testing.T) {
	if invariant.Checked {
		t.Skip("checked builds look closer, and allocate for it")
	}
	count := func(pages, records int, cached bool) uint64 {
		r := newMemRig(t, newMemDevice(256), redoubt.DeviceID{1}, 64)
		least := ^uint64(0)
		for range 6 {
			changes := make([]pageChange, pages*records)
			for i := range changes {
				changes[i] = pageChange{page: uint32(i % pages), kind: redo.Fill, off: i % 1000, n: 9, fill: byte(i)}
			}
			r.append(t, changes)
			if !cached {
				r.store.Reclaim(1 << 20)
			}
			if err := r.folder.Flush(r.now); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			did, err := r.folder.Pass(r.now)
			runtime.ReadMemStats(&after)
			if err != nil || did.Pages != pages || did.Records != len(changes) {
				t.Fatalf("did %+v, %v", did, err)
			}
			least = min(least, after.Mallocs-before.Mallocs)
		}
		return least
	}
	for _, cached := range []bool{true, false} {
		small, large := count(2, 1, cached), count(64, 100, cached)
		if large > small+16 {
			t.Errorf("in memory %v: a run of 2 records in 2 pages allocates %d times, one of 6400 in 64 pages %d times", cached, small, large)
		}
		t.Logf("in memory %v: %d and %d allocations a run", cached, small, large)
	}
}
