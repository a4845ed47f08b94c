package node

import (
	"sync"
	"sync/atomic"
	"time"

	"thaw/zone"
)

const (
	// maxLeases is how many stripes may be on their way from the origin at
	// once, 200 bytes each: more than the origin would bear. What is asked for
	// beyond that is granted to everybody.
	maxLeases = 1 << 16
	// maxWaiters is how many requests may wait for others' leases; who comes
	// then is told at once that the lease is held.
	maxWaiters = 4096
)

// leases are the rights to fill missing stripes. They live in memory only: a
// node that starts again grants anew.
type leases struct {
	length  time.Duration
	waiting atomic.Int64
	granted atomic.Uint64 // answers
	held    atomic.Uint64

	mu   sync.Mutex // guards what follows
	byID map[zone.StripeID]*lease
	// oldest to youngest. All last equally long, so they end in this order. One
	// that ended early stays until its time.
	order []*lease
}

// lease is one right. Over is closed when it ends before its time.
type lease struct {
	id    zone.StripeID
	token string
	until time.Time
	over  chan struct{} // made when somebody waits
}

func newLeases(length time.Duration) *leases {
	return &leases{length: min(length, zone.MaxWait), byID: map[zone.StripeID]*lease{}}
}

// ask grants the lease of a stripe, or says how long another has it and gives
// a channel that is closed if it ends earlier. Its holder is granted it anew,
// without more time.
func (l *leases) ask(id zone.StripeID, token string, now time.Time) (zone.Lease, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire(now)
	if have := l.byID[id]; have != nil {
		left := zone.Lease{Granted: have.token == token, For: have.until.Sub(now)}
		if left.Granted {
			return left, nil
		}
		if have.over == nil {
			have.over = make(chan struct{})
		}
		return left, have.over
	}
	if len(l.order) < maxLeases {
		have := &lease{id: id, token: token, until: now.Add(l.length)}
		l.byID[id] = have
		l.order = append(l.order, have)
	}
	return zone.Lease{Granted: true, For: l.length}, nil
}

// expire forgets what has ended. The caller holds mu.
func (l *leases) expire(now time.Time) {
	n := 0
	for n < len(l.order) && !l.order[n].until.After(now) {
		if have := l.order[n]; l.byID[have.id] == have {
			delete(l.byID, have.id)
		}
		l.order[n] = nil
		n++
	}
	l.order = l.order[n:]
}

// end ends the lease of a stripe that has come.
func (l *leases) end(id zone.StripeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	have := l.byID[id]
	if have == nil {
		return
	}
	delete(l.byID, id)
	if have.over != nil {
		close(have.over)
	}
}

// await returns true when a lease may be over, at the latest after d, and false
// at once if too many are waiting already, or when done is closed.
func (l *leases) await(over <-chan struct{}, d time.Duration, done <-chan struct{}) bool {
	if l.waiting.Add(1) > maxWaiters {
		l.waiting.Add(-1)
		return false
	}
	defer l.waiting.Add(-1)
	// Whole milliseconds behind the end, so that it is over by then.
	t := time.NewTimer(d + time.Millisecond)
	defer t.Stop()
	select {
	case <-over:
		return true
	case <-t.C:
		return true
	case <-done:
		return false
	}
}

// active is the number of leases, ended ones included until their time.
func (l *leases) active(now time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire(now)
	return len(l.byID)
}

// count counts what came of a question.
func (l *leases) count(a *answer) {
	switch {
	case !a.asked:
	case a.lease.Granted:
		l.granted.Add(1)
	default:
		l.held.Add(1)
	}
}
