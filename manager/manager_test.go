package manager

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"thaw/functions"
	"thaw/invokewire"
)

// Sticky: 1,000 serial invokes use one instance.
func TestSerialInvokesUseOneInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3)
		f.manager(Options{})
		first := f.lease(spec("f", "1"))
		if !first.Fresh || first.TTL != 15*time.Second {
			t.Errorf("first lease: %+v", first)
		}
		f.release(first.Instance)
		for range 999 {
			l := f.lease(spec("f", "1"))
			if l.Fresh || l.Instance != first.Instance || l.Worker != first.Worker {
				t.Fatalf("lease %+v, want %+v", l, first)
			}
			f.release(l.Instance)
		}
		if n := f.running(); n != 1 {
			t.Errorf("%d instances", n)
		}
	})
}

// Sticky: 100 versions in turn over 3 workers return to their last worker.
func TestVersionsReturnToTheirLastWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3)
		f.manager(Options{Idle: time.Minute})
		last, perWorker, back := map[int]string{}, map[string]int{}, 0
		for round := range 3 {
			for v := range 100 {
				l := f.lease(spec("f", fmt.Sprint(v)))
				if !l.Fresh {
					t.Fatalf("round %d: version %d was still there", round, v)
				}
				if l.Worker == last[v] {
					back++
				}
				last[v] = l.Worker
				perWorker[l.Worker]++
				f.release(l.Instance)
				time.Sleep(time.Second)
			}
			time.Sleep(2 * time.Minute)
			if n := f.running(); n != 0 {
				t.Fatalf("%d instances after the idle time", n)
			}
		}
		if back < 2*95 {
			t.Errorf("%d of 200 returned to their last worker", back)
		}
		for w, n := range perWorker {
			if n < 30 || n > 200 {
				t.Errorf("%s got %d of 300", w, n)
			}
		}
	})
}

// A manager that knows nothing places versions where the last one did.
func TestPlacesSurviveRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3)
		var before []string
		for round := range 2 {
			_, stop := f.manager(Options{Idle: time.Minute})
			for v := range 30 {
				l := f.lease(spec("f", fmt.Sprint(v)))
				f.release(l.Instance)
				if round == 0 {
					before = append(before, l.Worker)
				} else if l.Worker != before[v] {
					t.Errorf("version %d: on %s, was on %s", v, l.Worker, before[v])
				}
				time.Sleep(5 * time.Second)
			}
			time.Sleep(2 * time.Minute)
			stop()
		}
	})
}

func TestReservedConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		f.manager(Options{})
		s := spec("f", "1")
		s.Reserved = ptr(3)
		var ids []string
		for range 3 {
			ids = append(ids, f.lease(s).Instance)
		}
		f.throttled(s, invokewire.ReasonReserved)
		// Another version shares the reserve: an idle instance makes room for it.
		two := spec("f", "2")
		two.Reserved = ptr(3)
		f.throttled(two, invokewire.ReasonReserved)
		f.release(ids[0])
		f.lease(two)
		f.throttled(s, invokewire.ReasonReserved)
		synctest.Wait()
		if n := f.running(); n != 3 {
			t.Errorf("%d instances, want 3", n)
		}
		// Zero switches a function off, idle instances or not.
		f.release(ids[1])
		s.Reserved = ptr(0)
		f.throttled(s, invokewire.ReasonReserved)
		// Others are not touched.
		f.lease(spec("g", "1"))
	})
}

func TestAccountLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		f.manager(Options{AccountLimit: 10})
		r := spec("reserved", "1")
		r.Reserved = ptr(4)
		f.lease(r)
		var ids []string
		for k := range 6 {
			ids = append(ids, f.lease(spec(fmt.Sprint("f", k), "1")).Instance)
		}
		f.throttled(spec("g", "1"), invokewire.ReasonAccount)
		for range 3 {
			f.lease(r) // the reserve is kept free for it
		}
		other := spec("g", "1")
		other.Account = "111111111111"
		f.lease(other)
		// An idle instance of another function makes room.
		f.release(ids[2])
		f.lease(spec("g", "1"))
		f.throttled(spec("f2", "1"), invokewire.ReasonAccount)
	})
}

