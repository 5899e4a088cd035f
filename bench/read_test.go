package bench

import (
	"errors"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
)

func TestReadLoads(t *testing.T) {
	r := newRig(t, 2)
	for _, o := range []ReadOptions{
		{Pages: 200, Segments: 4, Depth: 8},
		{Pages: 100, Segments: 3, Depth: 5, Vector: 16, Connections: 3},
		{Pages: 1, Segments: 1, Depth: 1},
	} {
		o.Node, o.NodeHTTP, o.PGSize, o.Duration = r.addr, r.http, 16<<20, 100*time.Millisecond
		res, err := RunRead(t.Context(), o)
		if err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
		if res.Ops == 0 || res.Errors != 0 || res.PagesPerS != res.OpsPerS*float64(max(o.Vector, 1)) || res.BytesPerS != res.PagesPerS*redoubt.PageSize {
			t.Fatalf("%+v: %+v", o, res)
		}
		if res.P50us <= 0 || res.P50us > res.P99us || res.P99us > res.P999us || res.CPUOf != cpuOfNode {
			t.Fatalf("%+v: %+v", o, res)
		}
		if n := r.segments(); n != 0 {
			t.Fatalf("%d segments are left", n)
		}
	}
}

// TestThePatternTellsPagesApart holds what a read load relies on to find a page
// that is another page, or damaged.
func TestThePatternTellsPagesApart(t *testing.T) {
	p := newPagePattern()
	page := make([]byte, redoubt.PageSize)
	p.put(page, 3, 7)
	if err := p.check(page, 3, 7); err != nil {
		t.Fatal(err)
	}
	if p.check(page, 3, 8) == nil || p.check(page, 4, 7) == nil {
		t.Fatal("another page went for this one")
	}
	for _, i := range []int{0, 8, patternHead, 5000, redoubt.PageSize - 1} {
		page[i] ^= 1
		if err := p.check(page, 3, 7); !errors.Is(err, redoubt.ErrCorrupt) {
			t.Fatalf("byte %d is wrong: %v", i, err)
		}
		page[i] ^= 1
	}
}

// TestAWrongPageEndsTheLoad compares with another pattern than was written.
func TestAWrongPageEndsTheLoad(t *testing.T) {
	r := newRig(t, 1)
	o, err := ReadOptions{Node: r.addr, Pages: 10, Segments: 1, Depth: 3, Duration: time.Minute, PGSize: 16 << 20, Connections: 1}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	l := newReadLoad(o)
	conns, err := dialAll(t.Context(), r.addr, 1, l.options)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(conns)
	defer l.end()
	targets, err := makeTargets(t.Context(), conns, 1, redoubt.MinPGPages)
	if err != nil {
		t.Fatal(err)
	}
	l.deal(targets)
	if err := l.fill(t.Context(), conns); err != nil {
		t.Fatal(err)
	}
	l.pattern.random[9999] ^= 1
	l.run(t.Context(), conns)
	if err := l.failure(); !errors.Is(err, redoubt.ErrCorrupt) || l.result().Errors == 0 {
		t.Fatalf("%v, %+v; want every page wrong", err, l.result())
	}
}

func TestReadOptionsOutOfRange(t *testing.T) {
	for _, o := range []ReadOptions{
		{},
		{Pages: -1}, {Pages: 3, Segments: 4}, {Depth: -1}, {Vector: 65}, {Vector: -1}, {Duration: -1}, {Connections: -1}, {PGSize: 1}, {Pages: 100_000, PGSize: 16 << 20},
	} {
		if o != (ReadOptions{}) {
			o.Node = "127.0.0.1:1"
		}
		if _, err := RunRead(t.Context(), o); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
