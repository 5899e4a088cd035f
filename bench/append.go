package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/redo"
)

// The values of AppendOptions.Pattern.
const (
	Sequential = "sequential"
	Random     = "random"
)

// AppendOptions describe writers that append to segments of a node. Node is
// required; any other field left zero takes the default in its comment, and one
// out of range is an error.
type AppendOptions struct {
	// Node is the node's address, NodeHTTP that of its metrics: by default at the
	// next port, if they are there; "-" for do without.
	Node, NodeHTTP string

	// Segments is how many fresh segments the load makes, over all lanes of the
	// node in turns; they are deleted at the end. Default 64.
	Segments int

	// Writers is how many logical writers there are, dealt out to the segments in
	// turns. Each waits for the ack of its own record before it sends the next.
	// Default 256.
	Writers int

	// Batch, unless 0, puts an end to waiting: then each segment has one writer,
	// which sends batches of so many records, Window of them without an ack.
	Batch int
	// Window is the batches of a segment in flight. Default 4.
	Window int

	// RecordSize is the bytes of a record's payload, 1 to 16384. Default 128.
	RecordSize int

	// Rate bounds the records a second in all. Each send is then due at a moment
	// that is fixed beforehand, from which its latency counts. Default: no bound.
	Rate float64

	// Duration ends the load. Default 5 s.
	Duration time.Duration

	// Connections share the segments. Default 1.
	Connections int

	// PGSize is the size of the segments in bytes. Default 64 MiB. Pages is how
	// many pages of each are written, from the first on, again and again. Default
	// 1024, or all if there are fewer.
	PGSize int64
	Pages  int

	// Pattern says to which page record k goes: "sequential" fills one page after
	// the other, "random" takes any. Default sequential.
	Pattern string

	// Interval is the grain of AppendResult.Minutes. Default 1 min.
	Interval time.Duration

	// HoldLog tells the node neither VDL nor PGMRPL, so that nothing is coalesced
	// and all of the log stays. Keep leaves the segments there.
	HoldLog, Keep bool

	// Progress is told how it goes. Default nobody.
	Progress *Progress
}

// An AppendResult is what writers achieved. An op is one send that was
// acknowledged: a record, or with Batch a batch.
type AppendResult struct {
	Ops         uint64  `json:"ops"`
	Records     uint64  `json:"records"`
	Errors      uint64  `json:"errors"`
	ElapsedS    float64 `json:"elapsed_s"`
	OpsPerS     float64 `json:"ops_per_s"`
	RecordsPerS float64 `json:"records_per_s"`
	BytesPerS   float64 `json:"bytes_per_s"` // of payload
	P50us       float64 `json:"p50_us"`
	P99us       float64 `json:"p99_us"`
	P999us      float64 `json:"p999_us"`
	MaxUs       float64 `json:"max_us"`

	CPUusPerOp     float64 `json:"cpu_us_per_op"`
	CPUusPerRecord float64 `json:"cpu_us_per_record"`
	CPUOf          string  `json:"cpu_of"` // "node" or "this process"

	// Device bytes are all that the node wrote meanwhile, pages and tables too;
	// log bytes are those of the hot log. Both are left out when the node's
	// metrics could not be had.
	DeviceBytesPerRecord float64 `json:"device_bytes_per_record,omitempty"`
	LogBytesPerRecord    float64 `json:"log_bytes_per_record,omitempty"`

	Segments int        `json:"segments"`
	Writers  int        `json:"writers,omitempty"`
	Batch    int        `json:"batch,omitempty"`
	Minutes  []Interval `json:"minutes,omitempty"` // the complete ones
}

// An Interval is one stretch of a load's time.
type Interval struct {
	P50us       float64 `json:"p50_us"`
	P99us       float64 `json:"p99_us"`
	RecordsPerS float64 `json:"records_per_s"`
}

