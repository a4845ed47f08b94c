package manager

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"thaw/invokewire"
)

const (
	// maxClaims bounds what frontends may claim of instances that no worker has
	// reported yet: far more than a machine runs.
	maxClaims = 100_000
	// maxProcesses bounds the frontends that are known by name.
	maxProcesses = 10_000
	// tombstone is how long an instance that has ended is known as such: longer
	// than any poll that may still show it.
	tombstone = time.Minute
	// reserveShare is what an instance counts for until its use is measured, as
	// a part of its memory: most functions never reach a quarter.
	reserveShare = 4
)

// instance is what the manager knows of one. All of it is guarded by the table.
type instance struct {
	id, key  string
	name     function
	version  string
	worker   string // id
	memory   int64  // bytes
	born     time.Time
	accepted time.Time // when its worker had admitted it; zero: not yet known
	measured bool      // counted in its worker's Used
	busy     bool      // when its worker last told
	starting bool      // queued or in init, when its worker last told
	ending   bool      // is being deleted
	retired  bool      // is not leased again

	holder  string    // frontend; empty: no lease
	expires time.Time // of the lease
	idle    time.Time // since when it has neither lease nor work
}

// used says whether it counts as concurrency.
func (i *instance) used() bool { return !i.ending && (i.holder != "" || i.busy || i.starting) }

// free says whether it may be leased, or ended.
func (i *instance) free() bool { return !i.ending && i.holder == "" && !i.busy && !i.starting }

// function names one.
type function struct{ account, name string }

// group is what is known of a function.
type group struct {
	instances map[string]*instance
	reserved  *int              // by the latest spec
	current   map[string]string // version → the key that is not old
	asked     time.Time         // when an instance was last asked for
	tokens    float64           // of the burst limit
	filled    time.Time
}

// claim is a lease on an instance that no worker has reported yet.
type claim struct {
	holder  string
	expires time.Time
}

// table is the manager's view of the fleet. Its methods do no I/O.
type table struct {
	options *Options

	mu        sync.Mutex
	instances map[string]*instance
	groups    map[function]*group
	accounts  map[string]map[function]*group
	workers   map[string]*worker
	places    places
	claims    map[string]claim
	gone      map[string]time.Time
	processes map[string]string   // of frontends: the latest, by name
	endings   []target            // marked as ending, not asked for yet
	owned     func(function) bool // says whose instances may be ended here; constant
	counts    counts
}

// counts of what was decided, since the start.
type counts struct{ reused, started, refused, throttled, evicted uint64 }

func newTable(o *Options) *table {
	return &table{
		options:   o,
		instances: map[string]*instance{},
		groups:    map[function]*group{},
		accounts:  map[string]map[function]*group{},
		workers:   map[string]*worker{},
		claims:    map[string]claim{},
		gone:      map[string]time.Time{},
		processes: map[string]string{},
		owned:     func(function) bool { return true },
	}
}

// group gives a function's, made if need be.
func (t *table) group(f function, now time.Time) *group {
	g := t.groups[f]
	if g == nil {
		g = &group{instances: map[string]*instance{}, current: map[string]string{}, tokens: float64(t.options.Burst), filled: now}
		t.groups[f] = g
		if t.accounts[f.account] == nil {
			t.accounts[f.account] = map[function]*group{}
		}
		t.accounts[f.account][f] = g
	}
	return g
}

func (t *table) add(i *instance, now time.Time) {
	t.instances[i.id] = i
	t.group(i.name, now).instances[i.id] = i
}

func (t *table) remove(i *instance, now time.Time) {
	delete(t.instances, i.id)
	if g := t.groups[i.name]; g != nil {
		delete(g.instances, i.id)
	}
	t.gone[i.id] = now
}

// touch notes that an instance is asked for.
func (t *table) touch(f function, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.group(f, now).asked = now
}

// forget drops a function that has no instance, whose burst allowance is whole,
// and that nobody has asked for in a while.
func (t *table) forget(f function, now time.Time) bool {
	g := t.groups[f]
	if g == nil {
		return true
	}
	g.refill(t.options.Burst, now)
	if len(g.instances) > 0 || g.tokens < float64(t.options.Burst) || now.Sub(g.asked) < t.options.Idle {
		return false
	}
	delete(t.groups, f)
	delete(t.accounts[f.account], f)
	if len(t.accounts[f.account]) == 0 {
		delete(t.accounts, f.account)
	}
	return true
}

// refill adds to the burst allowance: a tenth of it each second; what is not
// used does not pile up.
func (g *group) refill(burst int, now time.Time) {
	if d := now.Sub(g.filled); d > 0 {
		g.tokens = min(float64(burst), g.tokens+d.Seconds()*float64(burst)/burstPeriod.Seconds())
		g.filled = now
	}
}

// use counts the instances that are in use.
func (g *group) use() int {
	n := 0
	for _, i := range g.instances {
		if i.used() {
			n++
		}
	}
	return n
}

// live counts the instances that are not ending.
func (g *group) live() int {
	n := 0
	for _, i := range g.instances {
		if !i.ending {
			n++
		}
	}
	return n
}

