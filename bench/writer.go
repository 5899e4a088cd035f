package bench

import (
	"bytes"
	"fmt"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

// A volumeWriter is the state of a volume's one writer: it hands out LSNs, puts
// records into batches, keeps what isn't acknowledged, and computes VCL and VDL
// from SCLs. It does no I/O and has no lock.
//
//	a group's log:  | acknowledged | queue: sealed batches           | open batch |
//	                           SCL ^   sent ... | from sent on: not  |
//
// A sealed batch is never changed: it is sent again byte by byte after a
// reconnect.
type volumeWriter struct {
	layout
	epoch  redoubt.Epoch
	groups []group
	busy   []*group // those with something unacknowledged
	work   [][]*group

	last, vdl redoubt.LSN
	base      redoubt.LSN // LSNs at or below were an earlier writer's, or void
	links     map[uint64]redoubt.LSN
	cpls      []cpl // above VDL, in order
	lastCPL   redoubt.LSN
	unacked   int64 // bytes
	durable   controlRecord
	records   uint64 // of the trace, up to VDL
	commits   Histogram
	spare     [][]byte
}

// A group is a protection group as its writer sees it.
type group struct {
	pg     redoubt.PGNo
	lane   int
	handle uint32

	last, scl redoubt.LSN
	open      redo.Builder
	openBuf   []byte // nil: no batch is open
	openFirst redoubt.LSN
	queue     []sealed
	sent      int // of queue, on this connection
	busyAt    int // its place in busy, or -1
	listed    bool
}

type sealed struct {
	first, last redoubt.LSN
	bytes       []byte
}

// A cpl is the end of a mini-transaction on its way.
type cpl struct {
	lsn     redoubt.LSN
	at      time.Time // when it was handed over
	control controlRecord
	records uint64
}

// batchBuf bounds a replay's batches in bytes: several records of whole pages.
const batchBuf = 128 << 10

func newVolumeWriter(l layout, epoch redoubt.Epoch) *volumeWriter {
	w := &volumeWriter{layout: l, epoch: epoch, groups: make([]group, l.pgs), links: map[uint64]redoubt.LSN{}}
	for i := range w.groups {
		w.groups[i].pg, w.groups[i].busyAt = redoubt.PGNo(i), -1
	}
	return w
}

// write adds a record that puts data at off of a page; with data nil, one that
// makes n bytes zeros. It returns the lane that has something to send now.
func (w *volumeWriter) write(page uint64, off, n int, data []byte, isCPL bool) (lane int) {
	pg, index := w.place(page)
	g := &w.groups[pg]
	lsn, link := w.last+1, w.links[page]
	for !w.add(g, lsn, index, link, off, n, data, isCPL) {
		w.seal(g)
	}
	w.last, g.last, w.links[page] = lsn, lsn, lsn
	w.unacked += int64(recordBytes(n, data))
	if g.busyAt < 0 {
		g.busyAt = len(w.busy)
		w.busy = append(w.busy, g)
	}
	w.list(g)
	return g.lane
}

func recordBytes(n int, data []byte) int {
	if data == nil {
		n = 1
	}
	return redo.RecordHeaderSize + n
}

// add puts a record into the group's open batch. It returns false when the batch
// must be sealed first.
func (w *volumeWriter) add(g *group, lsn redoubt.LSN, index uint32, link redoubt.LSN, off, n int, data []byte, isCPL bool) bool {
	if g.openBuf == nil {
		if k := len(w.spare); k > 0 {
			g.openBuf, w.spare = w.spare[k-1], w.spare[:k-1]
		} else {
			g.openBuf = make([]byte, batchBuf)
		}
		g.open.Reset(g.openBuf, w.volume, g.pg, w.epoch, g.last)
		g.openFirst = lsn
	}
	if data == nil {
		return g.open.Fill(lsn, index, link, off, n, 0, isCPL)
	}
	return g.open.Write(lsn, index, link, off, data, isCPL)
}

// seal closes the open batch.
func (w *volumeWriter) seal(g *group) {
	g.queue = append(g.queue, sealed{first: g.openFirst, last: g.open.Last(), bytes: bytes.Clone(g.open.Finish())})
	w.spare = append(w.spare, g.openBuf)
	g.openBuf = nil
}

// commit ends a mini-transaction with the record for the control page. records
// is how many of the trace's there are so far.
func (w *volumeWriter) commit(c controlRecord, records uint64, now time.Time) (lane int) {
	var b [controlSize]byte
	c.put(b[:])
	lane = w.write(w.control(), 0, controlSize, b[:], true)
	w.cpls = append(w.cpls, cpl{lsn: w.last, at: now, control: c, records: records})
	w.lastCPL = w.last
	return lane
}

// list notes that the group has something to send.
func (w *volumeWriter) list(g *group) {
	if g.listed {
		return
	}
	g.listed = true
	for len(w.work) <= g.lane {
		w.work = append(w.work, nil)
	}
	w.work[g.lane] = append(w.work[g.lane], g)
}

// hasWork reports that something of the lane waits to be sent.
func (w *volumeWriter) hasWork(lane int) bool { return lane < len(w.work) && len(w.work[lane]) > 0 }

// fill puts what the lane has to send into a frame, as far as it fits. The lane
// has work, so at least one batch does.
func (w *volumeWriter) fill(lane int, fb *wire.AppendBuilder) {
	list := w.work[lane]
	for i, g := range list {
		if !w.fillGroup(g, fb) {
			w.work[lane] = append(list[:0], list[i:]...)
			return
		}
		g.listed = false
	}
	w.work[lane] = list[:0]
}

// fillGroup reports false when the frame is full and the group isn't done.
func (w *volumeWriter) fillGroup(g *group, fb *wire.AppendBuilder) bool {
	for {
		for ; g.sent < len(g.queue); g.sent++ {
			if !fb.Add(g.handle, g.queue[g.sent].bytes, w.vdl, w.vdl) {
				return false
			}
		}
		if g.openBuf == nil {
			return true
		}
		if g.open.Len() > len(fb.Next()) {
			return false // it gathers on until the next frame
		}
		w.seal(g)
	}
}

// acked takes an SCL and reports whether anything was released.
func (w *volumeWriter) acked(g *group, scl redoubt.LSN) bool {
	if scl <= g.scl {
		return false
	}
	g.scl = scl
	n := 0
	for ; n < len(g.queue) && g.queue[n].last <= scl; n++ {
		w.unacked -= int64(len(g.queue[n].bytes) - redo.BatchHeaderSize)
		g.queue[n].bytes = nil
	}
	g.queue = g.queue[n:]
	g.sent = max(0, g.sent-n)
	if len(g.queue) == 0 && g.openBuf == nil && g.busyAt >= 0 {
		end := w.busy[len(w.busy)-1]
		w.busy[g.busyAt], end.busyAt = end, g.busyAt
		w.busy = w.busy[:len(w.busy)-1]
		g.busyAt = -1
	}
	return n > 0
}

// vcl returns the highest LSN such that no record at or below it is missing from
// its group.
func (w *volumeWriter) vcl() redoubt.LSN {
	v := w.last
	for _, g := range w.busy {
		first := g.openFirst
		if len(g.queue) > 0 {
			first = g.queue[0].first
		}
		v = min(v, first-1)
	}
	return v
}

// advance moves VDL to the highest CPL at or below VCL, and reports whether it
// moved.
func (w *volumeWriter) advance(now time.Time) bool {
	v := w.vcl()
	n := 0
	for ; n < len(w.cpls) && w.cpls[n].lsn <= v; n++ {
		c := &w.cpls[n]
		w.vdl, w.durable, w.records = c.lsn, c.control, c.records
		w.commits.Record(int64(now.Sub(c.at)))
	}
	w.cpls = w.cpls[n:]
	return n > 0
}

// settled reports that everything up to the last mini-transaction's end is
// durable.
func (w *volumeWriter) settled() bool { return w.vdl >= w.lastCPL }

// rejoin takes what the segments say after a reconnect: what they have is
// acknowledged, the rest is to be sent again.
func (w *volumeWriter) rejoin(all []attachment) error {
	w.work = nil
	for pg := range w.groups {
		w.groups[pg].listed = false
	}
	for pg, a := range all {
		g := &w.groups[pg]
		if a.desc.SCL < g.scl {
			return fmt.Errorf("segment %v, PG %d, is complete up to LSN %d only and has acknowledged %d: acknowledged records are lost: %w",
				w.segment(pg), pg, a.desc.SCL, g.scl, redoubt.ErrCorrupt)
		}
		w.acked(g, a.desc.SCL)
		g.lane, g.handle, g.sent = a.lane, a.handle, 0
		if len(g.queue) > 0 || g.openBuf != nil {
			w.list(g)
		}
	}
	return nil
}
