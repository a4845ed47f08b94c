package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"thaw/chunk"
)

// hold is what a chunk under way takes of the fetcher's memory, from the
// decision to read it until the last who gets it has sent it. A fetch that
// waits for the last tier takes nothing: others go on.
type hold struct {
	f    *Fetcher
	size int64
	refs atomic.Int32 // the work's own, until nobody can join it, and of each who got the chunk
	free func(int64)  // where it was taken, nil if nothing is
}

// take waits for memory.
func (h *hold) take(ctx context.Context) error {
	if h.free != nil {
		return nil
	}
	if err := h.f.bytes.Acquire(ctx, h.size); err != nil {
		return err
	}
	h.free = h.f.bytes.Release
	return nil
}

// put gives the memory back.
func (h *hold) put() {
	if h.free != nil {
		h.free(h.size)
		h.free = nil
	}
}

// drop is for one who does not need the chunk any more.
func (h *hold) drop() {
	if h.refs.Add(-1) == 0 {
		h.put()
	}
}

// get is the work for one chunk: the folder's copy, or a tier's, which is given
// away before it is kept.
func (f *Fetcher) get(w wanted) work[fetched] {
	return func(ctx context.Context, u under[fetched]) (fetched, error) {
		got := fetched{tier: Cache, hold: &hold{f: f, size: int64(w.size)}}
		got.hold.refs.Store(1)
		given := false
		defer func() {
			if !given { // else others may have it
				got.hold.drop()
			}
		}()
		if err := got.hold.take(ctx); err != nil {
			return fetched{}, err
		}
		data, hit, err := f.o.Folder.Fill(ctx, w.name, w.size, func(ctx context.Context) (data []byte, err error) {
			got.data, got.tier, err = f.fetch(ctx, w, got.hold, u.tell)
			if err == nil {
				given = true
				f.got(got)
				u.give(got)
			}
			return got.data, err
		})
		if err != nil {
			return fetched{}, err
		}
		if hit {
			got.data, given = data, true
			f.got(got)
		}
		return got, nil
	}
}

// got counts a chunk.
func (f *Fetcher) got(v fetched) {
	f.count(v.tier, func(c *Count) { c.Chunks, c.Bytes, c.Hits = c.Chunks+1, c.Bytes+int64(len(v.data)), c.Hits+1 })
}

// fetch asks the tiers in turn until one gives the chunk, the last one says
// that it has none, or has a bad one, or ctx ends. The nearer ones are asked
// again after a while only.
func (f *Fetcher) fetch(ctx context.Context, w wanted, h *hold, tell func(error)) ([]byte, Tier, error) {
	if len(f.o.Upstreams) == 0 {
		return nil, 0, &failure{statusNotFound, 0, "no tiers to ask"}
	}
	var asked time.Time // when the nearer tiers were
	try, pause := firstTry, firstRetry
	for first := true; ; first = false {
		if time.Since(asked) >= nearerEvery {
			asked = time.Now()
			if data, tier, err := f.askNearer(ctx, w, h, first, tell); data != nil || err != nil {
				return data, tier, err
			}
		}
		last := f.o.Upstreams[len(f.o.Upstreams)-1]
		if first { // later, why it failed before says more
			tell(&failure{statusUnavailable, last.Tier, "no answer"})
		}
		data, tier, err := f.askLast(ctx, w, h, lastTurn{try, asked})
		if err == nil {
			return data, tier, nil
		}
		var failed *failure
		if !errors.As(err, &failed) || failed.status != statusUnavailable {
			return nil, 0, err
		}
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		tell(err)
		if err := sleep(ctx, pause/2+rand.N(pause)); err != nil { // not all in step
			return nil, 0, err
		}
		try, pause = min(2*try, lastTry), min(2*pause, lastRetry)
	}
}