// renew keeps leases, and takes those up that a manager before this one gave.
// It returns those that have ended.
func (t *table) renew(frontend string, ids []string, now time.Time) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.meet(frontend, now)
	var ended []string
	for _, id := range ids {
		i := t.instances[id]
		switch {
		case i == nil && !t.gone[id].IsZero():
			ended = append(ended, id)
		case i == nil:
			if len(t.claims) < maxClaims {
				t.claims[id] = claim{frontend, now.Add(t.options.TTL)}
			}
		case i.ending, i.holder != "" && i.holder != frontend:
			ended = append(ended, id)
		case t.old(i, now):
			i.retired = true
			i.vacate(now)
			ended = append(ended, id)
		default:
			i.holder, i.expires = frontend, now.Add(t.options.TTL)
		}
	}
	return ended
}

// vacate ends the lease. The instance may still work for it: its worker tells.
func (i *instance) vacate(now time.Time) { i.holder, i.idle = "", now }

// old says whether an instance is not to be leased again: it was started from
// another revision than the one invoked last, or its keys come of age.
func (t *table) old(i *instance, now time.Time) bool {
	if i.retired || now.Sub(i.born) > t.options.MaxAge {
		return true
	}
	key, known := t.groups[i.name].current[i.version]
	return known && key != i.key
}

// outdate has the instances of a function end that nobody is to be given any
// more, leased or not: those that work, once they are done.
func (t *table) outdate(f function, old func(*instance) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.groups[f]
	if g == nil {
		return
	}
	owned := t.owned(f)
	for _, i := range g.instances {
		if i.ending || !old(i) {
			continue
		}
		i.retired = true
		if owned && !i.busy && !i.starting { // or its worker refuses
			t.end(i)
		}
	}
}

// release takes leases back.
func (t *table) release(r invokewire.Release, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range r.Instances {
		if i := t.instances[id]; i != nil && i.holder == r.Frontend {
			i.vacate(now)
			i.busy, i.starting = false, false
		}
		delete(t.claims, id)
	}
	for _, id := range r.Gone {
		if i := t.instances[id]; i != nil && i.holder == r.Frontend {
			t.remove(i, now)
		}
		delete(t.claims, id)
	}
}

// expire ends the leases of frontends that have not renewed them, and forgets
// what is past. It returns the functions that have nothing left.
func (t *table) expire(now time.Time) []function {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range t.instances {
		if i.holder != "" && now.After(i.expires) {
			i.vacate(now)
		}
	}
	for id, c := range t.claims {
		if now.After(c.expires) {
			delete(t.claims, id)
		}
	}
	for id, at := range t.gone {
		if now.Sub(at) > tombstone {
			delete(t.gone, id)
		}
	}
	var empty []function
	for f := range t.groups {
		if t.forget(f, now) {
			empty = append(empty, f)
		}
	}
	return empty
}

// reap has instances end that are idle for long, or old.
func (t *table) reap(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range t.instances {
		if i.free() && t.owned(i.name) && (now.Sub(i.idle) >= t.options.Idle || t.old(i, now)) {
			t.end(i)
		}
	}
}

// target is an instance that is to be deleted.
type target struct{ instance, address string }

func (t *table) end(i *instance) {
	i.ending = true
	if w := t.workers[i.worker]; w != nil {
		t.endings = append(t.endings, target{i.id, w.address})
	}
}

// takeEndings gives the instances to be deleted, each once. Its caller tells
// ended what came of it.
func (t *table) takeEndings() []target {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.endings
	t.endings = nil
	return list
}

// ended takes what came of a deletion.
func (t *table) ended(id string, gone bool, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.instances[id]
	switch {
	case i == nil:
	case gone:
		t.remove(i, now)
	default:
		i.ending, i.idle = false, now // it works, or its worker did not answer: later
	}
}

// orphans gives the functions whose instances nobody has used for long: their
// owner may be gone.
func (t *table) orphans(now time.Time) []function {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []function
	for f, g := range t.groups {
		if t.owned(f) {
			continue
		}
		l := longestIdle(maps.Values(g.instances), 1)
		if len(l) > 0 && now.Sub(l[0].idle) > t.options.Idle+2*t.options.TTL {
			list = append(list, f)
		}
	}
	return list
}

// functionsOf sorts instances by their functions; those that it does not know
// are of none.
func (t *table) functionsOf(ids []string) map[function][]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := map[function][]string{}
	for _, id := range ids {
		var f function
		if i := t.instances[id]; i != nil {
			f = i.name
		}
		m[f] = append(m[f], id)
	}
	return m
}

// meet ends the leases of a frontend's former process. The caller holds the lock.
func (t *table) meet(frontend string, now time.Time) {
	name, process, ok := strings.Cut(frontend, "#")
	if !ok || t.processes[name] == process {
		return
	}
	if len(t.processes) >= maxProcesses {
		clear(t.processes)
	}
	t.processes[name] = process
	for _, i := range t.instances {
		if strings.HasPrefix(i.holder, name+"#") && i.holder != frontend {
			i.vacate(now)
		}
	}
}

// state is what operators see.
func (t *table) state() invokewire.ManagerState {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := invokewire.ManagerState{ID: t.options.ID}
	for _, w := range t.workers {
		s.Workers = append(s.Workers, w.state)
	}
	slices.SortFunc(s.Workers, func(a, b invokewire.WorkerState) int { return compare(a.ID, b.ID) })
	for _, i := range t.instances {
		if i.holder != "" {
			s.Leases++
		}
	}
	s.Counts = map[string]uint64{
		"reused": t.counts.reused, "started": t.counts.started, "refused": t.counts.refused,
		"throttled": t.counts.throttled, "evicted": t.counts.evicted,
	}
	return s
}
