package segfile

import (
	"fmt"

	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/internal/invariant"
)

// A hotLog is the log of a device: which extents it has, where its head is and
// how far it is durable. It is guarded by the store's mutex.
//
//	exts[0]           exts[head]           spare
//	+-------+-------+-------+- - -+ ... + - - - + - - - +
//	| tail  |       | head  |     |     |       |       |
//	+-------+-------+-------+- - -+ ... + - - - + - - - +
//	            durable ^   ^ placed
type hotLog struct {
	seed       seed
	blockSize  int64
	extentSize int64
	offset     func(index uint32) int64 // of an extent on the device

	exts    []blockdev.Extent // that may hold live blocks, oldest first; the last is the head
	leaving []blockdev.Extent // off the tail, but somebody who began before may still read them
	spare   []blockdev.Extent // assigned and not begun, in order
	off     int64             // in the head: where the next run goes

	flight    []flight // placed and not yet known durable in order, oldest first
	durable   uint64   // everything below is on stable storage
	witnessed uint64   // the durable field of the newest header placed
	mute      bool     // headers witness nothing: a recovery isn't over
	sealed    bool     // nothing was placed since a seal that witnessed all
}

// A flight is a write from when it is placed until it, and everything before
// it, is durable. It outlives its LogWrite, which is used again as soon as the
// write itself is complete.
type flight struct {
	start, end uint64
	done       bool
	waiting    []*Run // barrier runs of a complete write that wait for the ones before
}

// pos returns the position of the head.
func (l *hotLog) pos() uint64 {
	if len(l.exts) == 0 {
		return 0
	}
	return l.base(l.exts[len(l.exts)-1]) + uint64(l.off)
}

func (l *hotLog) base(e blockdev.Extent) uint64 { return e.Seq * uint64(l.extentSize) }

// tail returns the lowest position the log still has.
func (l *hotLog) tail() uint64 {
	if len(l.exts) == 0 {
		return 0
	}
	return l.base(l.exts[0])
}

// deviceOffset returns where a live position lies on the device.
func (l *hotLog) deviceOffset(pos uint64) (int64, bool) {
	off, _, ok := l.locate(pos)
	return off, ok
}

// locate returns where a live position lies on the device, and the generation
// of its extent.
func (l *hotLog) locate(pos uint64) (off int64, gen uint32, ok bool) {
	seq := pos / uint64(l.extentSize)
	if len(l.exts) == 0 || seq < l.exts[0].Seq {
		for _, e := range l.leaving {
			if e.Seq == seq {
				return l.offset(e.Index) + int64(pos%uint64(l.extentSize)), e.Gen, true
			}
		}
		return 0, 0, false
	}
	// Sequence numbers have gaps only where a restart dropped a spare, so the
	// index is right or a little too high.
	i := int(min(seq-l.exts[0].Seq, uint64(len(l.exts)-1)))
	for i >= 0 && l.exts[i].Seq > seq {
		i--
	}
	if i < 0 || l.exts[i].Seq != seq {
		return 0, 0, false
	}
	return l.offset(l.exts[i].Index) + int64(pos%uint64(l.extentSize)), l.exts[i].Gen, true
}

// nextSeq returns the sequence number for the next spare extent.
func (l *hotLog) nextSeq() uint64 {
	if n := len(l.spare); n > 0 {
		return l.spare[n-1].Seq + 1
	}
	if n := len(l.exts); n > 0 {
		return l.exts[n-1].Seq + 1
	}
	return 1
}

// advance makes the next spare extent the head.
func (l *hotLog) advance() bool {
	if len(l.spare) == 0 {
		return false
	}
	l.exts = append(l.exts, l.spare[0])
	l.spare = append(l.spare[:0], l.spare[1:]...)
	l.off = 0
	return true
}

