package bench

import (
	"math/rand/v2"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

// payloadSpread is how far apart the payloads of records may lie in the random
// bytes that they are taken from.
const payloadSpread = 64 << 10

// A feed is the writers of one segment. They are alike, so a number stands for
// those who are free. Guarded by the mutex of its connection.
type feed struct {
	load   *appendLoad
	target target
	index  int // among all feeds: staggers what is due

	free    int    // sends that may begin
	arrived uint64 // with a rate: sends that are due by now, since the start
	begun   uint64
	done    uint64
	flight  flightQueue
	listed  bool // in its connection's list of those with something to send

	last, scl redoubt.LSN
	links     []redoubt.LSN // last LSN of each page
	page      int           // where the next record goes, if sequential
	off       int
	rnd       *rand.PCG // nil: sequential
}

func newFeed(l *appendLoad, t target, index, free int) *feed {
	f := &feed{load: l, target: t, index: index, free: free, links: make([]redoubt.LSN, l.opts.Pages)}
	f.flight.ring = make([]flight, max(free, 1))
	if l.opts.Pattern == Random {
		f.rnd = rand.NewPCG(uint64(index), 1)
	}
	return f
}

// ready returns how many sends could go out now.
func (f *feed) ready() int {
	if f.load.opts.Rate > 0 {
		return int(min(uint64(f.free), f.arrived-f.begun))
	}
	return f.free
}

// due returns when send n of the feed was, or is, to begin: arrivals go round
// the feeds in turns.
func (f *feed) due(n uint64) time.Duration {
	o := &f.load.opts
	k := float64(n)*float64(o.Segments) + float64(f.index)
	return time.Duration(k * float64(f.load.perSend()) / o.Rate * float64(time.Second))
}

// build puts as many sends as are ready, and fit, into the frame as one batch; in
// batch mode one. It returns false if not even one fits.
func (f *feed) build(fb *wire.AppendBuilder, rb *redo.Builder, now time.Duration) bool {
	o := &f.load.opts
	per := f.load.perSend()
	room := fb.Next()
	n := min(f.ready(), (len(room)-redo.BatchHeaderSize)/(per*(redo.RecordHeaderSize+o.RecordSize)))
	if n <= 0 {
		return false
	}
	if o.Batch > 0 {
		n = 1
	}
	rb.Reset(room, f.target.volume, 0, 1, f.last)
	for range n * per {
		f.record(rb)
	}
	f.free -= n
	f.begun += uint64(n)
	f.flight.push(flight{last: f.last, sends: n, at: now})
	vdl := f.scl
	if o.HoldLog {
		vdl = 0
	}
	fb.Commit(f.target.handle, len(rb.Finish()), vdl, vdl)
	return true
}

// record adds the next record. Each is a mini-transaction of its own, so that
// VDL may follow SCL.
func (f *feed) record(rb *redo.Builder) {
	size := f.load.opts.RecordSize
	page, off := f.page, f.off
	if f.rnd != nil {
		v := f.rnd.Uint64()
		page = int(v>>32) % len(f.links)
		off = int(uint32(v)) % (redoubt.PageSize - size + 1)
	} else if f.off += size; f.off+size > redoubt.PageSize {
		f.off = 0
		if f.page++; f.page == len(f.links) {
			f.page = 0
		}
	}
	f.last++
	at := int(f.last*64) % payloadSpread
	rb.Write(f.last, uint32(page), f.links[page], off, f.load.payload[at:at+size], true)
	f.links[page] = f.last
}

// ack takes an SCL: it counts the sends that are covered, frees their writers
// and returns their number.
func (f *feed) ack(scl redoubt.LSN, now time.Duration, h *Histogram) (sends int) {
	f.scl = max(f.scl, scl)
	for f.flight.n > 0 && f.flight.first().last <= scl {
		x := f.flight.pop()
		sends += x.sends
		if f.load.opts.Rate == 0 {
			h.RecordN(int64(now-x.at), uint64(x.sends))
			continue
		}
		for range x.sends {
			h.Record(int64(now - f.due(f.done)))
			f.done++
		}
	}
	f.free += sends
	return sends
}

// A flight is a batch on its way.
type flight struct {
	last  redoubt.LSN
	sends int
	at    time.Duration // when they were sent
}

// A flightQueue is a ring of flights, oldest first. There are never more than
// the feed may have sends on their way.
type flightQueue struct {
	ring []flight
	head int
	n    int
}

func (q *flightQueue) push(x flight) {
	q.ring[(q.head+q.n)%len(q.ring)] = x
	q.n++
}

func (q *flightQueue) first() *flight { return &q.ring[q.head] }

func (q *flightQueue) pop() flight {
	x := q.ring[q.head]
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	return x
}