// Burst: 1000 new instances per function per 10 s, refilled continuously.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		f.workers["w0"].Memory = 1 << 40
		f.manager(Options{Burst: 100})
		s := spec("f", "1")
		for range 100 {
			f.lease(s)
		}
		a := f.acquire(s)
		if a.status != http.StatusTooManyRequests || a.throttle.Reason != invokewire.ReasonRate {
			t.Fatalf("beyond the burst: %+v", a)
		}
		if a.throttle.RetryAfter <= 0 || a.throttle.RetryAfter > 100*time.Millisecond {
			t.Errorf("retry after %v, want a tenth of a second at most", a.throttle.RetryAfter)
		}
		f.lease(spec("g", "1")) // each function has its own
		time.Sleep(time.Second)
		got := 0
		for f.acquire(s).status == http.StatusOK {
			got++
		}
		if got != 10 {
			t.Errorf("%d more after a second, want 10", got)
		}
		time.Sleep(time.Minute)
		got = 0
		for f.acquire(s).status == http.StatusOK {
			got++
		}
		// The leases of the first have ended, so they are taken again first.
		if got != 110+100 {
			t.Errorf("%d after a minute, want 110 idle and 100 new: allowance does not pile up", got)
		}
	})
}

// Unless told, it is 1,000.
func TestUsualBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		f.workers["w0"].Memory = 1 << 40
		f.manager(Options{AccountLimit: 5000})
		s := spec("f", "1")
		for range 1000 {
			f.lease(s)
		}
		if a := f.acquire(s); a.status != http.StatusTooManyRequests || a.throttle.Reason != invokewire.ReasonRate {
			t.Errorf("the 1,001st at once: %+v", a)
		}
	})
}

func TestRefusedStartsGoToTheNextWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3)
		for _, w := range f.workers {
			w.limit = 2
		}
		m, _ := f.manager(Options{})
		for range 6 {
			f.lease(spec("f", "1"))
		}
		f.throttled(spec("f", "1"), invokewire.ReasonRate)
		asked := 0
		for _, w := range f.workers {
			asked += w.asked
		}
		f.throttled(spec("f", "1"), invokewire.ReasonRate) // at once
		for _, w := range f.workers {
			asked -= w.asked
		}
		if asked != 0 {
			t.Error("workers that have just refused were asked again")
		}
		if c := m.table.state().Counts; c["started"] != 6 || c["refused"] == 0 || c["throttled"] != 2 {
			t.Errorf("counts %v", c)
		}
		if g := m.table.groups[function{"000000000000", "f"}]; g.tokens < 993 {
			t.Errorf("refused starts used up the burst: %v left", g.tokens)
		}
	})
}

// A worker that hangs or has died costs one request's time, not the request.
func TestDeadWorkerIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		f.manager(Options{})
		l := f.lease(spec("f", "1"))
		w := f.holder(l.Worker)
		w.hangs()
		next := f.lease(spec("f", "1"))
		if next.Worker == l.Worker {
			t.Errorf("leased on a worker that hangs: %+v", next)
		}
		// It vanishes: its instances do too.
		f.dir.expire("workers/" + w.ID)
		time.Sleep(6 * time.Second)
		if gone := f.post("m0", "/renew", invokewire.Renew{Frontend: "f0", Instances: []string{l.Instance, next.Instance}}).gone; fmt.Sprint(gone) != "["+l.Instance+"]" {
			t.Errorf("gone %v, want that of the dead worker", gone)
		}
	})
}

func TestLeasesOfVanishedFrontends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		f.manager(Options{})
		s := spec("f", "1")
		s.Reserved = ptr(1)
		l := f.lease(s)
		f.renewing(time.Minute, l.Instance)
		f.throttled(s, invokewire.ReasonReserved)
		time.Sleep(20 * time.Second) // it renews no more
		other := f.post("m0", "/acquire", invokewire.Acquire{Frontend: "f1", Spec: s})
		if other.lease.Instance != l.Instance {
			t.Fatalf("after the TTL: %+v", other)
		}
		if gone := f.post("m0", "/renew", invokewire.Renew{Frontend: "f0", Instances: []string{l.Instance}}).gone; len(gone) != 1 {
			t.Error("a lease was renewed that another frontend has")
		}
		f.release(l.Instance) // is not f0's to release
		f.throttled(s, invokewire.ReasonReserved)
	})
}

// A frontend that starts anew need not wait for what it held before.
func TestRestartedFrontend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		f.manager(Options{})
		s := spec("f", "1")
		s.Reserved = ptr(1)
		ask := func(frontend string) answerOf {
			return f.post("m0", "/acquire", invokewire.Acquire{Frontend: frontend, Spec: s})
		}
		first := ask("f0#a")
		if a := ask("f1#a"); a.throttle.Reason != invokewire.ReasonReserved {
			t.Errorf("another frontend: %+v", a)
		}
		if a := ask("f0#b"); a.lease.Instance != first.lease.Instance {
			t.Errorf("the same, anew: %+v", a)
		}
		if gone := f.post("m0", "/renew", invokewire.Renew{Frontend: "f0#b", Instances: []string{first.lease.Instance}}).gone; len(gone) != 0 {
			t.Errorf("gone %v", gone)
		}
	})
}

