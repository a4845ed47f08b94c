package node

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"thaw/latency"
)

// metrics serves the counts in Prometheus' form.
func (n *Node) metrics() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{n}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// collector reads a node's Stats when it is asked.
type collector struct{ n *Node }

// series is a metric with its value.
type series struct {
	name, help string
	kind       prometheus.ValueType
	value      float64
	label      string // "", or name=value's value
	labels     string // and its name
}

// Describe tells nothing beforehand: what Collect gives is the same each time.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect gives what Stats says.
func (c collector) Collect(out chan<- prometheus.Metric) {
	s := c.n.Stats()
	for _, m := range s.series() {
		out <- m.metric()
	}
	for _, h := range []struct {
		name, help, label string
		s                 latency.Snapshot
	}{
		{"thaw_zone_get_seconds", "Time to answer a GET, by where the stripe was.", "memory", s.Gets.FromMemory},
		{"thaw_zone_get_seconds", "Time to answer a GET, by where the stripe was.", "flash", s.Gets.FromFlash},
		{"thaw_zone_get_seconds", "Time to answer a GET, by where the stripe was.", "none", s.Gets.Misses},
	} {
		out <- histogram(prometheus.NewDesc(h.name, h.help, []string{"tier"}, nil), h.s, h.label)
	}
	out <- histogram(prometheus.NewDesc("thaw_zone_put_seconds", "Time to take a PUT in and answer it.", nil, nil), s.Puts.Times)
}

// series lists all that is a number.
func (s *Stats) series() []series {
	const c, g = prometheus.CounterValue, prometheus.GaugeValue
	up := 1.0
	if s.State != "up" {
		up = 0
	}
	const (
		used, limit   = "Bytes that stripes take.", "Bytes that stripes may take."
		held, evicted = "Stripes held.", "Stripes that made room for others."
		gets          = "GETs by where the stripe was."
		puts          = "PUTs by what they came to."
		flashed       = "Stripes that were to be written to flash, by what came of it."
	)
	n := func(v uint64) float64 { return float64(v) }
	return []series{
		{"thaw_zone_accepting", "1, or 0 while the node is drained.", g, up, "", ""},
		{"thaw_zone_used_bytes", used, g, float64(s.Memory.Used), "memory", "tier"},
		{"thaw_zone_used_bytes", used, g, float64(s.Flash.Used), "flash", "tier"},
		{"thaw_zone_limit_bytes", limit, g, float64(s.Memory.Limit), "memory", "tier"},
		{"thaw_zone_limit_bytes", limit, g, float64(s.Flash.Limit), "flash", "tier"},
		{"thaw_zone_stripes", held, g, float64(s.Memory.Stripes), "memory", "tier"},
		{"thaw_zone_stripes", held, g, float64(s.Flash.Stripes), "flash", "tier"},
		{"thaw_zone_evicted_total", evicted, c, n(s.Memory.Evicted), "memory", "tier"},
		{"thaw_zone_evicted_total", evicted, c, n(s.Flash.Evicted), "flash", "tier"},
		{"thaw_zone_gets_total", gets, c, n(s.Gets.Memory), "memory", "tier"},
		{"thaw_zone_gets_total", gets, c, n(s.Gets.Flash), "flash", "tier"},
		{"thaw_zone_gets_total", gets, c, n(s.Gets.Missed), "none", "tier"},
		{"thaw_zone_sent_bytes_total", "Bytes of stripes sent.", c, n(s.Gets.Bytes), "", ""},
		{"thaw_zone_received_bytes_total", "Bytes of stripes stored.", c, n(s.Puts.Bytes), "", ""},
		{"thaw_zone_puts_total", puts, c, n(s.Puts.Stored), "stored", "result"},
		{"thaw_zone_puts_total", puts, c, n(s.Puts.Had), "had", "result"},
		{"thaw_zone_puts_total", puts, c, n(s.Puts.Other), "other", "result"},
		{"thaw_zone_puts_total", puts, c, n(s.Puts.Replaced), "replaced", "result"},
		{"thaw_zone_puts_total", puts, c, n(s.Puts.Refused), "refused", "result"},
		{"thaw_zone_flashed_total", flashed, c, n(s.Puts.Flashed), "written", "result"},
		{"thaw_zone_flashed_total", flashed, c, n(s.Puts.Skipped), "skipped", "result"},
		{"thaw_zone_flashed_total", flashed, c, n(s.Puts.Failed), "failed", "result"},
		{"thaw_zone_corrupt_total", "Stripes on flash that were not whole, and dropped.", c, n(s.Corrupt), "", ""},
		{"thaw_zone_leases", "Leases that have not ended.", g, float64(s.Leases.Active), "", ""},
		{"thaw_zone_waiters", "GETs that wait for another worker's fill.", g, float64(s.Leases.Waiting), "", ""},
		{"thaw_zone_leases_total", "Answers to who asked for a lease.", c, n(s.Leases.Granted), "granted", "answer"},
		{"thaw_zone_leases_total", "Answers to who asked for a lease.", c, n(s.Leases.Held), "held", "answer"},
		{"thaw_zone_busy_total", "Requests that a bound has refused.", c, n(s.Busy), "", ""},
		{"thaw_zone_connections", "Open connections.", g, float64(s.Connections), "", ""},
		{"thaw_zone_connections_refused_total", "Connections that were too many.", c, n(s.Refused), "", ""},
	}
}

func (m series) metric() prometheus.Metric {
	var names, values []string
	if m.labels != "" {
		names, values = []string{m.labels}, []string{m.label}
	}
	return prometheus.MustNewConstMetric(prometheus.NewDesc(m.name, m.help, names, nil), m.kind, m.value, values...)
}

// histogram gives counts of package latency as Prometheus wants them:
// cumulative, in seconds.
func histogram(d *prometheus.Desc, s latency.Snapshot, labels ...string) prometheus.Metric {
	cumulative := map[float64]uint64{}
	var sum uint64
	for i, bound := range latency.Bounds() {
		if i < len(s.Counts) {
			sum += s.Counts[i]
		}
		cumulative[bound.Seconds()] = sum
	}
	return prometheus.MustNewConstHistogram(d, s.Count(), s.Sum.Seconds(), cumulative, labels...)
}
