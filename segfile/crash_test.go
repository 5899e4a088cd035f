package segfile

import (
	"fmt"
	"maps"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/slab"
)

// A history is what a crash test knows of a segment: which records were handed
// over, which of them were acknowledged, and what else was promised.
type history struct {
	written map[redoubt.LSN]mark // every record that was handed over
	acked   redoubt.LSN
	epoch   redoubt.Epoch      // acknowledged
	trunc   redoubt.Truncation // acknowledged
	tried   redoubt.Truncation // handed over
	floor   redoubt.LSN
}

type mark struct {
	page  uint32
	v     byte
	epoch redoubt.Epoch
	void  bool // by a truncation that was acknowledged
}

// A crashRun is one workload on one disk.
type crashRun struct {
	*rig
	g *Segment
	w *tape
	h history
}

// do carries out one of the operations that workloads are made of. It returns
// the error of the device, after which the workload is over.
func (c *crashRun) do(op string) error {
	switch op {
	case "append":
		return c.append(1)
	case "two":
		return c.append(2)
	case "fold":
		c.store.Tell(c.g, c.h.acked, c.h.acked)
		c.h.floor = c.h.acked
		return c.tryCoalesce(c.g)
	case "root":
		return c.tryRoot(c.g)
	case "fence":
		e := c.h.epoch + 1
		err := c.change(func(m *slab.Buf) (*Change, error) { return c.store.PrepareEpoch(m, c.g, e) })
		if err == nil {
			c.h.epoch, c.w.epoch = e, e
		}
		return err
	case "cut":
		return c.truncate()
	case "trim":
		_, err := c.store.TrimLog()
		return err
	}
	return fmt.Errorf("no operation %q", op)
}

// append hands n records over in one write and waits for it.
func (c *crashRun) append(n int) error {
	next := c.w.prev + 1
	if t := c.h.trunc; next <= t.To && t.To != 0 && next > t.From {
		next = t.To + 1
	}
	var runs []*Run
	for i := range n {
		lsn := next + redoubt.LSN(i)
		page, v := uint32(lsn%3), byte(lsn%250)+1
		run, buf := c.run(c.w, lsn, page, v)
		defer buf.Drop()
		c.h.written[lsn] = mark{page: page, v: v, epoch: c.w.epoch}
		if !c.store.Admit(run, func(int) (redoubt.LSN, redoubt.LSN) { return 0, 0 }) {
			return fmt.Errorf("refused: %w", run.Blocks[0].Err)
		}
		runs = append(runs, run)
	}
	if err := c.write(runs...); err != nil {
		return err
	}
	c.h.acked = next + redoubt.LSN(n) - 1
	return nil
}

// truncate opens the volume anew: it voids the newest record and goes on behind.
func (c *crashRun) truncate() error {
	if err := c.do("fence"); err != nil {
		return err
	}
	from := max(c.h.acked-1, c.h.floor)
	t := redoubt.Truncation{Epoch: c.h.epoch, From: from, To: from + 100}
	plan, err := c.store.PlanTruncate(c.g, t)
	if err != nil {
		return err
	}
	c.h.tried = t
	if err := c.change(func(m *slab.Buf) (*Change, error) { return c.store.PrepareTruncate(m, plan) }); err != nil {
		return err
	}
	clear(c.w.pages)
	for lsn, m := range c.h.written {
		if m.void = !m.live(lsn, t); !m.void {
			c.w.pages[m.page] = max(c.w.pages[m.page], lsn)
		}
		c.h.written[lsn] = m
	}
	c.h.trunc, c.h.acked = t, c.h.last(min(c.h.acked, from), t)
	c.w.prev = c.h.last(from, t)
	return nil
}

// live reports that a record is void neither already nor by t.
func (m mark) live(lsn redoubt.LSN, t redoubt.Truncation) bool {
	return !m.void && !t.Voids(lsn, m.epoch)
}

// last returns the highest record at or below lsn that is live beside t.
func (h *history) last(lsn redoubt.LSN, t redoubt.Truncation) (last redoubt.LSN) {
	for l, m := range h.written {
		if l <= lsn && m.live(l, t) {
			last = max(last, l)
		}
	}
	return last
}

// verify opens what a crash left and compares it with the history.
func (c *crashRun) verify(t *testing.T, disk *devtest.Disk) {
	t.Helper()
	n := &rig{t: t, disk: disk, mode: c.mode, small: c.small, wide: c.wide, in: c.in}
	fatalf := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("crash state %s: "+format, append([]any{disk.Label()}, args...)...)
	}
	if err := n.open(false); err != nil {
		fatalf("open: %v", err)
	}
	defer n.retire()
	for _, d := range n.store.Recovery().Damage {
		fatalf("recovery reports damage: %v", d.Err)
	}
	g, ok := n.store.Segment(c.g.ID)
	if !ok {
		fatalf("the segment is gone")
	}
	i := n.store.Info(g)
	tr := c.h.trunc
	if i.Truncation == c.h.tried {
		tr = c.h.tried // it was written, though nobody was told
	}
	acked := c.h.acked
	if tr != c.h.trunc {
		acked = c.h.last(min(acked, tr.From), tr)
	}
	switch {
	case i.SCL < acked:
		fatalf("SCL %d, but %d was acknowledged", i.SCL, acked)
	case i.Epoch < c.h.epoch || i.Truncation != tr:
		fatalf("epoch %d, truncation %v; acknowledged %d, %v", i.Epoch, i.Truncation, c.h.epoch, c.h.trunc)
	case i.Unknown.Reason == Corrupt:
		fatalf("a power cut is taken for the loss of acknowledged records: %v", n.store.Recovery().Holes)
	}
	for page := range uint32(3) {
		b, _, err := n.read(g, page, i.SCL)
		if err != nil {
			fatalf("page %d: %v", page, err)
		}
		for lsn, m := range c.h.written {
			want := byte(0)
			if m.page == page && lsn <= i.SCL && m.live(lsn, tr) {
				want = m.v
			}
			if got := b[offsetOf(lsn)]; m.page == page && got != want {
				fatalf("page %d as of %d: LSN %d reads %d, want %d", page, i.SCL, lsn, got, want)
			}
		}
	}
	n.goesOn(g, i, fatalf)
}

