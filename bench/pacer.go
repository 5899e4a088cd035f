package bench

import (
	"context"
	"time"
)

// A ratePacer lets so many things a second pass. It sleeps only when it is a
// millisecond or more ahead.
type ratePacer struct {
	rate  float64
	start time.Time
	n     float64
}

func newRatePacer(rate float64) *ratePacer { return &ratePacer{rate: rate, start: time.Now()} }

// wait waits until the next one may pass, or ctx is done.
func (p *ratePacer) wait(ctx context.Context) {
	if p.rate == 0 {
		return
	}
	due := time.Duration(p.n / p.rate * float64(time.Second))
	p.n++
	if ahead := due - time.Since(p.start); ahead >= time.Millisecond {
		_ = pause(ctx, ahead) // whoever waits looks at ctx himself
	}
}
