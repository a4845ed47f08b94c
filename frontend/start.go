package frontend

import (
	"context"
	"errors"
	"slices"
	"time"

	"thaw/functions"
	"thaw/invokewire"
)

const (
	// startGrace is for the manager to answer, beside the start itself.
	startGrace = 10 * time.Second
	// maxElsewhere bounds the other workers on which a start is tried that has
	// failed: more are hardly wrong by themselves.
	maxElsewhere = 2
	// blameTime is how often a worker is told of on which starts fail.
	blameTime = time.Minute
)

// acquisition is what a manager is asked.
func (f *Frontend) acquisition(inv *invocation, avoid []string) *invokewire.Acquire {
	a := &invokewire.Acquire{Frontend: f.options.ID, Spec: inv.target.spec, Avoid: avoid[max(0, len(avoid)-maxTries):]}
	a.Spec.Reserved = inv.reserved
	a.Spec.Keys = f.sessions.issue(a.Spec.Account, time.Now().Add(defaultSession))
	return a
}

// start asks the manager for an instance, and waits until that has started. What
// the platform fails to start on one worker is tried on others: no invoke was
// given to it. It outlives the invoke that it was for.
func (f *Frontend) start(a *invokewire.Acquire, of functions.ID, s *start) grant {
	ctx, cancel := context.WithTimeout(f.pool.life, f.options.Start+startGrace)
	defer cancel()
	g := f.startOnce(ctx, a, of, s)
	for g.misfired() && ctx.Err() == nil {
		f.blame(g)
		if s.isSpare() {
			g.err = errSurplus
			break
		}
		a.Failed = append(a.Failed, invokewire.Lease{Instance: g.l.id, Worker: g.l.worker})
		if len(a.Failed) > maxElsewhere || !f.workers.others(a.Failed) {
			break
		}
		next := f.startOnce(ctx, a, of, s)
		f.pool.put(g.l, false, time.Now()) // now that the manager knows that it has failed
		if next.l == nil {
			return grant{err: g.err} // nobody else takes it
		}
		g = next
	}
	return g
}

// startOnce is start on the worker that the manager chooses.
func (f *Frontend) startOnce(ctx context.Context, a *invokewire.Acquire, of functions.ID, s *start) grant {
	asked := time.Now()
	lease, err := f.managers.acquire(ctx, a)
	if t := (*invokewire.Throttle)(nil); errors.As(err, &t) && len(a.Failed) == 0 {
		if spare := f.pool.spare(of, t.Reason); len(spare) > 0 {
			f.pool.release(ctx, spare)
			asked = time.Now()
			lease, err = f.managers.acquire(ctx, a)
		}
	}
	if err != nil {
		return grant{err: err}
	}
	l := f.pool.add(a.Spec.Key(), of, lease, asked)
	if !l.fresh {
		return grant{l: l}
	}
	return grant{l, f.workers.started(ctx, l, s)}
}

// misfired says whether a worker had a start, and could not do it. One that has
// died, or takes nothing more, the manager knows of; a function that ends its
// sandbox does so everywhere, and an image that is gone is gone for all.
func (g grant) misfired() bool {
	none := []error{errGone, errSurplus, errEnded, errNoImage}
	return g.l != nil && g.err != nil && !slices.ContainsFunc(none, func(e error) bool { return errors.Is(g.err, e) })
}

// blame tells the operator of a worker on which a start has failed.
func (f *Frontend) blame(g grant) {
	if id := f.workers.blame(g.l.worker, time.Now()); id != "" {
		f.options.Log.Warn("starts fail on a worker", "worker", id, "cause", g.err.Error())
	}
}

// others says whether there are workers besides those on which starts have failed.
func (w *workers) others(failed []invokewire.Lease) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, address := range w.known {
		if !slices.ContainsFunc(failed, func(l invokewire.Lease) bool { return l.Worker == address }) {
			return true
		}
	}
	return false
}

// blame gives the id of a worker that is to be told of now, or "".
func (w *workers) blame(address string, now time.Time) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, known := range w.known {
		if known == address && now.Sub(w.blamed[id]) >= blameTime {
			w.blamed[id] = now
			return id
		}
	}
	return ""
}
