package manager

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// directory is the part of the cluster's memory that managers use.
type directory interface {
	// Take enters a key until its hold is not renewed. It fails with errTaken
	// and the value that is there.
	Take(ctx context.Context, key string, value []byte) (hold, []byte, error)
	// Watch tells of all keys under a prefix, then of each change, until ctx
	// ends; a nil value is a key that has gone, and an empty key says that all
	// that was there has been told.
	Watch(ctx context.Context, prefix string, tell func(key string, value []byte)) error
	// End ends the holds under a prefix whose holder is known to have died.
	End(ctx context.Context, prefix string, died func(key string, value []byte) bool) error
}

// hold is a key that was taken.
type hold interface {
	Renew(ctx context.Context, value []byte) error
	Release(ctx context.Context) error
	Lost() <-chan struct{}
}

// errTaken says that another holds a key.
var errTaken = errors.New("taken")

const (
	// otherTime is how long another manager is taken for a function's owner
	// without asking again. A manager that has lost it says so itself.
	otherTime = 2 * time.Second
	// directoryTime bounds a request to the cluster: its leases are in memory.
	directoryTime = 5 * time.Second
)

// misdirected says that another manager owns a function.
type misdirected struct{ owner string }

func (e *misdirected) Error() string { return "owned by manager " + e.owner }

// owners knows which functions this manager owns.
type owners struct {
	id      string
	members directory

	mu    sync.Mutex
	known map[function]*ownership
}

// ownership of one function. Who looks it up takes turns: turn holds one token.
type ownership struct {
	turn  chan struct{}
	hold  hold      // nil: not ours
	other string    // whose it was
	until time.Time // other is believed
}

func newOwners(id string, d directory) *owners {
	return &owners{id: id, members: d, known: map[function]*ownership{}}
}

func (o *ownership) held() bool {
	if o.hold == nil {
		return false
	}
	select {
	case <-o.hold.Lost():
		return false
	default:
		return true
	}
}

// has says whether a function is owned.
func (o *owners) has(f function) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	own := o.known[f]
	return own != nil && own.held()
}

// ensure owns a function from now on, or returns *misdirected. taken says that
// it was not owned before.
func (o *owners) ensure(ctx context.Context, f function) (taken bool, err error) {
	own := o.entry(f)
	select {
	case <-own.turn:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { own.turn <- struct{}{} }()
	o.mu.Lock()
	held, other, until := own.held(), own.other, own.until
	o.mu.Unlock()
	if held {
		return false, nil
	}
	if time.Now().Before(until) {
		return false, &misdirected{other}
	}
	ctx, cancel := context.WithTimeout(ctx, directoryTime)
	defer cancel()
	h, value, err := o.members.Take(ctx, "owner/"+f.account+"/"+f.name, []byte(o.id))
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case errors.Is(err, errTaken) && string(value) == o.id:
		return false, fmt.Errorf("owner of %s/%s: this manager's former process, until its lease ends", f.account, f.name)
	case errors.Is(err, errTaken):
		own.hold, own.other, own.until = nil, string(value), time.Now().Add(otherTime)
		return false, &misdirected{own.other}
	case err != nil:
		return false, fmt.Errorf("owner of %s/%s: %w", f.account, f.name, err)
	}
	own.hold, own.until = h, time.Time{}
	o.known[f] = own // it may have been dropped meanwhile
	return true, nil
}

func (o *owners) entry(f function) *ownership {
	o.mu.Lock()
	defer o.mu.Unlock()
	own := o.known[f]
	if own == nil {
		own = &ownership{turn: make(chan struct{}, 1)}
		own.turn <- struct{}{}
		o.known[f] = own
	}
	return own
}

// renew keeps what is owned, and drops what was lost.
func (o *owners) renew(ctx context.Context) {
	for f, h := range o.holds() {
		c, cancel := context.WithTimeout(ctx, directoryTime)
		_ = h.Renew(c, []byte(o.id)) // a lease that ends for it is told by Lost
		cancel()
		_ = f
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for f, own := range o.known {
		if !own.held() && now.After(own.until) && len(own.turn) == 1 {
			delete(o.known, f)
		}
	}
}

func (o *owners) holds() map[function]hold {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := map[function]hold{}
	for f, own := range o.known {
		if own.held() {
			m[f] = own.hold
		}
	}
	return m
}

// release gives functions up.
func (o *owners) release(ctx context.Context, list []function) {
	for _, f := range list {
		o.mu.Lock()
		own := o.known[f]
		var h hold
		if own != nil && len(own.turn) == 1 {
			h = own.hold
			delete(o.known, f)
		}
		o.mu.Unlock()
		if h != nil {
			c, cancel := context.WithTimeout(ctx, directoryTime)
			_ = h.Release(c) // it ends by itself
			cancel()
		}
	}
}

// all gives the functions that are owned.
func (o *owners) all() []function {
	var list []function
	for f := range o.holds() {
		list = append(list, f)
	}
	return list
}
