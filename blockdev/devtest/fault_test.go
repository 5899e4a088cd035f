package devtest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redoubt-storage/redoubt/blockdev/devtest"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

// page returns 4096 aligned bytes of c.
func page(c byte) []byte {
	b := aligned(4096)
	copy(b, bytes.Repeat([]byte{c}, 4096))
	return b
}

func write(off int64, b []byte) ioring.Op {
	return ioring.Op{Kind: ioring.OpWrite, Off: off, Bufs: [][]byte{b}}
}

func dsync(off int64, b []byte) ioring.Op {
	op := write(off, b)
	op.DSync = true
	return op
}

func read(off int64, b []byte) ioring.Op {
	return ioring.Op{Kind: ioring.OpRead, Off: off, Bufs: [][]byte{b}}
}

// letter tells what a page of a disk holds: the byte that fills it, '.' for
// zeros, '?' for a mixture.
func letter(d *devtest.Disk, off int64) byte {
	b := make([]byte, 4096)
	d.Peek(b, off)
	for _, c := range b {
		if c != b[0] {
			return '?'
		}
	}
	if b[0] == 0 {
		return '.'
	}
	return b[0]
}

// worlds lists what the first two pages may hold after a power cut.
func worlds(d *devtest.Disk, whole bool) map[string]bool {
	m := map[string]bool{}
	for c := range d.CrashStates(devtest.CrashOptions{Whole: whole}) {
		m[fmt.Sprintf("%c%c", letter(c, 0), letter(c, 4096))] = true
	}
	return m
}

func wantWorlds(t *testing.T, d *devtest.Disk, want ...string) {
	t.Helper()
	got := worlds(d, true)
	for _, w := range want {
		if !got[w] {
			t.Errorf("no crash state %s among %v", w, got)
		}
	}
	if len(got) != len(want) {
		t.Errorf("crash states %v, want %v", got, want)
	}
}

func TestWritesAreVolatileUntilASyncSubmittedLater(t *testing.T) {
	d := devtest.New(1 << 20)
	d.Hold()
	var ops []*ioring.Op
	for _, op := range []ioring.Op{write(0, page('a')), {Kind: ioring.OpSync}} {
		op.Done = func(*ioring.Op, error) {}
		ops = append(ops, &op)
		d.Submit(&op)
	}
	d.CompleteAll()
	wantWorlds(t, d, "..", "a.") // the sync was submitted beside the write
	d.Submit(ops[1])
	wantWorlds(t, d, "..", "a.") // it has not completed
	d.CompleteAll()
	wantWorlds(t, d, "a.")
}

func TestDSyncCoversItselfOnly(t *testing.T) {
	d := devtest.New(1 << 20)
	mustDo(t, d, write(0, page('a')))
	mustDo(t, d, dsync(4096, page('b')))
	wantWorlds(t, d, ".b", "ab")
}

func TestTornWrites(t *testing.T) {
	d := devtest.New(1 << 20)
	mustDo(t, d, write(0, page('a')))
	patterns := map[string]bool{}
	for c := range d.CrashStates(devtest.CrashOptions{}) {
		b := c.Bytes()
		s := ""
		for i := range 8 {
			s += string("-a"[min(b[i*512], 1)])
		}
		patterns[s] = true
	}
	for _, p := range strings.Fields("-------- aaaaaaaa aaaa---- ----aaaa a-a-a-a- a------- -------a") {
		if !patterns[p] {
			t.Errorf("no crash state %s among %v", p, patterns)
		}
	}
	if len(patterns) != 7 {
		t.Errorf("%d patterns, want 7: %v", len(patterns), patterns)
	}
	// Beyond the exhaustive bound the sectors are drawn.
	drawn := map[string]bool{}
	for c := range d.CrashStates(devtest.CrashOptions{Exhaustive: -1, Samples: 200, Seed: 7}) {
		drawn[string(c.Bytes()[:4096])] = true
	}
	if len(drawn) < 10 {
		t.Errorf("200 draws left %d media only", len(drawn))
	}
}

func TestCutLeavesTheNthWriteInFlight(t *testing.T) {
	d := devtest.New(1 << 20)
	d.CutAfter(2)
	mustDo(t, d, dsync(0, page('a')))
	if d.IsCut() {
		t.Fatal("cut too early")
	}
	if err := do(d, dsync(4096, page('b'))); !errors.Is(err, devtest.ErrPowerCut) || !d.IsCut() {
		t.Fatalf("%v, want a power cut", err)
	}
	if err := do(d, read(0, page(0))); !errors.Is(err, devtest.ErrPowerCut) {
		t.Fatalf("%v after the cut", err)
	}
	wantWorlds(t, d, "a.", "ab")
}

