package manager

import (
	"cmp"
	"hash/fnv"
	"time"

	"thaw/invokewire"
)

// refusal is how long a worker that has refused a start is asked no more: its
// queue is a thousand starts long, and drains at some ten a second.
const refusal = time.Second

// misfireTime is how long a worker on which a start has failed comes after all
// others: what is wrong there may have been mended, or be wrong everywhere.
const misfireTime = time.Minute

// worker is what the manager knows of one.
type worker struct {
	id, address string
	state       invokewire.WorkerState // as it last told, without instances
	reported    time.Time              // when that was asked for; zero: never
	failed      bool                   // it did not answer the last time
	left        time.Time              // when its registration ended; zero: it has one
	refused     time.Time              // when it last refused a start
	misfired    time.Time              // when a frontend last told of a start that failed there; zero: one has succeeded since
}

// fails says whether starts have failed there of late.
func (w *worker) fails(now time.Time) bool { return now.Sub(w.misfired) < misfireTime }

func compare(a, b string) int { return cmp.Compare(a, b) }

// join adds a worker, or notes what has changed, and says whether to look at it.
func (t *table) join(s invokewire.WorkerState, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.workers[s.ID]
	fresh := w == nil || !w.state.Started.Equal(s.Started)
	if fresh {
		t.drop(s.ID, now) // what a former process of this name ran has ended
		w = &worker{id: s.ID}
		t.workers[s.ID] = w
	}
	s.Instances = nil
	w.address, w.left = s.Address, time.Time{}
	if w.reported.IsZero() {
		w.state = s
	}
	w.state.Draining = s.Draining
	return fresh || w.failed
}

// leave notes that a worker's registration has ended. It is dropped once it
// does not answer either: after the cluster's memory was lost, all seem to leave.
func (t *table) leave(id string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w := t.workers[id]; w != nil {
		w.left = now
	}
}

func (t *table) drop(id string, now time.Time) {
	delete(t.workers, id)
	for _, i := range t.instances {
		if i.worker == id {
			t.remove(i, now)
		}
	}
}

// report takes a worker's state, which was asked for at began: what it does not
// list and had admitted before that is gone.
func (t *table) report(id string, s invokewire.WorkerState, began, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.workers[id]
	if w == nil {
		return
	}
	seen := make(map[string]bool, len(s.Instances))
	for k := range s.Instances {
		seen[s.Instances[k].ID] = true
		t.see(w, &s.Instances[k], began, now)
	}
	for _, i := range t.instances {
		if i.worker == id && !seen[i.id] && !i.accepted.IsZero() && i.accepted.Before(began) {
			t.remove(i, now)
		}
	}
	s.Instances = nil
	w.state, w.reported, w.failed = s, began, false
}

// see takes what a worker says of one instance.
func (t *table) see(w *worker, s *invokewire.InstanceState, began, now time.Time) {
	if at, ok := t.gone[s.ID]; ok && !began.After(at) {
		return // it has ended since
	}
	delete(t.gone, s.ID)
	i := t.instances[s.ID]
	if i == nil {
		i = &instance{
			id: s.ID, key: s.Key, name: function{s.Account, s.Function}, version: s.Version,
			worker: w.id, born: now, idle: now, accepted: now,
		}
		if !s.Asked.IsZero() && s.Asked.Before(now) { // by a manager before this one
			i.born = s.Asked
		}
		if s.Phase == invokewire.PhaseIdle && s.Since.Before(now) {
			i.idle = s.Since
		}
		if c, ok := t.claims[s.ID]; ok {
			i.holder, i.expires = c.holder, c.expires
			delete(t.claims, s.ID)
		}
		t.add(i, now)
	}
	if i.worker != w.id {
		return // two workers with one instance: the first has it
	}
	i.memory, i.measured = int64(s.Memory)<<20, true
	busy := s.Phase == invokewire.PhaseBusy
	starting := s.Phase == invokewire.PhaseQueued || s.Phase == invokewire.PhaseInit
	if (i.busy || i.starting) && !busy && !starting && i.holder == "" {
		i.idle = now
	}
	i.busy, i.starting = busy, starting
	switch {
	case s.Phase == invokewire.PhaseEnding:
		i.retired = true
	case !starting && i.born.After(w.misfired):
		w.misfired = time.Time{}
	}
}

// silent notes that a worker did not answer. It is dropped if its registration
// has ended too.
func (t *table) silent(id string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.workers[id]
	switch {
	case w == nil:
	case !w.left.IsZero():
		t.drop(id, now)
	default:
		w.failed = true
	}
}

// addresses of workers, by id.
func (t *table) addresses() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := make(map[string]string, len(t.workers))
	for id, w := range t.workers {
		m[id] = w.address
	}
	return m
}

// reported says whether there are workers, and all have told their state.
func (t *table) reported() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range t.workers {
		if w.reported.IsZero() {
			return false
		}
	}
	return len(t.workers) > 0
}

// load is what a worker has taken on.
type load struct {
	committed int64 // memory of its instances
	expected  int64 // use measured, and a share of what is not measured yet
	starting  int   // starts that run or wait
}

// loads sums up each worker.
func (t *table) loads() map[string]*load {
	m := make(map[string]*load, len(t.workers))
	for id, w := range t.workers {
		m[id] = &load{expected: w.state.Used, starting: w.state.Queued + w.state.Running}
	}
	for _, i := range t.instances {
		l := m[i.worker]
		if l == nil || i.ending {
			continue
		}
		l.committed += i.memory
		if !i.measured {
			l.expected += i.memory / reserveShare
			l.starting++
		}
	}
	return m
}

// places remembers where versions ran last: the newest half at least of the
// last maxPlaces, so that no list has to be kept in order.
type places struct{ young, old map[string]string }

// maxPlaces bounds places: 64 Ki versions of some 100 bytes.
const maxPlaces = 1 << 16

func (p *places) get(version string) string {
	if id, ok := p.young[version]; ok {
		return id
	}
	return p.old[version]
}

func (p *places) set(version, worker string) {
	if p.young == nil || len(p.young) >= maxPlaces/2 {
		p.young, p.old = map[string]string{}, p.young
	}
	p.young[version] = worker
}

// prefer orders workers for a version that has run nowhere yet: by rendezvous,
// so that a manager that knows nothing chooses what the last one chose.
func prefer(version, worker string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(version + "\x00" + worker))
	x := h.Sum64() // fnv alone hardly mixes the last bytes
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}
