//go:build cloud

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"thaw/cluster"
	"thaw/convert"
	"thaw/invokewire"
	"thaw/text"
)

const (
	// baseRecords is the bucket of base images, by name.
	baseRecords = "bases"
	// pinPatience is how long base add waits for workers that make no progress.
	pinPatience = 5 * time.Minute
	// pinLook is how often workers are asked how far they are.
	pinLook = 250 * time.Millisecond
)

// baseImage is a base image's record.
type baseImage struct {
	Name   string    `json:"name"`
	Source string    `json:"source"`
	Tenant string    `json:"tenant"`
	Image  string    `json:"image"` // id
	Root   string    `json:"root"`  // of the origin, that holds it
	Added  time.Time `json:"added"`
}

// bases opens the records of base images, for f.
func (g *Globals) bases(ctx context.Context, f func(*joined, *cluster.Records) error) error {
	m, err := new(fleetFlags).join(ctx, g)
	if err != nil {
		return err
	}
	defer m.conn.Close()
	records, err := m.conn.Records(ctx, baseRecords)
	if err != nil {
		return err
	}
	return f(m, records)
}

// Run converts the image as the platform's builder would, so that functions
// share its chunks, and tells the workers.
func (c *baseAddCmd) Run(ctx context.Context, g *Globals) error {
	fleet, err := g.fleet()
	if err != nil {
		return err
	}
	primed := *g
	if primed.Zone == "" {
		primed.Zone = fleet.Zone
	}
	res, err := primed.convert(ctx, convert.Options{Source: c.Source, Name: c.Name, Image: c.options(), Prime: primed.Zone != ""})
	if err != nil {
		return err
	}
	base := baseImage{Name: res.Name, Source: c.Source, Tenant: g.Tenant, Image: res.Image, Root: res.Root, Added: time.Now().UTC()}
	var states map[string]invokewire.Pin
	err = g.bases(ctx, func(m *joined, records *cluster.Records) error {
		if err := putBase(ctx, records, base); err != nil || c.NoWait {
			return err
		}
		states, err = m.awaitPins(ctx, base)
		return err
	})
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(g.stdout).Encode(map[string]any{"base": base, "zone": res.Zone, "workers": states})
	}
	fmt.Fprintf(g.stdout, "%s  %s\n", base.Name, base.Image)
	if res.Zone != nil {
		fmt.Fprintf(g.stdout, "zone    %d chunks put, %d not\n", res.Zone.Put, res.Zone.Failed)
	}
	for id, s := range states {
		left := ""
		if s.Left > 0 {
			left = fmt.Sprintf("; %s more than it has for bases (--pin-size)", text.Bytes(s.Left))
		}
		fmt.Fprintf(g.stdout, "worker  %s keeps %s%s\n", id, text.Bytes(s.Pinned), left)
	}
	return nil
}

// putBase writes the record, in the place of one of the same name.
func putBase(ctx context.Context, records *cluster.Records, base baseImage) error {
	value, err := json.Marshal(base)
	if err != nil {
		return err
	}
	for {
		old, err := records.Get(ctx, base.Name)
		if errors.Is(err, cluster.ErrNotFound) {
			_, err = records.Create(ctx, base.Name, value)
		} else if err == nil {
			_, err = records.Update(ctx, base.Name, value, old.Revision)
		}
		if !errors.Is(err, cluster.ErrExists) && !errors.Is(err, cluster.ErrConflict) {
			return err
		}
	}
}

// awaitPins waits until all workers, one at least, keep the image, and gives what
// they say of it, by their ids. It gives up when none has made progress for
// pinPatience.
func (m *joined) awaitPins(ctx context.Context, base baseImage) (map[string]invokewire.Pin, error) {
	look := time.NewTicker(pinLook)
	defer look.Stop()
	late := time.NewTimer(pinPatience)
	defer late.Stop()
	for before := -1; ; {
		workers, err := m.someWorkers(ctx)
		if err != nil {
			return nil, err
		}
		states, missing := map[string]invokewire.Pin{}, 0
		for _, w := range workers {
			s, err := m.pinOf(ctx, w.Address, base.Image)
			if err != nil {
				return nil, err
			}
			if s.Image == "" {
				missing++ // it does not know yet
			}
			states[w.ID], missing = s, missing+s.Missing
			if s.Error != "" {
				return nil, fmt.Errorf("worker %s: %s; it goes on trying", w.ID, s.Error)
			}
		}
		if missing == 0 {
			return states, nil
		}
		if missing != before {
			before = missing
			late.Reset(pinPatience)
		}
		select {
		case <-look.C:
		case <-late.C:
			return nil, fmt.Errorf("workers still miss %d chunks of %s: they go on, see thaw base list", missing, base.Name)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// pinOf asks a worker about an image.
func (m *joined) pinOf(ctx context.Context, address, image string) (invokewire.Pin, error) {
	var all []invokewire.Pin
	err := m.ask(ctx, "GET", address, "/pins", &all)
	for _, p := range all {
		if p.Image == image {
			return p, err
		}
	}
	return invokewire.Pin{}, err
}

// Run lists.
func (c *baseListCmd) Run(ctx context.Context, g *Globals) error {
	return g.bases(ctx, func(m *joined, records *cluster.Records) error {
		list, err := records.List(ctx, "")
		if err != nil {
			return err
		}
		workers, err := m.workers(ctx)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
		if !c.JSON {
			fmt.Fprintln(w, "NAME\tIMAGE\tADDED\tWORKER\tKEPT\tLEFT OUT\tMISSING\tERROR")
		}
		for _, r := range list {
			var base baseImage
			if err := json.Unmarshal(r.Value, &base); err != nil {
				return fmt.Errorf("the record of base image %s: %w", r.Key, err)
			}
			if err := c.show(g, w, base, m.pinsOf(ctx, workers, base.Image)); err != nil {
				return err
			}
		}
		return w.Flush()
	})
}

// pinsOf asks workers about an image, and gives what they say by their ids.
func (m *joined) pinsOf(ctx context.Context, workers []invokewire.WorkerState, image string) map[string]invokewire.Pin {
	states := map[string]invokewire.Pin{}
	for _, w := range workers {
		s, err := m.pinOf(ctx, w.Address, image)
		if err != nil {
			s.Error = text.Line(err.Error())
		}
		states[w.ID] = s
	}
	return states
}

func (c *baseListCmd) show(g *Globals, w *tabwriter.Writer, base baseImage, states map[string]invokewire.Pin) error {
	if c.JSON {
		return json.NewEncoder(g.stdout).Encode(map[string]any{"base": base, "workers": states})
	}
	for _, id := range slices.Sorted(maps.Keys(states)) {
		s := states[id]
		fmt.Fprintf(w, "%s\t%.12s\t%s\t%s\t%s\t%s\t%d\t%s\n", base.Name, base.Image, base.Added.Format(time.DateTime), id, text.Bytes(s.Pinned), text.Bytes(s.Left), s.Missing, s.Error)
	}
	return nil
}

// Run forgets a base image. Its chunks stay until others need the room.
func (c *baseRmCmd) Run(ctx context.Context, g *Globals) error {
	return g.bases(ctx, func(_ *joined, records *cluster.Records) error {
		err := records.Delete(ctx, c.Name, 0)
		if errors.Is(err, cluster.ErrNotFound) {
			return fmt.Errorf("no base image is called %s: see thaw base list", text.Line(c.Name))
		}
		return err
	})
}
