//go:build linux

package main

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// A histogram counts durations in buckets that are 1/32 wide. The zero value is empty.
type histogram struct {
	Counts map[int]int64 // by bucket
	N      int64
	Max    int64
}

func bucket(ns int64) int {
	if ns < 32 {
		return int(max(ns, 0))
	}
	e := bits.Len64(uint64(ns)) - 6
	return e<<5 + int(ns>>e)
}

// middle returns the middle of bucket b.
func middle(b int) float64 {
	if b < 64 {
		return float64(b)
	}
	e := b>>5 - 1
	return (float64(b-e<<5) + 0.5) * math.Pow(2, float64(e))
}

// A tally is what a goroutine counts in before all are added up: no map, no sharing.
type tally struct {
	counts [2048]int32
	max    int64
}

func (t *tally) add(ns int64) {
	t.counts[bucket(ns)]++
	t.max = max(t.max, ns)
}

func (h *histogram) addTally(t *tally) {
	if h.Counts == nil {
		h.Counts = make(map[int]int64)
	}
	for b, n := range t.counts {
		if n > 0 {
			h.Counts[b] += int64(n)
			h.N += int64(n)
		}
	}
	h.Max = max(h.Max, t.max)
}

func (h *histogram) add(o histogram) {
	if h.Counts == nil {
		h.Counts = make(map[int]int64)
	}
	for b, n := range o.Counts {
		h.Counts[b] += n
	}
	h.N += o.N
	h.Max = max(h.Max, o.Max)
}

// enough reports whether n samples say something about the quantile q: where ten of them
// are beyond it. So p99 needs 1000, p90 100 and the median 20. With fewer a quantile is
// little else than the greatest sample, and is not reported.
func enough(q float64, n int64) bool { return float64(n)*(1-q) >= 10-1e-6 }

// rank returns which of n ordered samples, counted from 1, is the quantile q: the first
// that at least a share of q is not above.
func rank(q float64, n int64) int64 { return max(int64(math.Ceil(q*float64(n)-1e-6)), 1) }

// quantile returns the value that a share of q of all do not exceed, NaN where there are
// too few.
func (h *histogram) quantile(q float64) float64 {
	if !enough(q, h.N) {
		return math.NaN()
	}
	keys := make([]int, 0, len(h.Counts))
	for b := range h.Counts {
		keys = append(keys, b)
	}
	slices.Sort(keys)
	r, seen := rank(q, h.N), int64(0)
	for _, b := range keys {
		if seen += h.Counts[b]; seen >= r {
			return min(middle(b), float64(h.Max))
		}
	}
	return math.NaN()
}

// quantile returns that of samples, NaN where there are too few.
func quantile(samples []int64, q float64) float64 {
	n := int64(len(samples))
	if !enough(q, n) {
		return math.NaN()
	}
	return float64(slices.Sorted(slices.Values(samples))[rank(q, n)-1])
}

// greatest returns the greatest of samples, NaN where there are none.
func greatest(samples []int64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	return float64(slices.Max(samples))
}

// median returns that of the values that are numbers, NaN where none is.
func median(v []float64) float64 {
	s := slices.DeleteFunc(slices.Sorted(slices.Values(v)), math.IsNaN)
	switch n := len(s); {
	case n == 0:
		return math.NaN()
	case n%2 == 0:
		return (s[n/2-1] + s[n/2]) / 2
	default:
		return s[n/2]
	}
}

// A ratio is a factor that was measured once a round: the median, the least, the greatest.
type ratio struct{ mid, min, max float64 }

// advantage returns how many times better ours is than theirs, round by round: above 1
// ours is better. For times it is their time as a multiple of ours, for what is better
// when greater it is our value as a multiple of theirs. Rounds without both do not count.
func advantage(ours, theirs *cell) ratio {
	over, under := theirs.Rounds, ours.Rounds
	if greaterIsBetter[ours.Metric] {
		over, under = under, over
	}
	var r []float64
	for i := range min(len(over), len(under)) {
		if under[i] > 0 && !math.IsNaN(over[i]) {
			r = append(r, over[i]/under[i])
		}
	}
	if len(r) == 0 {
		nan := math.NaN()
		return ratio{nan, nan, nan}
	}
	return ratio{median(r), slices.Min(r), slices.Max(r)}
}

// markdown prints r, bold where flockctx is worse by more than 5 %.
func (r ratio) markdown() string {
	if math.IsNaN(r.mid) {
		return "–"
	}
	mid := short(r.mid)
	if r.mid < 0.95 {
		mid = "**" + mid + "**"
	}
	if short(r.min) == short(r.max) {
		return mid
	}
	return fmt.Sprintf("%s (%s–%s)", mid, short(r.min), short(r.max))
}

// short prints v with about three digits.
func short(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case a == 0:
		return "0"
	case a < 0.001:
		return fmt.Sprintf("%.1g", v)
	case a < 0.0995:
		return fmt.Sprintf("%.3f", v)
	case a < 9.95:
		return fmt.Sprintf("%.2f", v)
	case a < 99.5:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// format prints v in unit: "ns" (a duration), "B", "/s", "cores", or anything else.
func format(v float64, unit string) string {
	if math.IsNaN(v) {
		return "–"
	}
	switch unit {
	case "ns":
		switch {
		case v >= 1e9:
			return short(v/1e9) + " s"
		case v >= 1e6:
			return short(v/1e6) + " ms"
		case v >= 1e3:
			return short(v/1e3) + " µs"
		}
		return short(v) + " ns"
	case "B":
		switch {
		case v >= 1<<20:
			return short(v/(1<<20)) + " MiB"
		case v >= 1<<10:
			return short(v/(1<<10)) + " KiB"
		}
		return short(v) + " B"
	case "/s":
		switch {
		case v >= 1e6:
			return short(v/1e6) + " M/s"
		case v >= 1e3:
			return short(v/1e3) + " k/s"
		}
		return short(v) + "/s"
	case "%":
		return short(v) + " %"
	case "":
		if v == math.Trunc(v) && math.Abs(v) < 1e6 {
			return fmt.Sprintf("%.0f", v)
		}
		return short(v)
	}
	return short(v) + " " + unit
}
