package node

import (
	"bytes"
	"flag"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
	"pgregory.net/rapid"
)

// longCampaign reports that somebody asked for more sequences than CI runs.
func longCampaign() bool {
	f := flag.Lookup("rapid.checks")
	return f != nil && f.Value.String() != f.DefValue
}

// tell moves VDL and PGMRPL: never past what is acknowledged.
func (m *machine) tell(s *modelSegment) {
	vdl := redoubt.LSN(rapid.Uint64Range(0, uint64(s.scl())).Draw(m.t, "VDL"))
	floor := redoubt.LSN(rapid.Uint64Range(0, uint64(s.scl())+2).Draw(m.t, "PGMRPL"))
	m.l.store.Tell(s.seg, vdl, floor)
	s.vdl = max(s.vdl, vdl)
	s.floor = max(s.floor, min(floor, s.vdl))
	if i := m.l.store.Info(s.seg); i.VDL != s.vdl || i.Floor != s.floor {
		m.t.Fatalf("VDL %d, PGMRPL %d, want %d and %d", i.VDL, i.Floor, s.vdl, s.floor)
	}
}

// flush brings into pages whatever may be.
func (m *machine) flush(*modelSegment) {
	if !m.survives("flush", m.l.coal.Flush(m.t.Context())) {
		return
	}
	for _, s := range m.segs {
		if i := m.l.store.Info(s.seg); i.Coalesced < min(s.scl(), s.vdl, s.floor) || i.Coalesced > max(i.Target, i.Coalesced) {
			m.t.Fatalf("coalesced up to %d after a flush: SCL %d, VDL %d, PGMRPL %d", i.Coalesced, i.SCL, i.VDL, i.Floor)
		}
		m.compare(s, s.scl())
	}
}

func (m *machine) trim(*modelSegment) {
	_, err := m.l.store.TrimLog()
	m.survives("trim", err)
}

// reads compares all pages as of any point that may be asked for.
func (m *machine) reads(s *modelSegment) {
	if scl := s.scl(); scl >= s.floor {
		m.compare(s, redoubt.LSN(rapid.Uint64Range(uint64(s.floor), uint64(scl)).Draw(m.t, "point")))
	}
}

func (m *machine) compare(s *modelSegment, point redoubt.LSN) {
	m.t.Helper()
	if point < s.floor {
		return // a truncation left less than PGMRPL asks for: nothing can be read
	}
	pages := make([]uint32, modelPages)
	for i := range pages {
		pages[i] = uint32(i)
	}
	got, err := m.read(s, point, pages)
	if !m.survives("read", err) {
		return
	}
	for i, b := range got {
		want := s.page(uint32(i), point)
		if at := firstDifference(b, want); at >= 0 {
			m.t.Fatalf("%s: segment %d page %d as of LSN %d: byte %d is %d, want %d", m.label(), s.spec.PG, i, point, at, b[at], want[at])
		}
	}
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	i := 0
	for a[i] == b[i] {
		i++
	}
	return i
}

// refusedReads asks for what nobody may: it is refused, and for the right reason.
func (m *machine) refusedReads(s *modelSegment) {
	if _, err := m.read(s, s.scl()+1, []uint32{0}); !isAny(err, redoubt.ErrAboveSCL) {
		m.t.Fatalf("read above SCL: %v", err)
	}
	if s.floor > 0 && s.scl() >= s.floor {
		if _, err := m.read(s, s.floor-1, []uint32{0}); !isAny(err, redoubt.ErrBelowFloor) {
			m.t.Fatalf("read below PGMRPL: %v", err)
		}
		if _, err := m.read(s, s.scl(), []uint32{s.spec.Pages}); !isAny(err, redoubt.ErrInvalid) && !m.dead() {
			m.t.Fatalf("read past the group: %v", err)
		}
	}
}

// fence opens the volume anew: the older writer is refused, and some of what it
// left above the VDL is void.
func (m *machine) fence(s *modelSegment) {
	old := m.build(s)
	s.tried = s.epoch + 1
	if !m.survives("fence", m.change(func(mem *slab.Buf) (*segfile.Change, error) { return m.l.store.PrepareEpoch(mem, s.seg, s.tried) })) {
		return
	}
	s.epoch = s.tried
	if err := m.send(s, old.bytes); !isAny(err, redoubt.ErrFenced) && !m.dead() {
		m.t.Fatalf("a batch of the older writer: %v", err)
	}
	if !m.dead() {
		m.truncate(s)
	}
}

// truncate voids what lies above a point at or above VDL.
func (m *machine) truncate(s *modelSegment) {
	from := redoubt.LSN(rapid.Uint64Range(uint64(s.vdl), uint64(max(s.vdl, s.scl()))).Draw(m.t, "from"))
	s.cutting = redoubt.Truncation{Epoch: s.epoch, From: from, To: s.next + redoubt.LSN(rapid.IntRange(1, 100).Draw(m.t, "room"))}
	plan, err := m.l.store.PlanTruncate(s.seg, s.cutting)
	if err == nil {
		err = m.change(func(mem *slab.Buf) (*segfile.Change, error) { return m.l.store.PrepareTruncate(mem, plan) })
	}
	if !m.survives("truncate", err) {
		return
	}
	s.cut(s.cutting)
	s.base = min(m.l.store.Info(s.seg).Coalesced, s.vdl, s.floor)
	s.told.Store(0) // of a new writer
	m.checkSCL(s)
}

