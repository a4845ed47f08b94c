package main

import "time"

// The verbs metrics and top are in the build with all drivers (handOver):
// Prometheus' library, and what speaks to zone nodes, would make every start
// longer.

// metricsCmd gives numbers to Prometheus.
type metricsCmd struct {
	Listen string `help:"Address to listen on; port 0 picks one. The first line of output is the address." default:"127.0.0.1:9101" placeholder:"HOST:PORT"`
	Once   bool   `help:"Print the numbers once, and listen to nobody."`
	serverTLS
}

// Help teaches by example.
func (metricsCmd) Help() string {
	return `Answers /metrics with the numbers of all containers and mounts of this --state, and of the
function platform's roles on this machine: at each scrape their processes are asked, and one that
hangs is left out and counted. docs/metrics.md says what there is. Zone nodes answer /metrics
themselves.

  thaw metrics
  thaw metrics --once | grep bytes_total
  thaw metrics --listen 10.0.0.5:9101 --tls-cert host.pem --tls-key host.key --tls-client-ca ops.pem

Without TLS it listens on loopback only: names of images are nobody else's business.`
}

// topCmd shows numbers to people.
type topCmd struct {
	Once     bool          `help:"One table, of all since each image was mounted. So it is too if standard output is no terminal, unless --interval is given."`
	JSON     bool          `name:"json" help:"One JSON object a line."`
	Interval time.Duration `help:"Time between two looks (2s)." placeholder:"TIME"`
}

// Help teaches by example.
func (topCmd) Help() string {
	return `HITS are reads of chunks, CHUNKS those touched for the first time, BYTES theirs, and HIT RATE is
that of CHUNKS. P50 and P99 are of chunks that were not open yet, with hashing. AHEAD was fetched
before it was asked for, IN VAIN until now. With --zone its nodes are shown too. q or Ctrl-C ends it.

  thaw top
  thaw top --zone file:/etc/thaw/zone
  thaw top --json | jq '.tiers[] | select(.tier == "cache").hit_rate'
  thaw top --json --interval 10s >>log`
}
