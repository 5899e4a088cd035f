package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-storage/redoubt/ioring"
	"github.com/redoubt-storage/redoubt/slab"
	"golang.org/x/sys/unix"
)

// The values of DeviceOptions.Op and DeviceOptions.Durability.
const (
	OpAppend = "append"
	OpRead   = "read"

	FUA   = "fua"
	Flush = "flush"
	PLP   = "plp"
)

// DeviceOptions describe a load on devices that goes through the I/O engine and
// nothing else.
type DeviceOptions struct {
	// Op is "append": write in sequence over the range, from its start again
	// when its end is reached; or "read": read at random aligned positions.
	// Default append.
	Op string

	// BlockSize is the bytes of one operation, a multiple of 512, at most
	// 16 MiB. Default 4096 for append, 16384 (a page) for read.
	BlockSize int

	// Depth is the number of operations under way on each device, 1 to 4096.
	// Default 32.
	Depth int

	// Duration ends the load; what is under way then still counts. Default 5 s.
	Duration time.Duration

	// Engine is as in ioring.Options. Default auto.
	Engine string

	// Durability says what completes an append: "fua", a DSYNC write; "flush", a
	// write and a data-sync that began after it, one at a time for the device,
	// issued whenever none is running; "plp", the write alone. Default fua.
	Durability string

	// FileOffset and FileSize give the range of each device in bytes. Appends
	// destroy what is there. Default the whole device.
	FileOffset, FileSize int64
}

// A Result is what a load achieved. Latency is from Submit to durable.
type Result struct {
	Ops        uint64        `json:"ops"`
	Errors     uint64        `json:"errors"`
	Elapsed    time.Duration `json:"elapsed_ns"`
	OpsPerS    float64       `json:"ops_per_s"`
	BytesPerS  float64       `json:"bytes_per_s"`
	P50us      float64       `json:"p50_us"`
	P99us      float64       `json:"p99_us"`
	P999us     float64       `json:"p999_us"`
	CPUusPerOp float64       `json:"cpu_us_per_op"` // user and system, all threads of this process
}

// RunDevice puts the load on each of fds at the same time, until Duration has
// passed or ctx is done. Operations that failed are in Result.Errors, and the
// first of them is the error as well; then the Result still counts the others.
func RunDevice(ctx context.Context, fds []int, o DeviceOptions) (Result, error) {
	o, err := o.withDefaults()
	if err != nil {
		return Result{}, fmt.Errorf("bench: device: %w", err)
	}
	if len(fds) == 0 {
		return Result{}, errors.New("bench: device: no devices")
	}
	pool, err := slab.New(slab.Options{
		Size:  (o.BlockSize + slab.Align - 1) / slab.Align * slab.Align,
		Count: o.Depth * len(fds),
		Name:  "bench",
	})
	if err != nil {
		return Result{}, fmt.Errorf("bench: device: %w", err)
	}
	fillRandom(pool.Region())
	res, err := runDevice(ctx, fds, o, pool)
	if err = errors.Join(err, pool.Close()); err != nil {
		return res, fmt.Errorf("bench: device: %w", err)
	}
	return res, nil
}

func (o DeviceOptions) withDefaults() (DeviceOptions, error) {
	if o.Op == "" {
		o.Op = OpAppend
	}
	if o.BlockSize == 0 {
		o.BlockSize = map[string]int{OpAppend: 4096, OpRead: 16384}[o.Op]
	}
	if o.Depth == 0 {
		o.Depth = 32
	}
	if o.Duration == 0 {
		o.Duration = 5 * time.Second
	}
	if o.Durability == "" {
		o.Durability = FUA
	}
	switch {
	case o.Op != OpAppend && o.Op != OpRead:
		return o, fmt.Errorf("op %q: want append or read", o.Op)
	case o.BlockSize < 512 || o.BlockSize > 16<<20 || o.BlockSize%512 != 0:
		return o, fmt.Errorf("block size %d: want a multiple of 512, 16 MiB at most", o.BlockSize)
	case o.Depth < 1 || o.Depth > 4096:
		return o, fmt.Errorf("depth %d: want 1 to 4096", o.Depth)
	case o.Duration < 0:
		return o, fmt.Errorf("duration %v: want a positive one", o.Duration)
	case o.Durability != FUA && o.Durability != Flush && o.Durability != PLP:
		return o, fmt.Errorf("durability %q: want fua, flush or plp", o.Durability)
	case o.FileOffset < 0 || o.FileOffset%512 != 0 || o.FileSize < 0:
		return o, fmt.Errorf("range of %d bytes at %d: want neither negative, the offset a multiple of 512", o.FileSize, o.FileOffset)
	}
	return o, nil
}