func (o AppendOptions) withDefaults() (AppendOptions, error) {
	setZero(&o.Segments, 64)
	setZero(&o.Writers, 256)
	setZero(&o.Window, 4)
	setZero(&o.RecordSize, 128)
	setZero(&o.Duration, 5*time.Second)
	setZero(&o.Connections, 1)
	setZero(&o.PGSize, 64<<20)
	setZero(&o.Pages, min(1024, int(o.PGSize/redoubt.PageSize)))
	setZero(&o.Pattern, Sequential)
	setZero(&o.Interval, time.Minute)
	batch := redo.BatchHeaderSize + max(o.Batch, 1)*(redo.RecordHeaderSize+o.RecordSize)
	var err error
	switch {
	case o.Node == "":
		err = errors.New("no node: name its address")
	case o.Segments < 1 || o.Segments > 65536:
		err = fmt.Errorf("%d segments: want 1 to 65536", o.Segments)
	case o.Writers < 1 || o.Writers > 1<<20:
		err = fmt.Errorf("%d writers: want 1 to %d", o.Writers, 1<<20)
	case o.RecordSize < 1 || o.RecordSize > redoubt.PageSize:
		err = fmt.Errorf("records of %d bytes: want 1 to %d", o.RecordSize, redoubt.PageSize)
	case o.Batch < 0 || batch > redoubt.MaxBatchBytes || o.Batch > redo.MaxCount:
		err = fmt.Errorf("batches of %d records of %d bytes: want %d bytes at most with the headers", o.Batch, o.RecordSize, redoubt.MaxBatchBytes)
	case o.Window < 1 || o.Window > 4096:
		err = fmt.Errorf("a window of %d batches: want 1 to 4096", o.Window)
	case o.Rate < 0 || o.Duration < 0 || o.Interval < 0:
		err = fmt.Errorf("rate %v, duration %v, interval %v: want none negative", o.Rate, o.Duration, o.Interval)
	case o.Connections < 1 || o.Connections > 1024:
		err = fmt.Errorf("%d connections: want 1 to 1024", o.Connections)
	case o.Pattern != Sequential && o.Pattern != Random:
		err = fmt.Errorf("pattern %q: want %s or %s", o.Pattern, Sequential, Random)
	default:
		err = checkPG(o.PGSize, o.Pages)
	}
	if err != nil {
		return o, fmt.Errorf("bench: append: %w: %w", err, redoubt.ErrInvalid)
	}
	o.Connections = min(o.Connections, o.Segments) // one without a segment has nothing to do
	return o, nil
}

// checkPG checks the size of a protection group, and how many of its pages are
// used.
func checkPG(size int64, pages int) error {
	n := size / redoubt.PageSize
	switch {
	case size%redoubt.PageSize != 0 || n < redoubt.MinPGPages || n > redoubt.MaxPGPages:
		return fmt.Errorf("protection groups of %d bytes: want a multiple of %d, 16 MiB to 64 GiB", size, redoubt.PageSize)
	case pages < 1 || int64(pages) > n:
		return fmt.Errorf("%d pages of a protection group of %d", pages, n)
	}
	return nil
}

// RunAppend puts the load on a node, until Duration has passed or ctx is done.
// An error of the node ends it; the result then counts what was acknowledged
// until then.
func RunAppend(ctx context.Context, o AppendOptions) (res AppendResult, err error) {
	if o, err = o.withDefaults(); err != nil {
		return res, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &appendLoad{opts: o, failed: make(chan struct{})}
	for range o.Connections {
		l.conns = append(l.conns, &appendConn{load: l, drained: make(chan struct{})})
	}
	conns, err := dialAll(ctx, o.Node, o.Connections, func(i int) peer.Options { return l.conns[i].options() })
	if err != nil {
		return res, err
	}
	defer closeAll(conns)
	defer l.end()
	targets, err := makeTargets(ctx, conns, o.Segments, uint32(o.PGSize/redoubt.PageSize))
	if err != nil {
		return res, err
	}
	defer func() {
		if !o.Keep {
			err = errors.Join(err, deleteTargets(ctx, conns[0], targets))
		}
	}()
	l.deal(conns, targets)
	m, err := startMeter(ctx, o.Node, o.NodeHTTP)
	if err != nil {
		return res, err
	}
	l.run(ctx)
	res = l.result()
	c, merr := m.stop(context.WithoutCancel(ctx))
	res.charge(c)
	return res, errors.Join(l.drain(), merr)
}

// charge adds what the ops cost.
func (r *AppendResult) charge(c cost) {
	r.CPUOf = c.cpuOf
	if r.Ops == 0 {
		return
	}
	r.CPUusPerOp = float64(c.cpu.Nanoseconds()) / 1e3 / float64(r.Ops)
	r.CPUusPerRecord = float64(c.cpu.Nanoseconds()) / 1e3 / float64(r.Records)
	if c.deviceBytes >= 0 {
		r.DeviceBytesPerRecord = c.deviceBytes / float64(r.Records)
		r.LogBytesPerRecord = c.logBytes / float64(r.Records)
	}
}
