//go:build cloud

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"thaw/fleet"
	"thaw/host"
	"thaw/metrics"
)

const (
	// metricsTime bounds each direction of a request: a scrape takes up to 5 s if
	// processes hang.
	metricsTime = 15 * time.Second
	// metricsHeaders bounds a request's headers in bytes: Prometheus sends 300.
	metricsHeaders = 16 << 10
	// roleSockets is the folder, below the fleet's, where roles tell their numbers.
	roleSockets = "metrics"
)

// Run answers scrapes until it is told to end.
func (c *metricsCmd) Run(ctx context.Context, g *Globals) error {
	h, err := host.Open(g.State)
	if err != nil {
		return err
	}
	defer h.Close()
	exporter := metrics.New(h.Ask, metrics.Roles(g.fleetPath(roleSockets)))
	if c.Once {
		return exporter.Write(ctx, g.stdout)
	}
	secure, err := c.tls()
	if err != nil {
		return err
	}
	if secure == nil && !fleet.Loopback(c.Listen) {
		return fmt.Errorf("--listen %s: without TLS numbers are given on loopback only, such as 127.0.0.1:9101; give --tls-cert and --tls-key", c.Listen)
	}
	l, err := g.listen(ctx, c.Listen, secure)
	if err != nil {
		return err
	}
	return serveMetrics(ctx, l, exporter)
}

// serveMetrics serves until ctx ends.
func serveMetrics(ctx context.Context, l net.Listener, exporter http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", exporter)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "thaw metrics: see /metrics") })
	server := &http.Server{
		Handler: mux, ReadTimeout: metricsTime, WriteTimeout: metricsTime, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: metricsHeaders,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	var work sync.WaitGroup
	defer work.Wait()
	ended := make(chan struct{})
	defer close(ended)
	work.Go(func() {
		select {
		case <-ctx.Done():
			_ = server.Close() // Prometheus does again what is cut off
		case <-ended:
		}
	})
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// measured gives a role's work during which its numbers are to be had. A role
// does its work also if nobody can have them.
func (g *Globals) measured(role string, all []prometheus.Collector, run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		var beside sync.WaitGroup
		defer beside.Wait()
		told, cancel := context.WithCancel(ctx)
		defer cancel()
		beside.Go(func() {
			if err := metrics.ServeRole(told, g.fleetPath(roleSockets), role, all...); err != nil {
				g.logger().Error("this role's numbers are not to be had", "cause", err)
			}
		})
		return run(ctx)
	}
}
