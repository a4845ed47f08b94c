package frontend

import (
	"context"
	"encoding/json"
	"maps"
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
	// lastTime is how long invokes may wait for starts once the frontend is to end.
	lastTime = 5 * time.Second
)

// leased is an instance that this frontend may give invokes to.
type leased struct {
	id, worker, key string
	function        functions.ID
	expires         time.Time
	idle            time.Time // since when
	busy            bool
	fresh           bool      // it has not answered yet
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
	lines  map[string]*line        // by key, while there are leases, or invokes that wait
	ttl    time.Duration
	wake   chan struct{}
	closed bool

	life context.Context // of starts
	stop context.CancelFunc
	work sync.WaitGroup // starts
}

func newPool(id string, idle time.Duration, m *managers) *pool {
	life, stop := context.WithCancel(context.Background())
	return &pool{
		id: id, idleTime: idle, managers: m, ttl: defaultTTL, wake: make(chan struct{}, 1),
		all: map[string]*leased{}, idle: map[string][]*leased{}, flying: map[functions.ID]int{}, lost: map[string]functions.ID{},
		lines: map[string]*line{}, life: life, stop: stop,
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

// get gives an idle instance of the key, the one that was used last, or nil. mu
// is held.
func (p *pool) get(key string, now time.Time) *leased {
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
		p.line(l.key).paced(max(now.Sub(l.began), 1))
	}
	l.fresh = false
	p.free(l, alive, now)
}

// free lets others have an instance: the first that waits for one. mu is held.
func (p *pool) free(l *leased, alive bool, now time.Time) {
	l.busy, l.idle = false, now
	of := p.line(l.key)
	switch {
	case !alive:
		delete(p.all, l.id)
		p.lost[l.id] = l.function
		p.signal()
	case l.gone || p.all[l.id] != l:
		delete(p.all, l.id)
	case len(of.waiting) > 0 && now.Before(l.expires):
		l.busy, l.began, of.moved = true, now, now
		of.take(0).got <- grant{l: l}
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
			p.close()
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

// close ends starts, once nobody waits for one or lastTime is over.
func (p *pool) close() {
	for end := time.Now().Add(lastTime); p.awaited() && time.Now().Before(end); {
		<-time.After(10 * time.Millisecond)
	}
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	p.work.Wait()
}

// awaited says whether an invoke waits for an instance.
func (p *pool) awaited() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, of := range p.lines {
		if len(of.waiting) > 0 {
			return true
		}
	}
	return false
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
	maps.DeleteFunc(p.lines, func(key string, of *line) bool { return !used[key] && len(of.waiting)+len(of.starts) == 0 })
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
