package bench

import (
	"math"
	"math/bits"
)

const (
	subBits = 7            // each power of two is cut into 128 buckets
	perPow2 = 1 << subBits // so a bucket is at most 1/128 of its value wide
	buckets = (64 - subBits) * perPow2
)

// A Histogram counts values, latencies in nanoseconds for example, in memory of
// a fixed size. Values below 128 are kept exactly; above, a bucket is less than
// 0.8 % of its value wide and answers with its middle, so an answer is less than
// 0.4 % off. The zero Histogram is empty and ready. It is for one goroutine;
// workers keep one each and Merge them.
//
//	values         bucket width   buckets
//	0 .. 255                  1   0 .. 255
//	256 .. 511                2   256 .. 383
//	512 .. 1023               4   384 .. 511
//	...                     ...   ... 128 for each power of two below 2^63
type Histogram struct {
	counts   [buckets]uint64
	n        uint64
	sum      float64
	min, max uint64
}

// bucket returns the index of the bucket that holds v.
func bucket(v uint64) int {
	if v < perPow2 {
		return int(v)
	}
	shift := bits.Len64(v) - 1 - subBits
	return shift<<subBits + int(v>>shift)
}

// bounds returns the least value of bucket i and the width of the bucket.
func bounds(i int) (low, width uint64) {
	if i < 2*perPow2 {
		return uint64(i), 1
	}
	shift := i>>subBits - 1
	return uint64(i-shift<<subBits) << shift, 1 << shift
}

// Record counts v. A negative v, which only a clock that steps back makes, counts
// as 0.
func (h *Histogram) Record(v int64) { h.RecordN(v, 1) }

// RecordN counts v n times.
func (h *Histogram) RecordN(v int64, n uint64) {
	if n == 0 {
		return
	}
	u := uint64(max(v, 0))
	h.counts[bucket(u)] += n
	if h.n == 0 || u < h.min {
		h.min = u
	}
	h.max = max(h.max, u)
	h.n += n
	h.sum += float64(u) * float64(n)
}

// Merge adds what o has counted.
func (h *Histogram) Merge(o *Histogram) {
	if o.n == 0 {
		return
	}
	for i, c := range o.counts {
		h.counts[i] += c
	}
	if h.n == 0 || o.min < h.min {
		h.min = o.min
	}
	h.max = max(h.max, o.max)
	h.n += o.n
	h.sum += o.sum
}

// Count returns how many values were recorded.
func (h *Histogram) Count() uint64 { return h.n }

// Min returns the least value recorded, exactly; 0 if there is none.
func (h *Histogram) Min() int64 { return int64(h.min) }

// Max returns the greatest value recorded, exactly; 0 if there is none.
func (h *Histogram) Max() int64 { return int64(h.max) }

// Mean returns the mean of the values recorded; 0 if there is none.
func (h *Histogram) Mean() float64 {
	if h.n == 0 {
		return 0
	}
	return h.sum / float64(h.n)
}

// Percentile returns a value that p percent of the recorded ones do not exceed,
// within half a bucket; p is brought into [0, 100]. 0 if there is none.
func (h *Histogram) Percentile(p float64) int64 {
	if h.n == 0 {
		return 0
	}
	p = min(max(p, 0), 100)
	rank := max(uint64(math.Ceil(p/100*float64(h.n))), 1)
	var seen uint64
	for i, c := range h.counts {
		if seen += c; seen >= rank {
			low, width := bounds(i)
			return int64(min(max(low+width/2, h.min), h.max))
		}
	}
	return int64(h.max)
}

// Reset empties h.
func (h *Histogram) Reset() { *h = Histogram{} }
