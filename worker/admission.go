package worker

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"
)

// errFull says that as many starts wait as may.
var errFull = errors.New("too many starts wait already")

// A start keeps others from running for turnTime at most, and then only others of
// its own account: its image may have to wait for chunks, and its init may take ten
// seconds, and many wait for a database all that time. An init is looked at every
// turnTick, and one that has run for less than a turnIdle-th of it waits, unless
// for a processor, and keeps nobody: on a machine that has more to do than it can,
// those that compute get as little, and more of them would get less.
const (
	turnTick = 100 * time.Millisecond
	turnTime = time.Second
	turnIdle = 10
)

// turn is what a start that runs keeps others from.
type turn int

const (
	turnNone    turn = iota // it waits for something else than a processor
	turnAccount             // starts of its account
	turnAll
)

// admission lets few starts run at once: more at once make each slower and none
// sooner. Of those that wait the next is of the account that has the fewest, of
// its functions the one that has the fewest, and of these starts the oldest. It is
// safe for concurrent use.
type admission struct {
	most, limit int
	run         func(*instance) // starts one, and calls done at its end; it does not wait

	mu      sync.Mutex // guards what follows
	running map[*instance]turn
	queue   []*instance
}

func newAdmission(most, limit int, run func(*instance)) *admission {
	return &admission{most: most, limit: limit, run: run, running: map[*instance]turn{}}
}

// add has a start run, now or in its turn, or refuses it.
func (a *admission) add(i *instance) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.queue = append(a.queue, i)
	a.next()
	if last := len(a.queue) - 1; last >= a.limit { // it still waits: those before it did already
		a.queue = slices.Delete(a.queue, last, last+1)
		return errFull
	}
	return nil
}

// turns counts starts that keep others from running.
type turns struct {
	all      int
	account  map[string]int
	function map[[2]string]int // by account and name
}

func functionOf(i *instance) [2]string { return [2]string{i.spec.Account, i.spec.Function} }

func (t *turns) add(i *instance) {
	t.account[i.spec.Account]++
	t.function[functionOf(i)]++
}

// less tells whether one start comes before another that is older.
func (t *turns) less(i, older *instance) bool {
	return cmp.Or(cmp.Compare(t.account[i.spec.Account], t.account[older.spec.Account]), cmp.Compare(t.function[functionOf(i)], t.function[functionOf(older)])) < 0
}

// turns counts. mu is held.
func (a *admission) turns() *turns {
	t := &turns{account: map[string]int{}, function: map[[2]string]int{}}
	for i, keeps := range a.running {
		if keeps == turnAll {
			t.all++
		}
		if keeps != turnNone {
			t.add(i)
		}
	}
	return t
}

// next runs what may. mu is held.
func (a *admission) next() {
	if len(a.queue) == 0 {
		return // as nearly always: there is nothing to count for
	}
	for t := a.turns(); t.all < a.most; t.all++ {
		best := -1
		for at, i := range a.queue {
			if t.account[i.spec.Account] < a.most && (best < 0 || t.less(i, a.queue[best])) {
				best = at
			}
		}
		if best < 0 {
			return
		}
		i := a.queue[best]
		a.queue = slices.Delete(a.queue, best, best+1)
		a.running[i] = turnAll
		t.add(i)
		a.run(i)
	}
}

// keeps says what a start that runs keeps others from.
func (a *admission) keeps(i *instance, t turn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.running[i]; ok {
		a.running[i] = t
		a.next()
	}
}

// done is told that a start is over.
func (a *admission) done(i *instance) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.running, i)
	a.next()
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
	return len(a.running), len(a.queue)
}

// processor is what is known of how processes use it, as cgroups.Group has it.
type processor interface {
	CPUTime() (time.Duration, error)
	Busy() bool
}

// giveWay lets others start while an init waits or takes long, until it is over.
func (a *admission) giveWay(i *instance, used processor, over <-chan struct{}) {
	tick := time.NewTicker(turnTick)
	defer tick.Stop()
	keeps, last := turnAll, time.Duration(0)
	for began, looked := time.Now(), time.Now(); ; {
		select {
		case <-over:
			return
		case <-tick.C:
		}
		now := time.Now()
		ran, err := used.CPUTime()
		switch {
		case err != nil:
			return // it ends
		case ran-last < now.Sub(looked)/turnIdle && !used.Busy():
			keeps = turnNone
		case keeps == turnNone || now.Sub(began) >= turnTime:
			keeps = turnAccount
		}
		last, looked = ran, now
		a.keeps(i, keeps)
	}
}
