package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/netserver"
	"github.com/redoubt-storage/redoubt/slab"
	"github.com/redoubt-storage/redoubt/wire"
)

// A Node is a running storage node.
type Node struct {
	// Set by Open, never changed.
	opts     Options
	id       redoubt.NodeID
	lanes    []*lane
	slabs    *slab.Pool
	pages    pageGate
	folds    *slab.Pool // runs of pages that are being coalesced
	ahead    *slab.Pool // what coalescing and scrubbing read
	server   *netserver.Server
	http     *http.Server
	httpAddr net.Addr
	maxFrame int
	started  time.Time

	intakes    sync.Pool // of *intake
	pageReads  sync.Pool // of *pageRead
	placing    sync.Mutex
	truncating sync.Mutex
	reclaimAt  atomic.Uint32 // the lane whose cache gives next
	closing    atomic.Bool

	stopTick chan struct{}
	ticked   chan struct{} // closed when the ticker has gone
}

// Open opens the node's devices, recovers what is on them and serves it. What
// it says while it does so goes to Options.Log.
func Open(ctx context.Context, o Options) (n *Node, _ error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	n = &Node{opts: o, started: time.Now(), stopTick: make(chan struct{}), ticked: make(chan struct{})}
	if err := n.open(ctx); err != nil {
		n.abort()
		return nil, err
	}
	go n.tick()
	return n, nil
}

func (n *Node) open(ctx context.Context) (err error) {
	o := n.opts
	b := o.budget()
	// What isn't mapped below is the Go heap's; the collector is told the whole.
	debug.SetMemoryLimit(o.Memory)
	if n.slabs, err = slab.New(slab.Options{Name: "ingest", Size: slabSize, Count: b.slabs, Reclaim: n.reclaim}); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if n.pages.pool, err = slab.New(slab.Options{Name: "pages", Size: redoubt.PageSize, Count: b.pages}); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	n.pages.cond = sync.NewCond(&n.pages.mu)
	if n.folds, err = slab.New(slab.Options{Name: "folds", Size: foldSize, Count: b.folds}); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if n.ahead, err = slab.New(slab.Options{Name: "read ahead", Size: windowSize, Count: b.ahead}); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	n.opts.Coalesce.Pages, n.opts.Coalesce.Ahead = n.folds, n.ahead
	devs, err := n.openDevices()
	if err != nil {
		return err
	}
	if err := n.openLanes(ctx, devs, b); err != nil {
		return err
	}
	return n.serve()
}

// openDevices opens all devices and checks that they are this node's, whole and
// in order.
func (n *Node) openDevices() ([]*blockdev.Device, error) {
	o := n.opts
	var devs []*blockdev.Device
	fail := func(err error) ([]*blockdev.Device, error) {
		for _, d := range devs {
			_ = d.Close()
		}
		return nil, fmt.Errorf("node: %w", err)
	}
	var supers []blockdev.Superblock
	for _, path := range o.Devices {
		d, err := blockdev.Open(path, blockdev.Options{IOEngine: o.IOEngine, Durability: o.Durability,
			Regions: [][]byte{n.slabs.Region(), n.pages.pool.Region(), n.folds.Region(), n.ahead.Region()}})
		if err != nil {
			return fail(err)
		}
		devs = append(devs, d)
		supers = append(supers, d.Super())
	}
	slices.SortFunc(devs, func(a, b *blockdev.Device) int { return a.Super().Position - b.Super().Position })
	slices.SortFunc(supers, func(a, b blockdev.Superblock) int { return a.Position - b.Position })
	if err := blockdev.CheckSet(supers); err != nil {
		return fail(err)
	}
	n.id = devs[0].Super().Node
	return devs, nil
}

// openLanes recovers the devices, all at the same time.
func (n *Node) openLanes(ctx context.Context, devs []*blockdev.Device, b budget) error {
	lanes := make([]*lane, len(devs))
	errs := make([]error, len(devs))
	var wg sync.WaitGroup
	for i, d := range devs {
		wg.Go(func() { lanes[i], errs[i] = openLane(i, d, b, n.opts) })
	}
	wg.Wait()
	err := errors.Join(append(errs, ctx.Err())...)
	for i, l := range lanes {
		if errs[i] == nil {
			n.lanes = append(n.lanes, l)
			n.logLane(l)
		} else {
			_ = devs[i].Close()
		}
	}
	return err
}

