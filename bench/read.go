package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/wire"
)

// ReadOptions describe random reads of a node's pages. Node is required; any
// other field left zero takes the default in its comment, and one out of range
// is an error.
type ReadOptions struct {
	// Node and NodeHTTP are as in AppendOptions.
	Node, NodeHTTP string

	// Pages is how many pages are written, over all segments, and then read at
	// random. Default 10000.
	Pages int

	// Segments is how many fresh segments hold them; they are deleted at the end.
	// Default 16. PGSize is the size of each in bytes. Default 64 MiB, or what the
	// pages need.
	Segments int
	PGSize   int64

	// Depth is the number of requests without an answer. Default 64.
	Depth int
	// Vector is the pages of a request, all of one segment, at most 64. Default 1.
	Vector int

	// Duration ends the load. Default 5 s. Connections share the segments.
	// Default 2.
	Duration    time.Duration
	Connections int

	// Settle bounds how long the node may take to coalesce what was written.
	// Default 2 min.
	Settle time.Duration

	// Progress is told how it goes. Default nobody.
	Progress *Progress
}

// A ReadResult is what random reads achieved. An op is one request.
type ReadResult struct {
	Ops        uint64  `json:"ops"`
	Errors     uint64  `json:"errors"`
	ElapsedS   float64 `json:"elapsed_s"`
	OpsPerS    float64 `json:"ops_per_s"`
	PagesPerS  float64 `json:"pages_per_s"`
	BytesPerS  float64 `json:"bytes_per_s"`
	P50us      float64 `json:"p50_us"`
	P99us      float64 `json:"p99_us"`
	P999us     float64 `json:"p999_us"`
	CPUusPerOp float64 `json:"cpu_us_per_op"`
	CPUOf      string  `json:"cpu_of"` // "node" or "this process"
	Pages      int     `json:"pages"`
	Depth      int     `json:"depth"`
	Vector     int     `json:"vector"`
}

func (o ReadOptions) withDefaults() (ReadOptions, error) {
	setZero(&o.Pages, 10000)
	setZero(&o.Segments, 16)
	setZero(&o.Depth, 64)
	setZero(&o.Vector, 1)
	setZero(&o.Duration, 5*time.Second)
	setZero(&o.Connections, 2)
	setZero(&o.Settle, 2*time.Minute)
	var err error
	switch {
	case o.Node == "":
		err = errors.New("no node: name its address")
	case o.Pages < 1 || o.Segments < 1 || o.Segments > 65536 || o.Pages < o.Segments:
		err = fmt.Errorf("%d pages in %d segments: want at least one page in each", o.Pages, o.Segments)
	case o.Depth < 1 || o.Depth > wire.MaxInFlightLimit:
		err = fmt.Errorf("depth %d: want 1 to %d", o.Depth, wire.MaxInFlightLimit)
	case o.Vector < 1 || o.Vector > wire.MaxPages:
		err = fmt.Errorf("%d pages in a request: want 1 to %d", o.Vector, wire.MaxPages)
	case o.Duration < 0 || o.Settle < 0:
		err = fmt.Errorf("duration %v, settle %v: want none negative", o.Duration, o.Settle)
	case o.Connections < 1 || o.Connections > 1024:
		err = fmt.Errorf("%d connections: want 1 to 1024", o.Connections)
	default:
		need := (o.Pages + o.Segments - 1) / o.Segments
		setZero(&o.PGSize, max(64<<20, int64(need)*redoubt.PageSize))
		err = checkPG(o.PGSize, need)
	}
	if err != nil {
		return o, fmt.Errorf("bench: read: %w: %w", err, redoubt.ErrInvalid)
	}
	o.Connections = min(o.Connections, o.Segments, o.Depth)
	return o, nil
}

