package netserver

import (
	"fmt"
	"sync/atomic"
	"time"
)

// maxLines is how many log lines a second connections may cause.
const maxLines = 20

// watch looks after the connections on a coarse clock, which costs them an
// atomic store where deadlines would cost a timer for each read and write. It
// runs until Shutdown is done with the connections.
func (s *Server) watch() {
	defer s.watching.Done()
	tick := min(max(min(s.opts.FrameTimeout, s.opts.WriteTimeout)/8, time.Millisecond), 250*time.Millisecond)
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	start := time.Now()
	second := start
	for {
		var now time.Time
		select {
		case <-s.unwatch:
			return
		case now = <-ticker.C:
		}
		s.clock.Store(int64(now.Sub(start)))
		for _, c := range s.snapshot() {
			c.rob()
			c.checkTime(now.Sub(start))
		}
		if now.Sub(second) >= time.Second {
			second = now
			if kept := s.lines.Swap(0) - maxLines; kept > 0 {
				s.opts.Log.Warn("netserver: further lines within a second kept back", "lines", kept)
			}
		}
	}
}

// checkTime closes the connection when a frame, or a write, takes too long.
func (c *Conn) checkTime(now time.Duration) {
	s := c.srv
	late := func(since *atomic.Int64, limit time.Duration) bool {
		at := since.Load()
		return at != 0 && now-time.Duration(at) > limit
	}
	if limit := s.opts.FrameTimeout; late(&c.partialSince, limit) && c.kill(fmt.Errorf("a frame was not complete after %v", limit)) {
		s.counters.slowSenders.Add(1)
	}
	if limit := s.opts.WriteTimeout; late(&c.writingSince, limit) && c.kill(fmt.Errorf("the client took no answers for %v", limit)) {
		s.counters.slowReaders.Add(1)
	}
}

// since returns the coarse time for the two fields above, in which zero means
// that nothing is under way.
func (s *Server) since() int64 { return max(s.clock.Load(), 1) }
