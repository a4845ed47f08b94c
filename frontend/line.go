package frontend

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"
)

const (
	// patience is the longest that an invoke waits for a busy instance before a
	// start is asked for, where nobody is served meanwhile: less than a start takes. Of a function that answers in
	// two milliseconds hardly ever is another needed, and a few starts that are not
	// needed take the processor from those that answer.
	patience = 20 * time.Millisecond
	// patienceOf is how many of the function's quickest invokes it waits.
	patienceOf = 4
	// worthTime is how long it waits in a line that moves: a start takes as long,
	// and the processor from those that answer. Such a line is given a quarter more
	// instances at a time, or two: it soon has what its machines allow.
	worthTime   = 100 * time.Millisecond
	growthPart  = 4
	growthLeast = 2
	// stallTime is after what a line does not move: its invokes have become slow.
	stallTime = 50 * time.Millisecond
	// coverTime is how long an invoke relies on starts that were asked for by
	// others: a start takes less, unless it hangs.
	coverTime = time.Second
)

// line is where invokes of a version wait for an instance, whichever is free
// first: one whose invoke has ended, or one that has started. So a start serves
// whoever waits, and who is served sooner leaves it to others.
//
//	an invoke ─ idle instance? ─ yes ─→ it
//	              │ no
//	            line: wait for a while, if its invokes are quick
//	              │
//	            fewer starts under way than rely on one? ─ yes ─→ ask for one
//	              │
//	            wait ←── instance that is free ── or why a start failed
type line struct {
	// quick is about the quickest of late: each that was slower lets it grow by a
	// 64th, so that it follows a version that has become slow. 0: nothing is known.
	quick   time.Duration
	waiting []*waiter // the first came first
	wanting int       // of them, those that rely on a start
	moved   time.Time // when one was served
	starts  []*start  // under way; the first was asked for first
}

// waiter is an invoke that waits. What it waits for comes once.
type waiter struct {
	got     chan grant
	since   time.Time
	wanting bool
}

// grant is an instance, busy, or why there is none.
type grant struct {
	l   *leased
	err error
}

// start is one that was asked for.
type start struct {
	surplus chan struct{} // closed when nobody needs it any more
}

// line gives the key's. mu is held.
func (p *pool) line(key string) *line {
	of := p.lines[key]
	if of == nil {
		of = &line{}
		p.lines[key] = of
	}
	return of
}

// join gives an idle instance of the key, or puts an invoke at the end of the
// line, and says how long it is to wait before a start is asked for.
func (p *pool) join(key string) (*leased, *waiter, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.get(key, time.Now()); l != nil {
		return l, nil, 0
	}
	of, w := p.line(key), &waiter{got: make(chan grant, 1), since: time.Now()}
	of.waiting = append(of.waiting, w)
	if !of.isQuick() {
		return nil, w, 0
	}
	return nil, w, min(patienceOf*of.quick, patience)
}

// wait waits for what comes, and says whether it has.
func (w *waiter) wait(ctx context.Context, limit time.Duration) (g grant, came bool) {
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case g := <-w.got:
		return g, true
	case <-late.C:
	case <-ctx.Done():
	}
	select {
	case g := <-w.got: // at the same moment
		return g, true
	default:
		return grant{}, false
	}
}

// leave takes an invoke out of the line that gives up. What has come at the same
// moment is for others.
func (p *pool) leave(key string, w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.line(key)
	if i := slices.Index(of.waiting, w); i >= 0 {
		of.take(i)
		return
	}
	if g := <-w.got; g.l != nil {
		p.free(g.l, true, time.Now())
	}
}

// take takes a waiter out, and with it the need for a start. mu is held.
func (of *line) take(i int) *waiter {
	w := of.waiting[i]
	of.waiting = slices.Delete(of.waiting, i, i+1)
	if w.wanting {
		of.wanting--
	}
	if n := len(of.starts); n > of.wanting {
		of.starts[n-1].spare()
	}
	return w
}

// spare says that the start is not needed. mu is held.
func (s *start) spare() {
	if !s.isSpare() {
		close(s.surplus)
	}
}

func (s *start) isSpare() bool {
	select {
	case <-s.surplus:
		return true
	default:
		return false
	}
}

// want says that an invoke is in need of a start. It gives one to ask for if it
// may rely on one now, and there is none for it.
func (p *pool) want(key string, w *waiter) *start {
	p.mu.Lock()
	defer p.mu.Unlock()
	of, waited, most := p.line(key), time.Since(w.since), math.MaxInt
	if of.isQuick() && time.Since(of.moved) < stallTime {
		if waited < worthTime {
			return nil
		}
		most = max(growthLeast, p.live(key)/growthPart)
	}
	if !w.wanting && slices.Contains(of.waiting, w) {
		w.wanting = true
		of.wanting++
	}
	if len(of.starts) >= min(most, of.wanting) && waited < coverTime {
		return nil
	}
	s := &start{surplus: make(chan struct{})}
	of.starts = append(of.starts, s)
	return s
}

// live counts the key's instances. mu is held.
func (p *pool) live(key string) (n int) {
	for _, l := range p.all {
		if l.key == key {
			n++
		}
	}
	return n
}

// started ends a start: its instance, if there is one, is free for whoever is
// first; why there is none is told to the first that relies on it.
func (p *pool) started(key string, s *start, g grant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.line(key)
	of.starts = slices.DeleteFunc(of.starts, func(o *start) bool { return o == s })
	if g.l != nil {
		p.free(g.l, g.err == nil, time.Now())
	}
	if errors.Is(g.err, errSurplus) {
		if len(of.starts) >= of.wanting {
			return
		}
		g.err = errGone // somebody has come meanwhile: to ask again
	}
	if i := slices.IndexFunc(of.waiting, func(w *waiter) bool { return w.wanting }); g.err != nil && i >= 0 {
		of.take(i).got <- grant{err: g.err}
	}
}

// begin runs f beside, unless the pool is closed.
func (p *pool) begin(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.work.Go(f)
	return true
}

// errClosed says that the frontend is about to end.
var errClosed = errors.New("the frontend ends")

// errSurplus says that a start was given up because nobody needed it.
var errSurplus = errors.New("the start was not needed any more")

// isQuick says whether to wait for a busy instance is better than to start one.
func (of *line) isQuick() bool { return of.quick > 0 && of.quick <= patience }

// paced notes how long an invoke took.
func (of *line) paced(took time.Duration) {
	if of.quick == 0 {
		of.quick = took
	}
	of.quick = min(took, of.quick+of.quick/64)
}

// instance gives a leased one: the first that is free.
func (f *Frontend) instance(ctx context.Context, inv *invocation, avoid []string) (*leased, error) {
	p, key := f.pool, inv.target.key
	l, w, limit := p.join(key)
	if l != nil {
		return l, nil
	}
	g, came := w.wait(ctx, limit)
	for asked := false; !came && ctx.Err() == nil; {
		limit = max(patience, time.Since(w.since)) // seldomer and seldomer
		if asked {
			limit = f.options.Start + startGrace
		} else if s := p.want(key, w); s != nil {
			asked = true
			a, of := f.acquisition(inv, avoid), inv.function()
			if !p.begin(func() { p.started(key, s, f.start(a, of, s)) }) {
				p.started(key, s, grant{err: errClosed})
			}
		}
		g, came = w.wait(ctx, limit)
	}
	if !came {
		p.leave(key, w)
		return nil, context.Cause(ctx)
	}
	return g.l, g.err
}
