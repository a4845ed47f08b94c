package frontend

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
)

// await waits in the line for as long as an invoke does before it wants a start.
func (p *pool) await(ctx context.Context) *leased {
	l, w, limit := p.join("k")
	if l != nil {
		return l
	}
	g, came := w.wait(ctx, limit)
	if !came {
		p.leave("k", w)
	}
	return g.l
}

// An invoke waits for an instance of a quick function, in turn and not for long;
// of a slow one, or of one that nobody has seen yet, it does not.
func TestLinePatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPool(time.Minute, nil)
		none := func(want time.Duration) {
			t.Helper()
			began := time.Now()
			if l := p.await(t.Context()); l != nil {
				t.Errorf("got %v", l)
			}
			if d := time.Since(began); d != want {
				t.Errorf("waited %v, want %v", d, want)
			}
		}
		none(0) // nothing is known
		l := p.grant("a", time.Now())
		l.fresh = true
		p.put(l, true, time.Now()) // its first invoke says nothing of the next
		l = p.await(t.Context())
		none(0)
		<-time.After(2 * time.Millisecond)
		p.put(l, true, time.Now())
		l = p.await(t.Context())
		none(patienceOf * 2 * time.Millisecond)
		var work sync.WaitGroup
		got := make(chan int, 2)
		for n := range 2 {
			work.Go(func() {
				if l := p.await(t.Context()); l != nil {
					got <- n
					<-time.After(2 * time.Millisecond)
					p.put(l, true, time.Now())
				}
			})
			synctest.Wait()
		}
		p.put(l, true, time.Now())
		work.Wait()
		if len(got) != 2 || <-got != 0 {
			t.Error("not in turn")
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if l = p.await(t.Context()); l == nil || p.await(ended) != nil || len(p.lines["k"].waiting) != 0 {
			t.Error("one that hung up still waits")
		}
		for range 300 {
			p.lines["k"].paced(time.Second)
		}
		none(0) // it has become slow
		p.mu.Lock()
		clear(p.all)
		p.mu.Unlock()
		if p.stale(time.Now()); len(p.lines) > 0 {
			t.Error("what is known of a version outlives its leases")
		}
	})
}

// Who gives up at the moment when an instance comes leaves it to the next.
func TestLineLeave(t *testing.T) {
	p := newTestPool(time.Minute, nil)
	l := p.grant("a", time.Now())
	_, first, _ := p.join("k")
	_, second, _ := p.join("k")
	p.put(l, true, time.Now())
	p.leave("k", first)
	if g, came := second.wait(t.Context(), 0); !came || g.l != l {
		t.Errorf("got %+v, %v", g, came)
	}
	p.put(l, true, time.Now())
	if l.busy || len(p.idle["k"]) != 1 || p.awaited() {
		t.Error("it is idle for nobody")
	}
}

// As many starts are under way as invokes rely on one, the last is spared when
// one is served otherwise, and its end is told to who has come meanwhile.
func TestLineStarts(t *testing.T) {
	synctest.Test(t, testLineStarts) // no time passes by itself
}

func testLineStarts(t *testing.T) {
	p := newTestPool(time.Minute, nil)
	busy := p.grant("a", time.Now())
	_, w1, _ := p.join("k")
	_, w2, _ := p.join("k")
	s1, s2 := p.want("k", w1), p.want("k", w2)
	if s1 == nil || s2 == nil || p.want("k", w2) != nil {
		t.Fatal("want a start each, and no more")
	}
	busy.fresh = true // it says nothing of how quick it is
	p.put(busy, true, time.Now())
	if g, came := w1.wait(t.Context(), 0); !came || g.l != busy {
		t.Fatalf("got %+v", g)
	}
	if s1.isSpare() || !s2.isSpare() {
		t.Error("want the last start spared")
	}
	_, w3, _ := p.join("k")
	if p.want("k", w3) != nil {
		t.Error("a start too many: two wait, and two are under way")
	}
	w3.since = time.Now().Add(-coverTime)
	if s := p.want("k", w3); s == nil || len(p.lines["k"].starts) != 3 {
		t.Error("no start for one that has waited for long")
	} else {
		p.started("k", s, grant{err: errSurplus})
	}
	if _, came := w2.wait(t.Context(), 0); came {
		t.Error("a start that nobody needs is told of")
	}
	p.started("k", s2, grant{err: errSurplus})
	if g, came := w2.wait(t.Context(), 0); !came || !errors.Is(g.err, errGone) {
		t.Errorf("two wait, and one is under way: got %+v, %v", g, came)
	}
	fresh := p.grant("b", time.Now())
	fresh.fresh = true
	p.started("k", s1, grant{l: fresh})
	if g, came := w3.wait(t.Context(), 0); !came || g.l != fresh || !fresh.fresh || !fresh.busy {
		t.Errorf("who waits gets what has started: %+v, %v", g, came)
	}
	if of := p.lines["k"]; len(of.starts)+len(of.waiting)+of.wanting != 0 {
		t.Errorf("left: %+v", of)
	}
}