// askNearer asks all tiers but the last. That none has the chunk is no error.
func (f *Fetcher) askNearer(ctx context.Context, w wanted, h *hold, first bool, tell func(error)) ([]byte, Tier, error) {
	for i, u := range f.o.Upstreams[:len(f.o.Upstreams)-1] {
		if err := h.take(ctx); err != nil {
			return nil, 0, err
		}
		if first {
			tell(&failure{statusUnavailable, u.Tier, "no answer"})
		}
		if data, err := f.ask(ctx, u, w, firstTry); err == nil {
			f.fill(w, data, i)
			return data, u.Tier, nil
		}
	}
	return nil, 0, nil
}

// fill tells the tiers before that of an index what it gave.
func (f *Fetcher) fill(w wanted, data []byte, index int) {
	for _, u := range f.o.Upstreams[:index] {
		if u.Fill != nil {
			u.Fill(w.root, w.name, data)
		}
	}
}

// lastTurn says how long to try at the last tier, and when the nearer ones were
// asked.
type lastTurn struct {
	try   time.Duration
	asked time.Time
}

// askLast asks the last tier when it is the chunk's turn, unless a nearer one
// has got the chunk meanwhile.
func (f *Fetcher) askLast(ctx context.Context, w wanted, h *hold, turn lastTurn) (data []byte, tier Tier, err error) {
	h.put()
	place, err := f.queue.enter(ctx, w)
	if err != nil {
		return nil, 0, err
	}
	h.free = f.queue.free
	last := len(f.o.Upstreams) - 1
	if time.Since(turn.asked) >= nearerEvery {
		short, cancel := context.WithTimeout(ctx, nearerWithin)
		data, tier, _ = f.askNearer(short, w, h, false, func(error) {})
		cancel()
	}
	if data == nil {
		tier = f.o.Upstreams[last].Tier
		data, err = f.askTwice(ctx, f.o.Upstreams[last], w, turn.try)
		if err == nil {
			f.fill(w, data, last)
		}
	}
	f.queue.exit(place, err)
	if err != nil {
		h.put()
		return nil, 0, f.failed(ctx, f.o.Upstreams[last].Tier, err)
	}
	return data, tier, nil
}

// ask asks one tier. Its error is a *failure.
func (f *Fetcher) ask(ctx context.Context, u Upstream, w wanted, try time.Duration) ([]byte, error) {
	data, err := f.askTwice(ctx, u, w, try)
	if err != nil {
		return nil, f.failed(ctx, u.Tier, err)
	}
	return data, nil
}

// askTwice asks one tier, and once more if it gave bytes that are not the
// chunk's: they may have been damaged on the way.
func (f *Fetcher) askTwice(ctx context.Context, u Upstream, w wanted, try time.Duration) ([]byte, error) {
	data, err := f.askOnce(ctx, u, w, try)
	if errors.Is(err, chunk.ErrCorrupt) {
		f.count(u.Tier, func(c *Count) { c.Corrupt++ })
		data, err = f.askOnce(ctx, u, w, try)
	}
	return data, err
}

func (f *Fetcher) askOnce(ctx context.Context, u Upstream, w wanted, try time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, try)
	defer cancel()
	source, err := u.Source(w.root)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	data, err := source.Get(ctx, w.name)
	if err != nil {
		return nil, err
	}
	f.times.tiers[u.Tier].Since(began)
	if len(data) != w.size {
		return nil, fmt.Errorf("%w: %d bytes, should be %d", chunk.ErrCorrupt, len(data), w.size)
	}
	if u.Hashes {
		return data, nil
	}
	defer f.times.hash.Since(time.Now())
	return data, chunk.Check(data, w.name)
}

// failed counts a tier's failure, and says it in a line.
func (f *Fetcher) failed(ctx context.Context, t Tier, err error) error {
	failed := &failure{statusUnavailable, t, oneLine(err.Error())}
	switch {
	case errors.Is(err, chunk.ErrNotFound):
		failed.status = statusNotFound
	case errors.Is(err, chunk.ErrCorrupt):
		failed.status = statusCorrupt
		f.count(t, func(c *Count) { c.Corrupt++ })
	case ctx.Err() == nil: // else we ended it, not the tier
		f.count(t, func(c *Count) { c.Errors++ })
	}
	return failed
}
