// Command peers measures other logs, in process, under the load that
// "redoubt bench all" puts on a node for T4: writers that each wait until their
// own record is durable. It is a module of its own, so that none of what it
// needs is a dependency of Redoubt.
//
//	go build -C bench/peers -o peers . && bench/peers/peers -dir /tmp/peers -duration 2s
//
// raft-wal and etcd's WAL leave it to their caller to write many records with
// one sync. Here a committer takes whatever has gathered while the write before
// was under way, which is the best that can be done for them; pebble does that by
// itself. It prints one JSON array.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A log makes records durable.
type log interface {
	// commit makes the records durable, all of them, before it returns.
	commit(records [][]byte) error
	close() error
}

// A peer is a log that can be measured.
type peer struct {
	name string
	open func(dir string) (log, error)
	// concurrent logs group the commits of many callers by themselves.
	concurrent bool
}

// A result is what a peer achieved.
type result struct {
	Name                 string  `json:"name"`
	RecordsPerS          float64 `json:"records_per_s"`
	P50us                float64 `json:"p50_us"`
	P99us                float64 `json:"p99_us"`
	CPUusPerRecord       float64 `json:"cpu_us_per_record"`
	DeviceBytesPerRecord float64 `json:"device_bytes_per_record"`
	Error                string  `json:"error,omitempty"`
}

type options struct {
	dir      string
	writers  int
	size     int
	duration time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", "", "directory for the logs, on the disk to measure; it is made, and emptied afterwards")
	flag.IntVar(&o.writers, "writers", 256, "goroutines, each waiting for its own record")
	flag.IntVar(&o.size, "record-size", 128, "bytes of a record")
	flag.DurationVar(&o.duration, "duration", 2*time.Second, "how long each")
	only := flag.String("only", "", "names, comma-separated; default all of them")
	flag.Parse()
	if o.dir == "" || flag.NArg() > 0 || o.writers < 1 || o.size < 1 {
		flag.Usage()
		os.Exit(2)
	}
	var all []result
	for _, p := range []peer{{"raft-wal", openRaftWAL, false}, {"etcd wal", openEtcdWAL, false}, {"pebble", openPebble, true}} {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), p.name) {
			continue
		}
		r, err := measure(p, o)
		if err != nil {
			r.Error = err.Error()
		}
		all = append(all, r)
	}
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// measure puts the load on one peer.
func measure(p peer, o options) (r result, err error) {
	r.Name = p.name
	dir := filepath.Join(o.dir, strings.ReplaceAll(p.name, " ", "-"))
	if err := os.RemoveAll(dir); err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return r, err
	}
	l, err := p.open(dir)
	if err != nil {
		return r, err
	}
	commit := l.commit
	stopCommitter := func() {}
	if !p.concurrent {
		g := newGroup(l)
		commit, stopCommitter = g.commit, g.stop
	}
	var (
		stop    atomic.Bool
		failure atomic.Pointer[error]
		writers sync.WaitGroup
		samples = make([][]time.Duration, o.writers)
	)
	cpu, bytes, start := cpuTime(), writtenBytes(), time.Now()
	for w := range o.writers {
		record := make([]byte, o.size)
		for i := range record {
			record[i] = byte(w + i*i)
		}
		writers.Go(func() {
			one := [][]byte{record}
			for !stop.Load() {
				begin := time.Now()
				if err := commit(one); err != nil {
					failure.Store(&err)
					return
				}
				samples[w] = append(samples[w], time.Since(begin))
			}
		})
	}
	time.Sleep(o.duration)
	stop.Store(true)
	writers.Wait()
	elapsed := time.Since(start)
	cpu, bytes = cpuTime()-cpu, writtenBytes()-bytes
	stopCommitter()
	if err := l.close(); err != nil {
		return r, err
	}
	if e := failure.Load(); e != nil {
		return r, *e
	}
	all := slices.Concat(samples...)
	slices.Sort(all)
	if len(all) == 0 {
		return r, fmt.Errorf("nothing was committed in %v", o.duration)
	}
	n := float64(len(all))
	r.RecordsPerS = n / elapsed.Seconds()
	r.P50us = float64(all[len(all)/2].Nanoseconds()) / 1e3
	r.P99us = float64(all[len(all)*99/100].Nanoseconds()) / 1e3
	r.CPUusPerRecord = float64(cpu.Nanoseconds()) / 1e3 / n
	r.DeviceBytesPerRecord = bytes / n
	return r, nil
}

// A group commits for many callers at once.
type group struct {
	log  log
	mu   sync.Mutex
	more *sync.Cond
	done *sync.Cond

	records   [][]byte // gathered for the next commit
	gathering uint64   // number of that commit
	committed uint64   // number of the newest that is durable
	err       error
	stopped   bool
	ended     chan struct{}
}

func newGroup(l log) *group {
	g := &group{log: l, gathering: 1, ended: make(chan struct{})}
	g.more, g.done = sync.NewCond(&g.mu), sync.NewCond(&g.mu)
	go g.run()
	return g
}

func (g *group) commit(records [][]byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.records = append(g.records, records...)
	mine := g.gathering
	g.more.Signal()
	for g.committed < mine && g.err == nil {
		g.done.Wait()
	}
	return g.err
}

func (g *group) run() {
	defer close(g.ended)
	var batch [][]byte
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		for len(g.records) == 0 && !g.stopped {
			g.more.Wait()
		}
		if len(g.records) == 0 {
			return
		}
		batch, g.records = g.records, batch[:0]
		n := g.gathering
		g.gathering++
		g.mu.Unlock()
		err := g.log.commit(batch)
		g.mu.Lock()
		if g.committed = n; err != nil {
			g.err = err
		}
		g.done.Broadcast()
	}
}

func (g *group) stop() {
	g.mu.Lock()
	g.stopped = true
	g.more.Signal()
	g.mu.Unlock()
	<-g.ended
}

// cpuTime returns the CPU time of this process.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// writtenBytes returns what this process had written to devices, by the kernel's
// count.
func writtenBytes() float64 {
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var n float64
		if _, err := fmt.Sscanf(line, "write_bytes: %g", &n); err == nil {
			return n
		}
	}
	return 0
}
