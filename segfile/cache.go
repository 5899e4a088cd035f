package segfile

// A cachedRun is a run whose bytes are still in memory.
type cachedRun struct {
	pos   uint64
	bytes []byte
	mem   Holder
}

// A runCache keeps the newest durable runs, in the slabs they arrived in, so
// that coalescing and reads need not fetch them from the device again. It holds
// slabs only until the pool wants them back: Reclaim.
type runCache struct {
	runs  []cachedRun // ascending by position, but for the newest few
	head  int
	bytes int64
}

func (c *runCache) len() int { return len(c.runs) - c.head }

// add takes over the hold on the run's memory.
func (c *runCache) add(r cachedRun) {
	if c.head > 256 && c.head > len(c.runs)/2 {
		n := copy(c.runs, c.runs[c.head:])
		clear(c.runs[n:])
		c.runs, c.head = c.runs[:n], 0
	}
	i := len(c.runs)
	for i > c.head && c.runs[i-1].pos > r.pos {
		i--
	}
	c.runs = append(c.runs, cachedRun{})
	copy(c.runs[i+1:], c.runs[i:])
	c.runs[i] = r
	c.bytes += int64(len(r.bytes))
}

// find returns n bytes at pos, if they are here, and what holds them.
func (c *runCache) find(pos uint64, n int) ([]byte, Holder) {
	lo, hi := c.head, len(c.runs)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if c.runs[m].pos <= pos {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo == c.head {
		return nil, nil
	}
	r := &c.runs[lo-1]
	at := pos - r.pos
	if at+uint64(n) > uint64(len(r.bytes)) {
		return nil, nil
	}
	return r.bytes[at : at+uint64(n) : at+uint64(n)], r.mem
}

// evict drops the oldest run.
func (c *runCache) evict() bool {
	if c.len() == 0 {
		return false
	}
	r := &c.runs[c.head]
	c.bytes -= int64(len(r.bytes))
	r.mem.Drop()
	*r = cachedRun{}
	c.head++
	return true
}

// Reclaim drops up to n of the oldest runs that the store keeps in memory and
// returns how many it dropped.
func (s *Store) Reclaim(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := 0
	for i < n && s.cache.evict() {
		i++
	}
	return i
}