// The frontend vanishes while its invoke runs: the instance is given to nobody.
func TestBusyInstancesAreNotLeased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		f.manager(Options{Idle: 30 * time.Second})
		l := f.lease(spec("f", "1"))
		f.workers["w0"].phase(l.Instance, invokewire.PhaseBusy)
		time.Sleep(5 * time.Minute)
		if f.running() != 1 {
			t.Fatal("an instance that works was ended")
		}
		if next := f.lease(spec("f", "1")); next.Instance == l.Instance {
			t.Error("leased while it works")
		}
		f.workers["w0"].phase(l.Instance, invokewire.PhaseIdle)
		time.Sleep(3 * time.Second)
		if next := f.lease(spec("f", "1")); next.Instance != l.Instance {
			t.Error("not leased although it is idle")
		}
	})
}

func TestBusyAndGoneAreAvoided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		f.manager(Options{})
		s := spec("f", "1")
		a, b := f.lease(s), f.lease(s)
		f.release(a.Instance, b.Instance)
		got := f.post("m0", "/acquire", invokewire.Acquire{Frontend: "f0", Spec: s, Avoid: []string{a.Instance}})
		if got.lease.Instance != b.Instance {
			t.Errorf("lease %+v, want the one not avoided", got.lease)
		}
		f.post("m0", "/release", invokewire.Release{Frontend: "f0", Gone: []string{b.Instance}})
		if next := f.lease(s); next.Instance == b.Instance || next.Instance == a.Instance {
			t.Errorf("lease %+v: is gone or busy", next)
		}
	})
}

func TestOldRevisionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		f.manager(Options{})
		s := spec("f", "$LATEST")
		a, b := f.lease(s), f.lease(s)
		f.release(a.Instance)
		s.Revision = "r2"
		if l := f.lease(s); !l.Fresh || l.Instance == a.Instance {
			t.Fatalf("lease %+v: an instance of the old revision", l)
		}
		if gone := f.post("m0", "/renew", invokewire.Renew{Frontend: "f0", Instances: []string{b.Instance}}).gone; len(gone) != 1 {
			t.Error("a lease on an old revision was renewed")
		}
		time.Sleep(5 * time.Second)
		if n := f.running(); n != 1 {
			t.Errorf("%d instances, want the new one only", n)
		}
	})
}

// Instances of what was deleted or replaced end as soon as the records say so,
// leased or not, and those that work when they are done. All others stay.
func TestOutdatedInstancesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		changes := make(chan func(func(functions.ID, *functions.Function) error) error)
		f.manager(Options{Idle: time.Hour, Functions: func(ctx context.Context, changed func(functions.ID, *functions.Function) error) error {
			for {
				select {
				case change := <-changes:
					if err := change(changed); err != nil {
						return err
					}
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}})
		told := func(record *functions.Function) {
			changes <- func(changed func(functions.ID, *functions.Function) error) error {
				return changed(functions.ID{Account: "000000000000", Name: "f"}, record)
			}
			synctest.Wait()
		}
		f.lease(spec("other", "$LATEST"))
		latest, free, busy := f.lease(spec("f", "$LATEST")), f.lease(spec("f", "1")), f.lease(spec("f", "2"))
		f.release(free.Instance)
		f.workers["w0"].phase(busy.Instance, invokewire.PhaseBusy)
		record := &functions.Function{Latest: functions.Version{Revision: "r1"}, Versions: map[string]string{"1": "x", "2": "y"}}
		told(record)
		if n := f.running(); n != 4 {
			t.Fatalf("%d instances while nothing has changed", n)
		}
		record.Serving, record.Latest = new(record.Latest), functions.Version{Revision: "r2"} // it is being built
		told(record)
		if n := f.running(); n != 4 {
			t.Fatalf("%d instances while the old code still serves", n)
		}
		record.Serving = nil
		told(record)
		if n := f.running(); n != 3 || f.lease(specOf("f", "$LATEST", "r2")).Instance == latest.Instance {
			t.Fatalf("%d instances after an update", n)
		}
		told(nil)
		if n := f.running(); n != 2 {
			t.Errorf("%d instances after the function was deleted: want one that works, and another function's", n)
		}
		f.workers["w0"].phase(busy.Instance, invokewire.PhaseIdle)
		if gone := f.post("m0", "/renew", invokewire.Renew{Frontend: "f0", Instances: []string{busy.Instance, free.Instance}}).gone; len(gone) != 2 {
			t.Errorf("leases were renewed: %v are gone", gone)
		}
		time.Sleep(5 * time.Second)
		if n := f.running(); n != 1 {
			t.Errorf("%d instances after the last one was done", n)
		}
	})
}

