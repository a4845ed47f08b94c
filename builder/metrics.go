package builder

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counts are what a builder counts of its jobs.
type counts struct {
	results *prometheus.CounterVec
	seconds prometheus.Histogram
	removed *prometheus.CounterVec
}

// What is removed: things in the origin, and records of versions.
const removedThings, removedRecords = "things", "records"

// resultBuilt is the result of a build that has a device; others are codes of
// refusals, and resultLeft: not settled by this builder.
const resultBuilt, resultLeft = "built", "left"

func newCounts() *counts {
	c := &counts{
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "thaw_builder_builds_total", Help: "Builds that this builder has ended: built, refused with a code, or left to be begun again or because nobody wants them any more.",
		}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "thaw_builder_build_seconds", Help: "Time of a build, with all its tries here.", Buckets: prometheus.ExponentialBuckets(0.05, 2, 18), // to two hours
		}),
		removed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "thaw_builder_removed_total", Help: "What no function needed any more and this builder has removed: things in the origin, and records of versions.",
		}, []string{"kind"}),
	}
	for _, kind := range []string{removedThings, removedRecords} {
		c.removed.WithLabelValues(kind)
	}
	for _, result := range []string{resultBuilt, resultLeft, AccessDenied, InvalidImage, ImageDeleted, InternalError} {
		c.results.WithLabelValues(result)
	}
	return c
}

// settled counts a result that is written.
func (c *counts) settled(code string) {
	if code == "" {
		code = resultBuilt
	}
	c.results.WithLabelValues(code).Inc()
}

// worked counts the end of a job.
func (c *counts) worked(took time.Duration, err error) {
	if err != nil {
		c.results.WithLabelValues(resultLeft).Inc()
		return
	}
	c.seconds.Observe(took.Seconds())
}

// Metrics gives the builder's numbers to Prometheus.
func (b *Builder) Metrics() []prometheus.Collector {
	jobs := func(state string, n func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "thaw_builder_jobs", Help: "Builds that this builder works on, and those that wait, here or at another builder.", ConstLabels: prometheus.Labels{"state": state},
		}, func() float64 {
			b.mu.Lock()
			defer b.mu.Unlock()
			return float64(n())
		})
	}
	return []prometheus.Collector{
		b.counts.results, b.counts.seconds, b.counts.removed, jobs("running", func() int { return len(b.running) }),
		jobs("waiting", func() int { return max(0, len(b.pending)-len(b.running)) }),
	}
}
