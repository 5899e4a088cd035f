package segfile

import (
	"fmt"
	"sync"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/slab"
)

// Device is what a store asks of its device. *blockdev.Device provides it.
// ReadAt and WriteAt wait; WriteAt returns when the bytes are on stable storage.
type Device interface {
	BlockSize() int
	ExtentSize() int64
	Extents() []blockdev.Extent
	Offset(index uint32) int64
	Assign(role blockdev.Role, owner uint32, seq uint64, class blockdev.Class) (blockdev.Extent, error)
	Release(index uint32) error
	FreeExtents(class blockdev.Class) int
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error
}

// Options tune a Store. A field left zero takes the default in its comment.
type Options struct {
	// Device is the identity that every sum of the log is bound to.
	Device redoubt.DeviceID

	// MaxRecords bounds the records that are in the log and not in pages yet,
	// and so the memory of their index, 24 bytes each. Default 1 Mi.
	MaxRecords int

	// MaxPages bounds the pages of all segments of the device together: the
	// page map takes 24 bytes of memory for each. Default 16 Mi (256 GiB).
	MaxPages int64

	// LogExtents bounds the extents of the log. Default: 3/8 of the device's.
	LogExtents int

	// LongChain is the number of records in a page's chain from which it is
	// coalesced early. Default 128.
	LongChain int

	// Windows is where log is read back into; slabs of 512 KiB or more.
	// Small holds the blocks that the store itself writes, and map pages: slabs
	// of 64 KiB or more. Both are required.
	Windows, Small *slab.Pool

	// ReadOnly opens for inspection: nothing is written or assigned.
	ReadOnly bool
}

func (o *Options) setDefaults(dev Device) error {
	extents := len(dev.Extents())
	if o.MaxRecords == 0 {
		o.MaxRecords = 1 << 20
	}
	if o.MaxPages == 0 {
		o.MaxPages = 16 << 20
	}
	if o.LogExtents == 0 {
		o.LogExtents = max(4, extents*3/8)
	}
	if o.LongChain == 0 {
		o.LongChain = 128
	}
	switch {
	case o.MaxRecords < 1<<10 || o.MaxRecords >= 1<<31:
		return invalidf("MaxRecords %d outside 1024 to 2^31", o.MaxRecords)
	case o.LogExtents < 4 || o.LogExtents > extents:
		return invalidf("the log may have %d extents of %d: want at least 4", o.LogExtents, extents)
	case o.LongChain < 2 || o.LongChain > 1<<15:
		return invalidf("LongChain %d outside 2 to 32768", o.LongChain)
	case o.Windows == nil || o.Windows.Size() < redoubt.MaxBatchBytes+2*dev.BlockSize():
		return invalidf("Windows pool missing, or its slabs are smaller than a batch")
	case o.Small == nil || o.Small.Size() < 64<<10:
		return invalidf("Small pool missing, or its slabs are smaller than 64 KiB")
	}
	return nil
}

// A Store is one device's log and segments. Its methods may be called from any
// goroutine; those that wait for the device say so.
type Store struct {
	opts Options // fixed
	dev  Device
	seed seed

	mu      sync.Mutex
	log     hotLog
	segs    map[redoubt.SegmentID]*Segment
	nextTag uint32
	pages   int64 // of all segments
	arena   recArena
	slots   slotTable
	limbo   limbo
	cache   runCache
	records int64  // in live blocks
	dropped uint64 // bytes of redo blocks that nobody needs any more, ever

	emptied  []uint32     // page extents to release
	trimmed  []uint32     // log extents to release
	tombs    []tombstone  // deleted segments whose blocks may still be in the log
	failed   error        // a log write failed: nothing is acknowledged any more
	recovery RecoveryInfo // fixed after Open
}

// A tombstone must stay in the log until every older extent has left it.
type tombstone struct {
	tag uint32
	pos uint64
}

// Segment returns a segment by its ID.
func (s *Store) Segment(id redoubt.SegmentID) (*Segment, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.segs[id]
	return g, ok
}

// Segments returns all segments, in no order.
func (s *Store) Segments() []*Segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Segment, 0, len(s.segs))
	for _, g := range s.segs {
		all = append(all, g)
	}
	return all
}

// PromisedPages returns the pages of all segments, written or not.
func (s *Store) PromisedPages() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pages
}

// Failed returns why the store acknowledges nothing any more, or nil.
func (s *Store) Failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Recovery says what Open found.
func (s *Store) Recovery() RecoveryInfo { return s.recovery }

// Info is a segment's state at one moment.
type Info struct {
	SegmentSpec
	SCL, Highest, VDL, Floor   redoubt.LSN
	Coalesced, Trimmed, Target redoubt.LSN
	Unknown                    Unknown
	Truncation                 redoubt.Truncation // the newest
	LogBytes                   int64
	DirtyPages, PageCount      int // pages with a chain; with a version
	Blocks                     int
	Broken                     error
}

// Info returns the segment's state.
func (s *Store) Info(g *Segment) Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.infoLocked()
}

func (g *Segment) infoLocked() Info {
	i := Info{
		SegmentSpec: g.segState.SegmentSpec, SCL: g.scl, Highest: g.highest, VDL: g.vdl, Floor: g.floor,
		Coalesced: g.coalesced, Trimmed: g.trimPoint(), Target: g.target(), Unknown: g.unknown,
		LogBytes: g.logSize, DirtyPages: g.dirty.n, PageCount: g.pm.pages, Blocks: g.blocks.len(), Broken: g.broken,
	}
	if n := len(g.truncs); n > 0 {
		i.Truncation = g.truncs[n-1]
	}
	return i
}

// Usage is how full the store is.
type Usage struct {
	LogExtents, MaxLogExtents int
	Records, MaxRecords       int64 // in live blocks; may pass the maximum by what was in flight
	FreeExtents               int   // for anybody
	ReserveExtents            int   // for pages as well
	Segments                  int
	CacheBytes                int64
	DroppedBytes              uint64 // of redo that left the log since Open
	Tail, Head, Durable       uint64
}

// Usage returns how full the store is.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Usage{
		LogExtents: len(s.log.exts) + len(s.log.spare), MaxLogExtents: s.opts.LogExtents,
		Records: s.records, MaxRecords: int64(s.opts.MaxRecords),
		FreeExtents: s.dev.FreeExtents(blockdev.Normal), ReserveExtents: s.dev.FreeExtents(blockdev.Reserve),
		Segments: len(s.segs), CacheBytes: s.cache.bytes, DroppedBytes: s.dropped,
		Tail: s.log.tail(), Head: s.log.pos(), Durable: s.log.durable,
	}
}

// Debt is how much of its bound the log uses, the worse of its space and its
// records: 0 is none, 1 is full.
func (u Usage) Debt() float64 {
	return max(float64(u.LogExtents)/float64(u.MaxLogExtents), float64(u.Records)/float64(u.MaxRecords))
}

func (s *Store) String() string {
	return fmt.Sprintf("store of device %v", s.opts.Device)
}
