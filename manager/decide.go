package manager

import (
	"iter"
	"maps"
	"slices"
	"time"

	"thaw/invokewire"
)

const (
	// burstPeriod is in what Lambda lets a function grow by its burst.
	burstPeriod = 10 * time.Second
	// retryCapacity is what clients are told to wait for an instance to become
	// free: most invokes are shorter.
	retryCapacity = time.Second
	// startsPerCore run at once on a worker; the others wait.
	startsPerCore = 2
)

// decision is the outcome of one look at the table: exactly one of lease, start
// and throttle.
type decision struct {
	lease    *invokewire.Lease
	start    *start
	throttle *invokewire.Throttle
}

// start is an instance that is in the table, and that its worker is to be asked for.
type start struct{ id, worker, address string }

// decide finds an instance for a frontend, or the place for a new one on a
// worker that was not tried yet.
func (t *table) decide(a *invokewire.Acquire, tried map[string]bool, now time.Time) decision {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &a.Spec
	f := function{s.Account, s.Function}
	g := t.group(f, now)
	g.reserved, g.current[s.Version] = s.Reserved, s.Key()
	t.meet(a.Frontend, now)
	t.avoid(a, now)
	if s.Reserved != nil && *s.Reserved == 0 {
		return t.throttled(invokewire.ReasonReserved, retryCapacity)
	}
	if i := t.reuse(g, s.Key(), now); i != nil {
		return decision{lease: t.lease(i, a.Frontend, now)}
	}
	victims, reason := t.room(f, g)
	if reason != "" {
		return t.throttled(reason, retryCapacity)
	}
	g.refill(t.options.Burst, now)
	if g.tokens < 1 {
		return t.throttled(invokewire.ReasonRate, t.nextToken(g))
	}
	t.evict(victims)
	w := t.choose(s, tried, now)
	if w == nil {
		return t.throttled(invokewire.ReasonRate, retryCapacity)
	}
	return decision{start: t.begin(a, w, now)}
}

// misfired takes note of a request's starts that have failed, which count no
// more, and gives their workers.
func (t *table) misfired(a *invokewire.Acquire, now time.Time) map[string]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	tried := map[string]bool{}
	for _, l := range a.Failed {
		for id, w := range t.workers {
			if w.address == l.Worker {
				tried[id], w.misfired = true, now
			}
		}
		if i := t.instances[l.Instance]; i != nil && i.holder == a.Frontend {
			t.refund(i)
			t.remove(i, now)
		}
	}
	return tried
}

// refund gives back what a start that came to nothing took of the burst limit.
func (t *table) refund(i *instance) {
	if g := t.groups[i.name]; g != nil {
		g.tokens = min(float64(t.options.Burst), g.tokens+1)
	}
}

// choose finds a worker that was not tried yet, or makes room on one: if it can,
// where no start has failed of late.
func (t *table) choose(s *invokewire.Spec, tried map[string]bool, now time.Time) *worker {
	shunned := maps.Clone(tried)
	for id, w := range t.workers {
		if w.fails(now) {
			shunned[id] = true
		}
	}
	w := t.find(s, shunned, now)
	if w == nil && len(shunned) > len(tried) {
		w = t.find(s, tried, now)
	}
	return w
}

func (t *table) find(s *invokewire.Spec, tried map[string]bool, now time.Time) *worker {
	if w := t.place(s, tried, now); w != nil {
		return w
	}
	return t.clear(s, tried, now)
}

func (t *table) throttled(reason string, after time.Duration) decision {
	t.counts.throttled++
	return decision{throttle: &invokewire.Throttle{Reason: reason, RetryAfter: after}}
}

// nextToken is when the burst limit allows another start.
func (t *table) nextToken(g *group) time.Duration {
	return time.Duration((1 - g.tokens) / float64(t.options.Burst) * float64(burstPeriod))
}