func TestCutAtASync(t *testing.T) {
	d := devtest.New(1 << 20)
	d.CutAtOp(2)
	mustDo(t, d, write(0, page('a')))
	if err := do(d, ioring.Op{Kind: ioring.OpSync}); !errors.Is(err, devtest.ErrPowerCut) {
		t.Fatalf("%v, want a power cut", err)
	}
	wantWorlds(t, d, "..", "a.")
}

func TestCutEndsWhatIsHeld(t *testing.T) {
	d := devtest.New(1 << 20)
	d.Hold()
	var got []error
	for i := range 3 {
		op := write(int64(i)*4096, page('a'))
		op.Done = func(_ *ioring.Op, err error) { got = append(got, err) }
		d.Submit(&op)
	}
	d.Cut()
	for _, err := range got {
		if !errors.Is(err, devtest.ErrPowerCut) {
			t.Errorf("%v, want a power cut", err)
		}
	}
	if len(got) != 3 || d.Unflushed() != 3 {
		t.Errorf("%d operations ended, %d writes in flight, want 3 and 3", len(got), d.Unflushed())
	}
}

// Each fault does what its name says, and says so.
func TestFaults(t *testing.T) {
	type kit struct {
		*testing.T
		d *devtest.Disk
	}
	eio := func(k kit, op ioring.Op) {
		k.Helper()
		if err := do(k.d, op); !errors.Is(err, unix.EIO) {
			k.Errorf("%v, want EIO", err)
		}
	}
	for _, test := range []struct {
		fault devtest.Fault
		run   func(k kit)
	}{
		{devtest.Fault{Kind: devtest.ReadError, Off: 4096, Len: 4096, Times: -1}, func(k kit) {
			mustDo(k.T, k.d, read(0, page(0)))
			eio(k, read(4096, page(0)))
			eio(k, read(0, aligned(8192)))
		}},
		{devtest.Fault{Kind: devtest.WriteError, Skip: 1}, func(k kit) {
			mustDo(k.T, k.d, dsync(0, page('a')))
			eio(k, dsync(0, page('b')))
			mustDo(k.T, k.d, dsync(4096, page('c')))
			wantWorlds(k.T, k.d, "ac", "bc")
		}},
		{devtest.Fault{Kind: devtest.SyncError}, func(k kit) {
			mustDo(k.T, k.d, write(0, page('a')))
			eio(k, ioring.Op{Kind: ioring.OpSync})
			mustDo(k.T, k.d, write(4096, page('b')))
			mustDo(k.T, k.d, ioring.Op{Kind: ioring.OpSync}) // lies about a
			wantWorlds(k.T, k.d, ".b", "ab")
		}},
		{devtest.Fault{Kind: devtest.FlipBit, At: 100, Bit: 3, On: ioring.OpRead}, func(k kit) {
			mustDo(k.T, k.d, dsync(0, page('a')))
			b := page(0)
			mustDo(k.T, k.d, read(0, b))
			if b[100] != 'a'^8 || b[99] != 'a' {
				k.Errorf("bytes 99 and 100 are %q", b[99:101])
			}
		}},
		{devtest.Fault{Kind: devtest.LostWrite}, func(k kit) {
			mustDo(k.T, k.d, dsync(0, page('a')))
			wantWorlds(k.T, k.d, "..")
		}},
		{devtest.Fault{Kind: devtest.MisdirectedWrite, By: 4096}, func(k kit) {
			mustDo(k.T, k.d, dsync(0, page('a')))
			wantWorlds(k.T, k.d, ".a")
		}},
		{devtest.Fault{Kind: devtest.MisdirectedRead, By: 4096}, func(k kit) {
			mustDo(k.T, k.d, dsync(4096, page('b')))
			b := page(0)
			mustDo(k.T, k.d, read(0, b))
			if b[0] != 'b' {
				k.Errorf("read %q", b[0])
			}
		}},
		{devtest.Fault{Kind: devtest.ShortWrite}, func(k kit) {
			if err := do(k.d, write(0, page('a'))); !errors.Is(err, io.ErrShortWrite) {
				k.Errorf("%v, want a short write", err)
			}
			if letter(k.d, 0) != '?' {
				k.Error("a short write wrote all or nothing")
			}
		}},
	} {
		t.Run(test.fault.Kind.String(), func(t *testing.T) {
			d := devtest.New(1 << 20)
			in := d.Arm(test.fault)
			test.run(kit{t, d})
			in.MustHaveInjected(t)
			d.MustHaveInjected(t)
		})
	}
}

