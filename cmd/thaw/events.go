//go:build cloud

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"thaw/events"
	"thaw/functions"
	"thaw/text"
)

// deadPage is how many dead letters are read at once.
const deadPage = 200

// queue opens the queue of the platform that runs, for f.
func (g *Globals) queue(ctx context.Context, f func(*joined, *events.Queue) error) error {
	m, err := new(fleetFlags).join(ctx, g)
	if err != nil {
		return err
	}
	defer m.conn.Close()
	q, err := events.Open(ctx, m.conn, events.Options{})
	if err != nil {
		return err
	}
	return f(m, q)
}

// Run lists dead letters.
func (c *eventsListCmd) Run(ctx context.Context, g *Globals) error {
	return g.queue(ctx, func(m *joined, q *events.Queue) error {
		w := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
		if !c.JSON {
			fmt.Fprintln(w, "ID\tFUNCTION\tACCEPTED\tTRIES\tREASON\tLAST")
		}
		after := uint64(0)
		for {
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
				break
			}
		}
		if after == 0 && c.Name != "" {
			if err := c.known(ctx, g, m); err != nil {
				return err
			}
		}
		return w.Flush()
	})
}

// known fails as the API does if there is no such function. Letters of one that
// was deleted are there still, and are listed.
func (c *eventsListCmd) known(ctx context.Context, g *Globals, m *joined) error {
	records, err := m.conn.Records(ctx, functionRecords)
	if err != nil {
		return err
	}
	id := functions.ID{Account: g.account(""), Name: c.Name}
	_, err = functions.NewStore(records).Get(ctx, id)
	if errors.Is(err, functions.ErrNotFound) {
		r, _ := g.fleet() // of a machine that has joined it says no region
		return fmt.Errorf("ResourceNotFoundException: Function not found: %s", id.ARN(r.Region, ""))
	}
	return err
}

// Run queues a dead letter again.
func (c *eventsReplayCmd) Run(ctx context.Context, g *Globals) error {
	return g.queue(ctx, func(_ *joined, q *events.Queue) error { return q.Replay(ctx, g.account(""), c.ID) })
}

// Run forgets a dead letter.
func (c *eventsRemoveCmd) Run(ctx context.Context, g *Globals) error {
	return g.queue(ctx, func(_ *joined, q *events.Queue) error { return q.Remove(ctx, g.account(""), c.ID) })
}
