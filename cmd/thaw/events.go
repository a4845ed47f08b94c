//go:build cloud

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"thaw/events"
	"thaw/text"
)

// deadPage is how many dead letters are read at once.
const deadPage = 200

// queue opens the queue of the platform that runs, for f.
func (g *Globals) queue(ctx context.Context, f func(*events.Queue) error) error {
	m, err := new(fleetFlags).join(ctx, g)
	if err != nil {
		return err
	}
	defer m.conn.Close()
	q, err := events.Open(ctx, m.conn, events.Options{})
	if err != nil {
		return err
	}
	return f(q)
}

// Run lists dead letters.
func (c *eventsListCmd) Run(ctx context.Context, g *Globals) error {
	return g.queue(ctx, func(q *events.Queue) error {
		w := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
		if !c.JSON {
			fmt.Fprintln(w, "ID\tFUNCTION\tACCEPTED\tTRIES\tREASON\tLAST")
		}
		for after := uint64(0); ; {
			page, err := q.List(ctx, g.account(""), c.Name, after, deadPage)
			if err != nil {
				return err
			}
			for _, d := range page {
				after = d.Position
				if c.JSON {
					err = json.NewEncoder(g.stdout).Encode(map[string]any{
						"id": d.Event.ID, "function": d.Event.Function, "accepted": d.Event.Accepted, "died": d.Died, "tries": d.Event.Attempt, "reason": d.Reason, "last": d.Last,
					})
				} else {
					_, err = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", d.Event.ID, d.Event.Function, d.Event.Accepted.UTC().Format(time.DateTime), d.Event.Attempt, d.Reason, text.Line(d.Last))
				}
				if err != nil {
					return err
				}
			}
			if len(page) < deadPage {
				return w.Flush()
			}
		}
	})
}

// Run queues a dead letter again.
func (c *eventsReplayCmd) Run(ctx context.Context, g *Globals) error {
	return g.queue(ctx, func(q *events.Queue) error { return q.Replay(ctx, g.account(""), c.ID) })
}

// Run forgets a dead letter.
func (c *eventsRemoveCmd) Run(ctx context.Context, g *Globals) error {
	return g.queue(ctx, func(q *events.Queue) error { return q.Remove(ctx, g.account(""), c.ID) })
}
