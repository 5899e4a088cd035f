package bench

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/wire"
)

func TestAppendLoads(t *testing.T) {
	r := newRig(t, 2)
	for _, c := range []struct {
		name string
		o    AppendOptions
	}{
		{"waiting writers", AppendOptions{Segments: 5, Writers: 12}},
		{"one writer, one segment", AppendOptions{Segments: 1, Writers: 1}},
		{"more segments than writers", AppendOptions{Segments: 6, Writers: 3, RecordSize: 1}},
		{"several connections", AppendOptions{Segments: 8, Writers: 32, Connections: 3, Pattern: Random}},
		{"batches", AppendOptions{Segments: 4, Batch: 64, Window: 3, Pages: 40}},
		{"large batches", AppendOptions{Segments: 3, Batch: 15, RecordSize: redoubt.PageSize, Pages: 20, Connections: 2}},
		{"a rate", AppendOptions{Segments: 4, Writers: 64, Rate: 5000, Connections: 2}},
		{"a rate of batches", AppendOptions{Segments: 4, Batch: 10, Rate: 20000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Node, c.o.NodeHTTP, c.o.PGSize, c.o.Duration = r.addr, r.http, 16<<20, 200*time.Millisecond
			c.o.Interval = 50 * time.Millisecond
			res, err := RunAppend(t.Context(), c.o)
			if err != nil {
				t.Fatal(err)
			}
			checkAppend(t, c.o, res)
			if n := r.segments(); n != 0 {
				t.Fatalf("%d segments are left", n)
			}
		})
	}
}

func checkAppend(t *testing.T, o AppendOptions, r AppendResult) {
	t.Helper()
	per := uint64(max(o.Batch, 1))
	if r.Ops == 0 || r.Records != r.Ops*per || r.Errors != 0 || r.RecordsPerS <= 0 || r.BytesPerS <= 0 {
		t.Fatalf("%+v", r)
	}
	if r.P50us <= 0 || r.P50us > r.P99us || r.P99us > r.P999us || r.P999us > r.MaxUs*1.01 {
		t.Fatalf("%+v", r)
	}
	if r.CPUOf != cpuOfNode || r.LogBytesPerRecord < float64(max(o.RecordSize, 1)) || r.DeviceBytesPerRecord < 0.8*r.LogBytesPerRecord { // what is in flight is log already
		t.Fatalf("%+v", r)
	}
	if len(r.Minutes) < 3 || r.Minutes[1].P99us < r.Minutes[1].P50us {
		t.Fatalf("%d intervals: %+v", len(r.Minutes), r.Minutes)
	}
	if o.Rate > 0 && r.RecordsPerS > 1.2*o.Rate {
		t.Fatalf("%v records/s, the rate is %v", r.RecordsPerS, o.Rate)
	}
}

// TestAppendToANodeThatGoesAway ends with its error and what was counted, and
// does not hang.
func TestAppendToANodeThatGoesAway(t *testing.T) {
	r := newRig(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := NewProgress(&hook{f: func(string) { r.close() }}, "append")
	p.next = time.Time{}
	res, err := RunAppend(ctx, AppendOptions{Node: r.addr, NodeHTTP: "-", Segments: 2, PGSize: 16 << 20, Duration: time.Minute, Progress: p})
	if !errors.Is(err, redoubt.ErrClosed) || res.Errors == 0 {
		t.Fatalf("%v, %+v", err, res)
	}
	if _, err := RunAppend(ctx, AppendOptions{Node: r.addr}); err == nil {
		t.Fatal("nobody is there, and no error")
	}
}

// A hook is a writer that tells what is written.
type hook struct{ f func(string) }

func (h *hook) Write(b []byte) (int, error) {
	h.f(string(b))
	return len(b), nil
}

// TestACancelledAppendCleansUp deletes its segments all the same.
func TestACancelledAppendCleansUp(t *testing.T) {
	r := newRig(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	p := NewProgress(&hook{f: func(string) { cancel() }}, "append")
	p.next = time.Time{}
	res, err := RunAppend(ctx, AppendOptions{Node: r.addr, NodeHTTP: r.http, Segments: 3, PGSize: 16 << 20, Duration: time.Minute, Progress: p})
	if err != nil || res.Ops == 0 {
		t.Fatalf("%v, %+v", err, res)
	}
	if n := r.segments(); n != 0 {
		t.Fatalf("%d segments are left", n)
	}
}

func TestAppendOptionsOutOfRange(t *testing.T) {
	for _, o := range []AppendOptions{
		{},
		{Segments: -1}, {Writers: -1}, {RecordSize: redoubt.PageSize + 1}, {Batch: -1}, {Batch: 20, RecordSize: redoubt.PageSize},
		{Window: -1}, {Rate: -1}, {Duration: -1}, {Connections: -1}, {Connections: 2000}, {PGSize: 1 << 20}, {PGSize: 16<<20 + 1},
		{Pages: -1}, {Pages: 1025, PGSize: 16 << 20}, {Pattern: "zigzag"},
	} {
		if o != (AppendOptions{}) {
			o.Node = "127.0.0.1:1"
		}
		if _, err := RunAppend(t.Context(), o); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// The names of the fields are part of the command line's promise.
func TestAppendResultKeepsItsFieldNames(t *testing.T) {
	b, err := json.Marshal(AppendResult{DeviceBytesPerRecord: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"ops_per_s", "bytes_per_s", "p50_us", "p99_us", "p999_us", "cpu_us_per_op", "errors", "records_per_s", "device_bytes_per_record"} {
		if !strings.Contains(string(b), `"`+f+`":`) {
			t.Errorf("no field %s in %s", f, b)
		}
	}
}

// bench rigs a feed that is acknowledged at once, without a node.
func lonelyFeed(o AppendOptions) (*feed, func()) {
	o.Node = "x"
	o, err := o.withDefaults()
	if err != nil {
		panic(err)
	}
	l := &appendLoad{opts: o, payload: make([]byte, payloadSpread+o.RecordSize)}
	free := o.Window
	if o.Batch == 0 {
		free = o.Writers
	}
	f := newFeed(l, target{}, 0, free)
	var (
		fb  wire.AppendBuilder
		rb  redo.Builder
		buf = make([]byte, 512<<10)
		h   Histogram
	)
	return f, func() {
		fb.Reset(buf, 512)
		for f.ready() > 0 && f.build(&fb, &rb, 0) {
		}
		fb.Finish(0)
		f.ack(f.last, time.Millisecond, &h)
	}
}

// TestAppendAllocatesNothing holds the promise for what the generator itself
// does for a record: build, frame, ack, latency.
func TestAppendAllocatesNothing(t *testing.T) {
	for _, o := range []AppendOptions{{Segments: 1}, {Segments: 1, Pattern: Random}, {Segments: 1, Batch: 256}} {
		f, round := lonelyFeed(o)
		if n := testing.AllocsPerRun(100, round); n != 0 {
			t.Errorf("%+v: %v allocations a round", o, n)
		}
		if f.last < 10_000 {
			t.Errorf("%+v: only %d records were built", o, f.last)
		}
	}
}

func BenchmarkGenerateRecord(b *testing.B) {
	for name, o := range map[string]AppendOptions{"waiting": {Segments: 1}, "batches": {Segments: 1, Batch: 256}} {
		b.Run(name, func(b *testing.B) {
			f, round := lonelyFeed(o)
			b.ReportAllocs()
			for b.Loop() {
				round()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(f.last), "ns/record")
		})
	}
}
