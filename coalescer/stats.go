package coalescer

import (
	"sync"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/segfile"
)

// Stats count what was done since the start.
type Stats struct {
	Runs, Pages, Records uint64 // runs that wrote pages, the pages, and the records folded into them
	Read, Written        uint64 // bytes: of bases and log that were read for it, of pages
	Advances             uint64 // map blocks without pages: nothing was left to fold
	Roots                uint64
	Moves, MovedBytes    uint64 // blocks written again at the head of the log, in runs
	Extents              uint64 // released

	ScrubbedPages, ScrubbedBatches, ScrubbedMapPages, ScrubbedBytes uint64
	ScrubCycles                                                     uint64 // completed

	Damage    uint64 // pages and log that were found damaged, each once in a scrub cycle
	Errors    uint64 // of anything that is tried again
	LastError error
	Paused    int     // segments that are left alone for a while after an error
	Debt      float64 // at the last look
}

// A ledger keeps the stats, and which damage was told already.
type ledger struct {
	damaged func(g *segfile.Segment, page uint32, err error)

	mu    sync.Mutex
	stats Stats
	told  map[damage]bool // in this cycle of the scrub
}

type damage struct {
	seg  redoubt.SegmentID
	page uint32
	text string // where it isn't a page
}

// maxTold bounds the damage that is remembered; a device with more is lost.
const maxTold = 10_000

func newLedger(o *Options) *ledger {
	return &ledger{damaged: o.Damaged, told: map[damage]bool{}}
}

// note changes the stats.
func (l *ledger) note(change func(*Stats)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.stats)
}

func (l *ledger) read() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// failure counts an error that will be tried again.
func (l *ledger) failure(err error) {
	l.note(func(s *Stats) { s.Errors, s.LastError = s.Errors+1, err })
}

// damage counts what isn't as it was written and tells the owner, once a cycle.
func (l *ledger) damage(g *segfile.Segment, page uint32, err error) {
	d := damage{seg: g.ID, page: page}
	if page == NoPage {
		d.text = err.Error()
	}
	l.mu.Lock()
	known := l.told[d]
	if !known && len(l.told) < maxTold {
		l.told[d] = true
	}
	if !known {
		l.stats.Damage++
	}
	l.mu.Unlock()
	if !known {
		l.damaged(g, page, err)
	}
}

// cycle begins a new cycle of the scrub.
func (l *ledger) cycle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.told)
	l.stats.ScrubCycles++
}
