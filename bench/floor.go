package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-storage/redoubt/ioring"
	"github.com/redoubt-storage/redoubt/slab"
	"golang.org/x/sys/unix"
)

// A floorLog is the least that a log in one process can be: callers put their
// record into a buffer and wait; while one buffer is written, durably, the other
// gathers. No index, no pages, no recovery, no network: what it does, every log
// must do, so what it costs is the floor.
//
//	block   | u64 position | u32 len | u32 crc | { u32 len | record } ... | zeros to 4096
type floorLog struct {
	engine ioring.Engine
	size   int64
	op     ioring.Op
	wrote  chan error

	mu        sync.Mutex
	more      *sync.Cond
	done      *sync.Cond
	held      [2]*slab.Buf
	bufs      [2][]byte
	n         int // bytes in bufs[gathering%2]
	pos       int64
	gathering uint64 // number of the block that gathers
	committed uint64
	written   uint64 // bytes, by device writes
	err       error
	stopped   bool
	ended     chan struct{}
}

const (
	floorHead  = 16
	floorAlign = 4096
)

var floorTable = crc32.MakeTable(crc32.Castagnoli)

// newFloorLog starts a log on the file of fd, which it writes from the start,
// again and again. mem is registered memory for the two buffers.
func newFloorLog(fd int, size int64, pool *slab.Pool) (*floorLog, error) {
	engine, _, err := ioring.Open(fd, ioring.Options{Regions: [][]byte{pool.Region()}})
	if err != nil {
		return nil, err
	}
	l := &floorLog{engine: engine, size: size, wrote: make(chan error, 1), n: floorHead, gathering: 1, ended: make(chan struct{})}
	l.more, l.done = sync.NewCond(&l.mu), sync.NewCond(&l.mu)
	for i := range l.bufs {
		l.held[i] = pool.TryGet() // there are two
		l.bufs[i] = l.held[i].Bytes()
	}
	l.op = ioring.Op{Kind: ioring.OpWrite, DSync: true, Bufs: make([][]byte, 1), Done: func(_ *ioring.Op, err error) { l.wrote <- err }}
	go l.run()
	return l, nil
}

// append makes a record durable.
func (l *floorLog) append(record []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.n+4+len(record) > len(l.bufs[0]) && l.err == nil {
		l.done.Wait()
	}
	b := l.bufs[l.gathering%2]
	binary.LittleEndian.PutUint32(b[l.n:], uint32(len(record)))
	copy(b[l.n+4:], record)
	l.n += 4 + len(record)
	mine := l.gathering
	l.more.Signal()
	for l.committed < mine && l.err == nil {
		l.done.Wait()
	}
	return l.err
}

// run is the committer.
func (l *floorLog) run() {
	defer close(l.ended)
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.err == nil {
		for l.n == floorHead && !l.stopped {
			l.more.Wait()
		}
		if l.n == floorHead {
			return
		}
		b, n, block := l.bufs[l.gathering%2], l.n, l.gathering
		l.gathering++
		l.n = floorHead
		l.mu.Unlock()
		end, err := l.write(b, n)
		l.mu.Lock()
		l.err = err
		l.committed = block
		l.written += uint64(end)
		l.done.Broadcast()
	}
}

// write seals a block of n bytes and writes it.
func (l *floorLog) write(b []byte, n int) (end int, err error) {
	end = (n + floorAlign - 1) / floorAlign * floorAlign
	clear(b[n:end])
	le := binary.LittleEndian
	if l.pos+int64(end) > l.size {
		l.pos = 0
	}
	le.PutUint64(b, uint64(l.pos))
	le.PutUint32(b[8:], uint32(n))
	le.PutUint32(b[12:], crc32.Checksum(b[floorHead:n], floorTable))
	l.op.Off, l.op.Bufs[0] = l.pos, b[:end]
	l.pos += int64(end)
	l.op.SubmitTo(l.engine)
	return end, <-l.wrote
}

func (l *floorLog) close() error {
	l.mu.Lock()
	l.stopped = true
	l.more.Signal()
	l.mu.Unlock()
	<-l.ended
	err := l.engine.Close()
	for _, b := range l.held {
		b.Drop()
	}
	return err
}

// A FloorResult is what waiting writers got from a floorLog.
type FloorResult struct {
	RecordsPerS          float64 `json:"records_per_s"`
	P50us                float64 `json:"p50_us"`
	P99us                float64 `json:"p99_us"`
	CPUusPerRecord       float64 `json:"cpu_us_per_record"`
	DeviceBytesPerRecord float64 `json:"device_bytes_per_record"`
}

// RunFloor lets writers, goroutines here, append records of so many bytes to a
// bare log on the file, each waiting for its own.
func RunFloor(ctx context.Context, path string, writers, size int, d time.Duration) (res FloorResult, err error) {
	fds, err := openAll([]string{path}, false)
	if err != nil {
		return res, err
	}
	defer unix.Close(fds[0])
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil {
		return res, fmt.Errorf("bench: floor: %w", err)
	}
	pool, err := slab.New(slab.Options{Name: "floor", Size: 1 << 20, Count: 2})
	if err != nil {
		return res, fmt.Errorf("bench: floor: %w", err)
	}
	l, err := newFloorLog(fds[0], st.Size, pool)
	if err != nil {
		return res, fmt.Errorf("bench: floor: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	start, cpu := time.Now(), cpuTime()
	h := l.load(ctx, writers, size)
	elapsed := time.Since(start)
	cpu = cpuTime() - cpu
	if err := errors.Join(l.close(), pool.Close(), l.err); err != nil {
		return res, fmt.Errorf("bench: floor: %w", err)
	}
	n := float64(h.Count())
	return FloorResult{RecordsPerS: n / elapsed.Seconds(), P50us: us(h, 50), P99us: us(h, 99),
		CPUusPerRecord: float64(cpu.Nanoseconds()) / 1e3 / n, DeviceBytesPerRecord: float64(l.written) / n}, nil
}

// load runs the writers until ctx is done and returns their latencies.
func (l *floorLog) load(ctx context.Context, writers, size int) *Histogram {
	var (
		stop atomic.Bool
		wg   sync.WaitGroup
		mu   sync.Mutex
		all  Histogram
	)
	for w := range writers {
		record := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(w), byte(w >> 8)}).Read(record) // never fails
		wg.Go(func() {
			var h Histogram
			for !stop.Load() {
				begin := time.Now()
				if l.append(record) != nil {
					break // the log says it at the end
				}
				h.Record(int64(time.Since(begin)))
			}
			mu.Lock()
			all.Merge(&h)
			mu.Unlock()
		})
	}
	<-ctx.Done()
	stop.Store(true)
	wg.Wait()
	return &all
}
