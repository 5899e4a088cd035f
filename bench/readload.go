package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

// A pagePattern says what stands in each page: which page it is, and random
// bytes that are the same in all.
//
//	0         8       16             16384
//	+---------+--------+--------------+
//	| segment |  page  | random bytes |
//	+---------+--------+--------------+
type pagePattern struct{ random [redoubt.PageSize]byte }

const patternHead = 16

func newPagePattern() *pagePattern {
	p := new(pagePattern)
	fillRandom(p.random[:])
	return p
}

// put fills a page.
func (p *pagePattern) put(b []byte, segment int, page uint32) {
	copy(b, p.random[:])
	binary.LittleEndian.PutUint64(b, uint64(segment))
	binary.LittleEndian.PutUint64(b[8:], uint64(page))
}

// check returns what is wrong with a page that was read.
func (p *pagePattern) check(b []byte, segment int, page uint32) error {
	le := binary.LittleEndian
	if s, g := le.Uint64(b), le.Uint64(b[8:]); s != uint64(segment) || g != uint64(page) {
		return fmt.Errorf("page %d of segment %d holds page %d of segment %d: %w", page, segment, g, s, redoubt.ErrCorrupt)
	}
	if !bytes.Equal(b[patternHead:redoubt.PageSize], p.random[patternHead:]) {
		return fmt.Errorf("page %d of segment %d: its bytes are not those that were written: %w", page, segment, redoubt.ErrCorrupt)
	}
	return nil
}

// fillWindow bounds the pages in flight while they are written.
const fillWindow = 1024

// fill writes every page once, in full, and waits until the node has put all of
// them into pages.
func (l *readLoad) fill(ctx context.Context, conns []*peer.Conn) error {
	stop := context.AfterFunc(ctx, func() { l.fail(context.Cause(ctx)) })
	defer stop()
	var (
		w    = conns[0].Welcome()
		buf  = make([]byte, w.MaxFrame)
		page [redoubt.PageSize]byte
		fb   wire.AppendBuilder
		rb   redo.Builder
		sent int
	)
	for _, s := range l.sets {
		for s.last < redoubt.LSN(s.pages) {
			fb.Reset(buf, int(w.Align))
			prev := s.last
			rb.Reset(fb.Next(), s.volume, 0, 1, prev)
			for s.last < redoubt.LSN(s.pages) {
				l.pattern.put(page[:], s.index, uint32(s.last))
				if !rb.Write(s.last+1, uint32(s.last), 0, 0, page[:], true) {
					break
				}
				s.last++
			}
			fb.Commit(s.handle, len(rb.Finish()), prev, prev)
			if err := conns[s.conn].Append(fb.Finish(0)); err != nil {
				return fmt.Errorf("bench: read: writing pages: %w", err)
			}
			sent += rb.Count()
			if err := l.awaitAcks(max(0, sent-fillWindow)); err != nil {
				return fmt.Errorf("bench: read: writing pages: %w", err)
			}
			l.opts.Progress.Show(uint64(sent), uint64(l.opts.Pages), fmt.Sprintf("writing, page %d of %d", sent, l.opts.Pages))
		}
	}
	if err := l.awaitAcks(sent); err != nil {
		return fmt.Errorf("bench: read: writing pages: %w", err)
	}
	return l.settle(ctx, conns)
}

// awaitAcks waits until so many pages are durable.
func (l *readLoad) awaitAcks(n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.err == nil {
		acked := 0
		for _, s := range l.sets {
			acked += int(s.scl)
		}
		if acked >= n {
			return nil
		}
		l.moved.Wait()
	}
	return l.err
}

// settle tells the node that nobody will ask for older versions, and waits until
// all of the log is in pages.
func (l *readLoad) settle(ctx context.Context, conns []*peer.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, l.opts.Settle)
	defer cancel()
	var waits []settling
	for _, s := range l.sets {
		if err := conns[s.conn].SetFloor(ctx, s.handle, s.last, s.last); err != nil {
			return fmt.Errorf("bench: read: %w", err)
		}
		waits = append(waits, settling{conns[s.conn], s.id, s.last})
	}
	return awaitCoalesced(ctx, waits, l.opts.Progress)
}

