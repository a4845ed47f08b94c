package cluster

import (
	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics gives the server's numbers to Prometheus.
func (s *Server) Metrics() []prometheus.Collector { return []prometheus.Collector{told{s.nats}} }

// told is what the server says of itself when it is asked.
type told struct{ nats *server.Server }

// Describe tells nothing beforehand: what Collect gives is the same each time.
func (told) Describe(chan<- *prometheus.Desc) {}

// Collect asks the server. What it does not say, since it ends, is left out.
func (t told) Collect(out chan<- prometheus.Metric) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	const counter, gauge = prometheus.CounterValue, prometheus.GaugeValue
	if v, err := t.nats.Varz(nil); err == nil {
		send(desc("thaw_cluster_connections", "Connections of roles."), gauge, float64(v.Connections))
		send(desc("thaw_cluster_slow_consumers_total", "Connections that were cut because they did not read."), counter, float64(v.SlowConsumers))
		messages := desc("thaw_cluster_messages_total", "Messages, by whether the server got or sent them.", "direction")
		send(messages, counter, float64(v.InMsgs), "received")
		send(messages, counter, float64(v.OutMsgs), "sent")
		bytes := desc("thaw_cluster_bytes_total", "Bytes of messages, by whether the server got or sent them.", "direction")
		send(bytes, counter, float64(v.InBytes), "received")
		send(bytes, counter, float64(v.OutBytes), "sent")
	}
	if j, err := t.nats.Jsz(nil); err == nil {
		used := desc("thaw_cluster_used_bytes", "Bytes that records, queues and leases take.", "kind")
		send(used, gauge, float64(j.Memory), "memory")
		send(used, gauge, float64(j.Store), "disk")
		limit := desc("thaw_cluster_limit_bytes", "Bytes that they may take.", "kind")
		send(limit, gauge, maxMemory, "memory")
		send(limit, gauge, maxStore, "disk")
		send(desc("thaw_cluster_streams", "Streams: buckets of records and leases, and queues."), gauge, float64(j.Streams))
		send(desc("thaw_cluster_requests_total", "Requests to make, read or change streams."), counter, float64(j.API.Total))
		send(desc("thaw_cluster_request_errors_total", "Those of thaw_cluster_requests_total that failed."), counter, float64(j.API.Errors))
	}
}
