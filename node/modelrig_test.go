package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/coalescer"
	"github.com/redoubt-storage/redoubt/logqueue"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
	"pgregory.net/rapid"
)

const (
	modelSize   = 16 << 20
	modelExtent = 256 << 10
	modelPages  = 12 // of a segment that are written
)

// A machine is one lane, as a node runs it, on a simulated disk or a file, that
// can be killed and opened again.
type machine struct {
	t    *rapid.T
	disk *devtest.Disk // nil: path is a file
	path string
	eng  string // I/O engine of a file
	mode string // durability
	stop func() // ends shuffling

	l    *lane
	mem  *machineMemory
	segs []*modelSegment
	news byte // segments that were ever created
}

// machineMemory is the pools of machines, which come one after the other.
type machineMemory struct {
	frames, folds, ahead *slab.Pool
	lane                 *lane // whose cache may be asked for slabs
}

func newMachineMemory(t *testing.T) *machineMemory {
	t.Helper()
	m := &machineMemory{}
	pool := func(name string, size, count int, reclaim func() bool) *slab.Pool {
		p, err := slab.New(slab.Options{Name: name, Size: size, Count: count, Reclaim: reclaim})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	m.frames = pool("frames", 64<<10, 24, func() bool { return m.lane != nil && m.lane.store.Reclaim(4) > 0 })
	m.folds, m.ahead = pool("folds", foldSize, 1, nil), pool("ahead", windowSize, 4, nil)
	return m
}

// options are a node's, but that nothing happens because time has passed: so a
// sequence of operations can be shrunk.
func (m *machine) options() Options {
	return Options{
		LogShare: 0.375, LongChain: 8, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Queue: logqueue.Options{FullTimeout: 20 * time.Millisecond, EagerBytes: 1},
		Coalesce: coalescer.Options{MaxAge: time.Hour, Survey: time.Hour, IdleRate: 1 << 40, MaxRate: 1 << 40, ScrubRate: -1,
			RunPages: 4, Pages: m.mem.folds, Ahead: m.mem.ahead},
	}
}

// open opens the device and the lane on it.
func (m *machine) open() {
	m.t.Helper()
	var dev *blockdev.Device
	var err error
	if m.disk != nil {
		dev, err = blockdev.OpenEngine(m.disk, modelSize, 512, blockdev.Options{Durability: m.mode})
	} else {
		dev, err = blockdev.Open(m.path, blockdev.Options{Durability: m.mode, IOEngine: m.eng})
	}
	if err == nil {
		m.l, err = openLane(0, dev, budget{small: 8, windows: 4, records: 1 << 14, mapped: 1 << 16}, m.options())
	}
	if err != nil {
		m.t.Fatalf("open (%s): %v", m.label(), err)
	}
	m.mem.lane = m.l
}

func (m *machine) label() string {
	if m.disk == nil {
		return m.path
	}
	return m.disk.Label()
}

// abandon ends a lane as a killed process would: nothing is sealed, nothing is
// marked clean. What it had begun on a simulated disk has failed before.
func (m *machine) abandon() {
	if m.l == nil {
		return
	}
	m.l.coal.Close()
	_ = m.l.queue.Close() // after a power cut, it says so
	_ = m.l.dev.Close()
	m.l.store.Reclaim(1 << 30)
	m.l.free()
	m.l, m.mem.lane = nil, nil
	if m.stop != nil {
		m.stop()
		m.stop = nil
	}
}

// shutdown is a clean end, unless the power goes meanwhile: then it reports false.
func (m *machine) shutdown() bool {
	m.t.Helper()
	err := m.l.close(context.Background())
	m.l, m.mem.lane = nil, nil
	if m.stop != nil {
		m.stop()
		m.stop = nil
	}
	if err != nil && !m.dead() {
		m.t.Fatalf("clean shutdown: %v", err)
	}
	if m.disk != nil && err == nil {
		m.disk = m.disk.Restart()
	}
	return err == nil
}

// kill ends the process while the power stays on.
func (m *machine) kill() {
	if m.disk == nil {
		m.abandon()
		return
	}
	next := m.disk.Restart()
	m.abandon()
	m.disk = next
}

// cutPower ends everything, now or where a cut was planned, and goes on with one
// of the disks that may be left.
func (m *machine) cutPower(seed uint64, which int) {
	m.disk.Cut()
	m.abandon()
	n := 0
	for d := range m.disk.CrashStates(devtest.CrashOptions{Exhaustive: -1, Samples: which + 1, Seed: seed}) {
		if n++; n == which+1 {
			m.disk = d
			return
		}
	}
	m.t.Fatalf("only %d crash states", n)
}

// dead reports that the power is gone.
func (m *machine) dead() bool { return m.disk != nil && m.disk.IsCut() }

// Ack implements acker: a segment's watcher is its model.
func (s *modelSegment) Ack(_ uint32, scl redoubt.LSN) {
	for {
		old := s.told.Load()
		if uint64(scl) <= old || s.told.CompareAndSwap(old, uint64(scl)) {
			return
		}
	}
}

// attach finds the segment in the store after an open.
func (m *machine) attach(s *modelSegment) bool {
	g, ok := m.l.store.Segment(s.spec.ID)
	if s.seg = g; ok {
		s.told.Store(0)
		watch(g, watcher{conn: s})
	}
	return ok
}

// send appends a batch and waits until it is durable, or refused.
func (m *machine) send(s *modelSegment, batch []byte) error {
	m.t.Helper()
	mem, err := m.mem.frames.Get(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	done := make(chan error, 1)
	run := &segfile.Run{Mem: mem, Done: func(_ *segfile.Run, err error) { done <- err }}
	b := run.Add()
	b.Seg, b.Kind, b.Off, b.Len = s.seg, segfile.BlockRedo, segfile.RunHeaderSize, len(batch)
	run.Used = b.Off + segfile.BlockSize(len(batch))
	run.Bytes = mem.Bytes()[:(run.Used+511)&^511]
	clear(run.Bytes[b.Off+segfile.BlockHeaderSize:])
	copy(run.Bytes[b.Off+segfile.BlockHeaderSize:], batch)
	if b.Head, err = s.seg.CheckBatch(batch); err != nil {
		m.t.Fatalf("a batch of the model's own: %v", err)
	}
	vdl, floor := s.vdl, s.floor
	if err := m.l.queue.Append(run, func(int) (redoubt.LSN, redoubt.LSN) { return vdl, floor }); err != nil {
		mem.Drop()
		return err
	}
	err = <-done
	if err == nil {
		err = run.Blocks[0].Err
	}
	mem.Drop()
	return err
}

// change makes a change of a segment durable.
func (m *machine) change(prepare func(*slab.Buf) (*segfile.Change, error)) error {
	return m.l.queue.Change(prepare)
}

// read builds pages as of a point, as a READ does.
func (m *machine) read(s *modelSegment, point redoubt.LSN, pages []uint32) ([][]byte, error) {
	plans := make([]segfile.PagePlan, len(pages))
	pin, planned, err := m.l.store.TryPlanRead(s.seg, point, 0, pages, plans)
	if !planned && err == nil {
		pin, err = m.l.store.PlanRead(s.seg, point, 0, pages, plans)
	}
	if err != nil {
		return nil, err
	}
	defer m.l.store.Unpin(pin)
	buf, err := m.mem.frames.Get(context.Background())
	if err != nil {
		return nil, err
	}
	defer buf.Drop()
	w := m.l.store.NewWindow()
	defer w.Close()
	var out [][]byte
	for i := range plans {
		base := buf.Bytes()[:redoubt.PageSize]
		if !plans[i].Zeros() {
			if err := m.l.dev.ReadAt(base, m.l.store.SlotOffset(plans[i].Slot)); err != nil {
				return nil, err
			}
		}
		lsn, sum, err := w.Build(s.seg, &plans[i], base)
		if err != nil {
			return nil, err
		}
		if want := redo.PageSum(s.spec.Volume, s.spec.PageNo(pages[i]), lsn, base); sum != want && lsn != 0 {
			return nil, fmt.Errorf("page %d: sum %08x, want %08x", pages[i], sum, want)
		}
		out = append(out, append([]byte(nil), base...))
	}
	return out, nil
}

// A modelSegment is what a segment must be: its records by LSN, and what was
// promised of them.
type modelSegment struct {
	spec    segfile.SegmentSpec
	seg     *segfile.Segment
	epoch   redoubt.Epoch
	trunc   redoubt.Truncation
	recs    []redo.Record // live, in LSN order, those not yet delivered too
	batches []*modelBatch // that hold them, in LSN order
	base    redoubt.LSN   // coalesced, when the chain was last cut or found
	next    redoubt.LSN   // the next record is above
	vdl     redoubt.LSN
	floor   redoubt.LSN
	told    atomic.Uint64 // SCL as acknowledged since the last open

	// What was under way when the power went may have happened.
	tried    redoubt.Epoch
	cutting  redoubt.Truncation
	deleting bool
	creating bool
}

type modelBatch struct {
	first, last, prev redoubt.LSN
	epoch             redoubt.Epoch
	bytes             []byte
	delivered         bool // it is durable
}

func (s *modelSegment) String() string {
	var b strings.Builder
	for _, x := range s.batches {
		fmt.Fprintf(&b, "[%d..%d after %d, epoch %d, delivered %v] ", x.first, x.last, x.prev, x.epoch, x.delivered)
	}
	return b.String()
}

// scl is what SCL must be: the end of the chain of what was delivered, or the LSN
// up to which all is in pages, which need not be a record's.
func (s *modelSegment) scl() redoubt.LSN {
	end := s.base
	for _, b := range s.batches {
		if !b.delivered || b.prev > end {
			break
		}
		end = max(end, b.last)
	}
	return end
}

// lastOf returns the LSN of a page's newest record, 0 for none.
func (s *modelSegment) lastOf(page uint32) redoubt.LSN {
	for i := len(s.recs) - 1; i >= 0; i-- {
		if s.recs[i].Page == page {
			return s.recs[i].LSN
		}
	}
	return 0
}

// page replays the records: the page as of a point.
func (s *modelSegment) page(page uint32, point redoubt.LSN) []byte {
	b := make([]byte, redoubt.PageSize)
	for i := range s.recs {
		if r := &s.recs[i]; r.Page == page && r.LSN <= point {
			r.Apply(b)
		}
	}
	return b
}

// isAny reports whether err matches one of kinds.
func isAny(err error, kinds ...error) bool {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}
