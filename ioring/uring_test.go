//go:build giouring

package ioring

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/pawelgaczynski/giouring"
	"golang.org/x/sys/unix"
)

func newUring(t testing.TB, fd int, o Options) *uring {
	t.Helper()
	o.Engine = Uring
	e, how, err := Open(fd, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(how)
	return e.(*uring)
}

// detached returns an engine without ring and thread, for what needs neither.
func detached(slots int) *uring {
	e := &uring{slots: make([]*Op, slots), area: new(kernelArea)}
	for i := slots - 1; i >= 0; i-- {
		e.free = append(e.free, uint32(i))
	}
	return e
}

// TestEntriesKeepNothingOfTheirLastUse prepares every kind of op in an entry
// full of ones and looks at all of its bytes.
func TestEntriesKeepNothingOfTheirLastUse(t *testing.T) {
	mem := mapped(t, 8192)
	in, out := mem[:4096], mem[4096:]
	type sqe = giouring.SubmissionQueueEntry
	addr := func(b []byte) uint64 { return uint64(address(b)) }
	for _, test := range []struct {
		name string
		op   Op
		want sqe
	}{
		{"read", Op{Kind: OpRead, Off: 512, Bufs: [][]byte{out}}, sqe{OpCode: giouring.OpRead, Off: 512, Addr: addr(out), Len: 4096}},
		{"write", Op{Kind: OpWrite, Off: 512, Bufs: [][]byte{out}}, sqe{OpCode: giouring.OpWrite, Off: 512, Addr: addr(out), Len: 4096}},
		{"read registered", Op{Kind: OpRead, Bufs: [][]byte{in}}, sqe{OpCode: giouring.OpReadFixed, Addr: addr(in), Len: 4096, BufIG: 1}},
		{"write registered, dsync", Op{Kind: OpWrite, DSync: true, Bufs: [][]byte{in}},
			sqe{OpCode: giouring.OpWriteFixed, Addr: addr(in), Len: 4096, BufIG: 1, OpcodeFlags: unix.RWF_DSYNC}},
		{"read pieces", Op{Kind: OpRead, Bufs: [][]byte{out, in}}, sqe{OpCode: giouring.OpReadv, Len: 2}},
		{"write pieces, dsync", Op{Kind: OpWrite, DSync: true, Bufs: [][]byte{in, out, in}},
			sqe{OpCode: giouring.OpWritev, Len: 3, OpcodeFlags: unix.RWF_DSYNC}},
		{"read pieces registered", Op{Kind: OpRead, Bufs: [][]byte{in[:512], in[1024:]}}, sqe{OpCode: opReadvFixed, Len: 2, BufIG: 1}},
		{"write pieces registered", Op{Kind: OpWrite, Bufs: [][]byte{in[512:], in[:512]}}, sqe{OpCode: opWritevFixed, Len: 2, BufIG: 1}},
		{"sync", Op{Kind: OpSync, Off: 512}, sqe{OpCode: giouring.OpFsync, OpcodeFlags: giouring.FsyncDatasync}},
	} {
		e := detached(8)
		e.regions = []region{{1, 2}, {address(mem), address(mem) + 4096}}
		e.vectorFixed = true
		e.vectors = 5
		e.free = e.free[:len(e.free)-3] // slot 3 is next
		op := test.op
		op.Done = func(*Op, error) {}
		if err := accept(&op); err != nil {
			t.Fatal(err)
		}
		var got sqe
		raw := unsafe.Slice((*byte)(unsafe.Pointer(&got)), unsafe.Sizeof(got))
		for i := range raw {
			raw[i] = 0xFF
		}
		e.prepare(&got, &op)
		want := test.want
		want.Flags, want.Fd, want.UserData = giouring.SqeFixedFile, file, 3
		if len(op.Bufs) > 1 {
			want.Addr = uint64(uintptr(unsafe.Pointer(&e.area.vectors[5])))
			for i, b := range op.Bufs {
				if v := e.area.vectors[5+i]; v != (iovec{address(b), uintptr(len(b))}) {
					t.Errorf("%s: vector %d is %+v", test.name, i, v)
				}
			}
			if e.vectors != 5+len(op.Bufs) {
				t.Errorf("%s: %d vectors in use", test.name, e.vectors)
			}
		}
		if got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", test.name, got, want)
		}
		if e.slots[3] != &op {
			t.Errorf("%s: the op is not in its slot", test.name)
		}
	}
}