// RunRead writes the pages, waits until the node has coalesced them, and then
// reads until Duration has passed or ctx is done. Every page that comes is
// compared with what was written; the first that differs ends the load.
func RunRead(ctx context.Context, o ReadOptions) (res ReadResult, err error) {
	if o, err = o.withDefaults(); err != nil {
		return res, err
	}
	l := newReadLoad(o)
	conns, err := dialAll(ctx, o.Node, o.Connections, l.options)
	if err != nil {
		return res, err
	}
	defer closeAll(conns)
	defer l.end()
	targets, err := makeTargets(ctx, conns, o.Segments, uint32(o.PGSize/redoubt.PageSize))
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, deleteTargets(ctx, conns[0], targets)) }()
	l.deal(targets)
	if err := l.fill(ctx, conns); err != nil {
		return res, err
	}
	m, err := startMeter(ctx, o.Node, o.NodeHTTP)
	if err != nil {
		return res, err
	}
	l.run(ctx, conns)
	res = l.result()
	c, merr := m.stop(context.WithoutCancel(ctx))
	if res.CPUOf = c.cpuOf; res.Ops > 0 {
		res.CPUusPerOp = float64(c.cpu.Nanoseconds()) / 1e3 / float64(res.Ops)
	}
	if lerr := l.failure(); lerr != nil {
		return res, errors.Join(fmt.Errorf("bench: read: %w", lerr), merr)
	}
	return res, merr
}

// A readLoad is a running RunRead.
type readLoad struct {
	opts    ReadOptions
	pattern *pagePattern
	sets    []*pageSet   // one for each segment
	byConn  [][]*pageSet // the same

	epoch   time.Time
	elapsed time.Duration
	readers []*pageReader

	mu     sync.Mutex
	moved  *sync.Cond // an SCL moved, or the load failed
	err    error
	errors uint64
	ended  bool
	failed chan struct{}
}

// A pageSet is the pages of one segment.
type pageSet struct {
	target
	index int         // among all
	pages int         // how many are written, from page 0 on
	last  redoubt.LSN // of the newest record
	scl   redoubt.LSN // guarded by readLoad.mu
}

func newReadLoad(o ReadOptions) *readLoad {
	l := &readLoad{opts: o, pattern: newPagePattern(), byConn: make([][]*pageSet, o.Connections), failed: make(chan struct{})}
	l.moved = sync.NewCond(&l.mu)
	return l
}

// options returns the callbacks of connection i.
func (l *readLoad) options(i int) peer.Options {
	return peer.Options{
		Name: "redoubt bench read",
		OnAck: func(handle uint32, scl redoubt.LSN) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if sets := l.byConn[i]; int(handle) < len(sets) {
				sets[handle].scl = scl
				l.moved.Broadcast()
			}
		},
		OnError: func(_ uint64, entry int, err error) {
			l.fail(fmt.Errorf("the node refused entry %d of a frame: %w", entry, err))
		},
		OnDown: l.fail,
	}
}

func (l *readLoad) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.errors++
	if l.err == nil {
		l.err = err
		close(l.failed)
		l.moved.Broadcast()
	}
}

func (l *readLoad) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// end says that connections may go down from now on.
func (l *readLoad) end() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
}

// deal spreads the pages over the segments.
func (l *readLoad) deal(targets []target) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, t := range targets {
		n := (l.opts.Pages + l.opts.Segments - 1 - i) / l.opts.Segments
		s := &pageSet{target: t, index: i, pages: n}
		l.sets = append(l.sets, s)
		l.byConn[t.conn] = append(l.byConn[t.conn], s)
	}
}

// result adds the readers up, which are at rest.
func (l *readLoad) result() ReadResult {
	var h Histogram
	for _, r := range l.readers {
		h.Merge(&r.latency)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	o, s := l.opts, l.elapsed.Seconds()
	res := ReadResult{Ops: h.Count(), Errors: l.errors, ElapsedS: s, P50us: us(&h, 50), P99us: us(&h, 99), P999us: us(&h, 99.9),
		Pages: o.Pages, Depth: o.Depth, Vector: o.Vector}
	res.OpsPerS = float64(res.Ops) / s
	res.PagesPerS = res.OpsPerS * float64(o.Vector)
	res.BytesPerS = res.PagesPerS * redoubt.PageSize
	return res
}