// cut applies a truncation to the model.
func (s *modelSegment) cut(t redoubt.Truncation) {
	s.recs = slices.DeleteFunc(s.recs, func(r redo.Record) bool { return r.LSN > t.From })
	s.batches = slices.DeleteFunc(s.batches, func(b *modelBatch) bool { return b.first > t.From })
	if n := len(s.batches); n > 0 {
		s.batches[n-1].last = s.recs[len(s.recs)-1].LSN
	}
	s.next, s.trunc = t.To, t
}

// powerCut cuts the power, now or where it was planned, and recovers.
func (m *machine) powerCut() {
	m.cutPower(rapid.Uint64().Draw(m.t, "world"), rapid.IntRange(0, 6).Draw(m.t, "of the worlds"))
	m.recover()
}

// recover opens the lane again and compares every segment with what was promised;
// then its writer goes on in one of the two ways that there are.
func (m *machine) recover() {
	m.t.Helper()
	m.open()
	if d := m.l.store.Recovery().Damage; len(d) > 0 {
		m.t.Fatalf("%s: recovery reports damage: %v", m.label(), d[0].Err)
	}
	for _, s := range slices.Clone(m.segs) {
		there := m.attach(s)
		switch {
		case s.deleting && !there:
			m.replaced(s)
			continue
		case s.creating:
			m.make(s)
			there = m.attach(s)
		}
		s.deleting = false
		if !there {
			m.t.Fatalf("%s: segment %d is gone", m.label(), s.spec.PG)
		}
		m.recovered(s)
	}
	if n := len(m.l.store.Segments()); n != len(m.segs) {
		m.t.Fatalf("%s: %d segments, want %d: a deleted one is back", m.label(), n, len(m.segs))
	}
}

func (m *machine) recovered(s *modelSegment) {
	m.t.Helper()
	i := m.l.store.Info(s.seg)
	if i.Truncation != s.trunc && i.Truncation == s.cutting {
		s.cut(s.cutting) // it was written, though nobody was told
	}
	s.base = min(i.Coalesced, s.vdl, s.floor)
	sure := s.scl()
	for _, b := range s.batches { // what was under way may be there, whole
		if !b.delivered && b.prev <= s.scl() && b.last <= i.SCL {
			b.delivered = true
		}
	}
	switch {
	case i.SCL < sure || i.SCL != s.scl():
		m.t.Fatalf("%s: segment %d: SCL %d; %d was acknowledged, and what was sent makes it %d", m.label(), s.spec.PG, i.SCL, sure, s.scl())
	case i.Epoch != s.epoch && i.Epoch != s.tried || i.Truncation != s.trunc:
		m.t.Fatalf("%s: segment %d: epoch %d, truncation %v; acknowledged %d, %v", m.label(), s.spec.PG, i.Epoch, i.Truncation, s.epoch, s.trunc)
	case i.VDL > s.vdl || i.Floor > s.floor || i.Coalesced > s.floor:
		m.t.Fatalf("%s: segment %d: VDL %d, PGMRPL %d, coalesced %d; told %d and %d", m.label(), s.spec.PG, i.VDL, i.Floor, i.Coalesced, s.vdl, s.floor)
	case i.Unknown.Reason == segfile.Corrupt:
		m.t.Fatalf("%s: segment %d: a crash is taken for the loss of acknowledged records: %v", m.label(), s.spec.PG, m.l.store.Recovery().Holes)
	}
	s.vdl, s.floor = i.VDL, i.Floor
	for _, point := range []redoubt.LSN{i.Floor, (i.Floor + i.SCL) / 2, i.SCL} {
		if point <= i.SCL && point >= i.Floor {
			m.compare(s, point)
		}
	}
	undelivered := slices.ContainsFunc(s.batches, func(b *modelBatch) bool { return !b.delivered })
	switch {
	case i.Epoch != s.epoch || undelivered && (rapid.Bool().Draw(m.t, "a new writer") || s.stale()):
		s.epoch = max(s.epoch, i.Epoch)
		m.fenceAgain(s)
	case undelivered:
		m.fillGaps(s)
	}
}

// stale reports that something undelivered belongs to an older writer.
func (s *modelSegment) stale() bool {
	return slices.ContainsFunc(s.batches, func(b *modelBatch) bool { return !b.delivered && b.epoch != s.epoch })
}

// fenceAgain is what a new writer does.
func (m *machine) fenceAgain(s *modelSegment) {
	s.tried = s.epoch + 1
	if m.survives("fence", m.change(func(mem *slab.Buf) (*segfile.Change, error) { return m.l.store.PrepareEpoch(mem, s.seg, s.tried) })) {
		s.epoch = s.tried
		m.truncate(s)
	}
}
