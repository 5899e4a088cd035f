package blockdev

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// A watch is one write of the property test and what became of it.
type watch struct {
	w    Write
	off  int64
	done bool
	err  error
	at   int // length of the disk's log when Done ran
}

// covered reports whether the log, up to n events, has a sync that completed
// well and was submitted after the write at off had completed.
func covered(log []devtest.Event, off int64) bool {
	landed := slices.IndexFunc(log, func(e devtest.Event) bool {
		return e.What == devtest.Completed && e.Kind == ioring.OpWrite && e.Off == off && e.Err == nil
	})
	if landed < 0 {
		return false
	}
	for i, e := range log {
		if e.What != devtest.Completed || e.Kind != ioring.OpSync || e.Err != nil {
			continue
		}
		submitted := slices.IndexFunc(log, func(s devtest.Event) bool { return s.What == devtest.Submitted && s.ID == e.ID })
		if submitted > landed && i > submitted {
			return true
		}
	}
	return false
}

// The flush rule, for any order of completions: no write is reported before a
// flush that was submitted after its completion has completed; one flush runs
// at a time; nobody waits while none runs; after a failure nothing is reported
// durable any more.
func TestFlushRule(t *testing.T) {
	base := newSmall(t)
	mem := aligned(t, 512, 'x')
	rapid.Check(t, func(t *rapid.T) {
		disk := base.Clone()
		d, err := openSim(disk, Options{Durability: "flush"})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.ClearClean(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Assign(RoleLog, 0, 1, Normal); err != nil {
			t.Fatal(err)
		}
		disk.Hold()
		disk.Record()
		var all []*watch
		failed := false
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				x := &watch{off: d.Offset(0) + int64(len(all))*512}
				x.w = Write{Bufs: [][]byte{mem}, Off: x.off, Done: func(w *Write, err error) {
					if x.done || w != &x.w {
						t.Fatalf("write at %d reported twice", x.off)
					}
					x.done, x.err, x.at = true, err, len(disk.Ops())
				}}
				all = append(all, x)
				d.WriteDurable(&x.w)
			},
			"complete": func(t *rapid.T) {
				held := disk.Held()
				if len(held) == 0 {
					t.Skip("nothing is held")
				}
				disk.Complete(rapid.IntRange(0, len(held)-1).Draw(t, "which"), nil)
			},
			"fail": func(t *rapid.T) {
				held := disk.Held()
				if len(held) == 0 || len(all) < 8 {
					t.Skip("too early")
				}
				failed = true
				disk.Complete(rapid.IntRange(0, len(held)-1).Draw(t, "which"), unix.EIO)
			},
			"": func(t *rapid.T) { checkFlushRule(t, d, disk, all, failed) },
		})
		disk.Inline()
		for _, x := range all {
			if !x.done {
				t.Fatalf("the write at %d was never reported", x.off)
			}
		}
	})
}

func checkFlushRule(t *rapid.T, d *Device, disk *devtest.Disk, all []*watch, failed bool) {
	log := disk.Ops()
	syncs, writes, waiting := 0, 0, 0
	for _, h := range disk.Held() {
		if h.Kind == ioring.OpSync {
			syncs++
		} else {
			writes++
		}
	}
	for _, x := range all {
		switch {
		case !x.done:
			waiting++
		case x.err == nil && !covered(log[:x.at], x.off):
			t.Fatalf("the write at %d was reported durable before a flush covered it", x.off)
		case x.err != nil && !errors.Is(x.err, redoubt.ErrDeviceFailed):
			t.Fatalf("the write at %d: %v", x.off, x.err)
		case x.err != nil && !failed:
			t.Fatalf("the write at %d failed on a healthy device: %v", x.off, x.err)
		}
	}
	broken := slices.IndexFunc(log, func(e devtest.Event) bool { return e.Err != nil })
	if broken >= 0 && slices.ContainsFunc(log[broken:], func(e devtest.Event) bool { return e.What == devtest.Submitted }) {
		t.Fatal("something was submitted to a device that had failed")
	}
	switch {
	case syncs > 1:
		t.Fatalf("%d flushes in flight", syncs)
	case syncs == 0 && waiting > writes:
		t.Fatalf("%d writes wait, %d are in flight, and no flush runs", waiting, writes)
	case failed && d.Failed() == nil:
		t.Fatal("an operation failed and the device didn't")
	}
}