func specOf(name, version, revision string) invokewire.Spec {
	s := spec(name, version)
	s.Revision = revision
	return s
}

func TestOldInstancesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		f.manager(Options{MaxAge: time.Hour})
		l := f.lease(spec("f", "1"))
		f.renewing(55*time.Minute, l.Instance)
		if f.running() != 1 {
			t.Fatal("it ended while it was young and leased")
		}
		f.renewing(10*time.Minute, l.Instance)
		if f.running() != 0 {
			t.Error("it outlived its keys")
		}
	})
}

// A manager that comes up later counts an instance's age from its start, not from
// when it has heard of it. One that works is let be until it is done.
func TestAgeOutlastsManagers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		o := Options{MaxAge: time.Hour}
		_, stop := f.manager(o)
		l := f.lease(spec("f", "1"))
		f.renewing(40*time.Minute, l.Instance)
		stop()
		_, stop = f.manager(o)
		w := f.workers["w0"]
		w.mu.Lock()
		w.instances[l.Instance].Phase = invokewire.PhaseBusy
		w.mu.Unlock()
		f.renewing(30*time.Minute, l.Instance)
		if f.running() != 1 {
			t.Fatal("it was ended while it worked")
		}
		w.mu.Lock()
		w.instances[l.Instance].Phase = invokewire.PhaseIdle
		w.mu.Unlock()
		f.renewing(time.Minute, l.Instance)
		if f.running() != 0 {
			t.Error("it outlived its keys")
		}
		stop()
	})
}

// Memory: idle instances make room, and what is leased does not.
func TestMakesRoomOnAWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 1)
		f.workers["w0"].Memory = 1 << 30
		f.manager(Options{Overcommit: 1})
		big := func(name string) invokewire.Spec { s := spec(name, "1"); s.Memory = 512; return s }
		a, _ := f.lease(big("a")), f.lease(big("b"))
		f.throttled(big("c"), invokewire.ReasonRate)
		f.release(a.Instance)
		f.lease(big("c"))
		synctest.Wait()
		if n := f.running(); n != 2 {
			t.Errorf("%d instances, want 2", n)
		}
		f.throttled(big("d"), invokewire.ReasonRate)
		time.Sleep(time.Minute)
		huge := spec("huge", "1")
		huge.Memory = 10240
		f.lease(huge) // nothing is leased any more; an empty worker takes any
	})
}

func TestDrainingAndFullWorkersAdmitNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		f.workers["w0"].Draining = true
		f.workers["w1"].Used = f.workers["w1"].Memory
		f.manager(Options{})
		f.lease(spec("f", "1")) // an empty worker takes any
		f.throttled(spec("f", "1"), invokewire.ReasonRate)
		if s, _ := f.workers["w0"].count(); s != 0 {
			t.Error("a draining worker was asked")
		}
	})
}

func TestHandlerRefuses(t *testing.T) {
	m := newManager(Options{Token: "a fleet's secret"}, &fakeDirectory{})
	const token = "a fleet's secret"
	for _, c := range []struct {
		name, token, path, body string
		want                    int
	}{
		{"no token", "", "/state", "", http.StatusForbidden},
		{"wrong token", "a fleet's secre7", "/acquire", "{}", http.StatusForbidden},
		{"no JSON", token, "/acquire", "{", http.StatusBadRequest},
		{"no frontend", token, "/acquire", `{"Spec":{"Account":"0","Function":"f","Version":"1","Memory":1}}`, http.StatusBadRequest},
		{"no version", token, "/acquire", `{"Frontend":"f","Spec":{"Account":"0","Function":"f","Memory":1}}`, http.StatusBadRequest},
		{"no memory", token, "/acquire", `{"Frontend":"f","Spec":{"Account":"0","Function":"f","Version":"1"}}`, http.StatusBadRequest},
		{"too many to avoid", token, "/acquire", `{"Frontend":"f","Spec":{"Account":"0","Function":"f","Version":"1","Memory":1},"Avoid":["` + strings.Repeat(`x","`, 64) + `"]}`, http.StatusBadRequest},
		{"too large", token, "/renew", `{"Frontend":"` + strings.Repeat("x", maxBody) + `"}`, http.StatusBadRequest},
		{"elsewhere", token, "/x", "", http.StatusNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			method := http.MethodPost
			if c.path == "/state" {
				method = http.MethodGet
			}
			r := httptest.NewRequest(method, c.path, strings.NewReader(c.body))
			r.Header.Set(invokewire.HeaderToken, c.token)
			w := httptest.NewRecorder()
			m.Handler().ServeHTTP(w, r)
			if w.Code != c.want || strings.Contains(w.Body.String(), token) {
				t.Errorf("status %d %s, want %d", w.Code, w.Body, c.want)
			}
		})
	}
}
