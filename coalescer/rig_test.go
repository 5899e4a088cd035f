package coalescer

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

const (
	rigSize   = 24 << 20
	rigExtent = 256 << 10
	rigPages  = 48 // of a segment
)

// A rig is a folder over a store on a simulated disk. Everything in it happens
// when a test calls it, on the test's goroutine.
type rig struct {
	t      testing.TB
	disk   *devtest.Disk
	dev    *blockdev.Device
	hook   *hookDevice
	store  *segfile.Store
	log    *testLog
	folder *Folder
	opts   Options
	sopts  segfile.Options
	now    time.Time

	durability string // of the device; default fua

	*memory

	mu     sync.Mutex
	damage []string // as told to Damaged

	reading  sync.Mutex
	readInto *slab.Buf
	window   *segfile.Window
}

// A hookDevice calls before at every operation that the coalescer begins, and
// sees to it that nothing is written to an extent that nobody has.
type hookDevice struct {
	*blockdev.Device
	t      testing.TB
	before func()
}

func (d *hookDevice) Read(r *blockdev.Read) {
	if d.before != nil {
		d.before()
	}
	d.Device.Read(r)
}

func (d *hookDevice) WriteDurable(w *blockdev.Write) {
	if d.before != nil {
		d.before()
	}
	if e := d.Extents()[(w.Off-d.Offset(0))/rigExtent]; e.Role != blockdev.RolePages {
		d.t.Errorf("pages are written to extent %d, which is %v", e.Index, e.Role)
	}
	d.Device.WriteDurable(w)
}

// newRig formats a disk and opens a folder on it. tune may change the options.
func newRig(t testing.TB, tune func(*rig)) *rig {
	t.Helper()
	disk := devtest.New(rigSize)
	if _, err := blockdev.FormatEngine(disk, rigSize, 512, blockdev.FormatOptions{Cluster: redoubt.ClusterID{1}, Node: redoubt.NodeID{2}, ExtentSize: rigExtent, Count: 1}); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, disk: disk, now: time.Unix(1_000_000, 0), sopts: segfile.Options{MaxRecords: 1 << 16, LogExtents: 24}}
	if tune != nil {
		tune(r)
	}
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	return r
}

// memory is the pools of a rig. A rig that is released leaves them to the next:
// tests of crashes open thousands of stores.
type memory struct {
	small, wide, pages, ahead *slab.Pool
	frames                    *slab.Pool // what is appended
	reads                     *slab.Pool // pages that are read

	store *segfile.Store // whose cache may be asked for slabs
}

var idleMemory struct {
	sync.Mutex
	free []*memory
}

func takeMemory(t testing.TB) *memory {
	t.Helper()
	idleMemory.Lock()
	defer idleMemory.Unlock()
	if n := len(idleMemory.free); n > 0 {
		m := idleMemory.free[n-1]
		idleMemory.free = idleMemory.free[:n-1]
		return m
	}
	m := new(memory)
	pool := func(name string, size, count int) *slab.Pool {
		p, err := slab.New(slab.Options{Name: name, Size: size, Count: count, Reclaim: func() bool { return m.store != nil && m.store.Reclaim(8) > 0 }})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	m.small, m.wide = pool("small", 64<<10, 16), pool("wide", 272<<10, 8)
	m.pages, m.ahead = pool("pages", 1<<20, 2), pool("ahead", 512<<10, 2)
	m.frames, m.reads = pool("frames", 32<<10, 400), pool("reads", redoubt.PageSize, 1)
	return m
}

// release ends a rig. Every slab must be back then, but for those of runs that a
// failure left in flight.
func (r *rig) release() {
	r.t.Helper()
	if r.memory == nil {
		return
	}
	m := r.memory
	r.memory = nil
	r.folder.Close()
	m.store = nil
	r.store.Reclaim(1 << 30)
	r.log.filler.Drop()
	r.readInto.Drop()
	r.window.Close()
	failed := r.store.Failed() != nil
	for _, p := range []*slab.Pool{m.small, m.wide, m.pages, m.ahead, m.frames, m.reads} {
		if p.Free() != p.Cap() {
			if !failed && !r.t.Failed() {
				r.t.Errorf("%d slabs of %d bytes are still held", p.Cap()-p.Free(), p.Size())
			}
			return
		}
	}
	idleMemory.Lock()
	defer idleMemory.Unlock()
	idleMemory.free = append(idleMemory.free, m)
}

func (r *rig) open() error {
	dev, err := blockdev.OpenEngine(r.disk, rigSize, 512, blockdev.Options{Durability: r.durability})
	if err != nil {
		return err
	}
	r.memory = takeMemory(r.t)
	r.t.Cleanup(r.release)
	o := r.sopts
	o.Device, o.Windows, o.Small = dev.Super().Device, r.wide, r.small
	store, err := segfile.Open(dev, o, 0)
	if err != nil {
		return err
	}
	r.dev, r.hook, r.store, r.memory.store = dev, &hookDevice{Device: dev, t: r.t}, store, store
	r.log = &testLog{r: r, filler: r.small.TryGet()}
	r.readInto, r.window = r.reads.TryGet(), store.NewWindow()
	r.log.lw = segfile.NewLogWrite(r.log.filler.Bytes()[:512])
	r.opts.Pages, r.opts.Ahead, r.opts.Damaged = r.pages, r.ahead, r.damaged
	r.folder, err = NewFolder(context.Background(), store, r.hook, r.log, r.opts)
	return err
}

func (r *rig) damaged(g *segfile.Segment, page uint32, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	where := fmt.Sprintf("page %d", page)
	if page == NoPage {
		where = "log or map"
	}
	r.damage = append(r.damage, fmt.Sprintf("segment %d %s", g.ID[0], where))
	r.t.Logf("damage: %v", err)
}

// reopen returns a rig on another disk, as after a restart.
func (r *rig) reopen(disk *devtest.Disk) *rig {
	r.t.Helper()
	n := &rig{t: r.t, disk: disk, now: r.now, sopts: r.sopts, opts: r.opts, durability: r.durability}
	if err := n.open(); err != nil {
		r.t.Fatalf("reopen (%s): %v", disk.Label(), err)
	}
	return n
}

// A testLog is a log queue without a queue: what is appended is written and
// completed before the call returns.
type testLog struct {
	r      *rig
	mu     sync.Mutex
	lw     *segfile.LogWrite
	filler *slab.Buf
	kicks  int
	// before is called with each run of the coalescer, before it is placed.
	before func(*segfile.Run) error
}

func (l *testLog) Kick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kicks++
}

