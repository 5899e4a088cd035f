package powercut

import (
	"errors"
	"fmt"
	"sync"
)

// ErrPowerOff is what a disk gives instead of an answer once the power is gone.
var ErrPowerOff = errors.New("powercut: the power is off")

// A Moment says when the power goes: at the Write-th write that any disk receives,
// or the Flush-th flush, counted from 1. Zero means not at any.
type Moment struct {
	Write, Flush int
}

func (m Moment) String() string {
	switch {
	case m.Write > 0:
		return fmt.Sprintf("write %d", m.Write)
	case m.Flush > 0:
		return fmt.Sprintf("flush %d", m.Flush)
	}
	return "never"
}

// A Supply is the power of one machine. All of its disks share the lock, so that
// a cut stops them at one instant.
type Supply struct {
	at  Moment
	off chan struct{} // closed when the power goes

	mu              sync.Mutex // guards what follows, and the state of every disk
	gone            bool
	writes, flushes int
}

// NewSupply returns a supply that is on until the moment comes.
func NewSupply(at Moment) *Supply {
	return &Supply{at: at, off: make(chan struct{})}
}

// Off is closed when the power goes.
func (s *Supply) Off() <-chan struct{} { return s.off }

// Cut takes the power away now, if it is still there.
func (s *Supply) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut()
}

// Counts tells how many writes and flushes the disks have received.
func (s *Supply) Counts() (writes, flushes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes, s.flushes
}

func (s *Supply) cut() {
	if !s.gone {
		s.gone = true
		close(s.off)
	}
}

// countWrite counts a write that a disk has taken into its cache, and reports
// whether there is still power to answer it. Called with the lock held.
func (s *Supply) countWrite() error {
	s.writes++
	if s.writes == s.at.Write {
		s.cut()
	}
	return s.on()
}

// countFlush counts a flush before it has done anything.
func (s *Supply) countFlush() error {
	s.flushes++
	if s.flushes == s.at.Flush {
		s.cut()
	}
	return s.on()
}

func (s *Supply) on() error {
	if s.gone {
		return ErrPowerOff
	}
	return nil
}