// place prepares one device write of at most maxBytes from the front of
// pending: it stamps the runs and puts the write in flight. It returns how many
// runs it took, and whether there is a write at all. A write ends at the end of
// an extent; one that only closes an extent takes no run. There is none when
// the next run needs an extent that isn't there yet.
func (l *hotLog) place(lw *LogWrite, pending []*Run, maxBytes int) (int, bool) {
	lw.reset()
	if len(pending) == 0 || (len(l.exts) == 0 || l.off == l.extentSize) && !l.advance() {
		return 0, false
	}
	head := l.exts[len(l.exts)-1]
	lw.start = l.base(head) + uint64(l.off)
	lw.Off = l.offset(head.Index) + l.off
	n := 0
	for _, r := range pending {
		size := int64(len(r.Bytes))
		if size > l.extentSize {
			invariant.Assert(false, "segfile: run of %d bytes in extents of %d", size, l.extentSize)
		}
		if l.off+size > l.extentSize {
			if l.off < l.extentSize { // else the run before fills it to its end
				l.fill(lw, head)
			}
			break
		}
		if n > 0 && lw.Bytes+len(r.Bytes) > maxBytes || len(lw.Bufs) >= maxPieces {
			break
		}
		r.checkShape(int(l.blockSize))
		r.stamp(l.seed, head.Gen, l.base(head)+uint64(l.off), l.witness())
		r.Mem.Hold()
		lw.add(r.Bytes)
		lw.Runs = append(lw.Runs, r)
		l.off += size
		n++
	}
	l.launch(lw)
	return n, true
}

// maxPieces bounds the pieces of one gathered write (UIO_MAXIOV is 1024).
const maxPieces = 512

// add appends b to the write's pieces, joining it to the last where their
// memory is adjacent.
func (lw *LogWrite) add(b []byte) {
	lw.Bytes += len(b)
	if n := len(lw.Bufs); n > 0 {
		last := lw.Bufs[n-1]
		if cap(last)-len(last) >= len(b) && &last[:len(last)+1][len(last)] == &b[0] {
			lw.Bufs[n-1] = last[:len(last)+len(b)]
			return
		}
	}
	lw.Bufs = append(lw.Bufs, b)
}

// fill closes the head extent with a filler, which is written with lw.
func (l *hotLog) fill(lw *LogWrite, head blockdev.Extent) {
	clear(lw.filler)
	h := runHeader{filler: true, used: uint32(l.extentSize - l.off), gen: head.Gen,
		pos: l.base(head) + uint64(l.off), durable: l.witness()}
	h.put(lw.filler, l.seed)
	lw.add(lw.filler)
	l.off = l.extentSize
}

// witness returns what a header that is placed now says is durable.
func (l *hotLog) witness() uint64 {
	if l.mute {
		return 0
	}
	return l.durable
}

// launch puts a placed write in flight.
func (l *hotLog) launch(lw *LogWrite) {
	lw.end = lw.start + uint64(lw.Bytes)
	if l.off == l.extentSize {
		lw.end = l.base(l.exts[len(l.exts)-1]) + uint64(l.extentSize)
	}
	l.witnessed = l.witness()
	l.sealed = len(lw.Runs) == 1 && len(lw.Runs[0].Blocks) == 0
	l.flight = append(l.flight, flight{start: lw.start, end: lw.end})
}

// landed notes that a write is on stable storage, and moves durable over all
// writes that are, in order. It appends to released every run that is done now:
// those of lw, and barrier runs that had waited for lw. Barrier runs of lw that
// have to wait themselves it keeps.
func (l *hotLog) landed(lw *LogWrite, released []*Run) []*Run {
	for i := range l.flight {
		if f := &l.flight[i]; f.start == lw.start {
			f.done = true
			for _, r := range lw.Runs {
				if r.Barrier && i > 0 {
					f.waiting = append(f.waiting, r)
				} else {
					released = append(released, r)
				}
			}
		}
	}
	n := 0
	for n < len(l.flight) && l.flight[n].done {
		l.durable = l.flight[n].end
		released = append(released, l.flight[n].waiting...)
		n++
	}
	if n > 0 {
		rest := copy(l.flight, l.flight[n:])
		clear(l.flight[rest:])
		l.flight = l.flight[:rest]
	}
	return released
}

// needsSeal reports that the newest write has no witness and none is coming.
func (l *hotLog) needsSeal() bool {
	return len(l.flight) == 0 && l.witnessed < l.durable && !l.sealed
}

func (l *hotLog) String() string {
	return fmt.Sprintf("log [%d, %d), durable to %d, %d extents and %d spare", l.tail(), l.pos(), l.durable, len(l.exts), len(l.spare))
}
