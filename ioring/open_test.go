package ioring

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"golang.org/x/sys/unix"
)

// newFile returns a descriptor of a file of n bytes, opened with flags.
func newFile(t testing.TB, n, flags int) int {
	t.Helper()
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, make([]byte, n), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	})
	return fd
}

// do performs one op on e.
func do(e Engine, op Op) error {
	done := make(chan error, 1)
	op.Done = func(_ *Op, err error) { done <- err }
	op.SubmitTo(e)
	return <-done
}

func TestAutoFallsBackAndSaysWhy(t *testing.T) {
	fd := newFile(t, 4096, unix.O_RDWR)
	refused := errors.New("not today")
	noRing := func(int, Options) (Engine, string, error) { return nil, "", refused }

	e, how, err := open(fd, Options{}, noRing)
	if err != nil {
		t.Fatal(err)
	}
	if e.Name() != Sync || !strings.Contains(how, "not today") {
		t.Fatalf("got %s (%s), want sync and the reason", e.Name(), how)
	}
	if err := do(e, Op{Kind: OpRead, Bufs: [][]byte{make([]byte, 4096)}}); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := open(fd, Options{Engine: Uring}, noRing); !errors.Is(err, refused) {
		t.Fatalf("uring asked for by name: %v, want the reason as an error", err)
	}
}

func TestAutoTakesTheRingIfItCan(t *testing.T) {
	fd := newFile(t, 4096, unix.O_RDWR)
	ring := newSyncEngine(fd, 1) // stands for it
	defer ring.Close()
	e, how, err := open(fd, Options{}, func(int, Options) (Engine, string, error) { return ring, "all flags", nil })
	if err != nil || e != Engine(ring) || how != "uring: all flags" {
		t.Fatalf("got %v (%s), %v", e, how, err)
	}
}