// goesOn checks that a recovered segment takes the next record.
func (r *rig) goesOn(g *Segment, i Info, fatalf func(string, ...any)) {
	r.t.Helper()
	w := &tape{seg: g, epoch: i.Epoch, prev: i.SCL, pages: map[uint32]redoubt.LSN{}}
	next := i.SCL + 1
	if i.Truncation.To >= next {
		next = i.Truncation.To + 1
	}
	if i.Highest > i.SCL {
		return // a gap: a real client opens with a truncation
	}
	if err := r.append1(w, next, 50, 99); err != nil {
		fatalf("append of LSN %d after recovery: %v", next, err)
	}
	b, _, err := r.read(g, 50, next)
	if err != nil || b[offsetOf(next)] != 99 {
		fatalf("read after recovery: %v", err)
	}
}

// tryCoalesce and tryRoot are coalesce and root for a device that may die.
func (r *rig) tryCoalesce(g *Segment) (err error) {
	defer r.catch(&err)
	r.coalesce(g)
	return nil
}

func (r *rig) tryRoot(g *Segment) (err error) {
	defer r.catch(&err)
	r.root(g)
	return nil
}

// powerIsGone is what rig methods panic with, instead of failing the test, once
// the disk was cut.
type powerIsGone struct{}

func (r *rig) catch(err *error) {
	if p := recover(); p != nil {
		if _, ok := p.(powerIsGone); !ok {
			panic(p)
		}
		*err = devtest.ErrPowerCut
	}
}

// TestEveryCrashState runs every workload of up to three operations, cuts the
// power at every operation of the device, and opens every state that a volatile
// cache may leave: each unflushed write kept, dropped or torn.
func TestEveryCrashState(t *testing.T) {
	for _, mode := range []string{"fua", "flush"} {
		t.Run(mode, func(t *testing.T) {
			c := prepared(t, mode)
			depth := 3
			if testing.Short() || raceEnabled {
				depth = 2
			}
			states := 0
			workloads(depth, func(names []string) { states += c.crashAll(t, names) })
			if states < 500 {
				t.Fatalf("only %d states were opened", states)
			}
			t.Logf("%d crash states", states)
		})
	}
}

// workloads calls f with every sequence of up to n operations.
func workloads(n int, f func([]string)) {
	names := []string{"append", "two", "fold", "root", "fence", "cut", "trim"}
	var walk func(prefix []string)
	walk = func(prefix []string) {
		if len(prefix) > 0 {
			f(prefix)
		}
		if len(prefix) < n {
			for _, name := range names {
				walk(append(prefix[:len(prefix):len(prefix)], name))
			}
		}
	}
	walk(nil)
}

// prepared returns a run whose segment has a few records, some of them in pages.
func prepared(t *testing.T, mode string) *crashRun {
	t.Helper()
	r := &rig{t: t, disk: formatted(t), mode: mode, small: newPool(t, 64<<10, 64), wide: newPool(t, 512<<10, 8), in: newPool(t, 4096, 64)}
	if err := r.open(false); err != nil {
		t.Fatal(err)
	}
	g := r.create(1)
	c := &crashRun{rig: r, g: g, w: newTape(g), h: history{written: map[redoubt.LSN]mark{}, epoch: 1}}
	for _, name := range []string{"two", "two", "fold", "append"} {
		if err := c.do(name); err != nil {
			t.Fatal(err)
		}
	}
	r.retire()
	return c
}

// on returns the prepared run on its own copy of the disk, open.
func (c *crashRun) on(t *testing.T) *crashRun {
	t.Helper()
	n := &crashRun{rig: &rig{t: t, disk: c.disk.Clone(), mode: c.mode, small: c.small, wide: c.wide, in: c.in}, h: c.h}
	n.h.written = maps.Clone(c.h.written)
	if err := n.open(false); err != nil {
		t.Fatal(err)
	}
	n.g, _ = n.store.Segment(c.g.ID)
	n.w = &tape{seg: n.g, epoch: c.w.epoch, prev: c.w.prev, pages: maps.Clone(c.w.pages)}
	return n
}

// crashAll cuts one workload at every operation and opens every state.
func (c *crashRun) crashAll(t *testing.T, names []string) (states int) {
	t.Helper()
	for cut := 1; ; cut++ {
		n := c.on(t)
		n.disk.CutAtOp(cut)
		var err error
		for _, name := range names {
			if err = n.do(name); err != nil {
				break
			}
		}
		done := err == nil && !n.disk.IsCut()
		if err != nil && !n.disk.IsCut() {
			t.Fatalf("%v without a cut: %v", names, err)
		}
		if done {
			n.disk.Cut()
		}
		n.retire()
		for disk := range n.disk.CrashStates(devtest.CrashOptions{}) {
			n.verify(t, disk)
			states++
			if t.Failed() {
				t.Fatalf("workload %v, cut at operation %d", names, cut)
			}
		}
		if done {
			return states
		}
	}
}