// Many goroutines over a disk that completes in any order: what was reported is
// on the medium. Under -race this also is the test of the flusher's locking.
func TestConcurrentDurableWrites(t *testing.T) {
	for _, durability := range []string{"fua", "flush"} {
		for _, shuffled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, shuffled %v", durability, shuffled), func(t *testing.T) {
				disk := newSmall(t)
				d := mustOpen(t, disk, Options{Durability: durability})
				e := mustAssign(t, d)
				if shuffled {
					defer disk.Shuffle(3)()
				}
				var wg sync.WaitGroup
				for g := range 8 {
					buf := aligned(t, 512, byte(g+1))
					wg.Go(func() {
						for i := range 50 {
							if err := d.WriteAt(buf, d.Offset(e.Index)+int64(g*50+i)*512); err != nil {
								t.Error(err)
							}
						}
					})
				}
				wg.Wait()
				for c := range disk.CrashStates(devtest.CrashOptions{Exhaustive: -1, Samples: 1}) { // all dropped
					b := make([]byte, 8*50*512)
					c.Peek(b, d.Offset(e.Index))
					for i := range b {
						if b[i] != byte(i/(50*512)+1) {
							t.Fatalf("byte %d is %d after a power cut", i, b[i])
						}
					}
				}
				if s := d.Stats(); durability == "flush" && (s.Flushed < 400 || s.Flushes == 0) || s.Writes != 400 || s.WriteBytes != 400*512 {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

// A flush that completes inside Submit, with writes submitted from Done: the
// flusher neither recurses nor forgets anybody.
func TestFlushInline(t *testing.T) {
	disk := newSmall(t)
	d := mustOpen(t, disk, Options{Durability: "flush"})
	e := mustAssign(t, d)
	left := 5000
	w := Write{Bufs: [][]byte{aligned(t, 512, 1)}, Off: d.Offset(e.Index)}
	w.Done = func(w *Write, err error) {
		if err != nil {
			t.Error(err)
		}
		if left--; left > 0 {
			d.WriteDurable(w)
		}
	}
	d.WriteDurable(&w)
	if left != 0 {
		t.Errorf("%d writes are missing", left)
	}
}

// The path of a write or read through this package allocates nothing.
func TestNoAllocationPerOperation(t *testing.T) {
	for _, durability := range []string{"fua", "flush", "plp"} {
		disk := newSmall(t)
		o := Options{Durability: durability}
		e := mustAssign(t, mustOpen(t, disk, o))
		d := mustOpen(t, disk, o)
		d.engine = nullEngine{}
		buf := aligned(t, 4096, 1)
		n := 0
		w := Write{Bufs: [][]byte{buf}, Off: d.Offset(e.Index), Done: func(*Write, error) { n++ }}
		r := Read{Bufs: [][]byte{buf}, Off: d.Offset(e.Index), Done: func(*Read, error) { n++ }}
		for name, f := range map[string]func(){
			"WriteDurable": func() { d.WriteDurable(&w) },
			"Read":         func() { d.Read(&r) },
		} {
			before := n
			if a := testing.AllocsPerRun(100, f); a != 0 || n != before+101 {
				t.Errorf("%s, %s: %v allocations, %d completions", durability, name, a, n-before)
			}
		}
	}
}

func BenchmarkWriteDurable(b *testing.B) {
	for _, durability := range []string{"fua", "flush"} {
		b.Run(durability, func(b *testing.B) {
			disk := newSmall(b)
			o := Options{Durability: durability}
			e := mustAssign(b, mustOpen(b, disk, o))
			d := mustOpen(b, disk, o)
			d.engine = nullEngine{}
			w := Write{Bufs: [][]byte{aligned(b, 4096, 1)}, Off: d.Offset(e.Index), Done: func(*Write, error) {}}
			b.ReportAllocs()
			for b.Loop() {
				d.WriteDurable(&w)
			}
		})
	}
}