func TestAvailableEnginesOpenAndOthersSayHowToGetThem(t *testing.T) {
	fd := newFile(t, 4096, unix.O_RDWR)
	for _, name := range []string{Uring, Sync} {
		e, _, err := Open(fd, Options{Engine: name})
		if inside := slices.Contains(Available(), name); inside != (err == nil) {
			t.Fatalf("engine %s inside: %v; Open says %v", name, inside, err)
		}
		if err == nil {
			err = e.Close()
		} else if strings.Contains(err.Error(), "-tags giouring") {
			err = nil
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestOptionsOutOfRangeAreRefused(t *testing.T) {
	fd := newFile(t, 4096, unix.O_RDWR)
	for _, o := range []Options{
		{Engine: "aio"},
		{Depth: -1},
		{Depth: 16385},
		{Workers: -1},
		{Workers: 4097},
		{Regions: [][]byte{make([]byte, 4096), nil}},
	} {
		if e, _, err := Open(fd, o); err == nil {
			t.Errorf("%+v opened %s", o, e.Name())
		}
	}
}

func TestABadDescriptorIsRefused(t *testing.T) {
	for _, name := range append(Available(), Auto) {
		for _, fd := range []int{-1, 1 << 20} {
			if _, _, err := Open(fd, Options{Engine: name}); !errors.Is(err, unix.EBADF) {
				t.Errorf("%s on descriptor %d: %v, want EBADF", name, fd, err)
			}
		}
	}
}

func TestADeviceThatFailsSaysWhichOpAndWhy(t *testing.T) {
	for _, name := range Available() {
		e, _, err := Open(newFile(t, 4096, unix.O_RDONLY), Options{Engine: name})
		if err != nil {
			t.Fatal(err)
		}
		err = do(e, Op{Kind: OpWrite, Off: 512, Bufs: [][]byte{make([]byte, 1024)}})
		if !errors.Is(err, unix.EBADF) || !strings.Contains(err.Error(), "write of 1024 bytes at 512") {
			t.Errorf("%s: write to a read-only descriptor: %v", name, err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestResult(t *testing.T) {
	for _, test := range []struct {
		kind  Kind
		n     int
		errno unix.Errno
		want  error
	}{
		{OpRead, 1000, 0, nil},
		{OpWrite, 1000, 0, nil},
		{OpRead, 999, 0, io.ErrUnexpectedEOF},
		{OpRead, 0, 0, io.ErrUnexpectedEOF},
		{OpWrite, 999, 0, io.ErrShortWrite},
		{OpWrite, 0, unix.EIO, unix.EIO},
		{OpRead, 0, unix.EINVAL, unix.EINVAL},
	} {
		op := Op{Kind: test.kind, size: 1000}
		if err := op.result(test.n, test.errno); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%v: %d of 1000 bytes, errno %d: %v, want %v", test.kind, test.n, test.errno, err, test.want)
		}
	}
	sync := Op{Kind: OpSync}
	if err := sync.result(0, 0); err != nil {
		t.Errorf("sync: %v", err)
	}
}

func TestTransientErrorsAreRetriedAndNotForEver(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EINTR, unix.EAGAIN, unix.EBUSY} {
		op := Op{Kind: OpWrite}
		for range maxTries {
			if !op.retryable(errno) {
				t.Fatalf("%v was not retried %d times", errno, maxTries)
			}
		}
		if op.retryable(errno) {
			t.Fatalf("%v is retried for ever", errno)
		}
	}
	op := Op{Kind: OpWrite}
	for _, errno := range []unix.Errno{unix.EIO, unix.EINVAL, unix.ENOSPC, unix.ENOMEM} {
		if op.retryable(errno) {
			t.Fatalf("%v was retried", errno)
		}
	}
}

// A second Submit of an op in flight would give its buffers two owners.
func TestSubmittingTwicePanics(t *testing.T) {
	op := &Op{Kind: OpSync, Done: func(*Op, error) {}}
	for range 2 { // again after its Done is fine
		if err := accept(op); err != nil {
			t.Fatal(err)
		}
		op.finish(nil)
	}
	if err := accept(op); err != nil {
		t.Fatal(err)
	}
	mustPanic(t, "the second Submit", func() { accept(op) })
	mustPanic(t, "an op without Done", func() { accept(&Op{Kind: OpSync}) })
}

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if recover() == nil {
			t.Errorf("%s did not panic", what)
		}
	}()
	f()
}

func TestTransfersAreBounded(t *testing.T) {
	// One page under many names: a transfer of this size needs no such memory.
	page := make([]byte, 1<<20)
	op := &Op{Kind: OpWrite, Done: func(*Op, error) {}}
	for range MaxPieces {
		op.Bufs = append(op.Bufs, page)
	}
	if err := accept(op); err != nil {
		t.Fatalf("%d bytes: %v", op.size, err)
	}
	op.finish(nil)
	page = page[:cap(page):cap(page)]
	op.Bufs[7] = append(page, 0)
	if err := accept(op); !errors.Is(err, redoubt.ErrInvalid) {
		t.Fatalf("one byte more than MaxTransfer: %v, want ErrInvalid", err)
	}
}

func TestSyncEngineKeepsToItsWorkers(t *testing.T) {
	e := newSyncEngine(newFile(t, 1<<20, unix.O_RDWR), 3)
	var done sync.WaitGroup
	ops := make([]*Op, 500)
	for i := range ops {
		done.Add(1)
		ops[i] = &Op{Kind: OpWrite, Off: int64(i) * 512, Bufs: [][]byte{make([]byte, 512)}}
		ops[i].Done = func(_ *Op, err error) {
			if err != nil {
				t.Error(err)
			}
			done.Done()
		}
	}
	e.Submit(ops...)
	done.Wait()
	e.mu.Lock()
	workers := e.workers
	e.mu.Unlock()
	if workers != 3 {
		t.Fatalf("%d workers for 500 ops, want all 3", workers)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}
