// Package enginetest is the suite that every [ioring.Engine] passes: the ring,
// the blocking one, and the simulated disk that stands in for both. What it
// checks is what the layers above build on.
//
// It sees the file only through the engine, so an engine may keep the bytes
// elsewhere, as long as it takes the size of the file from fd when it is opened.
package enginetest

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

const (
	sector   = 512     // logical block of the test's file
	fileSize = 4 << 20 // bytes; written fully before the engine sees it
)

// An Open starts the engine under test on fd, an O_DIRECT file where the file
// system has that, with the given regions registered. It fails t if it can't.
type Open func(t *testing.T, fd int, regions [][]byte) ioring.Engine

// Run runs the suite, each test on an engine and a file of its own.
func Run(t *testing.T, open Open) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, b *bench)
	}{
		{"ReadsBackWhatWasWritten", readsBackWhatWasWritten},
		{"PiecesMakeOneTransfer", piecesMakeOneTransfer},
		{"AsManyPiecesAsAllowed", asManyPiecesAsAllowed},
		{"RegisteredAndOtherBuffersMix", registeredAndOtherBuffersMix},
		{"SyncAndDSync", syncAndDSync},
		{"ReadPastTheEndIsAnError", readPastTheEnd},
		{"BadAlignmentIsAnError", badAlignment},
		{"MalformedOpsAreRefused", malformedOps},
		{"ManyGoroutines", manyGoroutines},
		{"MoreThanFit", moreThanFit},
		{"SubmitFromDone", submitFromDone},
		{"CloseCompletesEverythingOnce", closeCompletesEverything},
		{"CloseAgainstSubmit", closeAgainstSubmit},
		{"SubmitAfterClose", submitAfterClose},
		{"StatsAddUp", statsAddUp},
		{"SteadyStateAllocatesNothing", allocatesNothing},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newBench(t, open)) })
	}
}

// A bench is one engine on one file, and memory for its buffers.
type bench struct {
	engine ioring.Engine
	fd     int
	region []byte // registered
	other  []byte // not registered
	rnd    *rand.Rand
}

const memory = 2 << 20 // bytes of region, and of other

func newBench(t *testing.T, open Open) *bench {
	t.Helper()
	b := &bench{
		fd:     newFile(t),
		region: aligned(t, memory),
		other:  aligned(t, memory),
		rnd:    rand.New(rand.NewPCG(1, 2)),
	}
	b.engine = open(t, b.fd, [][]byte{b.region[:memory/2], b.region[memory/2:]})
	t.Cleanup(func() {
		if err := b.engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// newFile returns the descriptor of a fully written file, direct if possible.
func newFile(t *testing.T) int {
	t.Helper()
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, make([]byte, fileSize), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
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

// aligned returns n page-aligned bytes that outlive the engine.
func aligned(t *testing.T, n int) []byte {
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

// do performs one op and returns its error.
func (b *bench) do(op ioring.Op) error {
	done := make(chan error, 1)
	op.Done = func(_ *ioring.Op, err error) { done <- err }
	b.engine.Submit(&op)
	return <-done
}

func (b *bench) mustDo(t *testing.T, op ioring.Op) {
	t.Helper()
	if err := b.do(op); err != nil {
		t.Fatal(err)
	}
}

// fill makes p random, so that no two sectors are alike.
func (b *bench) fill(p []byte) {
	for i := 0; i+8 <= len(p); i += 8 {
		v := b.rnd.Uint64()
		for j := range 8 {
			p[i+j] = byte(v >> (8 * j))
		}
	}
}

// mustMatch compares and says where the first difference is.
func mustMatch(t *testing.T, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("byte %d is %#x, want %#x", i, got[i], want[i])
		}
	}
}