// avoid takes note of instances that the frontend has found busy or gone.
func (t *table) avoid(a *invokewire.Acquire, now time.Time) {
	for _, id := range a.Avoid {
		if i := t.instances[id]; i != nil && (i.holder == "" || i.holder == a.Frontend) {
			i.vacate(now)
			i.busy = true // until its worker says otherwise
		}
	}
}

// reuse gives the free instance of the key that worked last.
func (t *table) reuse(g *group, key string, now time.Time) *instance {
	var best *instance
	for _, i := range g.instances {
		if i.free() && i.key == key && !t.old(i, now) && (best == nil || i.idle.After(best.idle)) {
			best = i
		}
	}
	return best
}

func (t *table) lease(i *instance, frontend string, now time.Time) *invokewire.Lease {
	i.holder, i.expires = frontend, now.Add(t.options.TTL)
	t.counts.reused++
	l := &invokewire.Lease{Instance: i.id, TTL: t.options.TTL}
	if w := t.workers[i.worker]; w != nil {
		l.Worker = w.address
		t.places.set(placeOf(i.name, i.version), w.id)
	}
	return l
}

// room holds the function and its account to their limits. It gives the idle
// instances that have to end for the one to come, or the reason why there is no
// room. Reserved instances are apart from what the account's others share.
func (t *table) room(f function, g *group) (victims []*instance, reason string) {
	if g.reserved != nil {
		if g.use() >= *g.reserved {
			return nil, invokewire.ReasonReserved
		}
		return longestIdle(maps.Values(g.instances), g.live()-*g.reserved+1), ""
	}
	limit, used, live := t.options.AccountLimit, 0, 0
	for _, other := range t.accounts[f.account] {
		if other.reserved != nil {
			limit -= *other.reserved
			continue
		}
		used += other.use()
		live += other.live()
	}
	if used >= limit {
		return nil, invokewire.ReasonAccount
	}
	return longestIdle(t.ofAccount(f.account), live-limit+1), ""
}

// longestIdle gives n free instances, or as many as there are.
func longestIdle(seq iter.Seq[*instance], n int) []*instance {
	if n <= 0 {
		return nil
	}
	var list []*instance
	for i := range seq {
		if i.free() {
			list = append(list, i)
		}
	}
	slices.SortFunc(list, func(a, b *instance) int { return a.idle.Compare(b.idle) })
	return list[:min(n, len(list))]
}

// evict has idle instances ended.
func (t *table) evict(list []*instance) {
	for _, i := range list {
		t.counts.evicted++
		t.end(i)
	}
}

// ofAccount gives the instances that share the account's unreserved part.
func (t *table) ofAccount(account string) iter.Seq[*instance] {
	return func(yield func(*instance) bool) {
		for f, g := range t.accounts[account] {
			if g.reserved != nil || !t.owned(f) {
				continue
			}
			for _, i := range g.instances {
				if !yield(i) {
					return
				}
			}
		}
	}
}

func placeOf(f function, version string) string { return f.account + "/" + f.name + "/" + version }

// place chooses a worker with room: the one where the version ran last, if a
// start there need not wait; else the one with the fewest starts ahead, then
// the most memory free.
func (t *table) place(s *invokewire.Spec, tried map[string]bool, now time.Time) *worker {
	version := placeOf(function{s.Account, s.Function}, s.Version)
	last := t.places.get(version)
	memory := int64(s.Memory) << 20
	var best candidate
	loads := t.loads()
	for id, w := range t.workers {
		if !w.admits(tried, now) || !t.fits(w, loads[id], memory) {
			continue
		}
		c := candidate{worker: w, rounds: loads[id].starting / max(1, w.state.Cores*startsPerCore), score: prefer(version, id)}
		if id == last && c.rounds == 0 {
			return w
		}
		if w.state.Memory > 0 {
			c.free = 8 * (w.state.Memory - loads[id].expected) / w.state.Memory
		}
		if best.worker == nil || c.before(best) {
			best = c
		}
	}
	return best.worker
}

