package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

// A writer writes the segments of one lane over a connection of its own, as a
// volume's writer does: it opens each with a new epoch and a truncation, keeps
// several frames in flight, and tells VDL and PGMRPL along with the batches.
type writer struct {
	env  *Env
	conn *peer.Conn
	logs []*segmentLog // by handle
	r    *rand.Rand
	buf  []byte // of a frame
	data []byte // of a record

	mu   sync.Mutex // guards what follows, and acked and flight of each log
	move sync.Cond  // something was acknowledged, or the connection is down
	err  error      // why it goes on no more
}

// A segmentLog is where the writer stands in one segment.
type segmentLog struct {
	*segment
	handle uint32
	last   redoubt.LSN // that was sent
	floor  redoubt.LSN
	pages  map[uint32]redoubt.LSN // the last record of each page

	acked  redoubt.LSN
	flight []redoubt.LSN // the last LSNs of the batches without an ack
}

// maxFlight bounds a segment's batches without an ack.
const maxFlight = 6

// Load writes to all segments until the power goes. It returns nil when a life has
// used up its LSNs.
func (n *Node) Load(ctx context.Context, e *Env, have []uint64) error {
	var writers []*writer
	for lane := range e.Paths {
		w, err := n.openWriter(ctx, e, uint8(lane), have)
		if err != nil {
			return err
		}
		defer w.conn.Close()
		writers = append(writers, w)
	}
	errs := make([]error, len(writers))
	var wg sync.WaitGroup
	for i, w := range writers {
		wg.Go(func() { errs[i] = w.run(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (n *Node) openWriter(ctx context.Context, e *Env, lane uint8, have []uint64) (*writer, error) {
	w := &writer{env: e, r: rand.New(rand.NewPCG(e.Seed, uint64(e.Life)<<8|uint64(lane))), data: make([]byte, maxChange)}
	w.move.L = &w.mu
	var err error
	w.conn, err = peer.Dial(ctx, cmp.Or(e.Listen, nodeAddr), peer.Options{
		Name: fmt.Sprintf("writer %d", lane), OnAck: w.onAck,
		OnError: func(_ uint64, _ int, err error) { w.stop(fmt.Errorf("an append was refused: %w", err)) },
		OnDown:  w.stop,
	})
	if err != nil {
		return nil, err
	}
	w.buf = make([]byte, w.conn.Welcome().MaxFrame)
	for _, g := range n.segments {
		if g.lane == lane {
			if err := w.open(ctx, g, redoubt.LSN(have[g.stream])); err != nil {
				w.conn.Close()
				return nil, fmt.Errorf("guest: stream %d: %w", g.stream, err)
			}
		}
	}
	return w, nil
}

// open takes a segment over from the writer before. What that one had sent past
// SCL is void from now on, also what may still turn up.
func (w *writer) open(ctx context.Context, g *segment, scl redoubt.LSN) error {
	e := w.env
	id, vol, ours := g.id(e.Seed), g.volume(e.Seed), epoch(e.Life)
	if !g.exists {
		if _, err := w.conn.Create(ctx, &wire.Create{Segment: id, Volume: vol, PG: g.pg(), Pages: pgPages, Kind: redoubt.FullSegment,
			Lane: g.lane, VolumeEpoch: 1, MembershipEpoch: 1, GeometryEpoch: 1}); err != nil {
			return err
		}
	}
	d, err := w.conn.Fence(ctx, id, ours)
	if err == nil && d.SCL != scl {
		err = fmt.Errorf("SCL is %#x, it was %#x: %w", d.SCL, scl, ErrLost)
	}
	if err == nil {
		d, err = w.conn.Truncate(ctx, id, redoubt.Truncation{Epoch: ours, From: scl, To: firstLSN(e.Life)})
	}
	if err == nil && (d.SCL != scl || d.Highest != scl) {
		err = fmt.Errorf("after a truncation above %#x SCL is %#x and the highest LSN %#x: %w", scl, d.SCL, d.Highest, ErrLost)
	}
	if err != nil {
		return err
	}
	at, err := w.conn.Attach(ctx, &wire.Attach{Segment: id, Volume: vol, VolumeEpoch: ours, MembershipEpoch: 1})
	if err != nil {
		return err
	}
	l := &segmentLog{segment: g, handle: at.Handle, last: scl, floor: d.Floor, acked: scl, pages: make(map[uint32]redoubt.LSN)}
	for page, p := range g.image.pages {
		l.pages[page] = p.last
	}
	w.mu.Lock()
	w.logs = append(w.logs, l)
	w.mu.Unlock()
	return nil
}

// onAck is called on the connection's goroutine.
func (w *writer) onAck(handle uint32, scl redoubt.LSN) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.logs {
		if l.handle != handle || scl <= l.acked {
			continue
		}
		l.acked = scl
		for len(l.flight) > 0 && l.flight[0] <= scl {
			l.flight = l.flight[1:]
		}
		w.env.Ack(l.stream, uint64(scl))
	}
	w.move.Broadcast()
}

func (w *writer) stop(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.move.Broadcast()
}

// run sends frames until the life's LSNs are used up or the connection ends. How
// much is in flight changes now and then: a shallow load ends in other ways than
// a deep one.
func (w *writer) run(ctx context.Context) error {
	depth := 1
	for req := uint64(1); ctx.Err() == nil; req++ {
		if w.r.IntN(50) == 0 || req == 1 {
			depth = 1 + w.r.IntN(maxFlight)
		}
		if err := w.await(depth); err != nil {
			return err
		}
		frame, full := w.frame(req)
		if full {
			return nil
		}
		if err := w.conn.Append(frame); err != nil {
			return err
		}
	}
	return nil
}

// await waits until every segment has fewer than so many batches in flight.
func (w *writer) await(depth int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.err == nil && w.deepest() >= depth {
		w.move.Wait()
	}
	return w.err
}

func (w *writer) deepest() int {
	n := 0
	for _, l := range w.logs {
		n = max(n, len(l.flight))
	}
	return n
}

// frame builds a frame of one to three batches.
func (w *writer) frame(req uint64) (frame []byte, full bool) {
	var fb wire.AppendBuilder
	fb.Reset(w.buf, int(w.conn.Welcome().Align))
	for range 1 + w.r.IntN(3) {
		l := w.logs[w.r.IntN(len(w.logs))]
		room := fb.Next()
		if len(room) < redoubt.MaxBatchBytes/2 {
			break
		}
		if l.last+maxBatchRecords >= firstLSN(w.env.Life+1) {
			return nil, true
		}
		n := w.batch(l, room)
		vdl, floor := w.told(l)
		fb.Commit(l.handle, n, vdl, floor)
	}
	return fb.Finish(req), false
}

const maxBatchRecords = 120

// batch builds the segment's next batch in room and gives its length.
func (w *writer) batch(l *segmentLog, room []byte) int {
	var b redo.Builder
	b.Reset(room, l.volume(w.env.Seed), l.pg(), epoch(w.env.Life), l.last)
	want := 1 + w.r.IntN(16)
	if w.r.IntN(4) == 0 {
		want = 1 + w.r.IntN(maxBatchRecords)
	}
	lsn := max(l.last, firstLSN(w.env.Life))
	for range want {
		c := changeAt(w.env.Seed, l.stream, lsn+1, w.data)
		if !c.add(&b, lsn+1, l.pages[c.page]) {
			break
		}
		lsn++
		if c.kind != redo.Mark {
			l.pages[c.page] = lsn
		}
	}
	l.last = lsn
	w.mu.Lock()
	l.flight = append(l.flight, lsn)
	w.mu.Unlock()
	return len(b.Finish())
}

// told gives what is piggybacked on a batch: all that was acknowledged is durable
// (the volume has one copy), and readers stay somewhat behind.
func (w *writer) told(l *segmentLog) (vdl, floor redoubt.LSN) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if behind := redoubt.LSN(w.r.IntN(200)); l.acked > l.floor+behind {
		l.floor = l.acked - behind
	}
	return l.acked, l.floor
}
