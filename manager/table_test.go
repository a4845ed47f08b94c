package manager

import (
	"fmt"
	"testing"
	"time"

	"thaw/invokewire"
)

func testTable(t *testing.T, workers ...invokewire.WorkerState) (*table, time.Time) {
	t.Helper()
	var o Options
	o.fill()
	tb, now := newTable(&o), time.Unix(1e9, 0)
	for _, s := range workers {
		tb.join(s, now)
		tb.report(s.ID, s, now, now)
	}
	return tb, now
}

// Places of versions are bounded, and the newest are kept.
func TestPlacesAreBounded(t *testing.T) {
	var p places
	for n := range 3 * maxPlaces {
		p.set(fmt.Sprint(n), "w")
	}
	if len(p.young)+len(p.old) > maxPlaces {
		t.Errorf("%d are kept", len(p.young)+len(p.old))
	}
	if p.get(fmt.Sprint(3*maxPlaces-1)) != "w" || p.get("never") != "" {
		t.Error("the newest is forgotten")
	}
}

// The worker with the fewest starts ahead comes first, then the freest.
func TestPlace(t *testing.T) {
	const gib = 1 << 30
	tb, now := testTable(t,
		invokewire.WorkerState{ID: "busy", Address: "busy:1", Cores: 1, Memory: 8 * gib, Queued: 10},
		invokewire.WorkerState{ID: "full", Address: "full:1", Cores: 1, Memory: 8 * gib, Used: 6 * gib},
		invokewire.WorkerState{ID: "free", Address: "free:1", Cores: 1, Memory: 8 * gib, Used: gib},
		invokewire.WorkerState{ID: "drains", Address: "drains:1", Cores: 8, Memory: 64 * gib, Draining: true},
	)
	s := spec("f", "1")
	tried := map[string]bool{}
	for _, want := range []string{"free", "full", "busy"} {
		w := tb.place(&s, tried, now)
		if w == nil || w.id != want {
			t.Fatalf("got %+v, want %s", w, want)
		}
		tried[want] = true
	}
	if w := tb.place(&s, tried, now); w != nil {
		t.Errorf("got %s", w.id)
	}
}

// A burst goes on to other workers once starts would have to wait at the last one.
func TestBurstSpreads(t *testing.T) {
	tb, now := testTable(t,
		invokewire.WorkerState{ID: "a", Address: "a:1", Cores: 2, Memory: 64 << 30},
		invokewire.WorkerState{ID: "b", Address: "b:1", Cores: 2, Memory: 64 << 30},
	)
	count := map[string]int{}
	for range 200 {
		d := tb.decide(&invokewire.Acquire{Frontend: "f0", Spec: spec("f", "1")}, nil, now)
		if d.start == nil {
			t.Fatalf("decision %+v", d)
		}
		tb.started(d.start, admitted, now)
		count[d.start.worker]++
	}
	if count["a"] < 90 || count["b"] < 90 {
		t.Errorf("200 starts on two workers: %v", count)
	}
}

// An instance that two workers list stays with the first.
func TestInstanceOfTwoWorkers(t *testing.T) {
	tb, now := testTable(t, invokewire.WorkerState{ID: "a", Address: "a:1"}, invokewire.WorkerState{ID: "b", Address: "b:1"})
	list := []invokewire.InstanceState{{ID: "i", Key: "k", Account: "0", Function: "f", Version: "1", Phase: invokewire.PhaseIdle}}
	for _, id := range []string{"a", "b"} {
		tb.report(id, invokewire.WorkerState{ID: id, Instances: list}, now, now)
	}
	if i := tb.instances["i"]; i == nil || i.worker != "a" {
		t.Errorf("got %+v", i)
	}
	tb.report("b", invokewire.WorkerState{ID: "b"}, now.Add(time.Second), now.Add(time.Second))
	if tb.instances["i"] == nil {
		t.Error("dropped since the second does not list it")
	}
}
