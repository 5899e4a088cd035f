package bench

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
	"pgregory.net/rapid"
)

// A writerModel watches a volumeWriter from outside: what it sends, what the
// segments have taken, what it says of VDL.
type writerModel struct {
	t       *rapid.T
	w       *volumeWriter
	lanes   int
	pages   uint64
	control uint64

	seen    map[redoubt.LSN][]byte // batches as they were first sent, by first LSN
	sent    [][]redo.Header        // by PG, on this connection, in order
	durable []redoubt.LSN          // SCL of each segment
	group   map[redoubt.LSN]int    // every record's PG
	cpls    []redoubt.LSN
	links   map[uint64]redoubt.LSN
	last    redoubt.LSN
}

// TestWriterKeepsThePromises drives a volumeWriter with records, acks in any
// order and broken connections. VDL is always the highest CPL such that every
// record up to it is acknowledged; each group's batches form its chain without
// a gap; records link to their page's record before; what is sent again is what
// was sent before, byte by byte.
func TestWriterKeepsThePromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newWriterModel(t)
		t.Repeat(map[string]func(*rapid.T){
			"write":     m.write,
			"burst":     m.burst,
			"commit":    m.commit,
			"send":      m.send,
			"ack":       m.ack,
			"reconnect": m.reconnect,
			"":          m.check,
		})
	})
}