// runDevice opens a lane for each device, runs them all, and adds them up.
func runDevice(ctx context.Context, fds []int, o DeviceOptions, pool *slab.Pool) (res Result, err error) {
	var lanes []*lane
	defer func() {
		for _, l := range lanes {
			err = errors.Join(err, l.close())
		}
	}()
	var stop atomic.Bool
	for i, fd := range fds {
		l, err := openLane(fd, o, pool, &stop, uint64(i))
		if err != nil {
			return res, fmt.Errorf("device %d: %w", i, err)
		}
		lanes = append(lanes, l)
	}
	start, cpu := time.Now(), cpuTime()
	ctx, cancel := context.WithTimeout(ctx, o.Duration)
	defer cancel()
	for _, l := range lanes {
		l.start()
	}
	<-ctx.Done()
	stop.Store(true)
	for _, l := range lanes {
		<-l.drained
	}
	res.Elapsed = time.Since(start)
	return addUp(res, lanes, o, cpuTime()-cpu)
}

// addUp fills in res from the lanes, which are at rest.
func addUp(res Result, lanes []*lane, o DeviceOptions, cpu time.Duration) (Result, error) {
	var all Histogram
	var first error
	for _, l := range lanes {
		all.Merge(&l.latency)
		res.Errors += l.errors
		if first == nil {
			first = l.firstErr
		}
	}
	res.Ops = all.Count()
	seconds := res.Elapsed.Seconds()
	res.OpsPerS = float64(res.Ops) / seconds
	res.BytesPerS = res.OpsPerS * float64(o.BlockSize)
	res.P50us = float64(all.Percentile(50)) / 1e3
	res.P99us = float64(all.Percentile(99)) / 1e3
	res.P999us = float64(all.Percentile(99.9)) / 1e3
	if res.Ops > 0 {
		res.CPUusPerOp = float64(cpu.Nanoseconds()) / 1e3 / float64(res.Ops)
	}
	if first != nil {
		return res, fmt.Errorf("%d operations failed, the first: %w", res.Errors, first)
	}
	return res, nil
}

// cpuTime returns the CPU time that this process has used, in user and kernel,
// the ring's kernel workers included.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0 // EFAULT and EINVAL only, neither of which can be
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A request is one place in a lane's queue: an op that is submitted again as
// soon as it is durable.
type request struct {
	op    ioring.Op
	buf   *slab.Buf
	start time.Duration // of the present round, since lane.epoch
	next  *request      // in lane.written or lane.covered
}

// A lane is the load on one device. Its methods from submit on run in the Done of its
// ops: on one thread with the ring, on many with the sync engine.
type lane struct {
	// Set by openLane, never changed.
	engine   ioring.Engine
	opts     DeviceOptions
	requests []request
	blocks   int64 // in the range
	epoch    time.Time
	stop     *atomic.Bool
	drained  chan struct{} // closed when nothing is under way any more

	mu       sync.Mutex
	left     int // requests that will be submitted again, or are under way
	nextPos  int64
	rnd      *rand.Rand
	latency  Histogram
	errors   uint64
	firstErr error

	// With Durability flush: what is written waits for the next sync, what is
	// covered for the one that runs.
	written, covered *request
	syncing          bool
	sync             ioring.Op
	spare            []*ioring.Op // room for what synced submits, unless a synced has it
}