// candidate is a worker that could take a start.
type candidate struct {
	worker *worker
	rounds int    // of starts ahead of it
	free   int64  // eighths of its memory
	score  uint64 // rendezvous: breaks ties
}

func (c candidate) before(o candidate) bool {
	if c.rounds != o.rounds {
		return c.rounds < o.rounds
	}
	if c.free != o.free {
		return c.free > o.free
	}
	return c.score > o.score
}

func (w *worker) admits(tried map[string]bool, now time.Time) bool {
	there := !w.failed && !w.reported.IsZero() && (w.left.IsZero() || w.reported.After(w.left))
	return there && !w.state.Draining && !tried[w.id] && now.Sub(w.refused) >= refusal
}

// fits says whether a worker has memory for one more instance. A worker that
// runs nothing takes any: it is for its operator to offer what fits.
func (t *table) fits(w *worker, l *load, memory int64) bool {
	if l.committed == 0 {
		return true
	}
	total := w.state.Memory
	return l.expected+memory/reserveShare <= total && float64(l.committed+memory) <= float64(total)*t.options.Overcommit
}

// clear ends idle instances on a worker so that there is room for another, and
// gives the worker: the one where the fewest have to go.
func (t *table) clear(s *invokewire.Spec, tried map[string]bool, now time.Time) *worker {
	memory := int64(s.Memory) << 20
	loads := t.loads()
	var best *worker
	var victims []*instance
	for id, w := range t.workers {
		if !w.admits(tried, now) {
			continue
		}
		if list, ok := t.victims(w, *loads[id], memory); ok && (best == nil || len(list) < len(victims)) {
			best, victims = w, list
		}
	}
	t.evict(victims)
	return best
}

// victims are the idle instances of a worker, the longest idle first, that make
// room for memory; ok says whether they do.
func (t *table) victims(w *worker, l load, memory int64) (list []*instance, ok bool) {
	idle := longestIdle(func(yield func(*instance) bool) {
		for _, i := range t.instances {
			if i.worker == w.id && t.owned(i.name) && !yield(i) {
				return
			}
		}
	}, len(t.instances))
	for n, i := range idle {
		l.committed -= i.memory
		l.expected -= i.memory / reserveShare // a guess: only the sum is measured
		if t.fits(w, &l, memory) {
			return idle[:n+1], true
		}
	}
	return nil, false
}

// begin enters a new instance, leased to who asks.
func (t *table) begin(a *invokewire.Acquire, w *worker, now time.Time) *start {
	s := &a.Spec
	f := function{s.Account, s.Function}
	i := &instance{
		id: randomID() + randomID(), key: s.Key(), name: f, version: s.Version, worker: w.id,
		memory: int64(s.Memory) << 20, born: now, holder: a.Frontend, expires: now.Add(t.options.TTL),
	}
	t.add(i, now)
	t.groups[f].tokens--
	return &start{id: i.id, worker: w.id, address: w.address}
}

// Outcomes of asking a worker for a start.
type outcome int

const (
	admitted  outcome = iota
	refused           // it has no room
	failed            // it did not answer: perhaps it has started
	forbidden         // it refuses this request, now and later
)

// started takes the outcome of a start. The lease is nil unless it was admitted.
func (t *table) started(s *start, o outcome, now time.Time) *invokewire.Lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, w := t.instances[s.id], t.workers[s.worker]
	if o == admitted && i != nil && w != nil {
		i.accepted = now
		t.counts.started++
		t.places.set(placeOf(i.name, i.version), w.id)
		return &invokewire.Lease{Instance: i.id, Worker: w.address, Fresh: true, TTL: t.options.TTL}
	}
	if i != nil {
		t.refund(i)
		t.remove(i, now)
		if o == failed {
			delete(t.gone, i.id) // if it runs after all, its worker will tell, and it is idle
		}
	}
	if w != nil {
		t.counts.refused++
		switch o {
		case refused:
			w.refused = now
		case failed:
			w.failed = true
		}
	}
	return nil
}
