package manager

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"thaw/invokewire"
)

// The table against a model that knows only who holds what: whatever frontends,
// workers and time do, no instance has two holders, none is leased that works
// or is of another key, and no limit is passed.
func TestAdmissionModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel()
		t.Repeat(map[string]func(*rapid.T){
			"acquire": m.acquire, "release": m.release, "renew": m.renew, "gone": m.lose, "finish": m.finish,
			"report": m.report, "wait": m.wait, "end": m.end, "": m.check,
		})
	})
}

// model is what the world knows, apart from the table.
type model struct {
	table    *table
	now      time.Time
	held     map[string]held // leases that their holders may use
	alive    map[string]*invokewire.InstanceState
	on       map[string]string // instance → worker
	ending   []target
	started  map[function][]time.Time
	reserved map[string]*int
}

type held struct {
	frontend, key string
	expires       time.Time
}

const modelLimit, modelBurst = 6, 8

func newModel() *model {
	o := Options{AccountLimit: modelLimit, Burst: modelBurst, Idle: time.Minute, MaxAge: 10 * time.Minute}
	o.fill()
	m := &model{
		table: newTable(&o), now: time.Unix(1e9, 0), held: map[string]held{}, alive: map[string]*invokewire.InstanceState{},
		on: map[string]string{}, started: map[function][]time.Time{}, reserved: map[string]*int{"f0": ptr(2)},
	}
	for _, id := range []string{"w0", "w1"} {
		s := invokewire.WorkerState{ID: id, Address: id, Cores: 2, Memory: 1 << 30}
		m.table.join(s, m.now)
		m.table.report(id, s, m.now, m.now)
	}
	return m
}

func pick[K ~string, V any](t *rapid.T, from map[K]V) (k K) {
	if len(from) == 0 {
		t.Skip("there is none")
	}
	return rapid.SampledFrom(slices.Sorted(maps.Keys(from))).Draw(t, "key")
}

func (m *model) acquire(t *rapid.T) {
	name := fmt.Sprint("f", rapid.IntRange(0, 2).Draw(t, "function"))
	s := spec(name, fmt.Sprint(rapid.IntRange(1, 2).Draw(t, "version")))
	s.Revision, s.Reserved = fmt.Sprint("r", rapid.IntRange(1, 2).Draw(t, "revision")), m.reserved[name]
	a := invokewire.Acquire{Frontend: fmt.Sprint("fe", rapid.IntRange(0, 1).Draw(t, "frontend")), Spec: s}
	tried := m.misfire(t, &a)
	d := m.table.decide(&a, tried, m.now)
	if d.start != nil && tried[d.start.worker] {
		t.Fatalf("a start on %s, where one has failed for this request", d.start.worker)
	}
	switch {
	case d.lease != nil:
		m.take(t, d.lease.Instance, a.Frontend, s.Key())
	case d.start != nil:
		m.start(t, d.start, &a)
	case s.Reserved != nil && d.throttle.Reason == invokewire.ReasonReserved && m.using(t, name) < *s.Reserved:
		t.Fatalf("throttled at %d of %d", m.using(t, name), *s.Reserved)
	}
}

// misfire has a request name leases of its frontend whose starts have failed.
func (m *model) misfire(t *rapid.T, a *invokewire.Acquire) map[string]bool {
	want := map[string]bool{}
	for n := rapid.IntRange(0, 2).Draw(t, "failed"); n > 0; n-- {
		var mine []string
		for id, h := range m.held {
			if h.frontend == a.Frontend && m.on[id] != "" {
				mine = append(mine, id)
			}
		}
		if len(mine) == 0 {
			break
		}
		id := rapid.SampledFrom(slices.Sorted(slices.Values(mine))).Draw(t, "failed start")
		a.Failed = append(a.Failed, invokewire.Lease{Instance: id, Worker: m.on[id]})
		want[m.on[id]] = true
		if i := m.table.instances[id]; i != nil { // its start does not count any more
			m.started[i.name] = m.started[i.name][:max(0, len(m.started[i.name])-1)]
		}
		delete(m.held, id)
		delete(m.alive, id)
	}
	tried := m.table.misfired(a, m.now)
	if !maps.Equal(tried, want) {
		t.Fatalf("tried %v, want %v", tried, want)
	}
	for _, l := range a.Failed {
		if i := m.table.instances[l.Instance]; i != nil && i.holder == a.Frontend {
			t.Fatalf("%s has failed, and is held", l.Instance)
		}
		if !m.table.workers[l.Worker].fails(m.now) {
			t.Fatalf("starts fail on %s, and nobody notes", l.Worker)
		}
	}
	return tried
}

// take checks that an instance may be leased: it is there, does not work, is of
// the key, and nobody holds it.
func (m *model) take(t *rapid.T, id, frontend, key string) {
	if h, ok := m.held[id]; ok && m.now.Before(h.expires) {
		t.Fatalf("%s has two holders: %s and %s", id, h.frontend, frontend)
	}
	if s := m.alive[id]; s != nil && s.Key != key {
		t.Fatalf("%s of %s was leased for %s", id, s.Key, key)
	}
	m.held[id] = held{frontend, key, m.now.Add(15 * time.Second)}
}

