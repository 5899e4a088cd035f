package devtest_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

const (
	modelSize    = 4 << 10
	modelSectors = modelSize / 512
)

// aligned returns n zeroed bytes aligned to a page.
func aligned(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		panic(err)
	}
	return b
}

// A history is the naive reference: every operation ever, with the times of its
// submission and its end. What may be on the medium is worked out from that
// alone, sector by sector, without any cache.
type history struct {
	now int
	ops []*past
}

type past struct {
	op       *ioring.Op
	id       uint64
	from, to int // sectors of a write
	submit   int
	end      int // 0: in flight
	failed   bool
}

func (h *history) tick() int { h.now++; return h.now }

func (p *past) covers(s int) bool { return p.op.Kind == ioring.OpWrite && p.from <= s && s < p.to }

// durable reports whether the write p is promised to be on the medium.
func (h *history) durable(p *past) bool {
	if p.end == 0 || p.failed {
		return false
	}
	if p.op.DSync {
		return true
	}
	first := 0 // the first sync to complete of those that cover p decides
	ok := false
	for _, s := range h.ops {
		if s.op.Kind == ioring.OpSync && s.submit > p.end && s.end != 0 && (first == 0 || s.end < first) {
			first, ok = s.end, !s.failed
		}
	}
	return ok
}

// visible returns what a reader sees in sector s: the id of a write, or 0.
func (h *history) visible(s int) uint64 {
	var last *past
	for _, p := range h.ops {
		if p.covers(s) && p.end != 0 && !p.failed && (last == nil || p.end > last.end) {
			last = p
		}
	}
	if last == nil {
		return 0
	}
	return last.id
}

// possible returns what sector s may hold after a power cut.
func (h *history) possible(s int) map[uint64]bool {
	var floor *past
	for _, p := range h.ops {
		if p.covers(s) && h.durable(p) && (floor == nil || p.end > floor.end) {
			floor = p
		}
	}
	set := map[uint64]bool{}
	since := 0
	if floor == nil {
		set[0] = true
	} else {
		set[floor.id], since = true, floor.end
	}
	for _, p := range h.ops {
		if p.covers(s) && !h.durable(p) && (p.end == 0 || p.end > since) {
			set[p.id] = true
		}
	}
	return set
}

func (h *history) inFlight() []*past {
	var l []*past
	for _, p := range h.ops {
		if p.end == 0 {
			l = append(l, p)
		}
	}
	return l
}

// sector reads the id in a sector, and checks that no sector is mixed.
func sector(t *rapid.T, b []byte, s int) uint64 {
	b = b[s*512 : (s+1)*512]
	id := binary.LittleEndian.Uint64(b)
	for i := 0; i < 512; i += 8 {
		if binary.LittleEndian.Uint64(b[i:]) != id {
			t.Fatalf("sector %d is mixed", s)
		}
	}
	return id
}

// The cache against the naive reference: what readers see, and what a power cut
// leaves, for any interleaving of writes, syncs, completions and failures.
func TestCacheAgainstReference(t *testing.T) {
	const depth = 12 // operations in flight
	mem := aligned(modelSize * depth)
	rapid.Check(t, func(t *rapid.T) {
		d := devtest.New(modelSize)
		d.Hold()
		var h history
		var free [][]byte // buffers that no operation uses
		for i := range depth {
			free = append(free, mem[i*modelSize:(i+1)*modelSize])
		}
		submit := func(op *ioring.Op) *past {
			p := &past{op: op, id: uint64(len(h.ops) + 1)}
			buf := free[0]
			free = free[1:]
			op.Done = func(_ *ioring.Op, err error) {
				p.end, p.failed = h.tick(), err != nil
				free = append(free, buf)
			}
			h.ops = append(h.ops, p)
			return p
		}
		finish := func(t *rapid.T, err error) {
			flight := h.inFlight()
			if len(flight) == 0 {
				t.Skip("nothing in flight")
			}
			i := rapid.IntRange(0, len(flight)-1).Draw(t, "which")
			d.Complete(i, err)
			if flight[i].end == 0 {
				t.Fatalf("Complete(%d) completed something else", i)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				if len(free) == 0 {
					t.Skip("no buffer is free")
				}
				buf := free[0]
				op := &ioring.Op{Kind: ioring.OpWrite, DSync: rapid.Bool().Draw(t, "dsync")}
				p := submit(op)
				p.from = rapid.IntRange(0, modelSectors-1).Draw(t, "from")
				p.to = rapid.IntRange(p.from+1, modelSectors).Draw(t, "to")
				buf = buf[:(p.to-p.from)*512]
				for i := 0; i < len(buf); i += 8 {
					binary.LittleEndian.PutUint64(buf[i:], p.id)
				}
				op.Off, op.Bufs, p.submit = int64(p.from)*512, [][]byte{buf}, h.tick()
				op.SubmitTo(d)
			},
			"sync": func(t *rapid.T) {
				if len(free) == 0 {
					t.Skip("no buffer is free")
				}
				op := &ioring.Op{Kind: ioring.OpSync}
				submit(op).submit = h.tick()
				op.SubmitTo(d)
			},
			"complete": func(t *rapid.T) { finish(t, nil) },
			"fail":     func(t *rapid.T) { finish(t, unix.EIO) },
			"":         func(t *rapid.T) { compare(t, d, &h) },
		})
	})
}

