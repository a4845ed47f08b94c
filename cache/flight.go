package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// errClosed says that no work is begun any more.
var errClosed = errors.New("cache: closed")

// flights lets all who want one thing at a time wait for one piece of work.
// The work runs in a goroutine of its own, on a context that ends when nobody
// waits any more, so that no waiter's end is another's. The zero value is
// ready; whoever has one calls close, which waits for the work.
type flights[K comparable, V any] struct {
	// share, if set, is told how many more have a value, before they get it, and
	// -1 when nobody can get it any more: that is for the work's own use of it. It
	// is called with mu held.
	share func(v V, n int)

	mu      sync.Mutex // guards what follows, and the calls' fields of that name
	calls   map[K]*call[V]
	closed  bool
	running sync.WaitGroup
}

type call[V any] struct {
	done   chan struct{} // closed once value and err are set
	ended  chan struct{} // closed once the work is over
	value  V
	err    error
	cancel context.CancelFunc

	waiters int   // guarded by flights.mu
	cause   error // guarded by flights.mu: why the work has not come to an end yet
	set     bool  // guarded by flights.mu: value and err are
}

// work gives a value or an error.
type work[V any] func(ctx context.Context, u under[V]) (V, error)

// under is what work can say while it is under way.
type under[V any] struct {
	// tell says why it is still trying: one who stops waiting gets the last such
	// cause.
	tell func(error)
	// give hands out the value before all is done. Its ctx may end from then on
	// or not.
	give func(V)
}

// do gives what the work for the key gives, which may have been begun by
// another. One whose ctx ends gets the error of the ctx, and with it the cause
// that the work told. A panic of the work is an error to all.
func (g *flights[K, V]) do(ctx context.Context, key K, work work[V]) (V, error) {
	var none V
	if err := ctx.Err(); err != nil {
		return none, &ended{err, nil}
	}
	c, err := g.join(ctx, key, work)
	if err != nil {
		return none, err
	}
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		return g.leave(ctx, key, c)
	}
}

// whole is do for one who waits until the work is over.
func (g *flights[K, V]) whole(ctx context.Context, key K, work work[V]) (V, error) {
	var none V
	c, err := g.join(ctx, key, work)
	if err != nil {
		return none, err
	}
	select {
	case <-c.ended:
		return c.value, c.err
	case <-ctx.Done():
		return g.leave(ctx, key, c)
	}
}

func (g *flights[K, V]) join(ctx context.Context, key K, work work[V]) (*call[V], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errClosed
	}
	if c := g.calls[key]; c != nil {
		c.waiters++
		if c.set && c.err == nil && g.share != nil {
			g.share(c.value, 1)
		}
		return c, nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &call[V]{done: make(chan struct{}), ended: make(chan struct{}), cancel: cancel, waiters: 1}
	if g.calls == nil {
		g.calls = map[K]*call[V]{}
	}
	g.calls[key] = c
	g.running.Go(func() { g.run(ctx, key, c, work) })
	return c, nil
}

func (g *flights[K, V]) run(ctx context.Context, key K, c *call[V], work work[V]) {
	var value V
	err := errInternal // in case the work ends its goroutine
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: panic: %v", errInternal, p)
		}
		c.cancel()
		g.set(key, c, value, err, true)
		close(c.ended)
	}()
	value, err = work(ctx, under[V]{
		tell: func(cause error) {
			g.mu.Lock()
			c.cause = cause
			g.mu.Unlock()
		},
		give: func(v V) { g.set(key, c, v, nil, false) },
	})
}

// set hands out what came of the work, unless it was given before.
func (g *flights[K, V]) set(key K, c *call[V], value V, err error, last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !c.set {
		if g.closed && err != nil {
			err = errClosed
		}
		c.value, c.err, c.set = value, err, true
		if err == nil && g.share != nil {
			g.share(value, c.waiters)
		}
		close(c.done)
	}
	if last {
		g.forget(key, c)
		if c.err == nil && g.share != nil {
			g.share(c.value, -1)
		}
	}
}

// leave is for one who does not wait any more. It may be too late for that.
func (g *flights[K, V]) leave(ctx context.Context, key K, c *call[V]) (V, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.set {
		return c.value, c.err
	}
	if c.waiters--; c.waiters == 0 {
		g.forget(key, c) // the next who comes must not join work that is ending
		c.cancel()
	}
	var none V
	return none, &ended{ctx.Err(), c.cause}
}

// ended is the error of one who stopped waiting.
type ended struct {
	err   error // the ctx's
	cause error // nil if the work told none
}

// Error says why it stopped, and what it was that took so long.
func (e *ended) Error() string {
	if e.cause == nil {
		return e.err.Error()
	}
	return fmt.Sprintf("%v: %v", e.err, e.cause)
}

// Unwrap gives both errors.
func (e *ended) Unwrap() []error {
	if e.cause == nil {
		return []error{e.err}
	}
	return []error{e.err, e.cause}
}

// forget needs mu held.
func (g *flights[K, V]) forget(key K, c *call[V]) {
	if g.calls[key] == c {
		delete(g.calls, key)
	}
}

// count is how many are under way.
func (g *flights[K, V]) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.calls)
}

// close ends all work and waits for it.
func (g *flights[K, V]) close() {
	g.mu.Lock()
	g.closed = true
	for _, c := range g.calls {
		c.cancel()
	}
	g.mu.Unlock()
	g.running.Wait()
}
