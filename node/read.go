package node

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/netserver"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
	"github.com/redoubt-storage/redoubt/wire"
)

// A pageRead is one READ request on its way. It is used again, so that a read
// allocates nothing.
//
//	reader goroutine     plan; no records to apply: device reads ---+
//	                     else, or if log must be read back:         |
//	own goroutine        plan, device reads, build, reply           |
//	device's completion  the last page: check sums, reply <---------+
type pageRead struct {
	node  *Node
	conn  *netserver.Conn
	req   uint64
	msg   wire.Read
	at    *attachment
	plans []segfile.PagePlan
	pin   segfile.Pin
	reads []blockdev.Read
	bufs  []*slab.Buf
	errs  []error
	descs []wire.PageDesc
	pages [][]byte
	left  atomic.Int32
	slow  bool
	done  chan struct{} // of a slow read: the device has answered
	free  func()
	win   segfile.Window
}

func newPageRead(n *Node, maxPages int) *pageRead {
	r := &pageRead{node: n, done: make(chan struct{}, 1)}
	r.plans = make([]segfile.PagePlan, maxPages)
	r.reads = make([]blockdev.Read, maxPages)
	r.bufs = make([]*slab.Buf, maxPages)
	r.errs = make([]error, maxPages)
	r.msg.Pages = make([]uint32, 0, maxPages)
	for i := range r.reads {
		r.reads[i].Bufs = make([][]byte, 1)
		r.reads[i].Ctx = r
		r.reads[i].Done = pageArrived
	}
	r.free = r.release
	return r
}

// read answers a READ request.
func (n *Node) read(c *netserver.Conn, f *netserver.Frame) {
	r := n.pageReads.Get().(*pageRead)
	r.conn, r.req, r.slow = c, f.Req, false
	if err := r.msg.Decode(f.Body()); err != nil {
		r.fail(err)
		return
	}
	if r.at, _ = c.Handle(r.msg.Handle).(*attachment); r.at == nil {
		r.fail(fmt.Errorf("node: READ: handle %d was never attached on this connection: %w", r.msg.Handle, redoubt.ErrInvalid))
		return
	}
	pages := r.msg.Pages
	pin, planned, err := r.at.lane.store.TryPlanRead(r.at.seg, r.msg.Point, r.msg.Need, pages, r.plans[:len(pages)])
	if err != nil {
		r.fail(err)
		return
	}
	if planned {
		r.pin = pin
		for i := range pages {
			r.slow = r.slow || len(r.plans[i].Recs) > 0
		}
	}
	if !planned || r.slow {
		r.slow = true
		go r.slowRead(planned)
		return
	}
	r.fetch()
}

// slowRead answers a read for which log must be applied, or even read back.
func (r *pageRead) slowRead(planned bool) {
	if !planned {
		pin, err := r.at.lane.store.PlanRead(r.at.seg, r.msg.Point, r.msg.Need, r.msg.Pages, r.plans[:len(r.msg.Pages)])
		if err != nil {
			r.fail(err)
			return
		}
		r.pin = pin
	}
	r.fetch()
	<-r.done
	r.reply()
}

// fetch takes a buffer for each page and reads the versions that are on disk.
// Taking buffers may wait: they come back as answers are sent.
func (r *pageRead) fetch() {
	n := len(r.msg.Pages)
	r.node.takePages(r.bufs[:n])
	clear(r.errs[:n])
	r.left.Store(int32(n) + 1)
	for i := range n {
		p := &r.plans[i]
		if p.Zeros() {
			r.left.Add(-1)
			continue
		}
		d := &r.reads[i]
		d.Bufs[0] = r.bufs[i].Bytes()[:redoubt.PageSize]
		d.Off = r.at.lane.store.SlotOffset(p.Slot)
		r.at.lane.dev.Read(d)
	}
	r.arrived()
}

// pageArrived is the Done of a device read.
func pageArrived(d *blockdev.Read, err error) {
	r := d.Ctx.(*pageRead)
	if err != nil {
		for i := range r.reads {
			if &r.reads[i] == d {
				r.errs[i] = err
			}
		}
	}
	r.arrived()
}

// arrived counts the pages; the last sees to the answer.
func (r *pageRead) arrived() {
	if r.left.Add(-1) > 0 {
		return
	}
	if r.slow {
		r.done <- struct{}{}
		return
	}
	r.reply()
}

// reply builds the pages and sends them.
func (r *pageRead) reply() {
	n := len(r.msg.Pages)
	w := &r.win
	w.Use(r.at.lane.store)
	r.descs, r.pages = r.descs[:0], r.pages[:0]
	for i := range n {
		p := &r.plans[i]
		base := r.bufs[i].Bytes()[:redoubt.PageSize]
		d := wire.PageDesc{Page: p.Page}
		err := r.errs[i]
		if err == nil {
			d.LSN, d.Sum, err = w.Build(r.at.seg, p, base)
		}
		if d.Code = wire.CodeOf(err); err != nil {
			r.node.opts.Log.Error("page can't be served", "lane", r.at.lane.index, "segment", r.at.seg.ID, "page", p.Page, "err", err)
			d.LSN, d.Sum = 0, 0
		} else {
			r.pages = append(r.pages, base)
		}
		r.descs = append(r.descs, d)
	}
	w.Close()
	r.at.lane.store.Unpin(r.pin)
	r.conn.ReplyPages(r.req, r.descs, r.pages, r.free)
}

// release is called when the pages have been sent.
func (r *pageRead) release() {
	n := len(r.msg.Pages)
	r.node.givePages(r.bufs[:n])
	r.recycle()
}

func (r *pageRead) recycle() {
	node := r.node
	clear(r.pages)
	r.conn, r.at = nil, nil
	node.pageReads.Put(r)
}

func (r *pageRead) fail(err error) {
	r.conn.ReplyError(r.req, err)
	r.recycle()
}

// A pageGate hands out page buffers all at once or not at all, so that two reads
// never wait for each other's half.
type pageGate struct {
	mu   sync.Mutex
	cond *sync.Cond
	pool *slab.Pool
}

// takePages fills bufs; it waits until there are enough.
func (n *Node) takePages(bufs []*slab.Buf) {
	g := &n.pages
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.pool.Free() < len(bufs) {
		g.cond.Wait()
	}
	for i := range bufs {
		bufs[i] = g.pool.TryGet()
	}
}

func (n *Node) givePages(bufs []*slab.Buf) {
	g := &n.pages
	g.mu.Lock()
	for i := range bufs {
		bufs[i].Drop()
		bufs[i] = nil
	}
	g.mu.Unlock()
	g.cond.Broadcast()
}
