package segfile

import (
	"fmt"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
)

// Hear takes VDL and PGMRPL from a run that is about to wait for room: they may
// be what room depends on. Blocks that Admit would refuse say nothing.
func (s *Store) Hear(r *Run, told func(i int) (vdl, floor redoubt.LSN)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range r.Blocks {
		if b := &r.Blocks[i]; b.Kind == BlockRedo && s.admit(b) == nil {
			b.Seg.told(told(i))
		}
	}
}

// Admit decides on every redo block of a run that came off the wire: a batch
// that is fenced, or not the segment's business, is made void and its Err set;
// so is one that the segment has already (without an Err: it is acknowledged
// again). vdl and floor are what the client told with each block. It reports
// whether anything is left to write.
//
// Admit and the queueing of the run must be one step, under the queue's mutex,
// or a fence could slip between.
func (s *Store) Admit(r *Run, told func(i int) (vdl, floor redoubt.LSN)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	live := false
	for i := range r.Blocks {
		b := &r.Blocks[i]
		if b.Kind != BlockRedo {
			live = live || b.Kind != BlockVoid
			continue
		}
		if b.Err = s.admit(b); b.Err == nil {
			vdl, floor := told(i)
			b.Seg.told(vdl, floor)
			if b.Head.Last > b.Seg.scl {
				live = true
				continue
			}
		}
		b.Kind = BlockVoid
	}
	return live
}

func (s *Store) admit(b *Block) error {
	g := b.Seg
	switch {
	case s.failed != nil:
		return s.failed
	case g.deleted:
		return segErr(g, redoubt.ErrNotFound, "deleted")
	case b.Head.Epoch < g.segState.Epoch:
		return &EpochError{Seg: g, Held: g.segState.Epoch, Got: b.Head.Epoch}
	case b.Head.Epoch > g.segState.Epoch:
		return segErr(g, redoubt.ErrInvalid, "batch of epoch %d, but %d is installed: fence first", b.Head.Epoch, g.segState.Epoch)
	case len(g.spans) >= maxSpans && b.Head.Prev > g.scl:
		return segErr(g, redoubt.ErrBusy, "%d gaps already; send what is missing from LSN %d on first", len(g.spans), g.scl+1)
	}
	if n := len(g.truncs); n > 0 {
		if t := g.truncs[n-1]; b.Head.Last > t.From && b.Head.First <= t.To {
			return segErr(g, redoubt.ErrInvalid, "LSNs %d to %d: (%d, %d] is truncated; write on from %d",
				b.Head.First, b.Head.Last, t.From, t.To, t.To+1)
		}
	}
	return nil
}

// An EpochError is the refusal of an older writer. It matches ErrFenced.
type EpochError struct {
	Seg       *Segment
	Held, Got redoubt.Epoch
}

func (e *EpochError) Error() string {
	return fmt.Sprintf("segfile: segment %v pg %d: epoch %d, the segment has %d: another writer has opened the volume",
		e.Seg.ID, e.Seg.PG, e.Got, e.Held)
}

func (e *EpochError) Unwrap() error { return redoubt.ErrFenced }

// WireDetail returns the epoch that the segment has and the one it was shown.
func (e *EpochError) WireDetail() (a, b uint64) { return uint64(e.Held), uint64(e.Got) }

// Place takes runs from the front of pending for one device write of at most
// maxBytes. It returns how many it took, and whether there is a write to issue:
// lw then is in flight until Complete.
func (s *Store) Place(lw *LogWrite, pending []*Run, maxBytes int) (int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return 0, false
	}
	return s.log.place(lw, pending, maxBytes)
}

// Complete takes the result of a write. Where it succeeded, its blocks are part
// of their segments now; lw.Moved says whose SCL moved, and lw.Released which
// runs are done: those of lw but for barriers that wait for an earlier write,
// and barriers of other writes that waited for this one. A failed write fails
// the store. The error that it returns is the store's: all of lw's runs have
// failed then.
func (s *Store) Complete(lw *LogWrite, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.failed == nil {
		s.failed = fmt.Errorf("segfile: log write at position %d: %w", lw.start, err)
	}
	if s.failed != nil {
		for _, r := range lw.Runs {
			r.Mem.Drop()
		}
		return s.failed
	}
	for _, r := range lw.Runs {
		s.landRun(lw, r)
	}
	lw.Released = s.log.landed(lw, lw.Released)
	return nil
}

// FailWaiting returns the barrier runs that were written and wait for a write
// that never became durable: the store has failed, and they with it.
func (s *Store) FailWaiting() []*Run {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*Run
	for i := range s.log.flight {
		all = append(all, s.log.flight[i].waiting...)
		s.log.flight[i].waiting = nil
	}
	return all
}

// landRun makes the blocks of a durable run part of their segments.
func (s *Store) landRun(lw *LogWrite, r *Run) {
	redoBlocks := false
	for i := range r.Blocks {
		b := &r.Blocks[i]
		if b.Seg == nil || b.Err != nil || b.moved {
			continue
		}
		pos := r.pos + uint64(b.Off) + BlockHeaderSize
		if b.Kind == BlockRedo && !b.Seg.deleted {
			redoBlocks = true
			s.records += b.Seg.hold(b.Head, pos)
		}
		if b.Kind == BlockRedo || b.Kind == BlockVoid {
			lw.Moved = append(lw.Moved, Moved{b.Seg, b.Seg.scl})
		}
	}
	if redoBlocks {
		s.cache.add(cachedRun{pos: r.pos, bytes: r.Bytes[:r.Used], mem: r.Mem})
	} else {
		r.Mem.Drop()
	}
}

// Acknowledged returns the SCLs to tell for a run that needed no write.
func (s *Store) Acknowledged(r *Run, dst []Moved) []Moved {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range r.Blocks {
		if b := &r.Blocks[i]; b.Err == nil && b.Seg != nil {
			dst = append(dst, Moved{b.Seg, b.Seg.scl})
		}
	}
	return dst
}

// NeedsSeal reports that the newest write has no witness in the log and nothing
// is on its way that would carry one; an idle log should append an empty run.
func (s *Store) NeedsSeal() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed == nil && s.log.needsSeal()
}

// SpareExtents is how many assigned extents the log keeps ahead of its head.
const SpareExtents = 2

// WantsExtent reports whether the log should be given another extent now.
func (s *Store) WantsExtent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wantsExtentLocked()
}

func (s *Store) wantsExtentLocked() bool {
	return s.failed == nil && !s.opts.ReadOnly && len(s.log.spare) < SpareExtents &&
		len(s.log.exts)+len(s.log.spare) < s.opts.LogExtents
}

// AddExtent assigns the log's next extent and waits for the device. Only one
// call may run at a time. The log's own maintenance, which frees more than it
// takes, may pass class Reserve.
func (s *Store) AddExtent(class blockdev.Class) error {
	s.mu.Lock()
	seq, want := s.log.nextSeq(), s.wantsExtentLocked()
	s.mu.Unlock()
	if !want {
		return nil
	}
	e, err := s.dev.Assign(blockdev.RoleLog, 0, seq, class)
	if err != nil {
		return fmt.Errorf("segfile: no extent for the log: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.spare = append(s.log.spare, e)
	return nil
}

// blockWeight is what a block costs beside its records, in records: its place
// in the segment's list takes as much memory as three entries of the index.
const blockWeight = 3

func weight(records int) int64 { return int64(records) + blockWeight }
