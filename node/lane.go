package node

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/coalescer"
	"github.com/redoubt-storage/redoubt/logqueue"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// A lane is one device of the node with all that works on it.
type lane struct {
	index    int
	dev      *blockdev.Device
	store    *segfile.Store
	queue    *logqueue.Queue
	coal     *coalescer.Coalescer
	small    *slab.Pool
	windows  *slab.Pool
	fillers  *slab.Pool
	recovery time.Duration
}

// openLane recovers a device that has been opened and starts its queue and its
// background work.
func openLane(index int, dev *blockdev.Device, b budget, o Options) (l *lane, err error) {
	l = &lane{index: index, dev: dev}
	defer func() {
		if err != nil {
			l.free()
		}
	}()
	pools := []struct {
		p           **slab.Pool
		name        string
		size, count int
	}{
		{&l.small, "small", smallSize, b.small},
		{&l.windows, "windows", windowSize, b.windows},
		{&l.fillers, "fillers", 4096, max(2, o.Queue.Depth)},
	}
	for _, p := range pools {
		if *p.p, err = slab.New(slab.Options{Name: fmt.Sprintf("%s of lane %d", p.name, index), Size: p.size, Count: p.count}); err != nil {
			return l, fmt.Errorf("node: %w", err)
		}
	}
	so := b.store(dev.ExtentCount(), o.LogShare)
	so.Device, so.Small, so.Windows, so.LongChain = dev.Super().Device, l.small, l.windows, o.LongChain
	start := time.Now()
	cleanEnd := dev.Super().Clean
	if err = dev.ClearClean(); err != nil {
		return l, fmt.Errorf("node: device %s: %w", dev.Path(), err)
	}
	if l.store, err = segfile.Open(dev, so, cleanEnd); err != nil {
		return l, fmt.Errorf("node: device %s: %w", dev.Path(), err)
	}
	l.recovery = time.Since(start)
	return l, l.start(o)
}

func (l *lane) start(o Options) error {
	q := o.Queue
	q.Moved = tellWatchers
	var coal atomic.Pointer[coalescer.Coalescer]
	q.Hungry = func() {
		if c := coal.Load(); c != nil {
			c.Wake()
		}
	}
	var fillers [][]byte
	for range l.fillers.Cap() {
		fillers = append(fillers, l.fillers.TryGet().Bytes()[:l.dev.BlockSize()])
	}
	var err error
	if l.queue, err = logqueue.New(l.store, l.dev, fillers, q); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	c := o.Coalesce
	c.Damaged = func(seg *segfile.Segment, page uint32, err error) {
		o.Log.Error("damaged page", "lane", l.index, "segment", seg.ID, "pg", seg.PG, "page", page, "err", err)
	}
	if l.coal, err = coalescer.New(l.store, l.dev, l.queue, c); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	coal.Store(l.coal)
	l.coal.Start()
	return nil
}

// close ends the lane: what was acknowledged is durable in any case; a clean
// end only makes the next start quicker and proves that nothing was lost.
func (l *lane) close(ctx context.Context) error {
	l.coal.Close()
	err := l.queue.Close()
	if err == nil {
		err = l.dev.MarkClean(l.store.Usage().Durable)
	}
	if cerr := l.dev.Close(); err == nil {
		err = cerr
	}
	l.store.Reclaim(1 << 30)
	l.free()
	if err != nil {
		return fmt.Errorf("node: lane %d: %w", l.index, err)
	}
	return nil
}

// free gives the lane's pools back. Fillers are held for life, so that pool's
// complaint about them means nothing.
func (l *lane) free() {
	for _, p := range []*slab.Pool{l.small, l.windows, l.fillers} {
		if p != nil {
			_ = p.Close()
		}
	}
}

// A watcher is a connection that wants to know of a segment's SCL.
type watcher struct {
	conn   acker
	handle uint32
}

// An acker is a *netserver.Conn.
type acker interface {
	Ack(handle uint32, scl redoubt.LSN)
}

// watch adds a connection to those that are told of the segment's SCL.
func watch(g *segfile.Segment, w watcher) {
	for {
		old := g.Watch.Load()
		var list []watcher
		if old != nil {
			list = append(list, (*old).([]watcher)...)
		}
		next := any(append(list, w))
		if g.Watch.CompareAndSwap(old, &next) {
			return
		}
	}
}

// unwatch removes a connection.
func unwatch(g *segfile.Segment, conn acker) {
	for {
		old := g.Watch.Load()
		if old == nil {
			return
		}
		var list []watcher
		for _, w := range (*old).([]watcher) {
			if w.conn != conn {
				list = append(list, w)
			}
		}
		next := any(list)
		if g.Watch.CompareAndSwap(old, &next) {
			return
		}
	}
}

// tellWatchers passes SCLs on. It runs on a device's completion thread.
func tellWatchers(moved []segfile.Moved) {
	for i := range moved {
		// A segment often has several blocks in one write; the last says it all.
		if i+1 < len(moved) && moved[i+1].Seg == moved[i].Seg {
			continue
		}
		if p := moved[i].Seg.Watch.Load(); p != nil {
			for _, w := range (*p).([]watcher) {
				w.conn.Ack(w.handle, moved[i].SCL)
			}
		}
	}
}
