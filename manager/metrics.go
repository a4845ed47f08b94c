package manager

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"thaw/invokewire"
)

// counted are what a manager counts of requests for instances.
type counted struct {
	acquires, throttles *prometheus.CounterVec
}

// Answers to who asks for an instance.
const (
	answeredReused, answeredStarted, answeredThrottled, answeredElsewhere, answeredFailed = "reused", "started", "throttled", "elsewhere", "failed"
)

func newCounted() *counted {
	c := &counted{
		acquires: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "thaw_manager_acquires_total", Help: "Requests for an instance, by the answer: an idle one, a new one, or none.",
		}, []string{"answer"}),
		throttles: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "thaw_manager_throttles_total", Help: "Requests for an instance that were throttled, by Lambda's reason.",
		}, []string{"reason"}),
	}
	for _, answer := range []string{answeredReused, answeredStarted, answeredThrottled, answeredElsewhere, answeredFailed} {
		c.acquires.WithLabelValues(answer)
	}
	for _, reason := range []string{invokewire.ReasonAccount, invokewire.ReasonReserved, invokewire.ReasonRate} {
		c.throttles.WithLabelValues(reason)
	}
	return c
}

// acquired counts what came of acquire.
func (c *counted) acquired(l *invokewire.Lease, err error) {
	var throttle *invokewire.Throttle
	var elsewhere *misdirected
	answer := answeredFailed
	switch {
	case err == nil && l.Fresh:
		answer = answeredStarted
	case err == nil:
		answer = answeredReused
	case errors.As(err, &throttle):
		answer = answeredThrottled
		c.throttles.WithLabelValues(throttle.Reason).Inc()
	case errors.As(err, &elsewhere):
		answer = answeredElsewhere
	}
	c.acquires.WithLabelValues(answer).Inc()
}

// Metrics gives the manager's numbers to Prometheus.
func (m *Manager) Metrics() []prometheus.Collector {
	return []prometheus.Collector{m.counted.acquires, m.counted.throttles, seen{m.table}}
}

// seen is what the table knows when it is asked.
type seen struct{ t *table }

// Describe tells nothing beforehand: what Collect gives is the same each time.
func (seen) Describe(chan<- *prometheus.Desc) {}

// Collect looks at the table.
func (s seen) Collect(out chan<- prometheus.Metric) {
	instances, workers, c := s.t.sums(time.Now())
	desc := prometheus.NewDesc("thaw_manager_instances", "Instances that the manager knows of.", []string{"state"}, nil)
	for state, n := range instances {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), state)
	}
	desc = prometheus.NewDesc("thaw_manager_workers", "Workers that the manager knows of: those that take starts, those on which starts fail, and others.", []string{"state"}, nil)
	for state, n := range workers {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), state)
	}
	desc = prometheus.NewDesc("thaw_manager_evicted_total", "Idle instances that were ended to make room for others.", nil, nil)
	out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(c.evicted))
	desc = prometheus.NewDesc("thaw_manager_starts_refused_total", "Starts that a worker did not take.", nil, nil)
	out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(c.refused))
}

// sums counts instances and workers by their states.
func (t *table) sums(now time.Time) (instances, workers map[string]int, c counts) {
	t.mu.Lock()
	defer t.mu.Unlock()
	instances = map[string]int{"leased": 0, "busy": 0, "starting": 0, "ending": 0, "idle": 0}
	for _, i := range t.instances {
		switch {
		case i.ending:
			instances["ending"]++
		case i.starting:
			instances["starting"]++
		case i.holder != "":
			instances["leased"]++
		case i.busy:
			instances["busy"]++
		default:
			instances["idle"]++
		}
	}
	workers = map[string]int{"ready": 0, "failing": 0, "away": 0}
	for _, w := range t.workers {
		switch {
		case !w.admits(nil, now):
			workers["away"]++
		case w.fails(now):
			workers["failing"]++
		default:
			workers["ready"]++
		}
	}
	return instances, workers, t.counts
}
