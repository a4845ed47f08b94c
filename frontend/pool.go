package frontend

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"thaw/functions"
	"thaw/invokewire"
)

const (
	// defaultTTL is what leases last until a manager has said how long.
	defaultTTL = 15 * time.Second
	// poolTick is how often idle leases are looked at.
	poolTick = time.Second
	// poolTime bounds a request of renewals.
	poolTime = 5 * time.Second
	// patience is the longest that an invoke waits for a busy instance before
	// another is asked for: less than a start takes. Of a function that answers in
	// two milliseconds hardly ever is another needed, and a few starts that are not
	// needed take the processor from those that answer.
	patience = 20 * time.Millisecond
	// patienceOf is how many of the function's quickest invokes it waits.
	patienceOf = 4
)

// pace is what is known of a version's invokes.
type pace struct {
	// quick is about the quickest of late: each that was slower lets it grow by a
	// 64th, so that it follows a version that has become slow.
	quick   time.Duration
	waiting []chan *leased // each gets one instance; the first came first
}

// leased is an instance that this frontend may give invokes to.
type leased struct {
	id, worker, key string
	function        functions.ID
	expires         time.Time
	idle            time.Time // since when
	busy            bool
	fresh           bool      // it has not answered yet: it may be starting
	began           time.Time // of the invoke, while busy
	gone            bool      // not to be used again
}

// pool holds the leases of a frontend.
type pool struct {
	id       string
	idleTime time.Duration
	managers *managers

	mu     sync.Mutex
	all    map[string]*leased
	idle   map[string][]*leased    // by key; the one used last at the end
	flying map[functions.ID]int    // invokes under way
	lost   map[string]functions.ID // instances that their workers do not have: to be told
	paces  map[string]*pace        // by key, while there are leases
	ttl    time.Duration
	wake   chan struct{}
}

func newPool(id string, idle time.Duration, m *managers) *pool {
	return &pool{
		id: id, idleTime: idle, managers: m, ttl: defaultTTL, wake: make(chan struct{}, 1),
		all: map[string]*leased{}, idle: map[string][]*leased{}, flying: map[functions.ID]int{}, lost: map[string]functions.ID{},
		paces: map[string]*pace{},
	}
}

// enter counts an invoke of a function against its reserve, and says whether
// there is room. The manager does so too: this is for leases that are older than
// the reserve.
func (p *pool) enter(f functions.ID, reserved *int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reserved != nil && p.flying[f] >= *reserved {
		return false
	}
	p.flying[f]++
	return true
}

func (p *pool) exit(f functions.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flying[f]--; p.flying[f] <= 0 {
		delete(p.flying, f)
	}
}

// get gives an idle instance of the key, the one that was used last, or nil.
func (p *pool) get(key string, now time.Time) *leased {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[key]
	for len(list) > 0 {
		l := list[len(list)-1]
		list[len(list)-1] = nil
		list = list[:len(list)-1]
		if l.gone || now.After(l.expires) {
			delete(p.all, l.id)
			continue
		}
		l.busy, l.began = true, now
		p.keep(key, list)
		return l
	}
	p.keep(key, list)
	return nil
}

// await waits for a busy instance of the key, if its invokes are so quick that
// one is likely to be free soon; else, or if none was, it gives nil.
func (p *pool) await(ctx context.Context, key string) *leased {
	p.mu.Lock()
	of := p.paces[key]
	if of == nil || of.quick == 0 || of.quick > patience {
		p.mu.Unlock()
		return nil
	}
	mine := make(chan *leased, 1)
	of.waiting = append(of.waiting, mine)
	limit := time.NewTimer(min(patienceOf*of.quick, patience))
	p.mu.Unlock()
	defer limit.Stop()
	select {
	case l := <-mine:
		return l
	case <-limit.C:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(of.waiting, mine); i >= 0 {
		of.waiting = slices.Delete(of.waiting, i, i+1)
		return nil
	}
	return <-mine // it came at the same moment
}

// paced notes how long an invoke took.
func (p *pool) paced(key string, took time.Duration) {
	of := p.paces[key]
	if of == nil {
		of = &pace{quick: took}
		p.paces[key] = of
	}
	of.quick = min(took, of.quick+of.quick/64)
}

func (p *pool) keep(key string, list []*leased) {
	if len(list) == 0 {
		delete(p.idle, key)
		return
	}
	p.idle[key] = list
}

// add takes a lease that was just granted, busy.
func (p *pool) add(key string, f functions.ID, granted *invokewire.Lease, asked time.Time) *leased {
	p.mu.Lock()
	defer p.mu.Unlock()
	if granted.TTL > 0 {
		p.ttl = granted.TTL
	}
	l := &leased{id: granted.Instance, worker: granted.Worker, key: key, function: f, expires: asked.Add(p.ttl), busy: true, fresh: granted.Fresh, began: time.Now()}
	p.all[l.id] = l
	return l
}

// put gives an instance back after an invoke; alive is false if it can have no other.
func (p *pool) put(l *leased, alive bool, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if alive && !l.fresh {
		p.paced(l.key, max(now.Sub(l.began), 1))
	}
	l.busy, l.fresh, l.idle = false, false, now
	switch of := p.paces[l.key]; {
	case !alive:
		delete(p.all, l.id)
		p.lost[l.id] = l.function
		p.signal()
	case l.gone || p.all[l.id] != l:
		delete(p.all, l.id)
	case of != nil && len(of.waiting) > 0 && now.Before(l.expires):
		l.busy, l.began = true, now
		of.waiting[0] <- l
		of.waiting = of.waiting[1:]
	default:
		p.idle[l.key] = append(p.idle[l.key], l)
	}
}

// drop forgets an instance that was found to work for somebody else.
func (p *pool) drop(l *leased) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, l.id)
}

