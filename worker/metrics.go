package worker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"thaw/invokewire"
)

// counts are what a worker counts of starts and invokes.
type counts struct {
	starts, invokes          *prometheus.CounterVec
	failed                   prometheus.Counter
	stages, seconds, running *prometheus.HistogramVec
}

// quick are buckets from 0.1 ms to 14 min, each twice the one before.
func quick() []float64 { return prometheus.ExponentialBuckets(0.0001, 2, 24) }

func newCounts() *counts {
	c := &counts{
		starts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "thaw_worker_starts_total", Help: "Cold starts: full ones, with nothing prepared, and partial ones, in a prepared slot with the device mounted.",
		}, []string{"kind"}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{Name: "thaw_worker_starts_failed_total", Help: "Starts that came to nothing."}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "thaw_worker_start_seconds", Help: "Time of a cold start on this worker, with the function's init.", Buckets: quick(),
		}, []string{"kind"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "thaw_worker_start_stage_seconds", Help: "Time of a cold start in a stage; init is the function's.", Buckets: quick(),
		}, []string{"stage"}),
		invokes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "thaw_worker_invokes_total", Help: "Invokes that have ended, by the start before them, or warm, and the Status of their REPORT.",
		}, []string{"start", "status"}),
		running: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "thaw_worker_invoke_seconds", Help: "Duration of an invoke, as its REPORT has it.", Buckets: quick(),
		}, []string{"start"}),
	}
	for _, kind := range []string{invokewire.StartFull, invokewire.StartPartial} {
		c.starts.WithLabelValues(kind)
	}
	for _, start := range []string{invokewire.StartFull, invokewire.StartPartial, invokewire.StartWarm} {
		for _, status := range []string{statusSuccess, statusError, statusTimeout} {
			c.invokes.WithLabelValues(start, status)
		}
	}
	return c
}

// started counts a start that is over.
func (c *counts) started(r *startRecord) {
	if r.failed != nil {
		c.failed.Inc()
		return
	}
	c.starts.WithLabelValues(r.Kind).Inc()
	c.seconds.WithLabelValues(r.Kind).Observe(time.Since(r.Began).Seconds())
	for stage, took := range r.Stages {
		c.stages.WithLabelValues(stage).Observe(float64(took) / 1e6)
	}
}

// invoked counts an invoke that is over.
func (c *counts) invoked(start string, o outcome, took time.Duration) {
	c.invokes.WithLabelValues(start, o.Status).Inc()
	c.running.WithLabelValues(start).Observe(took.Seconds())
}

// Metrics gives the worker's numbers to Prometheus.
func (w *Worker) Metrics() []prometheus.Collector {
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	text := func(what string, f func() uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "thaw_worker_log_" + what + "_bytes_total", Help: "Bytes of what functions have logged that were " + what + ".",
		}, func() float64 { return float64(f()) })
	}
	c := w.counts
	return []prometheus.Collector{
		c.starts, c.failed, c.stages, c.seconds, c.invokes, c.running, phases{w},
		gauge("thaw_worker_memory_used_bytes", "Memory that instances take, as far as it was measured.", func() float64 { return float64(w.state(false).Used) }),
		gauge("thaw_worker_memory_limit_bytes", "Memory that instances may take.", func() float64 { return float64(w.o.Memory) }),
		gauge("thaw_worker_slots", "Slots that are prepared.", func() float64 { return float64(w.slots.count()) }),
		gauge("thaw_worker_blank_agents", "Agents that are started and wait for an image.", func() float64 { return float64(w.blanks.count()) }),
		gauge("thaw_worker_starts_queued", "Starts that wait for their turn.", func() float64 { _, n := w.admission.counts(); return float64(n) }),
		gauge("thaw_worker_tmp_bytes", "Bytes on disk that the /tmp of all instances take, as measured once a second.", func() float64 { return float64(w.tmp()) }),
		gauge("thaw_worker_disk_limit_bytes", "Bytes on disk that /tmp and logs may take together: beyond them no instance starts.", func() float64 { return float64(w.o.Disk) }),
		gauge("thaw_worker_log_bytes", "Bytes of logs on disk, as far as known.", func() float64 { return float64(w.logs.bytes.Load()) }),
		gauge("thaw_worker_log_limit_bytes", "Bytes that logs may take on disk.", func() float64 { return float64(w.logs.limits.Total) }),
		text("kept", w.logs.text.kept.Load), text("dropped", w.logs.text.dropped.Load),
	}
}

// phases counts instances by what they do when it is asked.
type phases struct{ w *Worker }

// Describe tells nothing beforehand: what Collect gives is the same each time.
func (phases) Describe(chan<- *prometheus.Desc) {}

// Collect looks at all instances.
func (p phases) Collect(out chan<- prometheus.Metric) {
	n := map[string]int{invokewire.PhaseQueued: 0, invokewire.PhaseInit: 0, invokewire.PhaseIdle: 0, invokewire.PhaseBusy: 0, invokewire.PhaseEnding: 0}
	for _, i := range p.w.state(true).Instances {
		n[i.Phase]++
	}
	desc := prometheus.NewDesc("thaw_worker_instances", "Instances by what they do.", []string{"phase"}, nil)
	for phase, count := range n {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(count), phase)
	}
}
