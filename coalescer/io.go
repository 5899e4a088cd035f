package coalescer

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
)

// A group waits for operations that are in flight together. Their completions
// may run inside the call that begins them, or on the engine's thread.
type group struct {
	left atomic.Int32
	done chan struct{} // has room for the one that is sent
}

func newGroup() group { return group{done: make(chan struct{}, 1)} }

// begin opens the group for add; wait closes it.
func (g *group) begin() { g.left.Store(1) }

func (g *group) add() { g.left.Add(1) }

func (g *group) end() {
	if g.left.Add(-1) == 0 {
		g.done <- struct{}{}
	}
}

func (g *group) wait() {
	g.end()
	<-g.done
}

// pageReads reads pages from their slots, those side by side at once. Its owner
// adds, starts, waits and looks at err, in this order.
type pageReads struct {
	dev   Device
	group group
	pages []pageRead
	ops   []*pageOp
	used  int   // ops
	bytes int64 // asked for, ever
}

// A pageRead is one page to read.
type pageRead struct {
	off int64
	buf []byte // 16 KiB
	err error
	key int // the owner's
}

// A pageOp is one request to the device.
type pageOp struct {
	r     blockdev.Read
	reads *pageReads
	first int // in pages
	err   error
}

func newPageReads(dev Device) pageReads { return pageReads{dev: dev, group: newGroup()} }

func (p *pageReads) reset() { p.pages, p.used = p.pages[:0], 0 }

func (p *pageReads) add(key int, off int64, buf []byte) {
	p.pages = append(p.pages, pageRead{off: off, buf: buf, key: key})
}

// maxReadPages bounds one request: past 256 KiB a larger one wins nothing, and
// several are in flight at once. maxReadFlight bounds these: a drive has no more
// to give, and what the foreground asks for waits behind them.
const (
	maxReadPages  = 16
	maxReadFlight = 64
)

// start begins all reads; of very many it waits for the first.
func (p *pageReads) start() {
	slices.SortFunc(p.pages, func(a, b pageRead) int { return cmp.Compare(a.off, b.off) })
	for i := range p.pages {
		r := &p.pages[i]
		if p.used > 0 {
			o := p.ops[p.used-1]
			if n := len(o.r.Bufs); n < maxReadPages && o.r.Off+int64(n)*redoubt.PageSize == r.off {
				o.r.Bufs = append(o.r.Bufs, r.buf)
				continue
			}
		}
		o := p.op()
		o.r.Off, o.first, o.err = r.off, i, nil
		o.r.Bufs = append(o.r.Bufs[:0], r.buf)
	}
	p.bytes += int64(len(p.pages)) * redoubt.PageSize
	p.group.begin()
	for i, o := range p.ops[:p.used] {
		if i > 0 && i%maxReadFlight == 0 {
			p.group.wait()
			p.group.begin()
		}
		p.group.add()
		p.dev.Read(&o.r)
	}
}

// op returns the next unused request.
func (p *pageReads) op() *pageOp {
	if p.used == len(p.ops) {
		o := &pageOp{reads: p}
		o.r.Ctx, o.r.Done = o, pageReadDone
		p.ops = append(p.ops, o)
	}
	p.used++
	return p.ops[p.used-1]
}

func pageReadDone(r *blockdev.Read, err error) {
	o := r.Ctx.(*pageOp)
	o.err = err
	o.reads.group.end()
}

// wait returns when all reads are done. Where a request for several pages failed
// each is read by itself, so that one bad sector costs one page.
func (p *pageReads) wait() {
	p.group.wait()
	for _, o := range p.ops[:p.used] {
		pages := p.pages[o.first : o.first+len(o.r.Bufs)]
		if o.err == nil || len(pages) == 1 {
			pages[0].err = o.err
			continue
		}
		for i := range pages {
			o.r.Off, o.r.Bufs = pages[i].off, append(o.r.Bufs[:0], pages[i].buf)
			p.group.begin()
			p.group.add()
			p.dev.Read(&o.r)
			p.group.wait()
			pages[i].err = o.err
		}
	}
}
