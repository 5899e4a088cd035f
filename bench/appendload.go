package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/redoubt-storage/redoubt/peer"
)

// An appendLoad is a running RunAppend.
type appendLoad struct {
	opts    AppendOptions
	conns   []*appendConn
	payload []byte
	epoch   time.Time // moments are durations since then
	elapsed time.Duration
	acked   uint64 // sends, when time was up

	mu     sync.Mutex
	err    error
	errors uint64
	ended  bool          // errors don't count any more
	failed chan struct{} // closed with the first error
}

// fail notes an error of the node or of a connection.
func (l *appendLoad) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.errors++
	if l.err == nil {
		l.err = err
		close(l.failed)
	}
}

// end says that connections may go down from now on.
func (l *appendLoad) end() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
}

// perSend returns the records of one send.
func (l *appendLoad) perSend() int { return max(l.opts.Batch, 1) }

// deal gives each connection its segments, and each segment its writers.
func (l *appendLoad) deal(conns []*peer.Conn, targets []target) {
	o := l.opts
	l.payload = make([]byte, payloadSpread+o.RecordSize)
	fillRandom(l.payload)
	for i, c := range l.conns {
		c.open(conns[i])
	}
	for i, t := range targets {
		free := o.Window
		if o.Batch == 0 {
			free = (o.Writers + o.Segments - 1 - i) / o.Segments
		}
		l.conns[t.conn].add(newFeed(l, t, i, free))
	}
}

// run lets the load go on until its time is up, ctx is done, or it fails.
func (l *appendLoad) run(ctx context.Context) {
	l.epoch = time.Now()
	ctx, cancel := context.WithTimeout(ctx, l.opts.Duration)
	defer cancel()
	var pacers sync.WaitGroup
	for _, c := range l.conns {
		if l.opts.Rate > 0 {
			pacers.Go(c.pace)
		} else {
			c.begin()
		}
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
			l.show()
		}
	}
	l.elapsed = time.Since(l.epoch)
	for _, c := range l.conns {
		l.acked += c.stop()
	}
	l.opts.Progress.Done()
	pacers.Wait()
}

// show tells the progress.
func (l *appendLoad) show() {
	if l.opts.Progress == nil {
		return
	}
	var sends uint64
	for _, c := range l.conns {
		c.mu.Lock()
		sends += c.acked
		c.mu.Unlock()
	}
	t := time.Since(l.epoch)
	l.opts.Progress.Show(uint64(t), uint64(l.opts.Duration),
		fmt.Sprintf("%.0f s, %.0f records/s", t.Seconds(), float64(sends)*float64(l.perSend())/t.Seconds()))
}

const drainTimeout = 30 * time.Second

// drain waits until everything that was sent is acknowledged, and returns what
// went wrong in all.
func (l *appendLoad) drain() error {
	timeout := time.NewTimer(drainTimeout)
	defer timeout.Stop()
	for _, c := range l.conns {
		select {
		case <-c.drained:
		case <-l.failed:
		case <-timeout.C:
			return fmt.Errorf("bench: append: no ack for what was in flight at the end for %v", drainTimeout)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return fmt.Errorf("bench: append: %w", l.err)
	}
	return nil
}

// result adds the connections up. The load was stopped.
func (l *appendLoad) result() AppendResult {
	o := l.opts
	var all Histogram
	var minutes []Interval
	for i := 0; ; i++ {
		var h Histogram
		for _, c := range l.conns {
			c.mu.Lock()
			if i < len(c.series) {
				h.Merge(c.series[i])
			}
			c.mu.Unlock()
		}
		if h.Count() == 0 && time.Duration(i)*o.Interval >= l.elapsed {
			break
		}
		all.Merge(&h)
		if time.Duration(i+1)*o.Interval <= l.elapsed {
			minutes = append(minutes, Interval{P50us: us(&h, 50), P99us: us(&h, 99),
				RecordsPerS: float64(h.Count()) * float64(l.perSend()) / o.Interval.Seconds()})
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.elapsed.Seconds()
	r := AppendResult{Ops: l.acked, Records: l.acked * uint64(l.perSend()), Errors: l.errors, ElapsedS: s,
		P50us: us(&all, 50), P99us: us(&all, 99), P999us: us(&all, 99.9), MaxUs: float64(all.Max()) / 1e3,
		Segments: o.Segments, Batch: o.Batch, Minutes: minutes}
	if o.Batch == 0 {
		r.Writers = o.Writers
	}
	r.OpsPerS, r.RecordsPerS = float64(r.Ops)/s, float64(r.Records)/s
	r.BytesPerS = r.RecordsPerS * float64(o.RecordSize)
	return r
}

// us returns a percentile in microseconds.
func us(h *Histogram, p float64) float64 { return float64(h.Percentile(p)) / 1e3 }
