package coalescer

import (
	"fmt"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// Device is what coalescing asks of the device. *blockdev.Device provides it.
type Device interface {
	// Read fills r.Bufs and calls r.Done, perhaps before it returns.
	Read(r *blockdev.Read)
	// WriteDurable writes w and calls w.Done when it is on stable storage,
	// perhaps before it returns.
	WriteDurable(w *blockdev.Write)
	BlockSize() int
	ExtentSize() int64
}

// Log is what coalescing asks of the log. *logqueue.Queue provides it.
type Log interface {
	// AppendOwn appends a run and waits until it is durable, and all before it.
	// It refuses, with ErrNotFound, a run with a block of a deleted segment.
	AppendOwn(*segfile.Run) error
	// Kick says that the log has more room.
	Kick()
}

// NoPage stands for the page where damage is not in a page.
const NoPage = 1<<32 - 1

// Options tune coalescing and scrubbing. A field left zero takes the default in
// its comment; out of range is an error.
type Options struct {
	// Name of the device, for labels and errors. Default "device".
	Name string

	// RunPages bounds the pages of one write. Default 64: 1 MiB, from which on a
	// drive is limited by its bandwidth. At most 256.
	RunPages int
	// RunSlabs bounds a run, in writes. At rest a run has one; in debt it has as
	// many as there is memory for, since what the map block and the sweep
	// through the log cost is paid once a run. Default 4, at most 16.
	RunSlabs int
	// MaxAge is how old a record grows before its page is folded though nothing
	// else asks for it. Default 5 s. It bounds how long a restart has to read
	// log that could long be in pages; less folds hot pages more often.
	MaxAge time.Duration
	// Survey is how often the segments are looked at while there is something to
	// fold; a tenth as often when there isn't. Default 100 ms.
	Survey time.Duration

	// SoftDebt is the share of the log from which on its tail is worked on,
	// FullDebt that from which on folding goes at MaxRate, MoveDebt that from
	// which on even nearly full extents are moved. Defaults 0.2, 0.5, 0.75.
	SoftDebt, FullDebt, MoveDebt float64
	// IdleRate and MaxRate bound the bytes a second that folding reads and
	// writes, at rest and in debt. Defaults 32 MiB/s and 1 GiB/s: a 60th and
	// half of one NVMe drive.
	IdleRate, MaxRate int64

	// Pages holds the pages of a run: slabs of RunPages * 16 KiB or more. Ahead
	// is where log and what is scrubbed are read into: slabs of 512 KiB or more.
	// They may be shared among devices, but a device that hangs keeps what it
	// has: with fewer than RunSlabs of Pages and AheadSlabs + 1 of Ahead for each
	// it may stop the others. Nobody waits for more who has some. Required.
	Pages, Ahead *slab.Pool
	// AheadSlabs is how many slabs of Ahead folding takes at most: one for what is
	// read and used at once, the others, where they are free, to keep the log of
	// the segment at hand from one run to the next. Default 9: with slabs of
	// 1 MiB the log of one segment of 16, when a million records of 128 bytes wait.
	AheadSlabs int

	// ScrubRate is how many bytes a second are read again. Default 8 MiB/s;
	// negative: none. ScrubPause is the rest between two cycles. Default 1 min.
	ScrubRate  int64
	ScrubPause time.Duration

	// Damaged is told of what can't be read, or isn't as it was written: in a
	// page's version, or with page NoPage in the log or the page map. It is told
	// of each damage once in a cycle of the scrub, from the goroutine that found
	// it. Default nobody.
	Damaged func(g *segfile.Segment, page uint32, err error)
}

func (o *Options) setDefaults() error {
	def(&o.Name, "device")
	def(&o.RunPages, 64)
	def(&o.RunSlabs, 4)
	def(&o.MaxAge, 5*time.Second)
	def(&o.Survey, 100*time.Millisecond)
	def(&o.SoftDebt, 0.2)
	def(&o.FullDebt, 0.5)
	def(&o.MoveDebt, 0.75)
	def(&o.IdleRate, 32<<20)
	def(&o.MaxRate, 1<<30)
	def(&o.AheadSlabs, 9)
	def(&o.ScrubRate, 8<<20)
	def(&o.ScrubPause, time.Minute)
	if o.Damaged == nil {
		o.Damaged = func(*segfile.Segment, uint32, error) {}
	}
	return o.check()
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (o *Options) check() error {
	switch {
	case o.RunPages < 1 || o.RunPages > 256:
		return invalidf("writes of %d pages: want 1 to 256", o.RunPages)
	case o.RunSlabs < 1 || o.RunSlabs > 16:
		return invalidf("runs of %d writes: want 1 to 16", o.RunSlabs)
	case o.MaxAge < 0 || o.Survey < 0 || o.ScrubPause < 0:
		return invalidf("a negative time")
	case o.SoftDebt < 0 || o.SoftDebt >= o.FullDebt || o.FullDebt > o.MoveDebt || o.MoveDebt > 1:
		return invalidf("debts soft %v, full %v, move %v: want them between 0 and 1, in this order", o.SoftDebt, o.FullDebt, o.MoveDebt)
	case o.IdleRate < 0 || o.MaxRate < o.IdleRate:
		return invalidf("rates of %d bytes/s at rest and %d in debt", o.IdleRate, o.MaxRate)
	case o.AheadSlabs < 1 || o.AheadSlabs > 64:
		return invalidf("%d slabs to read ahead: want 1 to 64", o.AheadSlabs)
	case o.Pages == nil || o.Pages.Size() < o.RunPages*redoubt.PageSize:
		return invalidf("Pages pool missing, or its slabs are smaller than %d pages", o.RunPages)
	case o.Ahead == nil || o.Ahead.Size() < 2*redoubt.MaxBatchBytes:
		return invalidf("Ahead pool missing, or its slabs are smaller than %d bytes", 2*redoubt.MaxBatchBytes)
	}
	return nil
}

func invalidf(format string, args ...any) error {
	return fmt.Errorf("coalescer: "+format+": %w", append(args, redoubt.ErrInvalid)...)
}
