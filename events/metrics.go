package events

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// counts are what this process counts of tries.
type counts struct{ tries, dead *prometheus.CounterVec }

// outcomes are the names of Kinds.
func outcomes() map[Kind]string {
	return map[Kind]string{
		Succeeded: "success", FunctionError: "function_error", Throttled: "throttled", SystemError: "platform_error", Refused: "refused", Untried: "untried",
	}
}

func newCounts() *counts {
	c := &counts{
		tries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "thaw_events_tries_total", Help: "Tries of queued events by this process, by how they ended.",
		}, []string{"outcome"}),
		dead: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "thaw_events_dead_total", Help: "Events that this process has given up, by the reason.",
		}, []string{"reason"}),
	}
	for _, outcome := range outcomes() {
		c.tries.WithLabelValues(outcome)
	}
	for _, reason := range []string{reasonRetries, reasonAge, reasonRefused} {
		c.dead.WithLabelValues(reason)
	}
	return c
}

// tried counts the end of a try.
func (c *counts) tried(k Kind) { c.tries.WithLabelValues(outcomes()[k]).Inc() }

// Metrics gives the queue's numbers to Prometheus: those of this process's tries,
// and those of the fleet's streams, which all processes tell alike.
func (q *Queue) Metrics() []prometheus.Collector {
	return []prometheus.Collector{q.counts.tries, q.counts.dead, waiting{q}}
}

// waiting is what streams hold when they are asked.
type waiting struct{ q *Queue }

// askTime bounds how long the server is asked, for all streams together.
const askTime = 2 * time.Second

// Describe tells nothing beforehand: what Collect gives is the same each time.
func (waiting) Describe(chan<- *prometheus.Desc) {}

// Collect asks the server. A stream that it does not tell of is left out.
func (w waiting) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	gauge := func(name, help string, v float64, state string) {
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, []string{"state"}, nil), prometheus.GaugeValue, v, state)
	}
	for state, stream := range map[string]jetstream.Stream{"queued": w.q.queue, "delayed": w.q.later, "dead": w.q.dead} {
		info, err := w.q.js.Stream(ctx, stream.CachedInfo().Config.Name) // a handle of its own: others use ours
		if err != nil {
			continue
		}
		s, age := info.CachedInfo().State, 0.0
		if s.Msgs > 0 {
			age = max(0, time.Since(s.FirstTime).Seconds())
		}
		gauge("thaw_events", "Events of the whole fleet: queued (being tried or about to be), delayed, and dead letters.", float64(s.Msgs), state)
		gauge("thaw_events_bytes", "Bytes that they take.", float64(s.Bytes), state)
		gauge("thaw_events_oldest_age_seconds", "How long ago the oldest came into its state; 0 if there is none.", age, state)
	}
}
