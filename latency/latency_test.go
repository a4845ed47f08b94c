package latency_test

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"thaw/latency"
)

func TestBounds(t *testing.T) {
	b := latency.Bounds()
	if b[0] != time.Microsecond || b[2] != 2*time.Microsecond || b[20] != 1024*time.Microsecond {
		t.Errorf("bounds begin with %v", b[:21])
	}
	if !slices.IsSorted(b) || b[len(b)-1] < 134*time.Second {
		t.Errorf("bounds %v", b)
	}
}

// TestBuckets has each duration at a bound, and beside one, in its place.
func TestBuckets(t *testing.T) {
	for i, bound := range latency.Bounds() {
		for d, want := range map[time.Duration]int{bound: i, bound + 1: i + 1} {
			var h latency.Histogram
			h.Observe(d)
			s := h.Snapshot()
			if len(s.Counts) != want+1 || s.Counts[want] != 1 || s.Sum != d {
				t.Errorf("%v is in bucket %d, want %d", d, len(s.Counts)-1, want)
			}
		}
	}
	var h latency.Histogram
	for _, d := range []time.Duration{-1, 0, 1, time.Microsecond} {
		h.Observe(d)
	}
	if s := h.Snapshot(); len(s.Counts) != 1 || s.Counts[0] != 4 {
		t.Errorf("short durations: %v", s)
	}
}

// TestQuantile compares with the sorted durations themselves.
func TestQuantile(t *testing.T) {
	draw := rand.New(rand.NewPCG(1, 2))
	var h latency.Histogram
	var all []time.Duration
	for range 10_000 {
		d := time.Duration(math.Exp(draw.NormFloat64()*2+10)) + time.Microsecond
		h.Observe(d)
		all = append(all, d)
	}
	slices.Sort(all)
	s := h.Snapshot()
	for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.999, 1} {
		exact := all[max(int(math.Ceil(q*float64(len(all))))-1, 0)]
		got := s.Quantile(q)
		if got < exact || float64(got) > float64(exact)*math.Sqrt2*1.001 {
			t.Errorf("quantile %v is %v, want %v or a little more", q, got, exact)
		}
	}
	if (latency.Snapshot{}).Quantile(0.5) != 0 {
		t.Error("the quantile of nothing")
	}
	var long latency.Histogram
	long.Observe(time.Hour)
	if got := long.Snapshot().Quantile(0.5); got < 200*time.Second {
		t.Errorf("an hour is %v", got)
	}
}

func TestAddAndSince(t *testing.T) {
	var a, b latency.Histogram
	for i := range 100 {
		a.Observe(time.Duration(i) * time.Millisecond)
		b.Observe(time.Duration(i) * time.Microsecond)
	}
	before := a.Snapshot()
	a.Observe(time.Minute)
	after := a.Snapshot()
	if d := after.Since(before); d.Count() != 1 || d.Sum != time.Minute {
		t.Errorf("one more is %v", d)
	}
	sum := before.Add(b.Snapshot())
	if sum.Count() != 200 || sum.Sum != before.Sum+b.Snapshot().Sum {
		t.Errorf("the sum is %v", sum)
	}
	if before.Count() != 100 {
		t.Error("adding changed what was added to")
	}
	data, err := json.Marshal(sum)
	if err != nil {
		t.Fatal(err)
	}
	var back latency.Snapshot
	if err := json.Unmarshal(data, &back); err != nil || back.Quantile(0.5) != sum.Quantile(0.5) {
		t.Errorf("as JSON %s: %v", data, err)
	}
}

// TestForeignCounts takes what another process sent, whatever it is.
func TestForeignCounts(t *testing.T) {
	odd := latency.Snapshot{Counts: make([]uint64, 1000)}
	odd.Counts[999] = 1
	if n := odd.Add(odd).Count(); n != 0 {
		t.Errorf("counts of buckets that there are not: %d", n)
	}
	if d := (latency.Snapshot{Counts: []uint64{1}}).Since(latency.Snapshot{Counts: []uint64{2}}); d.Count() != 0 {
		t.Errorf("fewer than before is %v", d)
	}
}

func TestConcurrent(t *testing.T) {
	var h latency.Histogram
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 1000 {
				h.Since(time.Now().Add(-time.Duration(i) * time.Microsecond))
				_ = h.Snapshot()
			}
		})
	}
	all.Wait()
	if n := h.Snapshot().Count(); n != 8000 {
		t.Errorf("%d of 8000 counted", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	var h latency.Histogram
	for i := range b.N {
		h.Observe(time.Duration(i) * 100)
	}
}
