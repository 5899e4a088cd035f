package coalescer

import (
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
)

func TestThePaceIsPaidForAfterwards(t *testing.T) {
	now := time.Unix(1000, 0)
	p := pace{seen: now}
	if w := p.wait(now, 1000); w != 0 {
		t.Fatalf("at first: %v", w)
	}
	p.spend(500)
	if w := p.wait(now, 1000); w != 500*time.Millisecond {
		t.Fatalf("after 500 bytes at 1000/s: %v", w)
	}
	// The rate rises: what is still owed is paid at the new one.
	if w := p.wait(now.Add(100*time.Millisecond), 4000); w != 25*time.Millisecond {
		t.Fatalf("400 bytes were left, at 4000/s: %v", w)
	}
	// A rest is not saved up.
	if w := p.wait(now.Add(time.Hour), 1000); w != 0 {
		t.Fatalf("an hour later: %v", w)
	}
	p.spend(100)
	if w := p.wait(now.Add(time.Hour), 1000); w != 100*time.Millisecond {
		t.Fatalf("after an hour's rest and 100 bytes: %v", w)
	}
	// A clock that goes back makes nobody wait longer.
	if w := p.wait(now, 1000); w != 100*time.Millisecond {
		t.Fatalf("an hour earlier: %v", w)
	}
}

func TestTheRateRisesWithDebt(t *testing.T) {
	o := Options{IdleRate: 10, MaxRate: 110, SoftDebt: 0.2, FullDebt: 0.6}
	for _, c := range []struct{ debt, want float64 }{{0, 10}, {0.2, 10}, {0.4, 60}, {0.6, 110}, {1.5, 110}} {
		if got := o.rate(c.debt); got < c.want-1e-6 || got > c.want+1e-6 {
			t.Errorf("at %v: %v, want %v", c.debt, got, c.want)
		}
	}
}

func TestAgesKnowWhichLSNWasHereWhen(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	var a ages
	if got := a.before(at(100)); got != 0 {
		t.Fatalf("without a sample: %d", got)
	}
	for s := range 40 {
		a.note(at(s), redoubt.LSN(10*s+10), time.Second)
		a.note(at(s), redoubt.LSN(10*s+11), time.Second) // too soon after the one before
	}
	for _, c := range []struct {
		s    int
		want redoubt.LSN
	}{{39, 400}, {100, 400}, {30, 310}, {24, 250}, {23, 0}} {
		if got := a.before(at(c.s)); got != c.want {
			t.Errorf("at %d s: %d, want %d", c.s, got, c.want)
		}
	}
	// What was truncated is forgotten, what was there before isn't.
	a.cut(305)
	if got := a.before(at(39)); got != 305 {
		t.Errorf("after a cut at 305: %d", got)
	}
	if got := a.before(at(25)); got != 260 {
		t.Errorf("after a cut at 305, at 25 s: %d", got)
	}
	a.note(at(50), 1400, time.Second)
	if got := a.before(at(49)); got != 305 {
		t.Errorf("before the next sample: %d", got)
	}
}
