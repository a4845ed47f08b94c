package events

import (
	"sync"
	"time"
)

// maxGate is how much longer than the first back-off a function rests at most
// before another of its events probes whether there is room again.
const maxGate = 8

// gate bounds how many events of one function are tried at a time. What is
// throttled halves the number and closes the gate for a while, so that a backlog
// costs a probe now and then and not a storm; what runs doubles it again.
type gate struct {
	most int

	mu     sync.Mutex // guards what follows
	limit  int
	active int
	rest   time.Duration // of the last closing
	until  time.Time     // closed until then
}

func newGate(most int) *gate { return &gate{most: most, limit: most} }

// room is how many more may be tried now; if that is none since the gate is
// closed, it is how long that lasts.
func (g *gate) room(now time.Time) (int, time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if closed := g.until.Sub(now); closed > 0 {
		return 0, closed
	}
	return max(g.limit-g.active, 0), 0
}

// enter counts one that is being tried.
func (g *gate) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active++
}

// leave counts one that is not any more.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active--
}

// idle tells whether none is being tried.
func (g *gate) idle() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.active == 0
}

// learn changes the limit by the end of a try. Those that were already under
// way when the gate closed do not close it further.
func (g *gate) learn(k Kind, backoff time.Duration, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch k {
	case Succeeded, FunctionError:
		g.limit, g.rest, g.until = min(2*g.limit, g.most), 0, time.Time{}
	case Throttled, SystemError:
		if now.Before(g.until) {
			return
		}
		g.limit = max(g.limit/2, 1)
		g.rest = min(max(2*g.rest, backoff), maxGate*backoff)
		g.until = now.Add(g.rest)
	}
}
