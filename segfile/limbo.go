package segfile

import (
	"slices"

	"github.com/redoubt-storage/redoubt/blockdev"
)

// A limbo keeps what was freed from being used again while a reader that began
// before may still look at it. Readers pin; what is freed waits until every
// pin of its time is gone. It is guarded by the store's mutex.
//
//	gens:   [ pins 2, freed a b ] [ pins 0, freed c ] [ pins 1, freed - ]
//	          a, b and c wait: the two oldest pins may know all of them
type limbo struct {
	gens []limboGen
	base uint64 // number of gens[0]
}

type limboGen struct {
	pins    int
	slots   []slot
	extents []uint32
}

// A Pin keeps slots and log extents that were live when it was taken.
type Pin struct{ gen uint64 }

func (l *limbo) pin() Pin {
	if len(l.gens) == 0 {
		l.gens = append(l.gens, limboGen{})
	}
	l.gens[len(l.gens)-1].pins++
	return Pin{l.base + uint64(len(l.gens)-1)}
}

// last returns the generation that frees go to, or nil if nobody reads.
func (l *limbo) last() *limboGen {
	n := len(l.gens)
	if n == 0 {
		return nil
	}
	return &l.gens[n-1]
}

// seal begins a new generation, so that pins from now on keep nothing that was
// freed before.
func (l *limbo) seal() { l.gens = append(l.gens, limboGen{}) }

// unpin ends a pin and calls done for each generation nobody can see any more.
func (l *limbo) unpin(p Pin, done func(*limboGen)) {
	l.gens[p.gen-l.base].pins--
	n := 0
	for n < len(l.gens) && l.gens[n].pins == 0 {
		done(&l.gens[n])
		n++
	}
	if n > 0 {
		rest := copy(l.gens, l.gens[n:])
		clear(l.gens[rest:])
		l.gens = l.gens[:rest]
		l.base += uint64(n)
	}
}

// retireSlot frees a slot when nobody reads it any more.
func (s *Store) retireSlot(sl slot) {
	if sl == 0 {
		return
	}
	if g := s.limbo.last(); g != nil {
		g.slots = append(g.slots, sl)
		return
	}
	s.freeSlot(sl)
}

// retireExtent hands a log extent to Release when nobody reads it any more.
func (s *Store) retireExtent(e blockdev.Extent) {
	if g := s.limbo.last(); g != nil {
		g.extents = append(g.extents, e.Index)
		s.log.leaving = append(s.log.leaving, e)
		return
	}
	s.trimmed = append(s.trimmed, e.Index)
}

// sealLimbo ends the generation that frees of this step went to.
func (s *Store) sealLimbo() {
	if g := s.limbo.last(); g != nil && len(g.slots)+len(g.extents) > 0 {
		s.limbo.seal()
	}
}

// Pin keeps everything that is live now readable until Unpin.
func (s *Store) Pin() Pin {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limbo.pin()
}

// Unpin ends a Pin.
func (s *Store) Unpin(p Pin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unpinLocked(p)
}

func (s *Store) unpinLocked(p Pin) {
	s.limbo.unpin(p, func(g *limboGen) {
		for _, sl := range g.slots {
			s.freeSlot(sl)
		}
		s.trimmed = append(s.trimmed, g.extents...)
		s.log.leaving = slices.DeleteFunc(s.log.leaving, func(e blockdev.Extent) bool { return slices.Contains(g.extents, e.Index) })
	})
}
