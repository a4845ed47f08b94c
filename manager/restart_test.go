package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"thaw/invokewire"
)

// A manager that starts anew admits nothing until workers have reported; then
// it knows their instances, and frontends renew their leases.
func TestRestartedManagerLearns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		_, stop := f.manager(Options{})
		s := spec("f", "1")
		s.Reserved = ptr(2)
		a, b := f.lease(s), f.lease(s)
		stop()
		f.manager(Options{})
		if gone := f.post("m0", "/renew", invokewire.Renew{Frontend: "f0", Instances: []string{a.Instance, b.Instance}}).gone; len(gone) != 0 {
			t.Errorf("after a restart, leases were gone: %v", gone)
		}
		f.throttled(s, invokewire.ReasonReserved)
		f.release(a.Instance)
		if l := f.lease(s); l.Instance != a.Instance || l.Worker != a.Worker {
			t.Errorf("lease %+v, want %+v", l, a)
		}
	})
}

// Renewals that come before the first report are kept for it.
func TestClaimsBeforeReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		o := Options{}
		o.fill()
		tb := newTable(&o)
		if gone := tb.renew("f0", []string{"i1"}, now); gone != nil {
			t.Fatalf("gone %v before any worker reported", gone)
		}
		tb.join(invokewire.WorkerState{ID: "w", Address: "w:1", Cores: 1, Memory: 1 << 30}, now)
		tb.report("w", invokewire.WorkerState{ID: "w", Memory: 1 << 30, Cores: 1, Instances: []invokewire.InstanceState{
			{ID: "i1", Key: "0/f/1/r1", Account: "0", Function: "f", Version: "1", Phase: invokewire.PhaseIdle, Memory: 128},
		}}, now, now)
		a := invokewire.Acquire{Frontend: "f1", Spec: invokewire.Spec{Account: "0", Function: "f", Version: "1", Revision: "r1", Memory: 128}}
		if d := tb.decide(&a, nil, now); d.start == nil {
			t.Errorf("decision %+v: the instance is claimed", d)
		}
		a.Frontend = "f2"
		tb.expire(now.Add(16 * time.Second))
		if d := tb.decide(&a, nil, now.Add(16*time.Second)); d.lease == nil {
			t.Errorf("decision %+v, want the lease that has expired", d)
		}
	})
}

func TestWaitsForSilentWorkersOneTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		f.workers["w1"].hangs()
		f.manager(Options{})
		began := time.Now()
		if l := f.lease(spec("f", "1")); l.Worker != "w0:1" {
			t.Errorf("lease %+v", l)
		}
		if d := time.Since(began); d < 14*time.Second || d > 16*time.Second {
			t.Errorf("admitted after %v, want one TTL", d)
		}
	})
}

func TestNoWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 0)
		f.manager(Options{})
		done := make(chan answerOf)
		go func() { done <- f.acquire(spec("f", "1")) }()
		time.Sleep(2 * time.Second)
		f.worker("late") // it is waited for
		if a := <-done; a.status != http.StatusOK {
			t.Errorf("with a worker that came late: %+v", a)
		}
		f.workers["late"].hangs()
		f.dir.expire("workers/late")
		time.Sleep(10 * time.Second)
		if a := f.acquire(spec("f", "1")); a.status != http.StatusServiceUnavailable {
			t.Errorf("without workers: %+v", a)
		}
	})
}

// What a worker no longer lists has gone; what started since it was asked has not.
func TestReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		m, _ := f.manager(Options{})
		l := f.lease(spec("f", "1"))
		asked := time.Now().Add(-time.Second)
		m.table.report("w0", invokewire.WorkerState{ID: "w0"}, asked, time.Now())
		if m.table.instances[l.Instance] == nil {
			t.Fatal("dropped by a report older than its start")
		}
		f.workers["w0"].mu.Lock()
		delete(f.workers["w0"].instances, l.Instance)
		f.workers["w0"].mu.Unlock()
		time.Sleep(3 * time.Second)
		if gone := f.post("m0", "/renew", invokewire.Renew{Frontend: "f0", Instances: []string{l.Instance}}).gone; len(gone) != 1 {
			t.Error("an instance that its worker does not list is kept")
		}
	})
}

// A worker that starts anew under its name has none of its former instances.
func TestRestartedWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		m, _ := f.manager(Options{})
		l := f.lease(spec("f", "1"))
		w := f.workers["w0"]
		w.mu.Lock()
		w.instances, w.Started = map[string]*invokewire.InstanceState{}, time.Now().Add(time.Second)
		w.mu.Unlock()
		value, _ := json.Marshal(w.WorkerState)
		m.tellWorker("workers/w0", value)
		if gone := m.table.renew("f0", []string{l.Instance}, time.Now()); len(gone) != 1 {
			t.Error("it is kept")
		}
		time.Sleep(time.Second)
		f.lease(spec("f", "1"))
	})
}

func TestOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		f.manager(Options{ID: "m1"})
		_, stop := f.manager(Options{})
		s := spec("f", "1")
		l := f.lease(s)
		a := f.post("m1", "/acquire", invokewire.Acquire{Frontend: "f1", Spec: s})
		if a.status != http.StatusMisdirectedRequest || a.owner != "m0" {
			t.Fatalf("the other manager: %+v", a)
		}
		time.Sleep(3 * time.Second) // its poll has shown the instance
		if gone := f.post("m1", "/renew", invokewire.Renew{Frontend: "f0", Instances: []string{l.Instance}}).gone; len(gone) != 1 {
			t.Error("a lease was renewed by who does not own the function")
		}
		l2 := f.lease(spec("f", "2")) // started just before it dies
		stop()
		time.Sleep(3 * time.Second) // it is believed for two
		for _, id := range []invokewire.Lease{l, l2} {
			if gone := f.post("m1", "/renew", invokewire.Renew{Frontend: "f0", Instances: []string{id.Instance}}).gone; len(gone) != 0 {
				t.Errorf("the new owner does not know the lease on %s", id.Instance)
			}
		}
		if got := f.post("m1", "/acquire", invokewire.Acquire{Frontend: "f0", Spec: s}); got.status != http.StatusOK || got.lease.Instance == l.Instance {
			t.Errorf("the new owner: %+v", got)
		}
	})
}

// A manager that listens where one that was killed did owns at once what that one
// owned, and nothing of another's.
func TestHeir(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		take := func(key, value string) {
			if _, _, err := f.dir.Take(t.Context(), key, []byte(value)); err != nil {
				t.Fatal(err)
			}
		}
		take("managers/dead", "m0:1")
		take("managers/other", "other:1")
		take("owner/000000000000/f", "dead")
		take("owner/000000000000/g", "other")
		f.manager(Options{})
		f.lease(spec("f", "1"))
		if a := f.acquire(spec("g", "1")); a.status != http.StatusMisdirectedRequest || a.owner != "other" {
			t.Errorf("another's function: %+v", a)
		}
	})
}

// Instances whose owner has gone are ended by another manager.
func TestOrphansEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		_, stop := f.manager(Options{Idle: time.Minute})
		f.lease(spec("f", "1"))
		f.manager(Options{ID: "m1", Idle: time.Minute})
		stop()
		time.Sleep(5 * time.Minute)
		if n := f.running(); n != 0 {
			t.Errorf("%d instances are left", n)
		}
	})
}

// A manager that has lost a function in the cluster says so.
func TestLostOwnership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		m, _ := f.manager(Options{})
		f.lease(spec("f", "1"))
		key := "owner/000000000000/f"
		f.dir.expire(key)
		if _, _, err := f.dir.Take(context.Background(), key, []byte("m9")); err != nil {
			t.Fatal(err)
		}
		if a := f.acquire(spec("f", "1")); a.status != http.StatusMisdirectedRequest || a.owner != "m9" {
			t.Errorf("got %+v", a)
		}
		if m.owners.has(function{"000000000000", "f"}) {
			t.Error("still taken for its own")
		}
	})
}

func TestRegistersAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		f.manager(Options{})
		f.dir.expire("managers/m0")
		time.Sleep(10 * time.Second)
		f.dir.mu.Lock()
		defer f.dir.mu.Unlock()
		if h := f.dir.values["managers/m0"]; h == nil || string(h.value) != "m0:1" {
			t.Errorf("registration %v", h)
		}
	})
}

// Functions that nobody uses are given up, in memory and in the cluster.
func TestForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		m, _ := f.manager(Options{Idle: time.Minute})
		for k := range 20 {
			f.release(f.lease(spec(fmt.Sprint("f", k), "1")).Instance)
		}
		time.Sleep(5 * time.Minute)
		m.table.mu.Lock()
		defer m.table.mu.Unlock()
		if len(m.table.groups)+len(m.table.accounts)+len(m.table.instances)+len(m.table.gone) > 0 {
			t.Errorf("left: %d groups, %d accounts, %d instances, %d gone", len(m.table.groups), len(m.table.accounts), len(m.table.instances), len(m.table.gone))
		}
		if n := len(m.owners.all()); n != 0 {
			t.Errorf("%d functions are still owned", n)
		}
	})
}

// After the cluster's memory was lost, workers that answer are kept, and what
// they run.
func TestClusterForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		f.manager(Options{})
		l := f.lease(spec("f", "1"))
		f.dir.expire("workers/w0")
		f.dir.expire("workers/w1")
		time.Sleep(time.Second)
		if gone := f.post("m0", "/renew", invokewire.Renew{Frontend: "f0", Instances: []string{l.Instance}}).gone; len(gone) != 0 {
			t.Error("the lease is gone")
		}
		f.lease(spec("f", "1"))
	})
}
