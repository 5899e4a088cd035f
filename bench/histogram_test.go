package bench

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestEveryValueLiesInItsBucket walks over all borders between buckets.
func TestEveryValueLiesInItsBucket(t *testing.T) {
	next := uint64(0)
	for i := range buckets {
		low, width := bounds(i)
		if low != next {
			t.Fatalf("bucket %d begins at %d, the one before ends at %d", i, low, next)
		}
		for _, v := range []uint64{low, low + width/2, low + width - 1} {
			if got := bucket(v); got != i {
				t.Fatalf("value %d is in bucket %d, want %d", v, got, i)
			}
		}
		if width > 1 && float64(width)/float64(low) > 1.0/perPow2 {
			t.Fatalf("bucket %d at %d is %d wide", i, low, width)
		}
		next = low + width
	}
	if next != 1<<63 {
		t.Fatalf("the buckets end at %d, want one past the greatest int64", next)
	}
}

var anyValue = rapid.OneOf(rapid.Int64Range(0, 300), rapid.Int64Range(0, 10_000_000), rapid.Int64Range(0, math.MaxInt64))

// exact is the percentile by its definition.
func exact(sorted []int64, p float64) int64 {
	return sorted[max(int(math.Ceil(p/100*float64(len(sorted)))), 1)-1]
}

func TestPercentilesAreWithinOnePercent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(anyValue, 1, 400).Draw(t, "values")
		var h Histogram
		sum := 0.0
		for _, v := range values {
			h.Record(v)
			sum += float64(v)
		}
		slices.Sort(values)
		for _, p := range []float64{0, 1, 50, 99, 99.9, 100, rapid.Float64Range(0, 100).Draw(t, "p")} {
			got, want := h.Percentile(p), exact(values, p)
			if math.Abs(float64(got)-float64(want)) > 0.01*float64(want) {
				t.Fatalf("p%v is %d, want %d within 1 %%", p, got, want)
			}
		}
		if h.Min() != values[0] || h.Max() != values[len(values)-1] || h.Count() != uint64(len(values)) {
			t.Fatalf("min %d max %d count %d of %v", h.Min(), h.Max(), h.Count(), values)
		}
		if mean := sum / float64(len(values)); math.Abs(h.Mean()-mean) > 1e-9*mean {
			t.Fatalf("mean %v, want %v", h.Mean(), mean)
		}
	})
}

func TestMergedIsAsIfRecordedInOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var parts [3]Histogram
		var whole, merged Histogram
		for i := range parts {
			for _, v := range rapid.SliceOfN(anyValue, 0, 50).Draw(t, "values") {
				parts[i].Record(v)
				whole.Record(v)
			}
		}
		for i := range parts {
			merged.Merge(&parts[i])
		}
		merged.sum, whole.sum = math.Round(merged.sum/1e6), math.Round(whole.sum/1e6) // order of addition
		if math.Abs(merged.sum-whole.sum) <= 1e-9*whole.sum {
			merged.sum = whole.sum
		}
		if merged != whole {
			t.Fatal("merging lost or invented something")
		}
	})
}

func TestAnEmptyHistogramAnswersZero(t *testing.T) {
	var h Histogram
	h.Record(-5) // a clock that stepped back
	if h.Count() != 1 || h.Max() != 0 {
		t.Fatalf("count %d max %d, want 1 and 0", h.Count(), h.Max())
	}
	h.Reset()
	if h.Count() != 0 || h.Percentile(50) != 0 || h.Mean() != 0 || h.Min() != 0 || h.Max() != 0 {
		t.Fatal("an empty histogram made something up")
	}
}

func TestRecordAllocatesNothing(t *testing.T) {
	h := new(Histogram)
	v := int64(1)
	if n := testing.AllocsPerRun(1000, func() { h.Record(v); v = v*5 + 1 }); n != 0 {
		t.Fatalf("%v allocations a value", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	h := new(Histogram)
	for i := range b.N {
		h.Record(int64(i) * 37 % 1_000_000)
	}
}