func openLane(fd int, o DeviceOptions, pool *slab.Pool, stop *atomic.Bool, seed uint64) (*lane, error) {
	size := o.FileSize
	if size == 0 {
		end, err := unix.Seek(fd, 0, unix.SEEK_END)
		if err != nil {
			return nil, fmt.Errorf("finding its size: %w", err)
		}
		size = end - o.FileOffset
	}
	if size < int64(o.BlockSize) {
		return nil, fmt.Errorf("a range of %d bytes holds no block of %d", size, o.BlockSize)
	}
	engine, _, err := ioring.Open(fd, ioring.Options{Engine: o.Engine, Depth: max(o.Depth, 64), Workers: o.Depth, Regions: [][]byte{pool.Region()}})
	if err != nil {
		return nil, err
	}
	l := &lane{
		engine:   engine,
		opts:     o,
		requests: make([]request, o.Depth),
		blocks:   size / int64(o.BlockSize),
		epoch:    time.Now(),
		stop:     stop,
		drained:  make(chan struct{}),
		rnd:      rand.New(rand.NewPCG(seed, 1)),
		left:     o.Depth,
		spare:    make([]*ioring.Op, 0, o.Depth+1),
	}
	l.sync = ioring.Op{Kind: ioring.OpSync, Done: l.synced}
	for i := range l.requests {
		r := &l.requests[i]
		r.buf = pool.TryGet() // there is one for each request of each lane
		r.op = ioring.Op{Kind: ioring.OpWrite, Bufs: [][]byte{r.buf.Bytes()[:o.BlockSize]}, Done: l.transferred, Ctx: r}
		r.op.DSync = o.Durability == FUA
		if o.Op == OpRead {
			r.op.Kind, r.op.DSync = ioring.OpRead, false
		}
	}
	return l, nil
}

func (l *lane) close() error {
	err := l.engine.Close()
	for i := range l.requests {
		l.requests[i].buf.Drop()
	}
	return err
}

// start submits all requests for the first time.
func (l *lane) start() {
	ops := make([]*ioring.Op, 0, len(l.requests))
	now := time.Since(l.epoch)
	for i := range l.requests {
		l.place(&l.requests[i], now)
		ops = append(ops, &l.requests[i].op)
	}
	l.engine.Submit(ops...)
}

// place chooses where r goes next. The lock is held, or nothing runs yet.
func (l *lane) place(r *request, now time.Duration) {
	block := l.nextPos
	if l.opts.Op == OpRead {
		block = l.rnd.Int64N(l.blocks)
	} else if l.nextPos++; l.nextPos == l.blocks {
		l.nextPos = 0
	}
	r.op.Off = l.opts.FileOffset + block*int64(l.opts.BlockSize)
	r.start = now
}

// transferred is the Done of reads and writes.
func (l *lane) transferred(op *ioring.Op, err error) {
	r := op.Ctx.(*request)
	now := time.Since(l.epoch)
	l.mu.Lock()
	if err == nil && op.Kind == ioring.OpWrite && l.opts.Durability == Flush {
		r.next, l.written = l.written, r
		begin := l.beginSync()
		l.mu.Unlock()
		if begin {
			l.sync.SubmitTo(l.engine)
		}
		return
	}
	again := l.finish(r, now, err)
	last := l.left == 0
	l.mu.Unlock()
	switch {
	case again:
		op.SubmitTo(l.engine)
	case last:
		close(l.drained)
	}
}

// beginSync takes what is written under the next sync, if none is running and
// there is anything to cover. The lock is held; the caller submits the sync.
func (l *lane) beginSync() bool {
	if l.syncing || l.written == nil {
		return false
	}
	l.syncing = true
	l.covered, l.written = l.written, nil
	return true
}

// synced is the Done of syncs. It starts the next one ahead of the requests that
// this one covered, which take their next round behind it.
func (l *lane) synced(_ *ioring.Op, err error) {
	now := time.Since(l.epoch)
	l.mu.Lock()
	covered := l.covered
	l.covered, l.syncing = nil, false
	ops := l.spare[:0]
	l.spare = nil
	if l.beginSync() {
		ops = append(ops, &l.sync)
	}
	for r := covered; r != nil; {
		next := r.next
		if l.finish(r, now, err) {
			ops = append(ops, &r.op)
		}
		r = next
	}
	last := l.left == 0
	l.mu.Unlock()
	l.engine.Submit(ops...)
	if last {
		close(l.drained)
		return
	}
	l.mu.Lock()
	l.spare = ops
	l.mu.Unlock()
}

// finish counts a round of r and places its next one; it reports false if there
// is none. The lock is held.
func (l *lane) finish(r *request, now time.Duration, err error) bool {
	if err == nil {
		l.latency.Record(int64(now - r.start))
	} else if l.errors++; l.firstErr == nil {
		l.firstErr = err
	}
	if l.stop.Load() {
		l.left--
		return false
	}
	l.place(r, now)
	return true
}

// fillRandom makes b random, so that no layer below compresses or deduplicates
// what it is given.
func fillRandom(b []byte) {
	chacha := rand.NewChaCha8([32]byte{1})
	chacha.Read(b) // never fails
}
