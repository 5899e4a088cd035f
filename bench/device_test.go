package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

// newDevice returns the descriptor of a fully written file, direct if possible.
func newDevice(t *testing.T, content []byte) (fd int, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err == unix.EINVAL {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, path
}

func TestEveryLoadRunsOnEveryEngine(t *testing.T) {
	for _, engine := range ioring.Available() {
		for _, o := range []DeviceOptions{
			{Op: OpAppend, Durability: FUA},
			{Op: OpAppend, Durability: Flush, Depth: 16},
			{Op: OpAppend, Durability: PLP, BlockSize: 512},
			{Op: OpRead, BlockSize: 8192, Depth: 8},
		} {
			t.Run(engine+" "+o.Op+" "+o.Durability, func(t *testing.T) {
				a, _ := newDevice(t, make([]byte, 1<<20))
				b, _ := newDevice(t, make([]byte, 1<<20))
				o.Engine, o.Duration = engine, 50*time.Millisecond
				res, err := RunDevice(context.Background(), []int{a, b}, o)
				if err != nil {
					t.Fatal(err)
				}
				depth := uint64(max(o.Depth, 1))
				if res.Errors != 0 || res.Ops < 2*depth || res.OpsPerS <= 0 || res.BytesPerS <= res.OpsPerS {
					t.Fatalf("%+v", res)
				}
				if res.P50us <= 0 || res.P50us > res.P99us || res.P99us > res.P999us || res.Elapsed < o.Duration {
					t.Fatalf("%+v", res)
				}
			})
		}
	}
}

// TestAppendsWrapInsideTheirRange writes a small range many times over: every
// block of it changes, and not a byte around it.
func TestAppendsWrapInsideTheirRange(t *testing.T) {
	const (
		size   = 1 << 20
		offset = 64 << 10
		length = 10*4096 + 512 // the tail holds no whole block
	)
	before := bytes.Repeat([]byte{0xA5}, size)
	fd, path := newDevice(t, before)
	res, err := RunDevice(context.Background(), []int{fd}, DeviceOptions{
		Depth: 3, Duration: 20 * time.Millisecond, FileOffset: offset, FileSize: length, Durability: Flush,
	})
	if err != nil {
		t.Fatal(err)
	}
	if res.Ops < 20 {
		t.Skipf("only %d appends in %v: the range was not written twice", res.Ops, res.Elapsed)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const end = offset + 10*4096
	if !bytes.Equal(after[:offset], before[:offset]) || !bytes.Equal(after[end:], before[end:]) {
		t.Fatal("appends left their range")
	}
	for at := offset; at < end; at += 4096 {
		if bytes.Equal(after[at:at+4096], before[at:at+4096]) {
			t.Fatalf("the block at %d was never written", at)
		}
	}
}

func TestACancelledContextEndsTheLoad(t *testing.T) {
	fd, _ := newDevice(t, make([]byte, 1<<20))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	res, err := RunDevice(ctx, []int{fd}, DeviceOptions{Op: OpRead, Duration: time.Hour})
	if err != nil || res.Ops == 0 {
		t.Fatalf("%+v, %v; want the reads that were under way", res, err)
	}
}

// TestFailuresAreCounted reads and appends through descriptors that allow
// neither.
func TestFailuresAreCounted(t *testing.T) {
	for _, o := range []DeviceOptions{{Op: OpAppend}, {Op: OpAppend, Durability: Flush}} {
		_, path := newDevice(t, make([]byte, 1<<20))
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		o.Duration = 5 * time.Millisecond
		res, err := RunDevice(context.Background(), []int{fd}, o)
		if err == nil || res.Errors == 0 || res.Ops != 0 {
			t.Fatalf("%+v: %+v, %v; want only errors", o, res, err)
		}
	}
}

func TestOptionsOutOfRangeAreRefused(t *testing.T) {
	fd, _ := newDevice(t, make([]byte, 1<<20))
	for _, o := range []DeviceOptions{
		{Op: "write"},
		{BlockSize: 1000},
		{BlockSize: 32 << 20},
		{Depth: -1},
		{Depth: 5000},
		{Duration: -1},
		{Durability: "none"},
		{Engine: "aio"},
		{FileOffset: -512},
		{FileOffset: 100},
		{FileOffset: 1 << 20}, // nothing is left behind it
		{FileSize: 100},
	} {
		if _, err := RunDevice(context.Background(), []int{fd}, o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
	if _, err := RunDevice(context.Background(), nil, DeviceOptions{}); err == nil {
		t.Error("no devices were accepted")
	}
}

// The names of the fields are part of the command line's promise.
func TestResultKeepsItsFieldNames(t *testing.T) {
	got, err := json.Marshal(Result{Ops: 1, Errors: 2, Elapsed: 3, OpsPerS: 4, BytesPerS: 5, P50us: 6, P99us: 7, P999us: 8, CPUusPerOp: 9})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"ops":1,"errors":2,"elapsed_ns":3,"ops_per_s":4,"bytes_per_s":5,"p50_us":6,"p99_us":7,"p999_us":8,"cpu_us_per_op":9}`
	if string(got) != want {
		t.Fatalf("%s\nwant\n%s", got, want)
	}
}
