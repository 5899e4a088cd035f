package blockdev

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"pgregory.net/rapid"
)

// A step is one operation of a workload.
type step byte

const (
	stepAssign  step = 'a'
	stepRelease step = 'r' // of the first extent in use
	stepMark    step = 'm'
	stepClear   step = 'c'
)

var steps = []step{stepAssign, stepRelease, stepMark, stepClear}

// do performs a step and returns the extent that it gave out, if it did.
func (s step) do(d *Device) (*Extent, error) {
	switch s {
	case stepAssign:
		e, err := d.Assign(RoleLog, 5, 99, Normal)
		if err != nil {
			return nil, err
		}
		return &e, nil
	case stepRelease:
		for _, e := range d.Extents() {
			if e.Role != RoleFree {
				return nil, d.Release(e.Index)
			}
		}
		return nil, nil
	case stepMark:
		return nil, d.MarkClean(1234)
	}
	return nil, d.ClearClean()
}

// A state is what must survive: the table and the clean field.
type state struct {
	extents []Extent
	clean   uint64
}

func stateOf(d *Device) state { return state{d.Extents(), d.Super().Clean} }

func (s state) equal(o state) bool { return s.clean == o.clean && slices.Equal(s.extents, o.extents) }

// A ledger knows which generations of each extent were handed out.
type ledger map[uint32]uint32

func (l ledger) note(e *Extent) error {
	if e == nil {
		return nil
	}
	if e.Gen <= l[e.Index] {
		return fmt.Errorf("generation %d of extent %d was handed out after %d", e.Gen, e.Index, l[e.Index])
	}
	l[e.Index] = e.Gen
	return nil
}

func (l ledger) clone() ledger {
	c := ledger{}
	for k, v := range l {
		c[k] = v
	}
	return c
}

