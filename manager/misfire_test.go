package manager

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"thaw/invokewire"
)

// again asks for another instance in the place of those whose starts have failed.
func (f *fleet) again(s invokewire.Spec, failed ...invokewire.Lease) answerOf {
	f.t.Helper()
	for _, l := range failed { // their workers have nothing of them any more
		w := f.holder(l.Worker)
		w.mu.Lock()
		delete(w.instances, l.Instance)
		w.mu.Unlock()
	}
	return f.post("m0", "/acquire", invokewire.Acquire{Frontend: "f0", Spec: s, Failed: failed})
}

// A start that has failed on a worker goes to another one, within the function's
// limits, and to none twice.
func TestFailedStartsGoElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3)
		m, _ := f.manager(Options{Burst: 10})
		s := spec("f", "1")
		s.Reserved = ptr(1)
		var failed []invokewire.Lease
		for range 3 {
			a := f.again(s, failed...)
			for _, l := range failed {
				if a.status != http.StatusOK || a.lease.Worker == l.Worker {
					t.Fatalf("after %+v: %+v", failed, a)
				}
			}
			failed = append(failed, a.lease)
		}
		if a := f.again(s, failed...); a.status != http.StatusTooManyRequests || a.throttle.Reason != invokewire.ReasonRate {
			t.Errorf("all have failed: %+v", a)
		}
		g := m.table.groups[function{s.Account, s.Function}]
		if g.tokens < 10 || len(g.instances) != 0 {
			t.Errorf("%v of the burst are left, %d instances", g.tokens, len(g.instances))
		}
		f.lease(s) // another request tries again
	})
}

// A worker on which a start has failed comes after all others for a minute, or
// until a start there succeeds; what has started there is used.
func TestFailingWorkerComesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		m, _ := f.manager(Options{Idle: time.Hour})
		warm := f.lease(spec("warm", "1"))
		f.release(warm.Instance)
		bad := warm.Worker
		failing := func() int {
			_, workers, _ := m.table.sums(time.Now())
			return workers["failing"]
		}
		fail := func(name string) { // a start on bad
			t.Helper()
			f.holder(bad).limit = 10_000
			for _, w := range f.workers {
				if w.Address != bad {
					w.limit = 0
				}
			}
			l := f.lease(spec(name, "1"))
			for _, w := range f.workers {
				w.limit = 10_000
			}
			time.Sleep(refusal)
			a := f.again(spec(name, "1"), l)
			if l.Worker != bad || a.lease.Worker == bad || failing() != 1 {
				t.Fatalf("%+v has failed: %+v, %d failing", l, a, failing())
			}
		}
		fail("f")
		for n := range 30 {
			if l := f.lease(spec(fmt.Sprint("g", n), "1")); l.Worker == bad {
				t.Fatalf("%+v is on a worker where starts fail", l)
			}
		}
		if l := f.lease(spec("warm", "1")); l.Instance != warm.Instance {
			t.Errorf("%+v, want the idle instance", l)
		}
		good := f.workers["w0"]
		if good.Address == bad {
			good = f.workers["w1"]
		}
		good.limit = 0
		time.Sleep(time.Second)
		if l := f.lease(spec("h", "1")); l.Worker != bad {
			t.Errorf("%+v, want the only worker that has room", l)
		}
		time.Sleep(10 * time.Second) // it has started
		if n := failing(); n != 0 {
			t.Errorf("%d workers fail, and have started something since", n)
		}
		fail("i")
		time.Sleep(misfireTime)
		if n := failing(); n != 0 {
			t.Errorf("%d workers fail after a minute", n)
		}
	})
}

// More failed starts than any frontend tries are refused.
func TestFailedStartsAreBounded(t *testing.T) {
	a := invokewire.Acquire{Frontend: "f0", Spec: spec("f", "1"), Failed: make([]invokewire.Lease, maxFailed)}
	if err := check(&a); err != nil {
		t.Error(err)
	}
	a.Failed = append(a.Failed, invokewire.Lease{})
	if err := check(&a); err == nil || !strings.Contains(err.Error(), "failed: more than") {
		t.Errorf("got %v", err)
	}
}
