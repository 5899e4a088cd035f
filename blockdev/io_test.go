package blockdev

import (
	"errors"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/internal/invariant"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

// A failure is for good: every later write gets it, with the first cause, and
// reads go on.
func TestAFailedDeviceStaysFailed(t *testing.T) {
	for _, test := range []struct {
		durability string
		fault      devtest.FaultKind
	}{{"fua", devtest.WriteError}, {"plp", devtest.ShortWrite}, {"flush", devtest.WriteError}, {"flush", devtest.SyncError}} {
		t.Run(test.durability+" "+test.fault.String(), func(t *testing.T) {
			disk := newSmall(t)
			d := mustOpen(t, disk, Options{Durability: test.durability})
			e := mustAssign(t, d)
			buf := aligned(t, 4096, 'a')
			if err := d.WriteAt(buf, d.Offset(e.Index)); err != nil || d.Failed() != nil {
				t.Fatal(err, d.Failed())
			}
			in := disk.Arm(devtest.Fault{Kind: test.fault})
			first := d.WriteAt(aligned(t, 4096, 'b'), d.Offset(e.Index)+4096)
			in.MustHaveInjected(t)
			if !errors.Is(first, redoubt.ErrDeviceFailed) || d.Failed() != first {
				t.Fatalf("%v, Failed says %v", first, d.Failed())
			}
			for what, err := range map[string]error{
				"write":   d.WriteAt(buf, d.Offset(e.Index)),
				"release": d.Release(e.Index),
				"clean":   d.MarkClean(1),
				"clear":   d.ClearClean(),
			} {
				if err != first {
					t.Errorf("%s: %v, want the first cause", what, err)
				}
			}
			got := aligned(t, 4096, 0)
			if err := d.ReadAt(got, d.Offset(e.Index)); err != nil || string(got) != string(buf) {
				t.Errorf("a read of a failed device: %v", err)
			}
		})
	}
}

// Of writes in flight together with the one that fails, none is reported
// durable, not even one that is.
func TestNobodyIsToldDurableAfterAFailure(t *testing.T) {
	for _, durability := range []string{"fua", "flush"} {
		disk := newSmall(t)
		d := mustOpen(t, disk, Options{Durability: durability})
		e := mustAssign(t, d)
		disk.Hold()
		var got []error
		for i := range 3 {
			d.WriteDurable(&Write{Bufs: [][]byte{aligned(t, 512, 1)}, Off: d.Offset(e.Index) + int64(i)*512, Done: func(_ *Write, err error) { got = append(got, err) }})
		}
		disk.Complete(0, nil) // with fua that one is durable and reported
		disk.Complete(0, unix.EIO)
		disk.Drain()
		ok := 0
		for _, err := range got {
			if err == nil {
				ok++
			}
		}
		if want := map[string]int{"fua": 1, "flush": 0}[durability]; len(got) != 3 || ok != want {
			t.Errorf("%s: %d reported, %d of them durable, want 3 and %d", durability, len(got), ok, want)
		}
	}
}

func TestPLPTakesCompletionForDurable(t *testing.T) {
	disk := newSmall(t)
	d := mustOpen(t, disk, Options{Durability: "plp"})
	e := mustAssign(t, d)
	disk.Record()
	if err := d.WriteAt(aligned(t, 512, 1), d.Offset(e.Index)); err != nil {
		t.Fatal(err)
	}
	for _, ev := range disk.Ops() {
		if ev.Kind == ioring.OpSync || ev.DSync {
			t.Errorf("%v: plp neither flushes nor asks for DSYNC", ev)
		}
	}
}

// What a read is told may come from damaged bytes, so it is answered and never
// panics.
func TestReadsOutsideAreRefused(t *testing.T) {
	d := mustOpen(t, newSmall(t), Options{})
	end := d.Offset(uint32(d.ExtentCount()))
	for _, test := range []struct {
		off int64
		n   int
	}{{-512, 512}, {end, 512}, {end - 512, 1024}, {1 << 62, 512}, {-1 << 62, 512}, {d.Offset(0) + 1, 512}, {d.Offset(0), 100}, {d.Offset(0), 0}} {
		if err := d.ReadAt(aligned(t, 4096, 0)[:test.n], test.off); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("read of %d bytes at %d: %v, want ErrInvalid", test.n, test.off, err)
		}
	}
	if err := d.ReadAt(aligned(t, 512, 0), end-512); err != nil {
		t.Errorf("the last block: %v", err)
	}
}

// A write outside the extents is our own bug, and must never get to the table.
func TestWritesOutsidePanic(t *testing.T) {
	d := mustOpen(t, newSmall(t), Options{})
	e := mustAssign(t, d)
	end := d.Offset(uint32(d.ExtentCount()))
	tries := []struct {
		off int64
		n   int
	}{{0, 4096}, {tableOff, 4096}, {d.Offset(0) - 512, 512}, {d.Offset(e.Index) + 100, 512}, {d.Offset(e.Index), 100}, {end, 512}, {end - 512, 1024}}
	if invariant.Checked {
		tries = append(tries, struct {
			off int64
			n   int
		}{d.Offset(e.Index + 1), 512}) // it is free
	}
	for _, test := range tries {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("write of %d bytes at %d was accepted", test.n, test.off)
				}
			}()
			d.WriteAt(aligned(t, 4096, 0)[:test.n], test.off)
		}()
	}
}

func TestClosed(t *testing.T) {
	disk := newSmall(t)
	d := mustOpen(t, disk, Options{})
	e := mustAssign(t, d)
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	buf := aligned(t, 512, 1)
	_, assign := d.Assign(RoleLog, 0, 0, Normal)
	_, check := d.CheckTable()
	for what, err := range map[string]error{
		"write": d.WriteAt(buf, d.Offset(e.Index)), "read": d.ReadAt(buf, d.Offset(e.Index)),
		"assign": assign, "release": d.Release(e.Index), "clear": d.ClearClean(), "check": check,
	} {
		if !errors.Is(err, redoubt.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", what, err)
		}
	}
	// An engine that was closed under a device is no failure of the device.
	d = mustOpen(t, disk.Restart(), Options{})
	if err := d.engine.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteAt(buf, d.Offset(e.Index)); !errors.Is(err, redoubt.ErrClosed) || d.Failed() != nil {
		t.Errorf("%v, Failed says %v", err, d.Failed())
	}
}

func TestOptionsOutOfRange(t *testing.T) {
	disk := newSmall(t)
	for _, o := range []Options{{Durability: "hope"}, {ReserveExtents: -1}, {ReserveExtents: 16}} {
		if _, err := openSim(disk, o); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", o, err)
		}
	}
	for want, o := range map[string]Options{"fua": {}, "flush": {Durability: "flush"}, "plp": {Durability: "plp"}} {
		d := mustOpen(t, disk, o)
		if got, why := d.Durability(); got != want || why == "" {
			t.Errorf("%+v: durability %s (%s)", o, got, why)
		}
		if e, why := d.Engine(); e != "sim" || why == "" {
			t.Errorf("engine %s (%s)", e, why)
		}
	}
}
