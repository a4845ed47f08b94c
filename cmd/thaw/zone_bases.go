//go:build cloud

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"thaw/chunk"
	"thaw/cluster"
	"thaw/text"
	"thaw/zone"
)

const (
	// zoneLook is how often a builder looks what the zone's nodes have of base images.
	zoneLook = time.Minute
	// zonePace is between two chunks that are put again: as many a second as a
	// worker repairs.
	zonePace = 50 * time.Millisecond
	// zoneAgain is after what a node that has nothing of a base image is given it again:
	// if it keeps nothing, others need its room more.
	zoneAgain = time.Hour
)

// zoneBases puts base images, once they have been added, into nodes of the zone that
// have nothing of them: who joins, or comes back empty. What such a node lacks
// besides, or one loses, comes back when it is read.
type zoneBases struct {
	g     *Globals
	list  func(context.Context) ([]cluster.Record, error)
	zone  *zone.Client
	log   *slog.Logger
	pace  time.Duration
	given map[string]time.Time // when a node was last given a base and had none of it since; by address and image
}

// zoneBases makes one for a builder; nil without a zone. The caller closes its zone.
func (g *Globals) zoneBases(records *cluster.Records) (*zoneBases, error) {
	c, err := g.zoneClient(zoneWorker())
	if c == nil || err != nil {
		return nil, err
	}
	list := func(ctx context.Context) ([]cluster.Record, error) { return records.List(ctx, "") }
	return &zoneBases{g, list, c, g.logger(), zonePace, map[string]time.Time{}}, nil
}

// run looks until ctx ends.
func (z *zoneBases) run(ctx context.Context) {
	tick := time.NewTicker(zoneLook)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			z.look(ctx, now)
		case <-ctx.Done():
			return
		}
	}
}

// look gives nodes what they lack, of all bases, at some time.
func (z *zoneBases) look(ctx context.Context, now time.Time) {
	records, err := z.list(ctx)
	if err != nil {
		z.warn(ctx, "base images are not looked for in the zone", err)
		return
	}
	of := map[string]time.Time{} // what is remembered is of nodes and bases that there are
	for _, r := range records {
		var base baseImage
		if err := json.Unmarshal(r.Value, &base); err != nil {
			continue // whoever pins it says so
		}
		if err := z.mend(ctx, base, now, of); err != nil {
			z.warn(ctx, "a base image is not put into the zone's new nodes; it is tried again", fmt.Errorf("%s: %w", base.Name, err))
		}
	}
	if ctx.Err() == nil {
		z.given = of
	}
}

func (z *zoneBases) warn(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		z.log.Warn(what, "cause", text.Line(err.Error()))
	}
}

// mend gives one base to nodes that have nothing of it, and notes that in of.
func (z *zoneBases) mend(ctx context.Context, base baseImage, now time.Time, of map[string]time.Time) error {
	chunks, err := z.g.baseChunks(ctx, base)
	if err != nil {
		return err
	}
	lacking, fresh := map[chunk.Name]bool{}, map[string]time.Time{}
	err = z.zone.Survey(ctx, namesOf(chunks), func(addr string, held, lacks []chunk.Name) {
		key := addr + " " + base.Image
		switch given, before := z.given[key]; {
		case len(held) > 0:
		case before && now.Sub(given) < zoneAgain:
			of[key] = given
		default:
			fresh[key] = now
			for _, name := range lacks {
				lacking[name] = true
			}
		}
	})
	if err != nil || len(fresh) == 0 {
		return err
	}
	z.log.Info("nodes of the zone are given a base image", "name", text.Line(base.Name), "nodes", len(fresh), "chunks", len(lacking))
	done, err := z.put(ctx, base, lacking)
	if done > 0 { // else it is to be tried again soon
		maps.Copy(of, fresh)
	}
	return err
}

// put puts chunks again, one after the other at its pace, and tells how many, and
// why not the others.
func (z *zoneBases) put(ctx context.Context, base baseImage, names map[chunk.Name]bool) (done int, failed error) {
	store, err := z.g.forTenant(base.Tenant).open(ctx, false)
	if err != nil {
		return 0, err
	}
	defer store.Close()
	from := store.Chunks(base.Root)
	next := time.NewTicker(z.pace)
	defer next.Stop()
	row := 0 // of failures
	for name := range names {
		select {
		case <-next.C:
		case <-ctx.Done():
			return done, ctx.Err()
		}
		if err := z.one(ctx, from, name); err == nil {
			done, row = done+1, 0
		} else if failed, row = err, row+1; row == zoneGivenUp {
			break
		}
	}
	return done, failed
}

// zoneGivenUp is how many chunks in a row may fail: each may have taken as long as
// its deadlines.
const zoneGivenUp = 8

// one has the zone repair a chunk, which it does with what is read, or puts it there.
func (z *zoneBases) one(ctx context.Context, from chunk.Source, name chunk.Name) error {
	ctx, cancel := context.WithTimeout(ctx, z.g.OriginDeadline)
	defer cancel()
	_, err := z.zone.Get(ctx, name)
	if !errors.Is(err, chunk.ErrNotFound) && !errors.Is(err, chunk.ErrCorrupt) {
		return err
	}
	data, err := from.Get(ctx, name)
	if err != nil {
		return err
	}
	return z.zone.Put(ctx, name, data)
}