// compare holds the disk, and the disks that a power cut leaves, against the
// history.
func compare(t *rapid.T, d *devtest.Disk, h *history) {
	seen := d.Bytes()
	var reached, possible [modelSectors]map[uint64]bool
	for s := range modelSectors {
		reached[s], possible[s] = map[uint64]bool{}, h.possible(s)
		if got, want := sector(t, seen, s), h.visible(s); got != want {
			t.Fatalf("a reader sees write %d in sector %d, want %d", got, s, want)
		}
	}
	complete := d.Unflushed() <= 5
	visit := func(o devtest.CrashOptions) {
		for c := range d.CrashStates(o) {
			b := c.Bytes()
			for s := range modelSectors {
				id := sector(t, b, s)
				reached[s][id] = true
				if !possible[s][id] {
					t.Fatalf("after a %s, sector %d holds write %d; possible are %v", c.Label(), s, id, possible[s])
				}
			}
		}
	}
	visit(devtest.CrashOptions{Exhaustive: 5, Samples: 16, Whole: true})
	visit(devtest.CrashOptions{Exhaustive: 1, Samples: 8, Seed: uint64(h.now)})
	for s := range modelSectors {
		for id := range possible[s] {
			if complete && !reached[s][id] {
				t.Fatalf("no crash state has write %d in sector %d", id, s)
			}
		}
	}
}

// A disk that survives its process keeps what is in the cache, volatile as
// before.
func TestRestartKeepsTheCache(t *testing.T) {
	d := devtest.New(modelSize)
	buf := aligned(4096)
	buf[0] = 1
	mustDo(t, d, ioring.Op{Kind: ioring.OpWrite, Bufs: [][]byte{buf[:512]}})
	d.Hold()
	var late error
	op := ioring.Op{Kind: ioring.OpWrite, Off: 512, Bufs: [][]byte{buf[:512]}, Done: func(_ *ioring.Op, err error) { late = err }}
	op.SubmitTo(d)
	e := d.Restart()
	if late == nil {
		t.Error("an operation of the killed process succeeded")
	}
	got := e.Bytes()
	if got[0] != 1 || got[512] != 1 {
		t.Error("the cache was lost with the process")
	}
	worlds := map[string]bool{}
	for c := range e.CrashStates(devtest.CrashOptions{}) {
		b := c.Bytes()
		worlds[fmt.Sprint(b[0], b[512])] = true
	}
	if len(worlds) != 4 {
		t.Errorf("a power cut after the restart leaves %v, want all four combinations", worlds)
	}
	mustDo(t, e, ioring.Op{Kind: ioring.OpSync})
	if n := e.Unflushed(); n != 0 {
		t.Errorf("%d writes are volatile after a sync", n)
	}
}

// do performs op and returns its error.
func do(d *devtest.Disk, op ioring.Op) error {
	err := errors.New("did not complete inside Submit")
	op.Done = func(_ *ioring.Op, e error) { err = e }
	d.Submit(&op)
	return err
}

func mustDo(t *testing.T, d *devtest.Disk, op ioring.Op) {
	t.Helper()
	if err := do(d, op); err != nil {
		t.Fatal(err)
	}
}
