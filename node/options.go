package node

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/coalescer"
	"github.com/redoubt-storage/redoubt/logqueue"
	"github.com/redoubt-storage/redoubt/segfile"
)

// Options describe a node. Devices is required; any other field left zero takes
// the default in its comment.
type Options struct {
	// Devices are the node's formatted devices, in any order; all of them.
	Devices []string
	// Listen is where clients come; port 0 takes a free one. Default
	// 127.0.0.1:7420.
	Listen string
	// HTTP is where metrics, health and profiles are; "-" is nowhere. Default
	// 127.0.0.1:7421.
	HTTP string
	// Name is what the node calls itself. Default: the host's name.
	Name string

	// IOEngine and Durability are those of blockdev.Options.
	IOEngine, Durability string

	// Memory bounds what the node takes for slabs, buffers and tables, bytes.
	// Default 1 GiB; at least 64 MiB and 16 MiB for each device.
	Memory int64

	// LogShare is the share of each device that its hot log may take. Default
	// 0.375.
	LogShare float64

	// LongChain is how many records a page gathers before it is coalesced
	// early. Default 128.
	LongChain int

	// Queue and Coalesce are the tunables of group commit and of the background
	// work; what the node itself must set in them is overwritten.
	Queue    logqueue.Options
	Coalesce coalescer.Options

	// MaxConns bounds the connections. Default 4096.
	MaxConns int
	// FrameTimeout bounds how long a frame may take to arrive. Default 30 s.
	FrameTimeout time.Duration

	// Log is where the node says what it does. Default slog.Default().
	Log *slog.Logger
}

func (o *Options) setDefaults() error {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:7420"
	}
	if o.HTTP == "" {
		o.HTTP = "127.0.0.1:7421"
	}
	if o.Memory == 0 {
		o.Memory = 1 << 30
	}
	if o.LogShare == 0 {
		o.LogShare = 0.375
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	n := int64(len(o.Devices))
	switch {
	case n < 1 || n > 64:
		return fmt.Errorf("node: %d devices, want 1 to 64: %w", n, redoubt.ErrInvalid)
	case o.Memory < max(64<<20, n*16<<20):
		return fmt.Errorf("node: memory of %d bytes for %d devices; give it %d or more: %w", o.Memory, n, max(64<<20, n*16<<20), redoubt.ErrInvalid)
	case o.LogShare < 0.02 || o.LogShare > 0.9:
		return fmt.Errorf("node: a log share of %v, want 0.02 to 0.9: %w", o.LogShare, redoubt.ErrInvalid)
	}
	return nil
}

const (
	slabSize   = 1 << 20
	windowSize = 512 << 10
	smallSize  = 64 << 10
	foldSize   = 1 << 20

	recordBytes = 30 // of index for each record: 24, and a quarter of slack
	pageBytes   = 24 // of page map for each page
)

// A budget is how the node's memory is cut. Its shares are fixed fractions so
// that an operator has one number to set; folds and ahead are no fewer than what
// keeps a device that hangs from stopping the others.
//
//	slabs 32 % | index 28 % | page map 12 % | pages 7 % | folds 4 % | ahead 3 % |
//	windows 3 % | small 2 % | 9 % for connections, goroutines and the rest
type budget struct {
	slabs   int // of 1 MiB, for frames and as the log's cache
	pages   int // of 16 KiB, for reads
	folds   int // of 1 MiB, for runs of pages
	ahead   int // of 512 KiB, for what coalescing reads
	windows int // of 512 KiB, for each device
	small   int // of 64 KiB, for each device
	records int // for each device
	mapped  int64
}

func (o *Options) budget() budget {
	n := int64(len(o.Devices))
	b := budget{
		slabs:   int(o.Memory * 32 / 100 / slabSize),
		pages:   int(max(128, o.Memory*7/100/redoubt.PageSize)),
		folds:   int(max(n, o.Memory*4/100/foldSize)),
		ahead:   int(max(2*n, o.Memory*3/100/windowSize)),
		windows: int(max(2, o.Memory*3/100/n/windowSize)),
		small:   int(max(8, o.Memory*2/100/n/smallSize)),
		records: int(o.Memory * 28 / 100 / n / recordBytes),
		mapped:  o.Memory * 12 / 100 / n / pageBytes,
	}
	b.windows = min(b.windows, 16)
	b.small = min(b.small, 64)
	return b
}

// store returns the options of a lane's store; the pools are the caller's.
func (b budget) store(extents int, share float64) segfile.Options {
	return segfile.Options{
		MaxRecords: b.records,
		MaxPages:   b.mapped,
		LogExtents: max(8, int(float64(extents)*share)),
	}
}
