package coalescer

import (
	"context"

	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

// A gather reads stretches of the device into a few slabs, those that lie near
// each other at once. Its owner adds until there is no room, starts, waits and
// gets; then it may add more, or reset and begin anew.
type gather struct {
	dev   Device
	pool  *slab.Pool
	most  int // slabs
	group group

	bufs    []*slab.Buf
	at      int // the slab that is being filled
	fill    int // bytes of it
	ops     []*gatherOp
	used    int
	started int // of those
	items   []gatherItem
	bytes   int64 // asked for, ever
}

// A gatherOp is one request to the device.
type gatherOp struct {
	r   blockdev.Read
	g   *gather
	end int64 // on the device
	err error
}

// A gatherItem is one stretch: where it is in which request.
type gatherItem struct{ op, at, n int }

func newGather(dev Device, pool *slab.Pool, most int) gather {
	return gather{dev: dev, pool: pool, most: most, group: newGroup()}
}

// take waits for a first slab.
func (g *gather) take(ctx context.Context) error {
	if len(g.bufs) > 0 {
		return nil
	}
	buf, err := g.pool.Get(ctx)
	if err != nil {
		return err
	}
	g.bufs = append(g.bufs, buf)
	return nil
}

// lend makes buf, which stays the caller's, the only slab until the next lend.
func (g *gather) lend(buf *slab.Buf) {
	g.reset()
	g.bufs = append(g.bufs[:0], buf)
}

// drop gives the slabs back.
func (g *gather) drop() {
	for i, b := range g.bufs {
		b.Drop()
		g.bufs[i] = nil
	}
	g.bufs = g.bufs[:0]
	g.reset()
}

func (g *gather) reset() {
	g.items, g.used, g.started, g.at, g.fill = g.items[:0], 0, 0, 0, 0
}

// add asks for n bytes at off and reports false when there is no room.
func (g *gather) add(off int64, n int) bool {
	block := int64(g.dev.BlockSize())
	from, to := off/block*block, (off+int64(n)+block-1)/block*block
	if g.used > g.started && g.extend(from, to) {
		o := g.ops[g.used-1]
		g.items = append(g.items, gatherItem{g.used - 1, int(off - o.r.Off), n})
		return true
	}
	size := int(to - from)
	if (len(g.bufs) == 0 || g.fill+size > g.pool.Size()) && !g.nextSlab() {
		return false
	}
	o := g.op()
	o.r.Off, o.end, o.err = from, to, nil
	o.r.Bufs = append(o.r.Bufs[:0], g.bufs[g.at].Bytes()[g.fill:g.fill+size])
	g.fill += size
	g.items = append(g.items, gatherItem{g.used - 1, int(off - from), n})
	return true
}

// extend makes the newest request reach to if [from, to) begins within it or
// near behind it, and there is memory behind it.
func (g *gather) extend(from, to int64) bool {
	o := g.ops[g.used-1]
	if from < o.r.Off || from > o.end+segfile.NearLog {
		return false
	}
	more := int(max(0, to-o.end))
	if g.fill+more > g.pool.Size() {
		return false
	}
	g.fill += more
	o.end += int64(more)
	b := o.r.Bufs[0]
	o.r.Bufs[0] = b[:len(b)+more]
	return true
}

// nextSlab begins another slab, if one may be had without waiting. Nobody waits
// for memory who has some.
func (g *gather) nextSlab() bool {
	if g.at+1 >= len(g.bufs) {
		if len(g.bufs) >= g.most {
			return false
		}
		buf := g.pool.TryGet()
		if buf == nil {
			return false
		}
		g.bufs = append(g.bufs, buf)
		g.at = len(g.bufs) - 2
	}
	g.at, g.fill = g.at+1, 0
	return true
}

func (g *gather) op() *gatherOp {
	if g.used == len(g.ops) {
		o := &gatherOp{g: g}
		o.r.Ctx, o.r.Done = o, gatherDone
		g.ops = append(g.ops, o)
	}
	g.used++
	return g.ops[g.used-1]
}

func gatherDone(r *blockdev.Read, err error) {
	o := r.Ctx.(*gatherOp)
	o.err = err
	o.g.group.end()
}

// start begins the requests that came since the last start.
func (g *gather) start() {
	g.group.begin()
	for _, o := range g.ops[g.started:g.used] {
		g.bytes += o.end - o.r.Off
		g.group.add()
		g.dev.Read(&o.r)
	}
	g.started = g.used
}

func (g *gather) wait() { g.group.wait() }

// get returns the bytes of the i-th add since reset.
func (g *gather) get(i int) ([]byte, error) {
	it := g.items[i]
	o := g.ops[it.op]
	if o.err != nil {
		return nil, o.err
	}
	return o.r.Bufs[0][it.at : it.at+it.n : it.at+it.n], nil
}
