package worker

import (
	"errors"
	"slices"
	"sync"
)

// errFull says that as many starts wait as may.
var errFull = errors.New("too many starts wait already")

// admission lets few starts run at once, the oldest first: more at once make each
// slower and none sooner. It is safe for concurrent use.
type admission struct {
	most, limit int
	run         func(*instance) // starts one, and calls done at its end; it does not wait

	mu      sync.Mutex // guards what follows
	running int
	queue   []*instance
}

// add has a start run, now or in its turn, or refuses it.
func (a *admission) add(i *instance) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.running < a.most:
		a.running++
		a.run(i)
	case len(a.queue) >= a.limit:
		return errFull
	default:
		a.queue = append(a.queue, i)
	}
	return nil
}

// done is told that a start is over.
func (a *admission) done() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		a.running--
		return
	}
	next := a.queue[0]
	a.queue = slices.Delete(a.queue, 0, 1)
	a.run(next)
}

// remove takes a start back, if it has not begun.
func (a *admission) remove(i *instance) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := slices.Index(a.queue, i)
	if at < 0 {
		return false
	}
	a.queue = slices.Delete(a.queue, at, at+1)
	return true
}

// counts gives how many starts run, and how many wait.
func (a *admission) counts() (running, queued int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running, len(a.queue)
}
