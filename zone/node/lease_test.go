package node

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"thaw/zone"
)

// asks sends one GET for a lease to the node, without HTTP.
func asks(t *testing.T, n *Node, id zone.StripeID, token string, wait time.Duration) answer {
	t.Helper()
	var f found
	res, err := n.get(id, ask{token, wait}, nil, &f)
	if err != nil {
		t.Fatal(err)
	}
	n.release(&f)
	return res
}

func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, Options{Lease: time.Second})
		id, b := usualStripe(1)
		if got := asks(t, n, id, "", 0); got.asked || got.found {
			t.Fatalf("without asking: %+v", got)
		}
		if got := asks(t, n, id, "a", 0); got.lease != (zone.Lease{Granted: true, For: time.Second}) {
			t.Fatalf("first: %+v", got)
		}
		time.Sleep(300 * time.Millisecond)
		if got := asks(t, n, id, "b", 0); got.lease != (zone.Lease{For: 700 * time.Millisecond}) {
			t.Fatalf("second: %+v", got)
		}
		if got := asks(t, n, id, "a", 0); got.lease != (zone.Lease{Granted: true, For: 700 * time.Millisecond}) {
			t.Fatalf("its holder again: %+v", got)
		}
		time.Sleep(700 * time.Millisecond)
		if got := asks(t, n, id, "b", 0); !got.lease.Granted {
			t.Fatalf("after its end: %+v", got)
		}
		if out, err := n.put(id, b, ""); out != stored {
			t.Fatal(err)
		}
		if got := asks(t, n, id, "c", 0); !got.found || got.asked || n.Stats().Leases.Active != 0 {
			t.Fatalf("when it has come: %+v", got)
		}
	})
}

// Who waits hears of the fill at once, of a holder that died when its lease
// ends, and of nothing when its own time is over.
func TestLeaseWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, Options{Lease: time.Second})
		id, b := usualStripe(1)
		asks(t, n, id, "a", 0)
		var work sync.WaitGroup
		began := time.Now()
		took := func(token string, wait, want time.Duration, check func(answer) bool) {
			work.Go(func() {
				got := asks(t, n, id, token, wait)
				if !check(got) || time.Since(began).Truncate(10*time.Millisecond) != want {
					t.Errorf("%s: %+v after %v, want %v", token, got, time.Since(began), want)
				}
			})
		}
		took("short", 200*time.Millisecond, 200*time.Millisecond, func(a answer) bool { return a.asked && !a.lease.Granted })
		took("b", 3*time.Second, time.Second, func(a answer) bool { return a.lease.Granted }) // a has died
		time.Sleep(1100 * time.Millisecond)
		took("c", 3*time.Second, 1500*time.Millisecond, func(a answer) bool { return a.found && a.waited })
		time.Sleep(400 * time.Millisecond) // b fills
		if out, err := n.put(id, b, ""); out != stored {
			t.Error(err)
		}
		work.Wait()
		if s := n.Stats(); s.Leases.Waiting != 0 || s.Leases.Granted != 2 || s.Gets.FromMemory.Count() != 0 {
			t.Errorf("%+v", s.Leases)
		}
	})
}

func TestLeaseEndsWithConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, Options{Lease: time.Second})
		id, _ := usualStripe(1)
		asks(t, n, id, "a", 0)
		done := make(chan struct{})
		close(done)
		began := time.Now()
		var f found
		if res, err := n.get(id, ask{"b", time.Second}, done, &f); err != nil || res.lease.Granted || time.Since(began) > 0 {
			t.Errorf("%+v %v after %v", res, err, time.Since(began))
		}
	})
}

func TestLeasesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeases(time.Second)
		for i := range maxLeases + 10 {
			id, _ := stripe(uint64(i), code{1, 1, 0}, 1, 0)
			if lease, _ := l.ask(id, "a", time.Now()); !lease.Granted {
				t.Fatal(i)
			}
		}
		if n := l.active(time.Now()); n != maxLeases {
			t.Errorf("%d leases", n)
		}
		first, _ := stripe(0, code{1, 1, 0}, 1, 0)
		_, over := l.ask(first, "b", time.Now())
		var work sync.WaitGroup
		for range maxWaiters {
			work.Go(func() { l.await(over, time.Second, nil) })
		}
		synctest.Wait()
		if l.await(over, time.Second, nil) {
			t.Error("one waiter too many waited")
		}
		l.end(first)
		work.Wait()
		time.Sleep(time.Second)
		if n := l.active(time.Now()); n != 0 || len(l.order) != 0 {
			t.Errorf("%d leases left", n)
		}
	})
}

// grantForLong grants a lease that lasts as long as a test may take.
func grantForLong(t *testing.T, n *Node, id zone.StripeID) {
	t.Helper()
	if got := asks(t, n, id, "w", 0); !got.lease.Granted {
		t.Fatalf("%+v", got)
	}
	n.leases.mu.Lock()
	defer n.leases.mu.Unlock()
	n.leases.byID[id].until = time.Now().Add(patience)
}

// Over HTTP: one of many workers is granted, and the others get what it fills.
func TestOneOfManyFills(t *testing.T) {
	everywhere(t, Options{Lease: zone.MaxWait}, func(t *testing.T, n *Node, f front) {
		id, b := usualStripe(1)
		lease, err := zone.ParseLease(f.want(t, 404, "GET "+id.Path(), nil, zone.LeaseHeader, "w").header.Get(zone.LeaseHeader))
		if err != nil || !lease.Granted || lease.For != zone.MaxWait {
			t.Fatalf("%+v, %v", lease, err)
		}
		grantForLong(t, n, id) // the same again
		held := f.want(t, 404, "GET "+id.Path(), nil, zone.LeaseHeader, "x").header.Get(zone.LeaseHeader)
		if l, err := zone.ParseLease(held); err != nil || l.Granted {
			t.Fatalf("%q, %v", held, err)
		}
		var work sync.WaitGroup
		for i := range 5 {
			work.Go(func() {
				ask := func() reply {
					return f.do(t, "GET "+id.Path()+"?wait=5000", nil, zone.LeaseHeader, fmt.Sprint("worker", i))
				}
				r := ask()
				for strings.HasPrefix(r.header.Get(zone.LeaseHeader), "held ") { // it has taken longer than it waits
					r = ask()
				}
				if r.status != 200 || !bytes.Equal(r.body, b) {
					t.Errorf("%d %s", r.status, r.header)
				}
			})
		}
		for n.Stats().Leases.Waiting < 5 {
			f.want(t, 404, "HEAD "+id.Path(), nil)
		}
		f.want(t, 201, "PUT "+id.Path(), b)
		work.Wait()
	})
}
