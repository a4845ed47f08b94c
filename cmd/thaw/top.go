//go:build cloud

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"time"

	"golang.org/x/term"

	"thaw/host"
	"thaw/top"
)

// topInterval is often enough for people, and little to the machine.
const topInterval = 2 * time.Second

// minInterval keeps a typing error from being a load.
const minInterval = 100 * time.Millisecond

// topPatience is how long a node may take to answer a look: the next one comes soon.
const topPatience = 2 * time.Second

// Run shows what there is, once or until it is told to end.
func (c *topCmd) Run(ctx context.Context, g *Globals) error {
	if c.Interval < 0 || c.Interval > 0 && c.Interval < minInterval {
		return errors.New("--interval: want a duration from 100ms on, such as 2s")
	}
	h, err := host.Open(g.State)
	if err != nil {
		return err
	}
	defer h.Close()
	sample, err := g.sampler(h)
	if err != nil {
		return err
	}
	terminal := g.terminal()
	if terminal != nil && !c.Once && !c.JSON {
		live := &top.Live{In: os.Stdin, Out: terminal, Interval: cmp.Or(c.Interval, topInterval), Sample: sample}
		return live.Show(ctx)
	}
	once := c.Once || terminal == nil && c.Interval == 0
	tick := time.NewTicker(cmp.Or(c.Interval, topInterval))
	defer tick.Stop()
	for w := new(top.Watcher); ; {
		s, err := sample(ctx)
		if err != nil && ctx.Err() == nil || err != nil && once {
			return err
		}
		if ctx.Err() == nil {
			err = c.print(g, w.Report(s))
		}
		if err != nil || once {
			return cmp.Or(err, ctx.Err())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *topCmd) print(g *Globals, r *top.Report) error {
	if c.JSON {
		return json.NewEncoder(g.stdout).Encode(r)
	}
	return r.Write(g.stdout)
}

// sampler gives what looks at this machine, and at the zone if there is one.
func (g *Globals) sampler(h *host.Host) (func(context.Context) (top.Sample, error), error) {
	client, err := g.nodeClient()
	if err != nil {
		return nil, err
	}
	client.Timeout = topPatience
	return func(ctx context.Context) (s top.Sample, err error) {
		s.At = time.Now()
		if s.Numbers, err = h.Ask(ctx); err != nil || g.Zone == "" {
			return s, err
		}
		nodes, err := client.askAll(ctx, g.Zone)
		for _, n := range nodes {
			s.Nodes = append(s.Nodes, n.Node)
		}
		return s, err
	}, nil
}

// terminal gives standard output if it is one that can be drawn on.
func (g *Globals) terminal() *os.File {
	r, ok := g.stdout.(*results)
	if !ok || os.Getenv("TERM") == "" || os.Getenv("TERM") == "dumb" {
		return nil
	}
	if f, ok := r.Writer.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}