func (n *Node) logLane(l *lane) {
	eng, engWhy := l.dev.Engine()
	dur, durWhy := l.dev.Durability()
	r := l.store.Recovery()
	n.opts.Log.Info("device open", "lane", l.index, "path", l.dev.Path(), "engine", eng, "engine_why", engWhy,
		"durability", dur, "durability_why", durWhy, "segments", r.Segments, "log_bytes", r.Bytes, "recovery", l.recovery)
	for _, h := range r.Holes {
		n.opts.Log.Warn("hole in the log: what it held is UNKNOWN", "lane", l.index, "from", h.From, "to", h.To, "class", h.Class.String())
	}
	for _, d := range r.Damage {
		n.opts.Log.Error("damage on the device", "lane", l.index, "path", l.dev.Path(), "offset", d.Offset, "segment", d.Segment, "err", d.Err)
	}
}

// serve begins to listen.
func (n *Node) serve() error {
	o := n.opts
	align := wire.HelloAlign
	for _, l := range n.lanes {
		align = max(align, l.dev.BlockSize())
	}
	name := o.Name
	if name == "" {
		name, _ = os.Hostname() // a node without a name is called nothing
	}
	n.intakes.New = func() any { return newIntake(&n.intakes) }
	n.pageReads.New = func() any { return newPageRead(n, wire.MaxPages) }
	ln, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	so := netserver.Options{Pool: n.slabs, Handler: n, MaxConns: o.MaxConns, FrameTimeout: o.FrameTimeout, Log: o.Log, Drain: n.drain}
	so.Welcome = wire.Welcome{Lanes: uint8(len(n.lanes)), Align: uint32(align), MaxFrame: 512 << 10, Node: n.id,
		Cluster: n.lanes[0].dev.Super().Cluster, Name: name}
	n.maxFrame = int(so.Welcome.MaxFrame)
	if n.server, err = netserver.Serve(ln, so); err != nil {
		ln.Close()
		return fmt.Errorf("node: %w", err)
	}
	return n.serveHTTP()
}

// Addr is where the node listens; HTTPAddr where its metrics are, nil for
// nowhere.
func (n *Node) Addr() net.Addr     { return n.server.Addr() }
func (n *Node) HTTPAddr() net.Addr { return n.httpAddr }

// ID returns the node's identity.
func (n *Node) ID() redoubt.NodeID { return n.id }

// reclaim frees slabs that the lanes keep as a cache of their logs. Frames of
// several lanes lie in one slab, so each lane gives a few of its oldest runs in
// turn until a slab is free.
func (n *Node) reclaim() bool {
	for {
		gave := 0
		first := int(n.reclaimAt.Add(1))
		for i := range n.lanes {
			gave += n.lanes[(first+i)%len(n.lanes)].store.Reclaim(16)
		}
		if n.slabs.Free() > 0 {
			return true
		}
		if gave == 0 {
			return n.server != nil && n.server.Reclaim()
		}
	}
}

const tickEvery = 100 * time.Millisecond

// tick keeps the queues' pacing informed and seals idle logs.
func (n *Node) tick() {
	defer close(n.ticked)
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-n.stopTick:
			return
		case now := <-t.C:
			for _, l := range n.lanes {
				l.queue.Tick(now)
			}
		}
	}
}

// drain waits until everything that was admitted is durable or has failed, so
// that the acks can go out before connections close.
func (n *Node) drain(ctx context.Context) {
	for _, l := range n.lanes {
		l.queue.Drain(ctx)
	}
}

// Close shuts the node down: no new connections, what was admitted becomes
// durable and is acknowledged, logs are sealed, devices closed as clean. ctx
// bounds how long clients are waited for.
func (n *Node) Close(ctx context.Context) error {
	if n.closing.Swap(true) {
		return nil
	}
	var errs []error
	if err := n.server.Shutdown(ctx); err != nil {
		errs = append(errs, fmt.Errorf("node: %w", err))
	}
	close(n.stopTick)
	<-n.ticked
	for _, l := range n.lanes {
		errs = append(errs, l.close(ctx))
	}
	if n.http != nil {
		errs = append(errs, n.http.Shutdown(ctx))
	}
	for _, p := range n.pools() {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// pools returns the node's pools, as far as they have been made.
func (n *Node) pools() []*slab.Pool {
	return slices.DeleteFunc([]*slab.Pool{n.slabs, n.pages.pool, n.folds, n.ahead}, func(p *slab.Pool) bool { return p == nil })
}

// abort undoes a failed Open.
func (n *Node) abort() {
	if n.server != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = n.server.Shutdown(ctx)
	}
	for _, l := range n.lanes {
		_ = l.close(context.Background())
	}
	for _, p := range n.pools() {
		_ = p.Close()
	}
}
