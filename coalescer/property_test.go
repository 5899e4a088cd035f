package coalescer

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
	"pgregory.net/rapid"
)

// A history is a rig under a random sequence of everything that may happen to a
// device, with power cuts.
type history struct {
	rt    *rapid.T
	r     *rig
	rnd   *rand.Rand
	tapes []*tape
	next  byte           // of the next segment
	seen  map[string]int // what happened in all histories
}

// Whatever happens, in whatever order, and wherever the power fails in it: every
// page reads as the reference has it, at every point that may be asked for.
func TestAnyHistoryReadsAsTheReference(t *testing.T) {
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		h := &history{rt: rt, seen: seen, rnd: rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0)), next: 1}
		h.r = newRig(t, func(r *rig) {
			r.durability = rapid.SampledFrom([]string{"fua", "flush"}).Draw(rt, "durability")
			r.opts.RunPages = rapid.SampledFrom([]int{1, 7, 64}).Draw(rt, "run pages")
			r.opts.SoftDebt = rapid.SampledFrom([]float64{0.01, 0.2}).Draw(rt, "soft debt")
			r.sopts.LongChain = rapid.SampledFrom([]int{3, 128}).Draw(rt, "long chain")
		})
		defer func() { h.r.release() }()
		h.create()
		for _, op := range rapid.SliceOfN(rapid.SampledFrom(historyOps), 10, 60).Draw(rt, "ops") {
			seen[op.name]++
			op.do(h)
		}
		h.verify()
	})
	t.Logf("%v", seen)
	for _, w := range []Work{Folded, Rooted, Moved} {
		if seen[w.String()] == 0 {
			t.Errorf("nothing was %v in any history", w)
		}
	}
}

type historyOp struct {
	name string
	do   func(*history)
}

func (o historyOp) String() string { return o.name }

var historyOps = []historyOp{
	{"append", func(h *history) { h.append(false) }},
	{"append", func(h *history) { h.append(false) }},
	{"append much", func(h *history) { h.append(true) }},
	{"append much", func(h *history) { h.append(true) }},
	{"tell", (*history).tell},
	{"tell", (*history).tell},
	{"pass", (*history).passes},
	{"pass", (*history).passes},
	{"forget", func(h *history) { h.r.store.Reclaim(h.rnd.IntN(100)) }},
	{"read", (*history).verify},
	{"create", (*history).create},
	{"delete", (*history).remove},
	{"truncate", (*history).truncate},
	{"hold", (*history).hold},
	{"power cut", (*history).powerCut},
}

func (h *history) fatal(what string, err error) {
	if err != nil {
		h.rt.Fatalf("%s (%s): %v", what, h.r.disk.Label(), err)
	}
}

func (h *history) any() *tape { return h.tapes[h.rnd.IntN(len(h.tapes))] }

func (h *history) append(much bool) {
	w := h.any()
	for range 1 + h.rnd.IntN(20) {
		c := randomChange(h.rnd, rigPages)
		if much {
			c = fat(h.rnd)
		}
		h.fatal("append", h.r.append(w, c))
	}
	if h.r.store.Usage().LogExtents > 18 {
		h.tell()
		h.passes()
	}
}

func (h *history) tell() {
	for _, w := range h.tapes {
		vdl := w.vdl + redoubt.LSN(h.rnd.Uint64N(uint64(w.lsn-min(w.vdl, w.lsn))+1))
		h.r.tell(w, vdl, w.floor+redoubt.LSN(h.rnd.Uint64N(uint64(vdl-min(w.floor, vdl))+1)))
	}
}

// passes calls the folder some times, and lets some time go by.
func (h *history) passes() {
	h.r.now = h.r.now.Add(time.Duration(h.rnd.IntN(8000)) * time.Millisecond)
	for range h.rnd.IntN(20) {
		did, err := h.r.folder.Pass(h.r.now)
		h.fatal("pass", err)
		h.seen[did.Work.String()]++
		if did.Next.After(h.r.now) {
			h.r.now = did.Next
		}
	}
}

