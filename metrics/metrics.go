// Package metrics gives the numbers of one machine's fetchers and agents in
// Prometheus' form. Nothing is kept between scrapes: each asks the processes.
//
// Counters are those of a process, and go with it: a series has the key of its
// fetcher or image as a label, ends when that process ends and begins at zero if
// another takes its place, which rate() and increase() understand. A process
// that does not answer has no series in that scrape, never old or smaller ones.
// So take rate() first and sum() of that: the sum of counters falls when a
// process ends. docs/metrics.md lists all of them.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"thaw/host"
)

// maxScrapes bounds the scrapes at a time; one more is answered 503.
const maxScrapes = 4

// Ask gives what runs and its numbers, in bounded time.
type Ask func(context.Context) (host.Numbers, error)

// Exporter gives the numbers of one machine. It is safe for concurrent use.
type Exporter struct {
	ask        Ask
	more       prometheus.Gatherers
	scrapes    chan struct{}
	unanswered [roles]atomic.Int64
}

// The roles of processes, by which those are counted that do not answer.
const (
	fetcher = iota
	agent
	roles
)

// New makes an exporter of what processes say, and of what else there is.
func New(ask Ask, more ...prometheus.Gatherer) *Exporter {
	return &Exporter{ask: ask, more: more, scrapes: make(chan struct{}, maxScrapes)}
}

// ServeHTTP answers a scrape, whatever its path.
func (e *Exporter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case e.scrapes <- struct{}{}:
		defer func() { <-e.scrapes }()
	default:
		http.Error(w, "too many scrapes at a time", http.StatusServiceUnavailable)
		return
	}
	registry, err := e.scrape(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	promhttp.HandlerFor(append(prometheus.Gatherers{registry}, e.more...), promhttp.HandlerOpts{}).ServeHTTP(w, r)
}

// Write writes the text of one scrape.
func (e *Exporter) Write(ctx context.Context, w io.Writer) error {
	registry, err := e.scrape(ctx)
	if err != nil {
		return err
	}
	families, err := append(prometheus.Gatherers{registry}, e.more...).Gather()
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(w, f); err != nil {
			return err
		}
	}
	return nil
}

// scrape asks, and gives the answers.
func (e *Exporter) scrape(ctx context.Context) (*prometheus.Registry, error) {
	n, err := e.ask(ctx)
	if err != nil {
		return nil, fmt.Errorf("metrics: asking the processes of this machine: %w", err)
	}
	var p page
	for i := range n.Fetchers {
		e.count(&p, fetcher, &n.Fetchers[i].Asked)
		p.fetcher(&n.Fetchers[i])
	}
	for i := range n.Images {
		e.count(&p, agent, &n.Images[i].Asked)
		p.image(&n.Images[i])
	}
	p.machine(&n)
	for role, name := range []string{fetcher: "fetcher", agent: "agent"} {
		p.number(number{"thaw_unanswered_total", "Questions for numbers that a running process did not answer in time, since this exporter was started.", counter,
			float64(e.unanswered[role].Load())}, labels{"role": name})
	}
	registry := prometheus.NewPedanticRegistry()
	return registry, registry.Register(p)
}

// count tells whether a process gave its numbers.
func (e *Exporter) count(p *page, role int, a *host.Asked) {
	if a.Err != nil && !errors.Is(a.Err, os.ErrProcessDone) {
		e.unanswered[role].Add(1)
	}
	up := number{"thaw_fetcher_up", "1, or 0 if the fetcher was killed or does not answer.", gauge, 0}
	since := number{"thaw_fetcher_start_time_seconds", "When the fetcher was started.", gauge, float64(a.Since.UnixMilli()) / 1000}
	l := labels{"fetcher": a.Key}
	if role == agent {
		up.name, up.help = "thaw_agent_up", "1, or 0 if the agent was killed or does not answer."
		since.name, since.help = "thaw_agent_start_time_seconds", "When the agent's image was mounted."
		l = labels{"agent": a.Key}
	}
	if a.Err == nil {
		up.value = 1
	}
	p.number(up, l)
	p.number(since, l)
}