// prepared returns a device with extents in use, on a disk that has everything
// on the medium, and what was handed out.
func prepared(t *testing.T) (*devtest.Disk, ledger) {
	disk := newSmall(t)
	d := mustOpen(t, disk, Options{})
	l := ledger{}
	for _, s := range []step{stepClear, stepAssign, stepAssign, stepAssign, stepRelease} {
		e, err := s.do(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.note(e); err != nil {
			t.Fatal(err)
		}
	}
	return disk.Clone(), l
}

// run performs a workload until the power is cut. It returns how many steps were
// acknowledged; those that were refused count too, they change nothing.
func run(w []step, d *Device, l ledger) (acked int, err error) {
	for _, s := range w {
		e, err := s.do(d)
		if errors.Is(err, redoubt.ErrDeviceFailed) {
			return acked, nil
		}
		if err != nil && !errors.Is(err, redoubt.ErrInvalid) && !errors.Is(err, redoubt.ErrFull) {
			return acked, err
		}
		if err := l.note(e); err != nil {
			return acked, err
		}
		acked++
	}
	return acked, nil
}

// workloads lists the sequences of one to n steps.
func workloads(n int) [][]step {
	all := [][]step{nil}
	for at := 0; at < len(all); at++ {
		if len(all[at]) < n {
			for _, s := range steps {
				all = append(all, append(slices.Clone(all[at]), s))
			}
		}
	}
	return all[1:]
}

// Every workload of up to three operations, cut at every write and flush, with
// every fate of every unflushed write: the table is the one after the last
// acknowledged operation or the one after the operation that was cut, and no
// generation is ever handed out twice.
func TestEveryCutOfEveryShortWorkload(t *testing.T) {
	base, handed := prepared(t)
	worlds, cuts := 0, 0
	for _, durability := range []string{"fua", "flush"} {
		for _, w := range workloads(3) {
			want := history(t, base.Clone(), w, durability)
			for cut := 1; ; cut++ {
				disk := base.Clone()
				d := mustOpen(t, disk, Options{Durability: durability})
				disk.CutAtOp(cut)
				l := handed.clone()
				acked, err := run(w, d, l)
				if err != nil {
					t.Fatalf("%s, %s: %v", durability, w, err)
				}
				if !disk.IsCut() {
					break
				}
				cuts++
				for after := range disk.CrashStates(devtest.CrashOptions{}) {
					worlds++
					if err := survives(after, want[acked:min(acked+2, len(want))], l.clone()); err != nil {
						t.Fatalf("%s, workload %s, cut %d, %d acknowledged, %s: %v", durability, w, cut, acked, after.Label(), err)
					}
				}
			}
		}
	}
	if cuts < 400 || worlds < 2000 {
		t.Errorf("%d cuts and %d crash states only: the test has gone blind", cuts, worlds)
	}
	t.Logf("%d cuts, %d crash states", cuts, worlds)
}

// The same again with a second life: a write that a power cut tore, and a
// second one while that was being replaced. Two halves of two writes must never
// make a whole.
func TestEveryCutAfterATornWrite(t *testing.T) {
	base, handed := prepared(t)
	worlds := 0
	for _, first := range []step{stepAssign, stepRelease} {
		disk := base.Clone()
		d := mustOpen(t, disk, Options{})
		disk.CutAtOp(1)
		if acked, err := run([]step{first}, d, handed.clone()); acked != 0 || err != nil {
			t.Fatal(acked, err)
		}
		for torn := range disk.CrashStates(devtest.CrashOptions{}) {
			for _, second := range [][]step{{stepAssign}, {stepRelease}, {stepClear, stepAssign}, {stepClear, stepRelease}} {
				disk := torn.Clone()
				want := history(t, torn.Clone(), second, "fua")
				d := mustOpen(t, disk, Options{})
				disk.CutAtOp(len(second))
				acked, err := run(second, d, handed.clone())
				if err != nil || !disk.IsCut() {
					t.Fatalf("%c, then %s: %v", first, second, err)
				}
				for after := range disk.CrashStates(devtest.CrashOptions{}) {
					worlds++
					if err := survives(after, want[acked:acked+2], handed.clone()); err != nil {
						t.Fatalf("%c, %s; %s, %s: %v", first, torn.Label(), second, after.Label(), err)
					}
				}
			}
		}
	}
	if worlds < 300 {
		t.Errorf("%d worlds only", worlds)
	}
}

// history returns the states before, between and after the steps of a workload
// that nothing disturbs.
func history(t *testing.T, disk *devtest.Disk, w []step, durability string) []state {
	d := mustOpen(t, disk, Options{Durability: durability})
	all := []state{stateOf(d)}
	for _, s := range w {
		if _, err := s.do(d); err != nil && !errors.Is(err, redoubt.ErrInvalid) {
			t.Fatal(err)
		}
		all = append(all, stateOf(d))
	}
	return all
}

// survives opens a disk after a power cut, compares with what is allowed, and
// gives out every extent that is free.
func survives(disk *devtest.Disk, allowed []state, l ledger) error {
	d, err := openSim(disk, Options{})
	if err != nil {
		return err
	}
	defer d.Close()
	got := stateOf(d)
	if !slices.ContainsFunc(allowed, got.equal) {
		return fmt.Errorf("found %v, want one of %v", got, allowed)
	}
	if err := d.ClearClean(); err != nil {
		return err
	}
	for d.FreeExtents(Reserve) > 0 {
		e, err := d.Assign(RolePages, 1, 0, Reserve)
		if err != nil {
			return err
		}
		if err := l.note(&e); err != nil {
			return err
		}
	}
	if found, err := d.CheckTable(); err != nil || harmful(found) {
		return fmt.Errorf("check: %v, %v", found, err)
	}
	return nil
}

func harmful(found []Damage) bool {
	return slices.ContainsFunc(found, func(d Damage) bool { return !d.Harmless })
}

// Long lives: operations, power cuts, kills of the process with the power on,
// and clean restarts, again and again on one device.
func TestLongLives(t *testing.T) {
	base, handed := prepared(t)
	rapid.Check(t, func(t *rapid.T) {
		disk, l := base.Clone(), handed.clone()
		o := Options{Durability: rapid.SampledFrom([]string{"fua", "flush"}).Draw(t, "durability")}
		d, err := openSim(disk, o)
		if err != nil {
			t.Fatal(err)
		}
		step1 := func(t *rapid.T) (before, after state, acked bool) {
			s := rapid.SampledFrom(steps).Draw(t, "step")
			before = stateOf(d)
			after = expected(t, disk, d, s)
			acked1, err := run([]step{s}, d, l)
			if err != nil {
				t.Fatal(err)
			}
			return before, after, acked1 == 1
		}
		reopen := func(t *rapid.T, next *devtest.Disk, allowed ...state) {
			d.Close()
			disk = next
			if d, err = openSim(disk, o); err != nil {
				t.Fatalf("%s: %v", next.Label(), err)
			}
			if got := stateOf(d); !slices.ContainsFunc(allowed, got.equal) {
				t.Fatalf("%s: found %v, want one of %v", next.Label(), got, allowed)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"step": func(t *rapid.T) {
				if _, after, acked := step1(t); !acked || !stateOf(d).equal(after) {
					t.Fatalf("acknowledged %v, state %v, want %v", acked, stateOf(d), after)
				}
			},
			"cut": func(t *rapid.T) {
				disk.CutAtOp(rapid.IntRange(1, 3).Draw(t, "cut"))
				allowed := []state{stateOf(d)}
				for !disk.IsCut() {
					before, after, acked := step1(t)
					if allowed = []state{before, after}; acked {
						allowed = []state{after}
					}
				}
				var next *devtest.Disk
				if rapid.Bool().Draw(t, "power") {
					pick := rapid.IntRange(0, 6).Draw(t, "world")
					for next = range disk.CrashStates(devtest.CrashOptions{}) {
						if pick--; pick < 0 {
							break
						}
					}
				} else {
					next = disk.Restart() // the kernel carries out what was in flight
				}
				reopen(t, next, allowed...)
			},
			"power cut while idle": func(t *rapid.T) {
				was := stateOf(d)
				for c := range disk.CrashStates(devtest.CrashOptions{}) {
					next, err := openSim(c, o)
					if err != nil || !stateOf(next).equal(was) {
						t.Fatalf("%s: %v, was %v: %v", c.Label(), next, was, err)
					}
					next.Close()
				}
			},
			"restart": func(t *rapid.T) { reopen(t, disk.Restart(), stateOf(d)) },
		})
	})
}

// expected performs the step on a copy of the disk and returns the state that
// it leads to.
func expected(t *rapid.T, disk *devtest.Disk, d *Device, s step) state {
	copied := disk.Clone()
	c, err := openSim(copied, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !stateOf(c).equal(stateOf(d)) {
		t.Fatalf("the device says %v, the disk %v", stateOf(d), stateOf(c))
	}
	c.free.cursor = d.free.cursor
	if _, err := s.do(c); err != nil && !errors.Is(err, redoubt.ErrInvalid) && !errors.Is(err, redoubt.ErrFull) {
		t.Fatal(err)
	}
	return stateOf(c)
}

// A format that is cut anywhere leaves no device, or the whole new one. The old
// one is gone once its superblocks are wiped, which is the first step.
func TestEveryCutOfAFormat(t *testing.T) {
	for cut := 1; ; cut++ {
		disk, _ := prepared(t)
		disk.CutAtOp(cut)
		o := smallOptions()
		o.Force, o.device = true, redoubt.DeviceID(id(0xee))
		_, err := FormatEngine(disk, disk.Size(), disk.BlockSize(), o)
		if !disk.IsCut() {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		if !errors.Is(err, devtest.ErrPowerCut) {
			t.Fatalf("cut %d: %v", cut, err)
		}
		for after := range disk.CrashStates(devtest.CrashOptions{}) {
			d, err := openSim(after, Options{})
			switch {
			case err != nil && !errors.Is(err, redoubt.ErrForeign) && !errors.Is(err, redoubt.ErrCorrupt):
				t.Fatalf("cut %d, %s: %v", cut, after.Label(), err)
			case err == nil && d.Super().Device == smallOptions().device && cut > 2:
				t.Fatalf("cut %d, %s: the old device is still there", cut, after.Label())
			case err == nil && d.Super().Device == o.device && table(d) != "":
				t.Fatalf("cut %d, %s: a new device with old extents:\n%s", cut, after.Label(), table(d))
			}
			if err == nil {
				d.Close()
			}
		}
	}
}