func (p *pool) signal() {
	select {
	case p.wake <- struct{}{}:
	default: // it has been told
	}
}

// spare takes idle instances out that stand in the way of an invoke that was
// throttled: those of its function, or of its account.
func (p *pool) spare(f functions.ID, reason string) map[string]functions.ID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.takeIdle(func(l *leased) bool {
		switch reason {
		case invokewire.ReasonReserved:
			return l.function == f
		case invokewire.ReasonAccount:
			return l.function.Account == f.Account
		}
		return true // workers have no room
	})
}

// takeIdle takes the idle instances out that match.
func (p *pool) takeIdle(match func(*leased) bool) map[string]functions.ID {
	taken := map[string]functions.ID{}
	for key, list := range p.idle {
		kept := list[:0]
		for _, l := range list {
			if match(l) {
				taken[l.id] = l.function
				delete(p.all, l.id)
			} else {
				kept = append(kept, l)
			}
		}
		clear(list[len(kept):])
		p.keep(key, kept)
	}
	return taken
}

// run renews leases and gives back what is not used, until ctx ends.
func (p *pool) run(ctx context.Context) {
	renewed := time.Now()
	for {
		select {
		case <-time.After(poolTick):
		case <-p.wake:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), poolTime)
			p.tellLost(last)
			p.release(last, p.stale(time.Time{}))
			cancel()
			return
		}
		now := time.Now()
		p.tellLost(ctx)
		p.release(ctx, p.stale(now))
		p.mu.Lock()
		due := now.Sub(renewed) >= p.ttl/3
		p.mu.Unlock()
		if due {
			renewed = now
			p.renew(ctx)
		}
	}
}

// stale takes out what has been idle for long; at the zero time, all that is.
func (p *pool) stale(now time.Time) map[string]functions.ID {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.takeIdle(func(l *leased) bool { return now.IsZero() || now.Sub(l.idle) >= p.idleTime })
	used := map[string]bool{}
	for _, l := range p.all {
		used[l.key] = true
	}
	maps.DeleteFunc(p.paces, func(key string, of *pace) bool { return !used[key] && len(of.waiting) == 0 })
	return taken
}

// release gives leases back. What is not told ends by itself.
func (p *pool) release(ctx context.Context, ids map[string]functions.ID) {
	p.managers.each(ctx, ids, func(ctx context.Context, manager string, ids []string) {
		p.post(ctx, manager, "/release", invokewire.Release{Frontend: p.id, Instances: ids}, nil)
	})
}

// tellLost reports instances that their workers no longer have.
func (p *pool) tellLost(ctx context.Context) {
	p.mu.Lock()
	lost := p.lost
	p.lost = map[string]functions.ID{}
	p.mu.Unlock()
	p.managers.each(ctx, lost, func(ctx context.Context, manager string, ids []string) {
		p.post(ctx, manager, "/release", invokewire.Release{Frontend: p.id, Gone: ids}, nil)
	})
}

// renew keeps all leases, busy ones too.
func (p *pool) renew(ctx context.Context) {
	p.mu.Lock()
	ids := make(map[string]functions.ID, len(p.all))
	for id, l := range p.all {
		ids[id] = l.function
	}
	p.mu.Unlock()
	p.managers.each(ctx, ids, func(ctx context.Context, manager string, ids []string) {
		var r invokewire.Renewed
		asked := time.Now()
		if p.post(ctx, manager, "/renew", invokewire.Renew{Frontend: p.id, Instances: ids}, &r) {
			p.renewed(ids, r.Gone, asked)
		}
	})
}

// renewed takes the answer to a renewal that was sent at asked.
func (p *pool) renewed(ids, gone []string, asked time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		if l := p.all[id]; l != nil {
			l.expires = asked.Add(p.ttl)
		}
	}
	for _, id := range gone {
		if l := p.all[id]; l != nil {
			l.gone = true // if it works, this is its last invoke
		}
	}
	p.takeIdle(func(l *leased) bool { return l.gone })
}

// post sends a request about leases, and says whether it was answered.
func (p *pool) post(ctx context.Context, manager, path string, in, out any) bool {
	ctx, cancel := context.WithTimeout(ctx, poolTime)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return false
	}
	if err := p.managers.post(ctx, manager, path, body, out); err != nil {
		p.managers.doubt(manager)
		return false
	}
	return true
}