// A line that moves is given a quarter more instances, and not at once; one
// that has come to a halt is given what it wants.
func TestLineGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPool(time.Minute, nil)
		var busy []*leased
		for n := range 9 {
			busy = append(busy, p.grant(string(rune('a'+n)), time.Now()))
		}
		p.line("k").quick = time.Millisecond
		var line []*waiter
		for range 8 {
			_, w, _ := p.join("k")
			line = append(line, w)
		}
		wanted := func() (n int) {
			for _, w := range line[1:] {
				if p.want("k", w) != nil {
					n++
				}
			}
			return n
		}
		p.put(busy[0], true, time.Now()) // to the first
		if n := wanted(); n != 0 {
			t.Errorf("%d starts, at once", n)
		}
		<-time.After(worthTime)
		_, late, _ := p.join("k")
		p.line("k").moved = time.Now()
		if n := wanted(); n != 9/growthPart || p.want("k", late) != nil {
			t.Errorf("%d starts, in a line that moves", n)
		}
		<-time.After(stallTime)
		if n := wanted(); n != 7-9/growthPart || p.want("k", late) == nil {
			t.Errorf("%d more, in one that stands", n)
		}
	})
}

// A frontend that ends waits for those who wait, but not for long, and starts
// nothing more.
func TestLineClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPool(time.Minute, nil)
		p.begin(func() { <-p.life.Done() })
		_, w, _ := p.join("k")
		began := time.Now()
		p.close()
		if d := time.Since(began); d < lastTime || d > 2*lastTime {
			t.Errorf("took %v", d)
		}
		if p.begin(func() {}) {
			t.Error("it starts more")
		}
		p.leave("k", w)
		began = time.Now()
		if p.close(); time.Since(began) != 0 {
			t.Error("nobody waits")
		}
	})
}

// behind invokes a function while another invoke has its instance, and gives what
// comes of it. The start that it asks for takes what is sent to the worker's starts.
func (d *door) behind() (answer <-chan error) {
	d.t.Helper()
	d.function("f")
	d.ok("f", "1")
	d.worker.starts = make(chan int)
	held := make(chan error, 1)
	go func() {
		ctx := context.WithoutCancel(d.t.Context()) // it is ended in Cleanup
		_, err := d.client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`"hold"`)})
		held <- err
	}()
	d.t.Cleanup(func() {
		d.worker.letGo()
		if err := <-held; err != nil {
			d.t.Error(err)
		}
	})
	d.until("it works", func() bool { _, invokes, _ := d.worker.counts(); return invokes == 2 })
	out := make(chan error, 1)
	go func() {
		_, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte("2")})
		out <- err
	}()
	d.until("another is asked for", func() bool { starts, _, _ := d.worker.counts(); return starts >= 2 })
	return out
}

// An invoke that waits for a start takes an instance that is free sooner; what
// has started later is there for the next.
func TestStartServesOthers(t *testing.T) {
	d := newDoor(t)
	answer := d.behind()
	d.worker.letGo()
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	d.worker.starts <- http.StatusNoContent
	d.until("both are idle", func() bool { return d.pool.count(false) == 2 })
	if starts, invokes, _ := d.worker.counts(); starts != 2 || invokes != 3 {
		t.Errorf("%d starts, %d invokes", starts, invokes)
	}
}

// A start that has not begun is taken back once nobody needs it.
func TestStartTakenBack(t *testing.T) {
	d := newDoor(t)
	answer := d.behind()
	d.worker.queued.Store(true)
	d.worker.letGo()
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	d.until("it is taken back", func() bool {
		d.worker.mu.Lock()
		defer d.worker.mu.Unlock()
		return len(d.worker.instances) == 1
	})
	d.until("one is left", func() bool { return d.pool.count(false) == 1 && d.pool.count(true) == 0 })
}

// What ends a start is told to the invoke; what ends its worker is not: it starts
// elsewhere.
func TestStartFails(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		kind   string
	}{
		{"gone", http.StatusGone, ""}, {"worker dies", 0, ""}, // or its connection, so that it is asked again
		{"no image", http.StatusBadGateway, "ResourceNotReadyException"}, {"cannot start", http.StatusInternalServerError, "ServiceException"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDoor(t)
			answer := d.behind()
			d.worker.starts <- c.status
			if c.kind != "" {
				refused(t, <-answer, c.kind, "")
				return
			}
			d.worker.starts <- http.StatusNoContent
			if err := <-answer; err != nil {
				t.Error(err)
			}
			if starts, _, _ := d.worker.counts(); c.status != 0 && starts != 3 {
				t.Errorf("%d starts, want another", starts)
			}
		})
	}
}