// run reads until time is up, ctx is done or the load fails, and then until every
// request has its answer.
func (l *readLoad) run(ctx context.Context, conns []*peer.Conn) {
	l.epoch = time.Now()
	ctx, cancel := context.WithTimeout(ctx, l.opts.Duration)
	defer cancel()
	for i, c := range conns {
		depth := (l.opts.Depth + len(conns) - 1 - i) / len(conns)
		r := newPageReader(l, c, l.byConn[i], depth, uint64(i))
		l.readers = append(l.readers, r)
		r.begin()
	}
	tick := time.NewTicker(redrawEvery)
	defer tick.Stop()
	for going := true; going; {
		select {
		case <-ctx.Done():
			going = false
		case <-l.failed:
			going = false
		case <-tick.C:
			t := time.Since(l.epoch)
			l.opts.Progress.Show(uint64(t), uint64(l.opts.Duration), fmt.Sprintf("reading, %.0f s", t.Seconds()))
		}
	}
	for _, r := range l.readers {
		r.stop()
	}
	for _, r := range l.readers {
		<-r.drained
	}
	l.elapsed = time.Since(l.epoch)
	l.opts.Progress.Done()
}

// A pageReader keeps a number of reads in flight on one connection. From begin
// on it runs on the connection's reader goroutine.
type pageReader struct {
	load    *readLoad
	conn    *peer.Conn
	sets    []*pageSet
	reqs    []readSlot
	drained chan struct{}

	mu      sync.Mutex
	rnd     *rand.Rand
	latency Histogram
	left    int // requests in flight
	stopped bool
}

// A readSlot is one place in a pageReader's queue.
type readSlot struct {
	peer.ReadRequest
	set   *pageSet
	start time.Duration
}

func newPageReader(l *readLoad, c *peer.Conn, sets []*pageSet, depth int, seed uint64) *pageReader {
	r := &pageReader{load: l, conn: c, sets: sets, reqs: make([]readSlot, depth), drained: make(chan struct{}), rnd: rand.New(rand.NewPCG(seed, 2))}
	n := l.opts.Vector
	buf := make([]byte, depth*n*redoubt.PageSize)
	for i := range r.reqs {
		q := &r.reqs[i]
		q.Buf, buf = buf[:n*redoubt.PageSize], buf[n*redoubt.PageSize:]
		q.Pages = make([]uint32, n)
		q.Descs = make([]wire.PageDesc, n)
		q.PGPages = uint32(l.opts.PGSize / redoubt.PageSize)
		q.Done, q.Ctx = r.answered, q
	}
	return r
}

// begin sends all requests for the first time.
func (r *pageReader) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.reqs {
		r.left++
		r.ask(&r.reqs[i])
	}
}

// ask sends a request for random pages. r.mu is held.
func (r *pageReader) ask(q *readSlot) {
	s := r.sets[r.rnd.IntN(len(r.sets))]
	q.set, q.Handle, q.Point, q.Volume = s, s.handle, s.last, s.volume
	for i := range q.Pages {
		q.Pages[i] = uint32(r.rnd.IntN(s.pages))
	}
	q.start = time.Since(r.load.epoch)
	if err := r.conn.Read(&q.ReadRequest); err != nil {
		r.load.fail(err)
		r.leave()
	}
}

// leave takes a request out of the game. r.mu is held.
func (r *pageReader) leave() {
	if r.left--; r.left == 0 {
		close(r.drained)
	}
}

// answered is the Done of all requests.
func (r *pageReader) answered(req *peer.ReadRequest, err error) {
	q := req.Ctx.(*readSlot)
	now := time.Since(r.load.epoch)
	if err == nil {
		err = r.verify(q)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.load.fail(err)
		r.stopped = true
	} else {
		r.latency.Record(int64(now - q.start))
	}
	if r.stopped {
		r.leave()
		return
	}
	r.ask(q)
}

// verify compares every page of an answer with what was written. The sums have
// been checked by the connection.
func (r *pageReader) verify(q *readSlot) error {
	for i, d := range q.Descs {
		if d.Code != wire.CodeOK {
			return &wire.Error{Code: d.Code, Entry: wire.NoEntry, Message: fmt.Sprintf("page %d of segment %v: %v", d.Page, q.set.id, d.Code)}
		}
		if err := r.load.pattern.check(q.Buf[i*redoubt.PageSize:(i+1)*redoubt.PageSize], q.set.index, d.Page); err != nil {
			return err
		}
	}
	return nil
}

func (r *pageReader) stop() {
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
}