func newWriterModel(t *rapid.T) *writerModel {
	l, err := newLayout("model", rapid.Uint64Range(1, 4000).Draw(t, "pages"), 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	m := &writerModel{t: t, w: newVolumeWriter(l, 3), lanes: 2, pages: l.pages, control: l.control(), seen: map[redoubt.LSN][]byte{},
		sent: make([][]redo.Header, l.pgs), durable: make([]redoubt.LSN, l.pgs), group: map[redoubt.LSN]int{}, links: map[uint64]redoubt.LSN{}}
	m.join()
	return m
}

// join attaches every group, on a lane that may be another one each time.
func (m *writerModel) join() {
	shift := rapid.IntRange(0, 1).Draw(m.t, "lanes")
	var all []attachment
	for pg := range m.durable {
		all = append(all, attachment{lane: (pg + shift) % m.lanes, handle: uint32(pg), desc: wire.Description{SCL: m.durable[pg]}})
	}
	if err := m.w.rejoin(all); err != nil {
		m.t.Fatal(err)
	}
	m.w.advance(time.Now())
	for pg := range m.sent {
		m.sent[pg] = nil
	}
}

func (m *writerModel) write(t *rapid.T) {
	page := rapid.Uint64Range(0, m.pages-1).Draw(t, "page")
	n := rapid.SampledFrom([]int{1, 100, redoubt.PageSize}).Draw(t, "bytes")
	var data []byte
	if rapid.Bool().Draw(t, "data") {
		data = bytes.Repeat([]byte{byte(m.last)}, n)
	}
	m.w.write(page, 0, n, data, false)
	m.note(page)
}

// burst writes more than one frame holds.
func (m *writerModel) burst(t *rapid.T) {
	data := bytes.Repeat([]byte{byte(m.last)}, redoubt.PageSize)
	for range rapid.IntRange(10, 40).Draw(t, "pages") {
		page := rapid.Uint64Range(0, m.pages-1).Draw(t, "page")
		m.w.write(page, 0, len(data), data, false)
		m.note(page)
	}
}

func (m *writerModel) commit(*rapid.T) {
	m.w.commit(controlRecord{next: uint64(m.last), commits: uint64(len(m.cpls) + 1)}, 0, time.Now())
	m.note(m.control)
	m.cpls = append(m.cpls, m.last)
}

func (m *writerModel) note(page uint64) {
	m.last++
	pg, _ := m.w.place(page)
	m.group[m.last] = pg
}

// send takes one frame of a lane and checks every batch in it.
func (m *writerModel) send(t *rapid.T) {
	lane := rapid.IntRange(0, m.lanes-1).Draw(t, "lane")
	if !m.w.hasWork(lane) {
		return
	}
	var fb wire.AppendBuilder
	fb.Reset(make([]byte, rapid.SampledFrom([]int{wire.MinFrameLimit, 512 << 10}).Draw(t, "frame")), 512)
	m.w.fill(lane, &fb)
	frame := fb.Finish(0)
	h, err := wire.ParseHeader(frame, len(frame))
	if err != nil {
		t.Fatal(err)
	}
	it := wire.Entries(frame[:h.Len], h.Aux)
	for it.Next() {
		m.batch(t, lane, it.Handle, it.Batch)
	}
	if it.Err() != nil {
		t.Fatal(it.Err())
	}
}

func (m *writerModel) batch(t *rapid.T, lane int, handle uint32, b []byte) {
	h, err := redo.Verify(m.w.volume, b)
	if err != nil {
		t.Fatal(err)
	}
	pg := int(h.PG)
	if handle != uint32(pg) || m.w.groups[pg].lane != lane || h.Epoch != 3 {
		t.Fatalf("batch of PG %d under handle %d on lane %d, epoch %d", pg, handle, lane, h.Epoch)
	}
	if old, ok := m.seen[h.First]; ok && !bytes.Equal(old, b) {
		t.Fatalf("batch LSNs %d to %d was sent again with other bytes", h.First, h.Last)
	} else if !ok {
		m.seen[h.First] = bytes.Clone(b)
		m.follow(t, pg, b, h)
	}
	prev := m.durable[pg]
	if n := len(m.sent[pg]); n > 0 {
		prev = m.sent[pg][n-1].Last
	}
	if h.Prev != prev {
		t.Fatalf("PG %d: batch LSNs %d to %d follows %d, want %d", pg, h.First, h.Last, h.Prev, prev)
	}
	m.sent[pg] = append(m.sent[pg], h)
}

// follow checks the records of a new batch: their groups and page links.
func (m *writerModel) follow(t *rapid.T, pg int, b []byte, h redo.Header) {
	for it := redo.Records(b, h); it.Next(); {
		page := uint64(pg)*uint64(m.w.pgPages) + uint64(it.Page)
		if m.group[it.LSN] != pg || !it.FollowsPage(m.links[page]) {
			t.Fatalf("LSN %d in PG %d, link %d; want PG %d, a link to %d", it.LSN, pg, it.Link, m.group[it.LSN], m.links[page])
		}
		m.links[page] = it.LSN
		if it.CPL != slices.Contains(m.cpls, it.LSN) {
			t.Fatalf("LSN %d: CPL %v", it.LSN, it.CPL)
		}
	}
}

// ack lets a segment take some of what was sent to it.
func (m *writerModel) ack(t *rapid.T) {
	pg := rapid.IntRange(0, len(m.durable)-1).Draw(t, "pg")
	n := rapid.IntRange(0, len(m.sent[pg])).Draw(t, "batches")
	if n == 0 {
		return
	}
	m.durable[pg] = m.sent[pg][n-1].Last
	if rapid.Bool().Draw(t, "told") {
		m.w.acked(&m.w.groups[pg], m.durable[pg])
		m.w.advance(time.Now())
		m.sent[pg] = m.sent[pg][n:]
	}
}

func (m *writerModel) reconnect(*rapid.T) { m.join() }

// check compares VDL with the definition.
func (m *writerModel) check(t *rapid.T) {
	var want redoubt.LSN
	for lsn := redoubt.LSN(1); lsn <= m.last && lsn <= m.w.groups[m.group[lsn]].scl; lsn++ {
		if slices.Contains(m.cpls, lsn) {
			want = lsn
		}
	}
	if m.w.vdl != want || m.w.settled() != (len(m.cpls) == 0 || want == m.cpls[len(m.cpls)-1]) {
		t.Fatalf("VDL %d, settled %v; want %d of CPLs %v", m.w.vdl, m.w.settled(), want, m.cpls)
	}
	if m.w.unacked < 0 || m.w.unacked == 0 && want != 0 && m.w.vcl() != m.last {
		t.Fatalf("%d bytes without ack, VCL %d of %d", m.w.unacked, m.w.vcl(), m.last)
	}
}

// TestAWriterNoticesLostAcks reconnects to a segment that is behind what it has
// acknowledged.
func TestAWriterNoticesLostAcks(t *testing.T) {
	l, err := newLayout("lossy", 10, 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	w := newVolumeWriter(l, 1)
	if err := w.rejoin([]attachment{{}}); err != nil {
		t.Fatal(err)
	}
	w.write(3, 0, 1, []byte{1}, false)
	w.write(3, 1, 1, []byte{2}, false)
	w.seal(&w.groups[0])
	w.acked(&w.groups[0], 2)
	if err := w.rejoin([]attachment{{desc: wire.Description{SCL: 1}}}); !permanent(err) {
		t.Fatalf("%v; want acknowledged records lost", err)
	}
	if err := w.rejoin([]attachment{{desc: wire.Description{SCL: 2}}}); err != nil {
		t.Fatal(err)
	}
}

// The identities are how a replay finds its volume again: they never change.
func TestLayoutKeepsItsIdentities(t *testing.T) {
	l, err := newLayout("pgbench", 65536, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	if l.pgs != 17 || l.control() != 65536 {
		t.Fatalf("%d groups, control page %d", l.pgs, l.control())
	}
	if v, s := l.volume.String(), l.segment(16).String(); v != "35712bf49b51debf2d0714409df5c393" || s != "ecd75e3ef6161bbd24efc06378877fde" {
		t.Errorf("volume %s, segment of PG 16 %s", v, s)
	}
	for _, page := range []uint64{0, 4095, 4096, 65535, 65536} {
		if pg, index := l.place(page); uint64(pg)*4096+uint64(index) != page || index >= 4096 {
			t.Errorf("page %d is page %d of PG %d", page, index, pg)
		}
	}
	if l.used(0) != 4096 || l.used(15) != 4096 || l.used(16) != 0 {
		t.Errorf("used %d, %d, %d", l.used(0), l.used(15), l.used(16))
	}
	seen := map[redoubt.ID]string{}
	for _, o := range []struct {
		name  string
		pages uint64
		pg    int64
	}{{"pgbench", 65536, 64 << 20}, {"pgbench2", 65536, 64 << 20}, {"pgbench", 65537, 64 << 20}, {"pgbench", 65536, 128 << 20}} {
		l, err := newLayout(o.name, o.pages, o.pg)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []redoubt.ID{redoubt.ID(l.volume), redoubt.ID(l.segment(0)), redoubt.ID(l.segment(1))} {
			if other, ok := seen[id]; ok {
				t.Errorf("%+v has an identity of %s", o, other)
			}
			seen[id] = o.name
		}
	}
	for _, size := range []int64{0, 1 << 20, 16<<20 + 1, 128 << 30} {
		if _, err := newLayout("x", 1, size); err == nil {
			t.Errorf("PGs of %d bytes were accepted", size)
		}
	}
}