func (l *testLog) AppendOwn(run *segfile.Run) error {
	if l.before != nil {
		if err := l.before(run); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range run.Blocks {
		if g := run.Blocks[i].Seg; g != nil && !l.r.store.Ready(g) {
			return fmt.Errorf("segment was deleted: %w", redoubt.ErrNotFound)
		}
	}
	return l.write(run)
}

// write places a run and completes its write. The caller holds mu.
func (l *testLog) write(run *segfile.Run) error {
	store := l.r.store
	for n := 0; n == 0; {
		for store.WantsExtent() {
			if store.AddExtent(blockdev.Normal) == nil {
				continue
			}
			if err := store.AddExtent(blockdev.Reserve); err != nil {
				return err
			}
		}
		var ok bool
		if n, ok = store.Place(l.lw, []*segfile.Run{run}, 1<<20); !ok {
			if err := store.Failed(); err != nil {
				return err
			}
			return fmt.Errorf("the log has no room: %+v: %w", store.Usage(), redoubt.ErrFull)
		}
		done := make(chan error, 1)
		l.lw.Done = func(_ *blockdev.Write, err error) { done <- err }
		l.r.dev.WriteDurable(&l.lw.Write)
		err := <-done
		store.Complete(l.lw, err)
		if err != nil {
			return err
		}
	}
	return nil
}

// change makes a change of a segment durable, as the queue would.
func (r *rig) change(prepare func(*slab.Buf) (*segfile.Change, error)) error {
	mem, err := r.store.Small()
	if err != nil {
		return err
	}
	defer mem.Drop()
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	c, err := prepare(mem)
	if err != nil || c == nil {
		return err
	}
	if err := r.log.write(c.Run); err != nil {
		r.store.Abandon(c)
		return err
	}
	r.store.Commit(c)
	return nil
}

// pass calls the folder once.
func (r *rig) pass() Did {
	r.t.Helper()
	did, err := r.folder.Pass(r.now)
	if err != nil {
		r.t.Fatalf("pass: %v", err)
	}
	return did
}

// settle calls the folder, and lets the clock go on to when it asks for, until
// it has had nothing to do for so long.
func (r *rig) settle(idle time.Duration) (runs []Did) {
	r.t.Helper()
	for quiet := r.now; r.now.Sub(quiet) <= idle; {
		did := r.pass()
		if did.Work != Nothing {
			runs = append(runs, did)
			quiet = r.now
		}
		if did.Next.After(r.now) {
			r.now = did.Next
		}
		if len(runs) > 100_000 {
			r.t.Fatalf("the folder doesn't come to rest: %+v", did)
		}
	}
	return runs
}

// passFor calls the folder, and lets the clock go on, for a while.
func (r *rig) passFor(d time.Duration) {
	r.t.Helper()
	for end := r.now.Add(d); r.now.Before(end); {
		if did := r.pass(); did.Next.After(r.now) {
			r.now = did.Next
		}
	}
}

// flush folds everything that may be.
func (r *rig) flush() error {
	r.t.Helper()
	if err := r.folder.Flush(r.now); err != nil {
		return err
	}
	for range 100_000 {
		if _, err := r.folder.Pass(r.now); err != nil {
			return err
		}
		if done, err := r.folder.Flushed(r.now); done {
			return err
		}
	}
	r.t.Fatal("the flush doesn't end")
	return nil
}

// readPage builds a page as of a point, as a node would.
func (r *rig) readPage(g *segfile.Segment, page uint32, point redoubt.LSN) ([]byte, error) {
	plans := make([]segfile.PagePlan, 1)
	pin, err := r.store.PlanRead(g, point, 0, []uint32{page}, plans)
	if err != nil {
		return nil, err
	}
	defer r.store.Unpin(pin)
	return r.buildPage(g, &plans[0])
}

func (r *rig) buildPage(g *segfile.Segment, p *segfile.PagePlan) ([]byte, error) {
	// One slab and one window for all reads: in checked builds each Drop writes
	// over a slab, and the tests read a hundred thousand pages.
	r.reading.Lock()
	defer r.reading.Unlock()
	base := r.readInto.Bytes()
	if !p.Zeros() {
		if err := r.dev.ReadAt(base, r.store.SlotOffset(p.Slot)); err != nil {
			return nil, err
		}
	}
	_, sum, err := r.window.Build(g, p, base)
	if err != nil {
		return nil, err
	}
	if want := redo.PageSum(g.Volume, g.PageNo(p.Page), p.Last(), base); sum != want {
		return nil, fmt.Errorf("page %d: sum %08x, want %08x", p.Page, sum, want)
	}
	return bytes.Clone(base), nil
}
