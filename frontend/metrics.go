package frontend

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"thaw/invokewire"
	"thaw/lambdaapi"
)

// counts are what a frontend counts of invokes. None is of one function: there
// may be any number of those.
type counts struct {
	invokes   *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	throttles *prometheus.CounterVec
	running   prometheus.Gauge
	// refusedControl counts what is no invoke.
	refusedControl prometheus.Counter
}

// Kinds and outcomes of invokes.
const (
	countedSync, countedStream, countedEvent                          = "sync", "stream", "event"
	countedSuccess, countedError, countedThrottled, countedInPlatform = "success", "function_error", "throttled", "platform_error"
)

func newCounts() *counts {
	c := &counts{
		invokes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "thaw_frontend_invokes_total", Help: "Invokes that have ended, by who waited for them and how they ended.",
		}, []string{"kind", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "thaw_frontend_invoke_seconds", Help: "Time of an invoke from when it was understood to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 22), // half a millisecond to 17 minutes
		}, []string{"kind"}),
		throttles: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "thaw_frontend_throttles_total", Help: "Invokes that were throttled, by Lambda's reason.",
		}, []string{"reason"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{Name: "thaw_frontend_invokes", Help: "Invokes under way."}),
		refusedControl: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "thaw_frontend_control_throttles_total", Help: "Requests that read or change functions and were throttled: too many of one account.",
		}),
	}
	for _, reason := range []string{invokewire.ReasonAccount, invokewire.ReasonReserved, invokewire.ReasonRate} {
		c.throttles.WithLabelValues(reason)
	}
	for _, kind := range []string{countedSync, countedStream, countedEvent} {
		for _, outcome := range []string{countedSuccess, countedError, countedThrottled, countedInPlatform} {
			c.invokes.WithLabelValues(kind, outcome)
		}
	}
	return c
}

// Metrics gives the frontend's numbers to Prometheus.
func (f *Frontend) Metrics() []prometheus.Collector {
	leases := func(busy bool) prometheus.Collector {
		state := "idle"
		if busy {
			state = "busy"
		}
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "thaw_frontend_leases", Help: "Instances that this frontend may give invokes to.", ConstLabels: prometheus.Labels{"state": state},
		}, func() float64 { return float64(f.pool.count(busy)) })
	}
	c := f.counts
	return []prometheus.Collector{c.invokes, c.seconds, c.throttles, c.running, c.refusedControl, leases(true), leases(false)}
}

func kindOfInvoke(inv *invocation) string {
	switch {
	case inv.queued:
		return countedEvent
	case inv.streaming:
		return countedStream
	}
	return countedSync
}

// refused counts an invoke that no instance got.
func (c *counts) refused(inv *invocation, began time.Time, err error) {
	outcome := countedInPlatform
	if e := (*lambdaapi.Error)(nil); errors.As(err, &e) && errors.Is(err, lambdaapi.TooManyRequestsException) {
		outcome = countedThrottled
		c.throttles.WithLabelValues(e.Reason).Inc()
	}
	c.count(inv, began, outcome)
}

// ended counts an invoke whose answer was read to its end, if alive.
func (c *counts) ended(inv *invocation, began time.Time, a *answer, alive bool) {
	outcome := countedSuccess
	switch {
	case !alive:
		outcome = countedInPlatform
	case a.Header.Get(invokewire.HeaderFunctionError) != "" || a.Trailer.Get(invokewire.HeaderFunctionError) != "":
		outcome = countedError
	}
	c.count(inv, began, outcome)
}

func (c *counts) count(inv *invocation, began time.Time, outcome string) {
	kind := kindOfInvoke(inv)
	c.running.Dec()
	c.invokes.WithLabelValues(kind, outcome).Inc()
	c.seconds.WithLabelValues(kind).Observe(time.Since(began).Seconds())
}

// count counts leases.
func (p *pool) count(busy bool) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.all {
		if l.busy == busy {
			n++
		}
	}
	return n
}
