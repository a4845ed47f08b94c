// Package bench holds the experiments behind docs/claims.md, one file for each
// published number, as Go benchmarks: make bench runs all of them, on real
// images of the corpus and with the real program. Times are compared within a
// run, alternating with what they are compared to, and given as a ratio with
// its spread; what can be counted is counted.
package bench

import (
	"fmt"
	"slices"
)

// Ratios are quotients of pairs of measurements that were taken in turns.
type Ratios []float64

// String gives the median and the range, as docs/claims.md quotes them.
func (r Ratios) String() string {
	if len(r) == 0 {
		return "no measurement"
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f, %d rounds)", r.median(), slices.Min(r), slices.Max(r), len(r))
}

// median is of at least one.
func (r Ratios) median() float64 { return slices.Sorted(slices.Values(r))[len(r)/2] }