func (h *history) verify() {
	for _, w := range h.tapes {
		if w.spec.Kind == redoubt.FullSegment {
			h.fatal("read", h.r.compare(w, max(1, w.lsn/6)))
		}
	}
}

func (h *history) create() {
	if len(h.tapes) < 4 {
		kind := redoubt.FullSegment
		if h.rnd.IntN(4) == 0 && len(h.tapes) > 0 {
			kind = redoubt.TailSegment
		}
		h.tapes = append(h.tapes, h.r.create(h.next, kind))
		h.next++
	}
}

func (h *history) remove() {
	if len(h.tapes) > 1 {
		i := h.rnd.IntN(len(h.tapes))
		w := h.tapes[i]
		h.tapes = append(h.tapes[:i:i], h.tapes[i+1:]...)
		h.fatal("delete", h.r.change(func(m *slab.Buf) (*segfile.Change, error) { return h.r.store.PrepareDelete(m, h.r.seg(w), w.epoch) }))
	}
}

func (h *history) truncate() {
	w := h.any()
	g := h.r.seg(w)
	i := h.r.store.Info(g)
	from := max(i.VDL, i.Coalesced)
	from += redoubt.LSN(h.rnd.Uint64N(uint64(max(w.lsn, from)-from) + 1))
	t := redoubt.Truncation{Epoch: w.epoch + 1, From: from, To: max(from, w.lsn) + 50}
	h.fatal("fence", h.r.change(func(m *slab.Buf) (*segfile.Change, error) { return h.r.store.PrepareEpoch(m, g, t.Epoch) }))
	plan, err := h.r.store.PlanTruncate(g, t)
	h.fatal("truncate", err)
	h.fatal("truncate", h.r.change(func(m *slab.Buf) (*segfile.Change, error) { return h.r.store.PrepareTruncate(m, plan) }))
	w.truncate(t)
}

func (h *history) hold() {
	w := h.any()
	upto := redoubt.MaxLSN
	if h.rnd.IntN(2) == 0 {
		upto = redoubt.LSN(h.rnd.Uint64N(uint64(w.lsn) + 1))
	}
	h.r.store.Hold(h.r.seg(w), segfile.HoldArchive, upto)
}

// powerCut cuts the power within the next operations and goes on with what the
// device has then.
func (h *history) powerCut() {
	r := h.r
	r.disk.CutAtOp(1 + h.rnd.IntN(12))
	for !r.disk.IsCut() {
		if h.rnd.IntN(2) == 0 {
			w := h.any()
			_ = r.append(w, randomChange(h.rnd, rigPages))
			r.store.Tell(r.seg(w), w.acked, w.acked)
		}
		r.now = r.now.Add(time.Second)
		_, _ = r.folder.Pass(r.now)
	}
	n, pick := 0, h.rnd.IntN(8)
	for disk := range r.disk.CrashStates(devtest.CrashOptions{Exhaustive: 1, Samples: 8, Seed: h.rnd.Uint64()}) {
		if n++; n-1 < pick {
			continue
		}
		h.r = r.reopen(disk)
		break
	}
	if h.r == r {
		h.r = r.reopen(r.disk.Restart())
	}
	r.release()
	for _, w := range h.tapes {
		i := h.r.store.Info(h.r.seg(w))
		if i.SCL < w.acked {
			h.rt.Fatalf("segment %d (%s): SCL %d, but %d was acknowledged", w.id[0], h.r.disk.Label(), i.SCL, w.acked)
		}
		w.resume(i.SCL, i.VDL, i.Floor)
	}
	h.verify()
}

// resume goes on after what a crash left: what was not acknowledged may be gone.
func (w *tape) resume(scl, vdl, floor redoubt.LSN) {
	above, epoch := w.above, w.epoch
	w.truncate(redoubt.Truncation{From: scl})
	w.above, w.epoch, w.vdl, w.floor = above, epoch, vdl, floor
}