// mapped returns n bytes at an address that stays.
func mapped(t *testing.T, n int) []byte {
	t.Helper()
	m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(m); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestRegionsAreCut(t *testing.T) {
	mem := mapped(t, 4096)[:100]
	base := address(mem)
	got := cutRegions([][]byte{mem[:30], mem[50:90], mem[90:]}, 16)
	want := []region{{0, 16}, {16, 30}, {50, 66}, {66, 82}, {82, 90}, {90, 100}}
	for i := range want {
		want[i].start += base
		want[i].end += base
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	for _, test := range []struct {
		from, to int
		in       int // index of the region, -1 for none
	}{{0, 16, 0}, {15, 16, 0}, {15, 17, -1}, {16, 30, 1}, {29, 31, -1}, {40, 50, -1}, {49, 51, -1}, {90, 100, 5}} {
		in := -1
		for i, r := range got {
			if r.contains(mem[test.from:test.to]) {
				in = i
			}
		}
		if in != test.in {
			t.Errorf("bytes %d to %d found in region %d, want %d", test.from, test.to, in, test.in)
		}
	}
}

func TestBuffersStayUnregisteredIfTheKernelWontLockThem(t *testing.T) {
	regions := []region{{4096, 8192}, {16384, 65536}}
	var given []iovec
	kernel := func(errno unix.Errno) registrar {
		return func(opcode uint32, arg unsafe.Pointer, n uint32) unix.Errno {
			if opcode != giouring.RegisterBuffers {
				t.Fatalf("register opcode %d", opcode)
			}
			given = append([]iovec(nil), unsafe.Slice((*iovec)(arg), n)...)
			return errno
		}
	}
	got, how := registerRegions(kernel(0), regions)
	if len(got) != 2 || !strings.HasPrefix(how, "2 registered buffers") {
		t.Fatalf("%v, %q", got, how)
	}
	if want := []iovec{{4096, 4096}, {16384, 49152}}; !reflect.DeepEqual(given, want) {
		t.Fatalf("the kernel was given %v, want %v", given, want)
	}
	got, how = registerRegions(kernel(unix.ENOMEM), regions)
	if got != nil || !strings.Contains(how, "unregistered") || !strings.Contains(how, "ulimit -l") {
		t.Fatalf("%v, %q; want none and the reason", got, how)
	}
	if got, how = registerRegions(kernel(0), make([]region, maxBuffers+1)); got != nil || !strings.Contains(how, "unregistered") {
		t.Fatalf("%d buffers: %v, %q", maxBuffers+1, got, how)
	}
}

func TestFilesAreRegisteredAs32BitNumbers(t *testing.T) {
	err := registerFiles(func(opcode uint32, arg unsafe.Pointer, n uint32) unix.Errno {
		if got := unsafe.Slice((*int32)(arg), n); opcode != giouring.RegisterFiles || n != 2 || got[0] != 7 || got[1] != 9 {
			t.Errorf("opcode %d, files %v", opcode, got)
		}
		return unix.EBADF
	}, 7, 9)
	if !errors.Is(err, unix.EBADF) {
		t.Fatalf("got %v, want EBADF", err)
	}
}

func TestATransientCompletionIsTriedAgain(t *testing.T) {
	e := detached(2)
	var got []error
	op := &Op{Kind: OpWrite, Bufs: [][]byte{make([]byte, 512)}, Done: func(_ *Op, err error) { got = append(got, err) }}
	if err := accept(op); err != nil {
		t.Fatal(err)
	}
	var entry giouring.SubmissionQueueEntry
	for range maxTries {
		e.prepare(&entry, op)
		e.complete(entry.UserData, -int32(unix.EAGAIN))
		if len(got) != 0 || e.pending.empty() || e.pending.popFront() != op || len(e.free) != 2 {
			t.Fatal("the op was not queued again")
		}
	}
	e.prepare(&entry, op)
	e.complete(entry.UserData, -int32(unix.EAGAIN))
	if len(got) != 1 || !errors.Is(got[0], unix.EAGAIN) {
		t.Fatalf("after %d tries: %v, want EAGAIN", maxTries, got)
	}
	if s := e.Stats(); s.Retried != maxTries || s.Failed != 1 || s.Completed != 1 {
		t.Fatalf("%+v", s)
	}
	mustPanic(t, "a completion of an empty slot", func() { e.complete(0, 0) })
	mustPanic(t, "a completion of no slot", func() { e.complete(2, 0) })
}

// TestADoneThatSubmitsDoesNotWakeItsOwnThread: such an op costs one system call
// and no write to the eventfd.
func TestADoneThatSubmitsDoesNotWakeItsOwnThread(t *testing.T) {
	e := newUring(t, newFile(t, 1<<20, unix.O_RDWR), Options{})
	const links = 500
	finished := make(chan struct{})
	n := 0
	op := &Op{Kind: OpWrite, Bufs: [][]byte{make([]byte, 4096)}}
	op.Done = func(op *Op, err error) {
		if n++; err != nil || n == links {
			if err != nil {
				t.Error(err)
			}
			close(finished)
			return
		}
		op.SubmitTo(e)
	}
	op.SubmitTo(e)
	<-finished
	s := e.Stats()
	if s.Wakeups > 1 {
		t.Errorf("%d wake-ups for a chain of %d ops, want one at most", s.Wakeups, links)
	}
	if s.Syscalls > links+links/10 {
		t.Errorf("%d system calls for a chain of %d ops", s.Syscalls, links)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestManyOpsShareASystemCall counts the entries into the kernel for a pile of
// ops that is submitted at once.
func TestManyOpsShareASystemCall(t *testing.T) {
	e := newUring(t, newFile(t, 1<<20, unix.O_RDWR), Options{})
	const n = 256
	buf := make([]byte, 512)
	done := make(chan error, n)
	ops := make([]*Op, n)
	for i := range ops {
		ops[i] = &Op{Kind: OpRead, Off: int64(i) * 512, Bufs: [][]byte{buf}, Done: func(_ *Op, err error) { done <- err }}
	}
	e.Submit(ops...)
	for range ops {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if s := e.Stats(); s.Syscalls > n || s.Wakeups > 1 {
		t.Errorf("%+v for %d ops submitted at once", s, n)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCloseLetsGoOfTheFile: a lock on the device is free once its descriptor is
// closed, not when the kernel gets around to the ring.
func TestCloseLetsGoOfTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	for range 20 {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Fatalf("the file is still locked by the engine before: %v", err)
		}
		e := newUring(t, fd, Options{Depth: 1})
		if err := do(e, Op{Kind: OpWrite, Bufs: [][]byte{make([]byte, 512)}}); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// openRefused fails in the middle of the set-up: the kernel makes no ring
// without entries.
func openRefused(fd int) (string, error) {
	_, how, err := openUring(fd, Options{Depth: 0})
	return how, err
}

func TestNoDescriptorLeaks(t *testing.T) {
	fd := newFile(t, 4096, unix.O_RDWR)
	before := openDescriptors(t)
	for range 10 {
		if _, err := openRefused(fd); err == nil {
			t.Fatal("a ring of no entries was set up")
		}
		if err := newUring(t, fd, Options{Depth: 4}).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := openDescriptors(t); after != before {
		t.Fatalf("%d descriptors open, %d before", after, before)
	}
}

func TestSetUpSaysWhatItGot(t *testing.T) {
	fd := newFile(t, 4096, unix.O_RDWR)
	e, how, err := Open(fd, Options{Depth: 100, Regions: [][]byte{mapped(t, 1<<20)}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, want := range []string{"uring: ", "255 in flight", "registered file", "buffers"} {
		if !strings.Contains(how, want) {
			t.Errorf("%q does not say %q", how, want)
		}
	}
}
