package node

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/ioring"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
	"pgregory.net/rapid"
)

// TestModel drives a lane of a node (log, group commit, coalescing, recovery) and
// a reference, a map of pages by LSN, with the same random operations, kills and
// power cuts among them. An acknowledged record is never lost, and a wrong byte
// never returned. "make crash" runs many more sequences; a failure prints the
// command that replays it.
func TestModel(t *testing.T) {
	mem := newMachineMemory(t)
	rapid.Check(t, func(rt *rapid.T) {
		m := &machine{t: rt, mem: mem, disk: devtest.New(modelSize), mode: rapid.SampledFrom([]string{"fua", "flush"}).Draw(rt, "durability")}
		if _, err := blockdev.FormatEngine(m.disk, modelSize, 512, blockdev.FormatOptions{Cluster: redoubt.ClusterID{1}, Node: redoubt.NodeID{2},
			ExtentSize: modelExtent, Count: 1}); err != nil {
			rt.Fatal(err)
		}
		m.run()
	})
}

// TestModelOnFiles is the same over files with O_DIRECT and every engine, where
// a crash is the end of a process: the machine stays on.
func TestModelOnFiles(t *testing.T) {
	for _, eng := range ioring.Available() {
		t.Run(eng, func(t *testing.T) {
			mem := newMachineMemory(t)
			dir, n := t.TempDir(), 0
			deadline := time.Now().Add(5 * time.Second)
			rapid.Check(t, func(rt *rapid.T) {
				if n > 0 && time.Now().After(deadline) && !longCampaign() {
					return // each sequence formats a file anew: CI takes what fits
				}
				n++
				m := &machine{t: rt, mem: mem, path: filepath.Join(dir, "device"), eng: eng, mode: rapid.SampledFrom([]string{"fua", "flush"}).Draw(rt, "durability")}
				if _, err := blockdev.Format(context.Background(), m.path, blockdev.FormatOptions{Size: modelSize, Cluster: redoubt.ClusterID{1}, Node: redoubt.NodeID{2},
					ExtentSize: modelExtent, Count: 1, Force: true}); err != nil {
					rt.Fatal(err)
				}
				m.run()
			})
			t.Logf("%d sequences", n)
		})
	}
}

// run is one sequence of operations.
func (m *machine) run() {
	m.open()
	defer m.abandon()
	for range rapid.IntRange(2, 3).Draw(m.t, "segments") {
		m.create()
	}
	ops := map[string]func(*rapid.T){
		"append": m.with(m.append), "append again": m.with(m.append), "gap": m.with(m.gap), "fill": m.with(m.fillGaps),
		"overlap": m.with(m.overlap), "read": m.with(m.reads), "refused reads": m.with(m.refusedReads), "tell": m.with(m.tell),
		"flush": m.with(m.flush), "trim": m.with(m.trim), "new writer": m.with(m.fence),
		"replace": m.with(m.replace), "tick": m.with(func(*modelSegment) { m.l.queue.Tick(time.Now()) }),
		"kill": m.with(func(*modelSegment) { m.kill(); m.recover() }), "shutdown": m.with(m.restart),
		"": func(t *rapid.T) { m.t = t },
	}
	if m.disk != nil {
		ops["power cut"] = m.with(func(*modelSegment) { m.powerCut() })
		ops["cut to come"] = m.with(func(*modelSegment) { m.disk.CutAtOp(rapid.IntRange(1, 30).Draw(m.t, "at operation")) })
		ops["disorder"] = m.with(func(*modelSegment) {
			if m.stop == nil {
				m.stop = m.disk.Shuffle(rapid.Uint64().Draw(m.t, "order"))
			}
		})
	}
	m.t.Repeat(ops)
}

func (m *machine) restart(*modelSegment) {
	if m.shutdown() {
		m.recover()
	}
}

// with makes an operation on a segment an action. What ends it because the power
// is gone is followed by a recovery.
func (m *machine) with(op func(*modelSegment)) func(*rapid.T) {
	return func(t *rapid.T) {
		m.t = t
		s := m.segs[rapid.IntRange(0, len(m.segs)-1).Draw(t, "segment")]
		op(s)
		if m.dead() {
			m.powerCut()
		}
	}
}

// survives reports whether an operation succeeded, and fails the test unless the
// power is what it failed of.
func (m *machine) survives(what string, err error) bool {
	m.t.Helper()
	if err != nil && !m.dead() {
		m.t.Fatalf("%s: %v", what, err)
	}
	return err == nil
}

func (m *machine) create() {
	m.t.Helper()
	m.news++
	s := &modelSegment{epoch: 1, spec: segfile.SegmentSpec{ID: redoubt.SegmentID{7, m.news}, Volume: redoubt.VolumeID{9, m.news}, PG: redoubt.PGNo(m.news),
		Pages: redoubt.MinPGPages, Kind: redoubt.FullSegment, Epoch: 1, Membership: 1, Geometry: 1}}
	m.segs = append(m.segs, s)
	m.make(s)
}

func (m *machine) make(s *modelSegment) {
	m.t.Helper()
	s.creating = true
	if m.survives("create", m.change(func(mem *slab.Buf) (c *segfile.Change, err error) {
		_, c, err = m.l.store.PrepareCreate(mem, s.spec)
		return c, err
	})) {
		s.creating = false
		m.attach(s)
	}
}

// replace deletes a segment and makes another in its place.
func (m *machine) replace(s *modelSegment) {
	if s.deleting = true; !m.survives("delete", m.change(func(mem *slab.Buf) (*segfile.Change, error) {
		return m.l.store.PrepareDelete(mem, s.seg, s.epoch)
	})) {
		return
	}
	m.replaced(s)
}