func TestStuckOp(t *testing.T) {
	d := devtest.New(1 << 20)
	in := d.Arm(devtest.Fault{Kind: devtest.StuckOp, On: ioring.OpWrite})
	done := 0
	op := dsync(0, page('a'))
	op.Done = func(_ *ioring.Op, err error) {
		if done++; err != nil {
			t.Error(err)
		}
	}
	d.Submit(&op)
	mustDo(t, d, dsync(4096, page('b')))
	wantWorlds(t, d, ".b", "ab")
	if done != 0 {
		t.Fatal("a stuck operation completed")
	}
	in.MustHaveInjected(t)
	d.Unstick()
	wantWorlds(t, d, "ab")
	if done != 1 {
		t.Fatalf("completed %d times", done)
	}
}

// fatal records what a test helper says instead of ending the test.
type fatal struct{ said string }

func (f *fatal) Helper()                           {}
func (f *fatal) Fatalf(format string, args ...any) { f.said += fmt.Sprintf(format, args...) }

// An injector that changes nothing is an error of the test that armed it.
func TestInjectorsThatChangeNothingAreNoticed(t *testing.T) {
	d := devtest.New(1 << 20)
	mustDo(t, d, dsync(0, page('a')))
	for _, f := range []devtest.Fault{
		{Kind: devtest.LostWrite},                       // the same bytes stand there
		{Kind: devtest.MisdirectedWrite, By: 4096},      // and there, after the first
		{Kind: devtest.ReadError, Off: 1 << 19, Len: 1}, // nobody reads there
	} {
		mustDo(t, d, dsync(4096, page('a')))
		in := d.Arm(f)
		mustDo(t, d, dsync(0, page('a')))
		var tb fatal
		if in.MustHaveInjected(&tb); tb.said == "" {
			t.Errorf("%v changed nothing and was counted %d times", f.Kind, in.Injected())
		}
		in.Disarm()
	}
	var tb fatal
	if d.Overwrite(&tb, 0, []byte("aaa")); tb.said == "" {
		t.Error("an overwrite with the same bytes was not noticed")
	}
	d.Overwrite(t, 0, []byte("bbb"))
}

func TestABufferThatChangesInFlightIsNoticed(t *testing.T) {
	d := devtest.New(1 << 20)
	d.Hold()
	b := page('a')
	op := write(0, b)
	op.Done = func(*ioring.Op, error) {}
	d.Submit(&op)
	b[77] = 'b'
	defer func() {
		if recover() == nil {
			t.Error("nobody noticed")
		}
	}()
	d.CompleteAll()
}

func TestImagesAreIndependent(t *testing.T) {
	d := devtest.New(8 << 20)
	mustDo(t, d, dsync(0, page('a')))
	mustDo(t, d, dsync(5<<20, page('a')))
	c := d.Clone()
	mustDo(t, d, dsync(0, page('b')))
	mustDo(t, c, dsync(5<<20, page('c')))
	for off, want := range map[int64]string{0: "ba", 5 << 20: "ac"} {
		if got := string([]byte{letter(d, off), letter(c, off)}); got != want {
			t.Errorf("at %d: %s, want %s", off, got, want)
		}
	}
	d.SwapWith(c)
	if got := string([]byte{letter(d, 0), letter(c, 0)}); got != "ab" {
		t.Errorf("after the swap: %s, want ab", got)
	}
}

func TestFilesAndBytes(t *testing.T) {
	d := devtest.New(1 << 20)
	mustDo(t, d, write(8192, page('a')))
	path := filepath.Join(t.TempDir(), "image")
	if err := d.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(b, d.Bytes()) || len(b) != 1<<20 {
		t.Fatalf("%v, %d bytes", err, len(b))
	}
	if e := devtest.FromBytes(b); letter(e, 8192) != 'a' || letter(e, 4096) != '.' {
		t.Error("the bytes came back changed")
	}
}

func TestRecord(t *testing.T) {
	d := devtest.New(1 << 20)
	d.Record()
	mustDo(t, d, dsync(4096, page('a')))
	mustDo(t, d, ioring.Op{Kind: ioring.OpSync})
	var got []string
	for _, e := range d.Ops() {
		got = append(got, e.String())
	}
	want := "submit 1 write [4096, +4096) dsync, complete 1 write [4096, +4096) dsync, submit 2 sync, complete 2 sync"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("%s\nwant %s", s, want)
	}
}
