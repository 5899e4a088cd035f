package coalescer

import (
	"time"

	"github.com/redoubt-storage/redoubt"
)

// A pace keeps work to a rate. Work is done first and paid for afterwards, so
// that a rate that changes meanwhile counts at once.
type pace struct {
	owed float64   // bytes
	seen time.Time // until when they were paid for
}

// wait returns how long to rest, at a rate in bytes a second.
func (p *pace) wait(now time.Time, rate float64) time.Duration {
	if dt := now.Sub(p.seen); dt > 0 {
		p.owed = max(0, p.owed-rate*dt.Seconds())
		p.seen = now
	}
	if p.owed == 0 {
		return 0
	}
	return max(time.Microsecond, time.Duration(p.owed/rate*float64(time.Second)))
}

func (p *pace) spend(bytes int64) { p.owed += float64(bytes) }

// rate returns the rate of folding at a debt.
func (o *Options) rate(debt float64) float64 {
	x := min(1, max(0, (debt-o.SoftDebt)/(o.FullDebt-o.SoftDebt)))
	return float64(o.IdleRate) + x*float64(o.MaxRate-o.IdleRate)
}

// ages knows, for one segment, which LSN was complete when: a ring of samples,
// so far apart that the oldest is always older than MaxAge.
type ages struct {
	at   [ageSamples]time.Time
	scl  [ageSamples]redoubt.LSN
	last int // the newest
	n    int
}

const ageSamples = 16

// note takes a sample, unless nothing is new or the newest is younger than
// grain.
func (a *ages) note(now time.Time, scl redoubt.LSN, grain time.Duration) {
	if a.n > 0 && (scl <= a.scl[a.last] || now.Sub(a.at[a.last]) < grain) {
		return
	}
	a.last = (a.last + 1) % ageSamples
	a.at[a.last], a.scl[a.last] = now, scl
	a.n = min(a.n+1, ageSamples)
}

// before returns the highest LSN known to have been complete at t.
func (a *ages) before(t time.Time) redoubt.LSN {
	for i := range a.n {
		if j := (a.last - i + ageSamples) % ageSamples; !a.at[j].After(t) {
			return a.scl[j]
		}
	}
	return 0
}

// cut forgets what is said of LSNs above scl: they were truncated, and are not
// the ones that will have these numbers.
func (a *ages) cut(scl redoubt.LSN) {
	for i := range a.n {
		j := (a.last - i + ageSamples) % ageSamples
		a.scl[j] = min(a.scl[j], scl)
	}
}