func (m *machine) replaced(s *modelSegment) {
	m.segs = slices.DeleteFunc(m.segs, func(o *modelSegment) bool { return o == s })
	m.create()
}

// build makes a batch of the next few records. LSNs are dense in a volume and
// sparse in a group.
func (m *machine) build(s *modelSegment) *modelBatch {
	t := m.t
	prev := redoubt.LSN(0)
	if n := len(s.batches); n > 0 {
		prev = s.batches[n-1].last
	}
	var bld redo.Builder
	bld.Reset(make([]byte, 60<<10), s.spec.Volume, s.spec.PG, s.epoch, prev)
	for range rapid.IntRange(1, 5).Draw(t, "records") {
		lsn := s.next + redoubt.LSN(rapid.IntRange(1, 3).Draw(t, "step"))
		page := uint32(rapid.IntRange(0, modelPages-1).Draw(t, "page"))
		off := rapid.IntRange(0, redoubt.PageSize-1).Draw(t, "offset")
		n := rapid.IntRange(1, min(3000, redoubt.PageSize-off)).Draw(t, "bytes")
		ok := false
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			ok = bld.Fill(lsn, page, s.lastOf(page), 0, redoubt.PageSize, byte(lsn), true)
		case 1:
			ok = bld.Fill(lsn, page, s.lastOf(page), off, n, byte(lsn), true)
		case 2:
			ok = bld.Move(lsn, page, s.lastOf(page), off, redoubt.PageSize-off-n, n, true)
		default:
			ok = bld.Write(lsn, page, s.lastOf(page), off, bytes.Repeat([]byte{byte(lsn), byte(page + 1)}, n)[:n], true)
		}
		if !ok {
			t.Fatal("the batch is full")
		}
		s.next = lsn
		s.recs = append(s.recs, redo.Record{LSN: lsn, Page: page}) // for lastOf; replaced below
	}
	b := &modelBatch{prev: prev, epoch: s.epoch, bytes: bld.Finish()}
	h, err := redo.ParseHeader(b.bytes)
	if err != nil {
		t.Fatal(err)
	}
	b.first, b.last = h.First, h.Last
	s.recs = s.recs[:len(s.recs)-h.Count]
	for it := redo.Records(b.bytes, h); it.Next(); {
		s.recs = append(s.recs, it.Record)
	}
	s.batches = append(s.batches, b)
	return b
}

// deliver sends a batch and checks what SCL became of it.
func (m *machine) deliver(s *modelSegment, b *modelBatch) bool {
	m.t.Helper()
	err := m.send(s, b.bytes)
	if isAny(err, redoubt.ErrFull) {
		return false // the floor stands still and the log is full: it waits
	}
	if !m.survives("append", err) {
		return false
	}
	b.delivered = true
	m.checkSCL(s)
	return true
}

func (m *machine) checkSCL(s *modelSegment) {
	m.t.Helper()
	want := s.scl()
	if i := m.l.store.Info(s.seg); i.SCL != want || s.told.Load() > uint64(want) {
		m.t.Fatalf("segment %d: SCL %d, acknowledged %d, want %d; epoch %d, VDL %d, PGMRPL %d, coalesced %d, truncation %v; batches %s",
			s.spec.PG, i.SCL, s.told.Load(), want, i.Epoch, i.VDL, i.Floor, i.Coalesced, i.Truncation, s)
	}
}

func (m *machine) append(s *modelSegment) {
	if m.deliver(s, m.build(s)) && s.told.Load() != uint64(s.scl()) {
		m.t.Fatalf("told of SCL %d, it is %d", s.told.Load(), s.scl())
	}
}

// gap keeps a batch back and sends the one behind it.
func (m *machine) gap(s *modelSegment) {
	m.build(s)
	m.deliver(s, m.build(s))
}

// fillGaps sends what was kept back, newest first.
func (m *machine) fillGaps(s *modelSegment) {
	for _, b := range slices.Backward(s.batches) {
		if !b.delivered && !m.deliver(s, b) {
			return
		}
	}
}

// overlap sends some batches again as one, as a client does that lost its
// connection and cuts its log otherwise than before.
func (m *machine) overlap(s *modelSegment) {
	first := slices.IndexFunc(s.batches, func(b *modelBatch) bool { return b.epoch == s.epoch })
	if first < 0 {
		return
	}
	mine := s.batches[first:]
	from := rapid.IntRange(0, len(mine)-1).Draw(m.t, "from batch")
	some := mine[from:min(len(mine), from+rapid.IntRange(1, 3).Draw(m.t, "batches"))]
	var bld redo.Builder
	bld.Reset(make([]byte, 63<<10), s.spec.Volume, s.spec.PG, s.epoch, some[0].prev)
	end := some[len(some)-1].last
	for _, r := range s.recs {
		if r.LSN < some[0].first || r.LSN > end {
			continue
		}
		if !again(&bld, &r) {
			return // longer than a frame of this test
		}
	}
	if err := m.send(s, bld.Finish()); isAny(err, redoubt.ErrFull) || !m.survives("append again", err) {
		return
	}
	for _, b := range some {
		b.delivered = true
	}
	m.checkSCL(s)
}

// again adds a record to another batch.
func again(bld *redo.Builder, r *redo.Record) bool {
	prev := redoubt.LSN(0)
	if r.Link != 0 {
		prev = r.LSN - redoubt.LSN(r.Link)
	}
	switch r.Kind {
	case redo.Fill:
		return bld.Fill(r.LSN, r.Page, prev, int(r.Off), int(r.Len), r.Data[0], true)
	case redo.Move:
		return bld.Move(r.LSN, r.Page, prev, int(r.Off), int(r.Data[0])|int(r.Data[1])<<8, int(r.Len), true)
	}
	return bld.Write(r.LSN, r.Page, prev, int(r.Off), r.Data, true)
}
