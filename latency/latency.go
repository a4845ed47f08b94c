// Package latency counts how long things take, in buckets of fixed bounds, so
// that counts of many processes add up.
//
// Bounds are powers of the square root of 2 from 1 µs to 134 s: a quantile is
// right to within a fifth, which tells the modes of a tier apart.
package latency

import (
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// buckets is the number of bounds: 2^(27) µs is 134 s, beyond every deadline.
const buckets = 2*27 + 1

// Bounds gives the upper bounds of the buckets, ascending, inclusive. What is
// longer than the last one is counted in a bucket of its own behind them.
func Bounds() []time.Duration { return slices.Clone(bounds[:]) }

// bounds is the table of them.
var bounds = func() (b [buckets]time.Duration) {
	for i := range b {
		b[i] = time.Duration(math.Round(1000 * math.Pow(2, float64(i)/2)))
	}
	return b
}()

// Histogram counts durations. The zero value is ready; it is safe for
// concurrent use, and takes no lock.
type Histogram struct {
	counts [buckets + 1]atomic.Uint64
	sum    atomic.Int64 // ns
}

// Observe counts one duration; one below 0 counts as 0.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	h.counts[bucket(d)].Add(1)
	h.sum.Add(int64(d))
}

// Since counts the time from a moment until now.
func (h *Histogram) Since(began time.Time) { h.Observe(time.Since(began)) }

// bucket finds the first bound that is not below d.
func bucket(d time.Duration) int {
	i, _ := slices.BinarySearch(bounds[:], d)
	return i
}

// Snapshot is what a Histogram has counted, for adding up, subtracting and
// sending as JSON. The zero value has counted nothing.
type Snapshot struct {
	// Counts are those of each bucket in the order of Bounds, then that of what
	// is longer; zeros at the end are left out.
	Counts []uint64      `json:"counts,omitempty"`
	Sum    time.Duration `json:"sum_ns,omitempty"`
}

// Snapshot reads the counts. What is observed meanwhile may be in it or not.
func (h *Histogram) Snapshot() Snapshot {
	s := Snapshot{Sum: time.Duration(h.sum.Load())}
	for i := range h.counts {
		if n := h.counts[i].Load(); n > 0 {
			s.grow(i + 1)
			s.Counts[i] = n
		}
	}
	return s
}

func (s *Snapshot) grow(n int) {
	if more := min(n, buckets+1) - len(s.Counts); more > 0 {
		s.Counts = append(s.Counts, make([]uint64, more)...)
	}
}

// Add adds what another has counted; s gets counts of its own.
func (s Snapshot) Add(o Snapshot) Snapshot {
	sum := Snapshot{Sum: s.Sum + o.Sum}
	sum.grow(max(len(s.Counts), len(o.Counts)))
	for i := range sum.Counts {
		sum.Counts[i] = s.at(i) + o.at(i)
	}
	return sum
}

// Since gives what was counted after an earlier snapshot of one histogram.
func (s Snapshot) Since(earlier Snapshot) Snapshot {
	d := Snapshot{Sum: s.Sum - earlier.Sum}
	d.grow(len(s.Counts))
	for i := range d.Counts {
		d.Counts[i] = s.at(i) - min(earlier.at(i), s.at(i))
	}
	return d
}

// at is safe for counts of any length: they may have come from elsewhere.
func (s Snapshot) at(i int) uint64 {
	if i < len(s.Counts) {
		return s.Counts[i]
	}
	return 0
}

// Count is the number of durations.
func (s Snapshot) Count() (n uint64) {
	for i := range buckets + 1 {
		n += s.at(i)
	}
	return n
}

// Quantile gives the bound of the bucket that the q-th part (0 to 1) of the
// durations reaches, such as 0.99: at most √2 times too long. It is 0 for none,
// and twice the last bound if it is longer than that.
func (s Snapshot) Quantile(q float64) time.Duration {
	left := uint64(math.Ceil(min(max(q, 0), 1) * float64(s.Count())))
	for i := range buckets + 1 {
		n := s.at(i)
		if n > 0 && n >= left {
			if i == buckets {
				return 2 * bounds[buckets-1]
			}
			return bounds[i]
		}
		left -= n
	}
	return 0
}