func (m *model) start(t *rapid.T, s *start, a *invokewire.Acquire) {
	f := function{a.Spec.Account, a.Spec.Function}
	o := rapid.SampledFrom([]outcome{admitted, admitted, admitted, refused, failed}).Draw(t, "outcome")
	if o != refused {
		m.alive[s.id] = &invokewire.InstanceState{
			ID: s.id, Key: a.Spec.Key(), Account: f.account, Function: f.name, Version: a.Spec.Version,
			Phase: invokewire.PhaseBusy, Memory: a.Spec.Memory, Since: m.now,
		}
		m.on[s.id] = s.worker
	}
	l := m.table.started(s, o, m.now)
	if (l != nil) != (o == admitted) {
		t.Fatalf("outcome %d: lease %v", o, l)
	}
	if l == nil {
		return
	}
	m.started[f] = append(m.started[f], m.now)
	m.take(t, l.Instance, a.Frontend, a.Spec.Key())
	recent := 0
	for _, at := range m.started[f] {
		if m.now.Sub(at) < burstPeriod {
			recent++
		}
	}
	if recent > 2*modelBurst { // a full bucket, and what flows in
		t.Fatalf("%d starts of %s in ten seconds", recent, f.name)
	}
}

func (m *model) release(t *rapid.T) {
	id := pick(t, m.held)
	if s := m.alive[id]; s != nil {
		s.Phase, s.Since = invokewire.PhaseIdle, m.now
	}
	m.table.release(invokewire.Release{Frontend: m.held[id].frontend, Instances: []string{id}}, m.now)
	delete(m.held, id)
}

func (m *model) lose(t *rapid.T) {
	id := pick(t, m.held)
	m.table.release(invokewire.Release{Frontend: m.held[id].frontend, Gone: []string{id}}, m.now)
	delete(m.held, id)
	delete(m.alive, id)
}

func (m *model) finish(t *rapid.T) {
	s := m.alive[pick(t, m.alive)]
	s.Phase, s.Since = invokewire.PhaseIdle, m.now
}

func (m *model) renew(t *rapid.T) {
	frontend := fmt.Sprint("fe", rapid.IntRange(0, 1).Draw(t, "frontend"))
	var ids []string
	for id, h := range m.held {
		if h.frontend == frontend && m.now.Before(h.expires) {
			ids = append(ids, id)
		}
	}
	gone := m.table.renew(frontend, ids, m.now)
	for _, id := range ids {
		h := m.held[id]
		h.expires = m.now.Add(15 * time.Second)
		m.held[id] = h
		if slices.Contains(gone, id) {
			delete(m.held, id)
		}
	}
}

func (m *model) report(t *rapid.T) {
	id := rapid.SampledFrom([]string{"w0", "w1"}).Draw(t, "worker")
	s := invokewire.WorkerState{ID: id, Address: id, Cores: 2, Memory: 1 << 30}
	for k, i := range m.alive {
		if m.on[k] == id {
			s.Instances = append(s.Instances, *i)
		}
	}
	began := m.now
	m.now = m.now.Add(time.Millisecond)
	m.table.report(id, s, began, m.now)
}

func (m *model) wait(t *rapid.T) {
	m.now = m.now.Add(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 6 * time.Second, time.Minute}).Draw(t, "time"))
	m.table.expire(m.now)
	m.table.reap(m.now)
	for id, h := range m.held {
		if !m.now.Before(h.expires) {
			delete(m.held, id)
		}
	}
}

// end deletes what the table has marked; what works refuses.
func (m *model) end(t *rapid.T) {
	m.ending = append(m.ending, m.table.takeEndings()...)
	if len(m.ending) == 0 {
		t.Skip("there is none")
	}
	x := m.ending[0]
	m.ending = m.ending[1:]
	if _, leased := m.held[x.instance]; leased {
		t.Fatalf("%s is ended, and leased", x.instance)
	}
	s := m.alive[x.instance]
	gone := s == nil || s.Phase != invokewire.PhaseBusy
	if gone {
		delete(m.alive, x.instance)
	}
	m.table.ended(x.instance, gone, m.now)
}

// using counts what the table counts for a function.
func (m *model) using(_ *rapid.T, name string) int {
	return m.table.groups[function{"000000000000", name}].use()
}

// check holds the table to its limits, and to itself.
func (m *model) check(t *rapid.T) {
	leases := map[string]int{}
	for id := range m.held {
		if i := m.table.instances[id]; i != nil && i.holder != "" {
			leases[i.name.name]++
		}
	}
	if leases["f0"] > 2 {
		t.Fatalf("%d leases of a function with 2 reserved", leases["f0"])
	}
	// Once f0 is known, two are kept for it; before, others may have taken them.
	if n := leases["f1"] + leases["f2"]; n > modelLimit {
		t.Fatalf("%d leases of an account with %d", n, modelLimit)
	}
	n := 0
	for f, g := range m.table.groups {
		n += len(g.instances)
		if m.table.accounts[f.account][f] != g {
			t.Fatalf("%v is not its account's", f)
		}
		if g.tokens < 0 || g.tokens > modelBurst {
			t.Fatalf("%v tokens", g.tokens)
		}
	}
	if n != len(m.table.instances) {
		t.Fatalf("%d instances in groups, %d in all", n, len(m.table.instances))
	}
}
